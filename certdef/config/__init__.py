"""The configuration of a job: dataclasses, presets, checks."""

from certdef.config.job import ConfigError, DataConfig, RunConfig, SigmaLaw

__all__ = ["ConfigError", "DataConfig", "RunConfig", "SigmaLaw"]
