"""certdef: distil a deployed black box, put a purifier in front, certify both, track everything in MLflow.

    import certdef
    summary = certdef.run(certdef.load_config("digits", certify__n=2000))

Everything is loaded on first use, so that `import certdef` and `certdef --help` stay light.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "run": "certdef.pipeline",
    "pretrain": "certdef.pipeline",
    "distill": "certdef.pipeline",
    "certify": "certdef.pipeline",
    "attack": "certdef.pipeline",
    "purify": "certdef.pipeline",
    "report": "certdef.pipeline",
    "serve": "certdef.serving",
    "doctor": "certdef.health",
    "cite": "certdef.citations",
    "load_config": "certdef.config_files",
    "RunConfig": "certdef.config",
    "ConfigError": "certdef.config",
}
__all__ = ["__version__", "purifiers", *_HOME]


def __getattr__(name: str):
    if name == "purifiers":
        return import_module("certdef.purifiers")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'certdef' has no attribute {name!r}")
