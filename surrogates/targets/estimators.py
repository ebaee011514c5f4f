"""Targets that are fitted scikit-learn estimators (or anything with predict_proba / predict on flat rows)."""

import hashlib
import io
import pickle

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target
from surrogates.targets.callables import qualified_name
from surrogates.targets.formats import PixelFormat


class EstimatorTarget(Target):
    """An estimator asked with images flattened to (N, C*H*W); class k is its k-th entry of `classes_`.

    Answers with predict_proba where the estimator has it, else with the labels of predict.
    """

    def __init__(
        self,
        estimator: object,
        num_classes: int | None = None,
        output_kind: str | None = None,
        *,
        identity: str | None = None,
        input_shape: tuple[int, int, int] | None = None,
        batch_size: int | None = None,
        pixels: PixelFormat | None = None,
    ) -> None:
        classes = getattr(estimator, "classes_", None)
        if num_classes is None and classes is None:
            raise TargetError(
                f"{type(estimator).__name__} does not say how many classes it knows: "
                "fit it, or give open_target(..., num_classes=...)"
            )
        if num_classes is not None and classes is not None and num_classes != len(classes):
            raise TargetError(f"num_classes is {num_classes}, but the estimator knows {len(classes)} classes")
        soft = hasattr(estimator, "predict_proba")
        output_kind = output_kind or ("probabilities" if soft else "labels")
        if output_kind == "logits" or (output_kind == "probabilities" and not soft):
            raise TargetError(f"{type(estimator).__name__} cannot answer with {output_kind}: try 'labels'")
        features = getattr(estimator, "n_features_in_", None)
        super().__init__(
            identity or f"{qualified_name(type(estimator))}:{_digest(estimator)}",
            len(classes) if num_classes is None else num_classes,
            output_kind,
            charged_when_sent=False,
            input_shape=input_shape,
            num_features=None if features is None else int(features),
            batch_size=batch_size,
            pixels=pixels,
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
