"""Targets that are fitted scikit-learn estimators (or anything with predict_proba / predict on flat rows)."""

import hashlib
import io
import pickle
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target
from surrogates.targets.callables import qualified_name
from surrogates.targets.declared import Declared


class EstimatorTarget(Target):
    """An estimator of rows (N, C*H*W); class k is its k-th entry of `classes_`.

    It answers with predict_proba where it has that, else with the labels of predict.

    Raises:
        ClassesUnknown: num_classes was not declared, and the estimator is not fitted.
        TargetError: It cannot answer as declared.
    """

    def __init__(self, estimator: Any, declared: Declared) -> None:
        name = type(estimator).__name__
        classes = getattr(estimator, "classes_", None)
        declared = declared.agreed(num_classes=None if classes is None else len(classes))
        soft = hasattr(estimator, "predict_proba")
        output_kind = declared.output_kind or ("probabilities" if soft else "labels")
        if output_kind == "logits" or (output_kind == "probabilities" and not soft):
            raise TargetError(f"{name} cannot answer with {output_kind}: try 'labels'")
        features = getattr(estimator, "n_features_in_", None)
        num_classes = declared.classes_of(name, "fit it, or give open_target(..., num_classes=...)")
        super().__init__(
            declared.identity or f"{qualified_name(type(estimator))}:{_digest(estimator)}",
            num_classes,
            output_kind,
            charged_when_sent=False,
            input_shape=declared.input_shape,
            num_features=None if features is None else int(features),
            batch_size=declared.batch_size,
            pixels=declared.pixels,
        )
        self._estimator = estimator
        self._classes = None if classes is None else np.asarray(classes)

    def answer(self, pixels: np.ndarray) -> np.ndarray | Answers:
        rows = pixels.reshape(len(pixels), -1)
        if self.output_kind == "probabilities":
            return self._estimator.predict_proba(rows)
        labels = np.asarray(self._estimator.predict(rows))
        if self._classes is None:
            return labels
        order = np.argsort(self._classes)  # `classes_` is sorted in scikit-learn, not in every look-alike
        return order[np.searchsorted(self._classes, labels, sorter=order)]


def _digest(estimator: object) -> str:
    """Return 16 hexadecimal digits that the estimator keeps when it is saved and loaded again."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.fast = True  # without the memo, bytes depend on values alone and not on which objects are shared
    try:
        pickler.dump(estimator)
    except Exception as error:
        raise TargetError(
            f"{type(estimator).__name__} has no stable fingerprint ({type(error).__name__}): "
            "give open_target(..., identity='a name for it')"
        ) from error
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
