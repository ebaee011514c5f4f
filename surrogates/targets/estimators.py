"""Targets that are fitted scikit-learn estimators (or anything with predict_proba / predict on flat rows)."""

import hashlib
import io
import pickle
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target
from surrogates.targets.callables import qualified_name
from surrogates.targets.classes import by_index, class_indices, order_mark, own_classes, text_labels
from surrogates.targets.declared import Declared


class EstimatorTarget(Target):
    """An estimator of rows (N, C*H*W); a class that is a whole number has that index, any other one that of its name.

    It answers with predict_proba where it has that, else with the labels of predict. Probabilities have a column for
    each index, 0 for those that the estimator has never seen.

    Raises:
        ClassesUnknown: num_classes was not declared, and the estimator is not fitted.
        TargetError: It cannot answer as declared, or its classes are names and `classes` does not list them.
    """

    def __init__(self, estimator: Any, declared: Declared) -> None:
        name = type(estimator).__name__
        self._classes = own_classes(estimator, name)
        self._names = declared.names
        self._indices = None
        if self._classes is not None:
            self._indices = class_indices(self._classes, self._names, name)
            known = self._names.count if self._names else int(max(self._indices)) + 1
            declared = declared.agreed(num_classes=known)
        soft = hasattr(estimator, "predict_proba")
        output_kind = declared.output_kind or ("probabilities" if soft else "labels")
        if output_kind == "logits" or (output_kind == "probabilities" and not soft):
            raise TargetError(f"{name} cannot answer with {output_kind}: try 'labels'")
        features = getattr(estimator, "n_features_in_", None)
        num_classes = declared.classes_of(name, "fit it, or give open_target(..., num_classes=...)")
        super().__init__(
            declared.identity
            or f"{qualified_name(type(estimator))}:{_digest(estimator)}{order_mark(self._indices)}",
            num_classes,
            output_kind,
            charged_when_sent=False,
            input_shape=declared.input_shape,
            num_features=None if features is None else int(features),
            batch_size=declared.batch_size,
            pixels=declared.pixels,
        )
        self._estimator = estimator

    def answer(self, pixels: np.ndarray) -> np.ndarray | Answers:
        rows = pixels.reshape(len(pixels), -1)
        if self.output_kind == "probabilities":
            scores = np.asarray(self._estimator.predict_proba(rows))
            return scores if self._indices is None else by_index(scores, self._indices, self.num_classes)
        labels = np.asarray(self._estimator.predict(rows))
        if self._classes is None or self._indices is None:
            return text_labels(labels, self._names)
        order = np.argsort(self._classes)  # `classes_` is sorted in scikit-learn, not in every look-alike
        return self._indices[order[np.searchsorted(self._classes, labels, sorter=order)]]


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
