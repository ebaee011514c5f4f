"""certdef: distill a deployed black box, defend both with a purifier, certify, attack, and track everything in MLflow.

    import certdef
    summary = certdef.run(certdef.load_config("digits", certify__n=2000))

Everything is loaded on first use, so that `import certdef` and `certdef --help` stay light.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.2.0"

_HOME = {
    "run": "certdef.pipeline",
    "pretrain": "certdef.pipeline",
    "distill": "certdef.pipeline",
    "certify": "certdef.pipeline",
    "robustness": "certdef.pipeline",
    "merge": "certdef.pipeline",
    "attack": "certdef.pipeline",
    "purify": "certdef.pipeline",
    "report": "certdef.pipeline",
    "plan": "certdef.pipeline",
    "compare": "certdef.release.compare",
    "evidence": "certdef.release.evidence",
    "serve": "certdef.models.serving",
    "doctor": "certdef.doctor",
    "cite": "certdef.report.citations",
    "plot": "certdef.report.plots",
    "load_config": "certdef.config.load",
    "RunConfig": "certdef.config.job",
    "ConfigError": "certdef.config.job",
}
__all__ = ["__version__", "purifiers", *_HOME]


def __getattr__(name: str) -> object:
    if name == "purifiers":
        return import_module("certdef.purifiers")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'certdef' has no attribute {name!r}")


class _Package(ModuleType):
    """`certdef.report` and `certdef.doctor` stay functions although a room and a file bear these names too."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


class _Moved(ModuleType):
    """A module under the name that it had in version 0.1.0; what it held is loaded on first use, from where it is now."""

    def __init__(self, name: str, homes: tuple[str, ...]) -> None:
        super().__init__(name)
        self._homes = homes

    def __getattr__(self, name: str) -> object:
        if not name.startswith("__"):  # what importlib and inspect look for
            for home in map(import_module, self._homes):
                if hasattr(home, name):
                    return getattr(home, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


# Models that were logged then, and scripts that were written then, import these.
_MOVED = {
    "certdef.serving": ("certdef.models.serving",),
    "certdef.storage": ("certdef.models.storage",),
    "certdef.purifiers.diffusion": ("certdef.purifiers.networks.diffusion", "certdef.purifiers.one_step"),
}

sys.modules[__name__].__class__ = _Package
sys.modules |= {name: _Moved(name, homes) for name, homes in _MOVED.items()}
