"""Classifiers by name, our models on disk, and models that are served."""

from certdef.models.classifiers import build_classifier, train_classifier, train_svc
from certdef.models.storage import load_model, save_classifier
from surrogates.distillation.inference import features

__all__ = [
    "build_classifier",
    "features",
    "load_model",
    "save_classifier",
    "train_classifier",
    "train_svc",
]
