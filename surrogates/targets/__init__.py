"""Black boxes by protocol, and the one door that opens them all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target, check_images
from surrogates.targets.callables import CallableTarget, TorchTarget
from surrogates.targets.estimators import EstimatorTarget
from surrogates.targets.pyfunc import PyfuncTarget, load_pyfunc

__all__ = ["Answers", "Target", "check_images", "open_target"]


def open_target(
    target: Target | str | Path | torch.nn.Module | Callable[..., Any] | Any,
    *,
    num_classes: int | None = None,
    identity: str | None = None,
    output_kind: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
) -> Target:
    """Open a black box: an MLflow URI or folder, a torch module, a scikit-learn estimator, or a callable.

    num_classes is taken from the target where it tells (classes_, num_classes, an MLflow signature);
    output_kind ("labels", "probabilities" or "logits") defaults to the signature or predict_proba where there
    is one, to "logits" for a torch module and to "probabilities" otherwise. identity defaults to a
    fingerprint of the weights or the qualified name of the callable: name a callable yourself when its
    behaviour may change under the same name. input_shape is (C, H, W); batch_size splits large queries.
    Nothing is asked here. Raises TargetError.
    """
    options = {
        "num_classes": num_classes,
        "identity": identity,
        "output_kind": output_kind,
        "input_shape": None if input_shape is None else tuple(input_shape),
        "batch_size": batch_size,
    }
    if isinstance(target, Target):
        for name, value in options.items():
            if value is not None and value != getattr(target, name):
                raise TargetError(
                    f"{name} of an opened target is {getattr(target, name)!r}, got {value!r}: "
                    "open the object behind it with other options"
                )
        return target
    if device is not None and not isinstance(target, torch.nn.Module):
        raise TargetError(
            f"device applies to torch modules alone, got a {type(target).__name__}: leave it out"
        )
    if isinstance(target, str | Path):
        if str(target).startswith(("http://", "https://")):
            raise TargetError(
                f"no protocol for {target!r}: open a function of images that calls it, or an MLflow model URI"
            )
        return PyfuncTarget(load_pyfunc(str(target)), **options)
    if type(target).__module__.startswith("mlflow.pyfunc"):
        return PyfuncTarget(target, **options)
    if isinstance(target, torch.nn.Module):
        known = getattr(target, "num_classes", None)
        options["num_classes"] = _classes(target, known if num_classes is None else num_classes)
        return TorchTarget(target, **options | {"output_kind": output_kind or "logits", "device": device})
    if not isinstance(target, type) and (hasattr(target, "predict_proba") or hasattr(target, "predict")):
        return EstimatorTarget(target, **options)
    if callable(target):
        options["num_classes"] = _classes(target, num_classes)
        return CallableTarget(target, **options | {"output_kind": output_kind or "probabilities"})
    raise TargetError(
        f"cannot open a {type(target).__name__} as a target: "
        "give an MLflow URI, a torch module, a scikit-learn estimator or a callable"
    )


def _classes(target: object, num_classes: Any) -> Any:
    if num_classes is None:
        raise TargetError(
            f"{type(target).__name__} does not tell its number of classes: "
            "give open_target(..., num_classes=...)"
        )
    return num_classes
