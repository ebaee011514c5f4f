"""Classifiers by name, our models on disk, and models that are served."""

from certdef.models.classifiers import build_classifier, features, train_classifier

__all__ = ["build_classifier", "features", "train_classifier"]
