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
    """A module under the name that models logged by version 0.1.0 import; it is loaded on first use."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # what importlib and inspect look for
            raise AttributeError(name)
        return getattr(import_module("certdef.models.serving"), name)


sys.modules[__name__].__class__ = _Package
sys.modules["certdef.serving"] = _Moved("certdef.serving")
