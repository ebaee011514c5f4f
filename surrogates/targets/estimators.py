"""Targets that are fitted scikit-learn estimators (or anything with predict_proba / predict on flat rows)."""

import hashlib
import io
import pickle
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.boosters import classes_of_lightgbm, digest_of_lightgbm, is_lightgbm, refuse_xgboost
from surrogates.targets.callables import qualified_name
from surrogates.targets.classes import by_index, class_indices, order_mark, own_classes
from surrogates.targets.declared import Declared
from surrogates.targets.kinds import OutputKind


class EstimatorTarget(Target):
    """An estimator of rows (N, C*H*W); a class that is a whole number has that index, any other one that of its name.

    It answers with predict_proba where it has that, else with predict. Probabilities have a column for each index, 0 for
    those that the estimator has never seen. One that was fitted to a table gets a table. Where the estimator does not
    report how many values it takes, layout "chw" or "hwc" gives it images.

    Raises:
        ClassesUnknown: num_classes was not declared, and the estimator is not fitted.
        TargetError: It cannot answer as declared, or its classes are names and `classes` does not list them.
    """

    def __init__(self, estimator: Any, declared: Declared) -> None:
        name = type(estimator).__name__
        refuse_xgboost(estimator)
        self._classes = own_classes(estimator, name)
        self._indices = None
        if self._classes is not None:
            self._indices = class_indices(self._classes, declared.names, name)
            known = declared.names.count if declared.names else int(max(self._indices)) + 1
            declared = declared.agreed(num_classes=known)
        kind = self._kind(estimator, declared)
        features = getattr(estimator, "n_features_in_", None)
        if is_lightgbm(estimator):
            declared = declared.agreed(num_classes=classes_of_lightgbm(estimator))
            features = estimator.num_feature()
        num_classes = declared.classes_of(name, "fit it, or give open_target(..., num_classes=...)")
        super().__init__(
            declared.identity
            or f"{qualified_name(type(estimator))}:{_digest(estimator)}{order_mark(self._indices)}",
            num_classes,
            kind,
            charged_when_sent=False,
            num_features=None if features is None else int(features),
            batch_size=declared.batch_size,
            **declared.handed,
        )
        self._estimator = estimator
        self._columns = getattr(estimator, "feature_names_in_", None)
        self._takes_images = features is None and declared.layout not in (None, "flat", "flat_hwc")

    def answer(self, pixels: np.ndarray) -> Any:
        rows = self._arranged(pixels)
        if self.output_kind in ("probabilities", "top_k") and hasattr(self._estimator, "predict_proba"):
            scores = self._estimator.predict_proba(rows)
            if self._indices is None:
                return scores
            return by_index(np.asarray(scores), self._indices, self.num_classes)
        labels = self._estimator.predict(rows)
        if self._classes is None or self._indices is None:
            return labels
        order = np.argsort(self._classes)  # `classes_` is sorted in scikit-learn, not in every look-alike
        labels = np.asarray(labels).reshape(len(pixels))
        places = np.searchsorted(self._classes, labels, sorter=order)
        found = order[np.minimum(places, len(order) - 1)]
        odd = self._classes[found] != labels
        if odd.any():
            raise TargetError(
                f"target answered label {labels[odd][0].item()!r}, which is not among its classes_: open its predict as a function"
            )
        return self.parse_values(self._indices[found], len(pixels))

    def _kind(self, estimator: Any, declared: Declared) -> OutputKind:
        """Return what it answers: probabilities or labels; without classes of its own, its first answer tells."""
        name, soft = type(estimator).__name__, hasattr(estimator, "predict_proba")
        wanted = declared.output_kind
        if is_lightgbm(estimator):
            return OutputKind(wanted or "probabilities")
        if wanted is None:
            known = "probabilities" if soft else "labels"
            return OutputKind(known, assumed=not soft and self._classes is None)
        sure = soft or self._classes is not None
        if sure and (wanted == "logits" or (wanted in ("probabilities", "top_k") and not soft)):
            raise TargetError(f"{name} cannot answer with {wanted}: try 'labels'")
        return OutputKind(wanted)

    def _arranged(self, pixels: np.ndarray) -> Any:
        if self._takes_images:
            return pixels
        rows = pixels.reshape(len(pixels), -1)
        if self._columns is None:
            return rows
        import pandas

        return pandas.DataFrame(rows, columns=list(self._columns))


def _digest(estimator: object) -> str:
    """Return 16 hexadecimal digits that the estimator keeps when it is saved and loaded again."""
    if is_lightgbm(estimator):
        return digest_of_lightgbm(estimator)
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
