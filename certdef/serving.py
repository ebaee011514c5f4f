"""Models that version 0.1.0 logged name this module; its home is certdef.models.serving."""

from certdef.models.serving import ServedModel, scoring_app, set_model

__all__ = ["ServedModel", "scoring_app", "set_model"]
