"""The losses of distillation where version 0.1 had them: which suit a kind of answers, and what a student is taught."""

from surrogates.distillation.losses import LOSSES, check_loss, distance, goals_of

__all__ = ["LOSSES", "check_loss", "distance", "goals_of"]
