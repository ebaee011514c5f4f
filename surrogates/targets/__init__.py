"""Black boxes by protocol, and the one function that opens them all."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target, check_images
from surrogates.targets.callables import CallableTarget, TorchTarget
from surrogates.targets.classes import ClassNames
from surrogates.targets.declared import OPTIONS, Declared, check_options, split_options
from surrogates.targets.estimators import EstimatorTarget
from surrogates.targets.formats import PixelFormat
from surrogates.targets.keras import KerasTarget, is_keras
from surrogates.targets.pyfunc import PyfuncTarget
from surrogates.targets.uris import open_uri

__all__ = ["Answers", "PixelFormat", "Target", "check_images", "open_target"]


def open_target(
    target: Target | str | Path | torch.nn.Module | Callable[..., Any] | Any,
    *,
    device: str | torch.device | None = None,
    protocol: str | None = None,
    **options: Any,
) -> Target:
    """Open a black box: an address, a torch module, a Keras model, an estimator as scikit-learn's, or a callable.

    An address is http(s)://.../invocations (MLflow scoring server), http(s)://.../v2/models/NAME (Open Inference
    Protocol), deployments:/NAME, a file NAME.onnx or NAME.tflite, a NAME.yaml that maps any JSON endpoint, or an MLflow
    model URI or folder. Nothing is queried here but health and metadata, which are free.

    Args:
        target: What to open; an opened target is returned as it is.
        device: Where a torch module runs.
        protocol: "mlflow-server", "deployments", "open-inference", "onnx", "tflite", "json" or "mlflow", where the address does
            not decide.
        num_classes: Taken from the target where it reports it.
        classes: The names of the classes: a list in the order of your labels, or a map of names to indices. Tables show
            them, and a target may answer them.
        identity: Defaults to a fingerprint of the weights, the address, or the qualified name of the callable. Name a
            target yourself when its behavior may change under the same name.
        output_kind: "labels", "top_k", "probabilities" or "logits"; defaults to what the target reports, else to what its
            first answer tells.
        output: Name or place of the part of its output that is the answer, where there are several.
        input_shape: (C, H, W).
        batch_size: Splits large queries, for a service into requests.
        resize: Height and width, or one number for both, that images are resized to, after the noise.
        color: "rgb", "bgr" or "gray": what the model takes. Gray images are repeated, color images become their luminance.
        quantize: Bits that pixels are rounded to.
        mean, std: What is subtracted from each channel of the model, in units of [0, 1], and what divides it then.
        pixel_range: What 0 and 1 become.
        dtype: "float32", "float64", "float16", "uint8", "int8", "int32" or "int64".
        layout: "chw", "hwc", "flat" (rows of C*H*W), "flat_hwc", or the sides of one image, such as (784, 1).
        options: Of one kind of target. A service takes those of HTTP (token_env, headers, timeout, rate ...:
            surrogates.targets.http_options.HttpOptions), `binary` (Open Inference), `columns` (a scoring
            server's model of tables), and probe=True, which pays for one query outside any ledger for num_classes; an ONNX
            or TFLite file `threads`.

    Raises:
        ClassesUnknown: The target does not report its number of classes, and num_classes was not given.
        TargetError: It cannot be opened, or not with these options.

    Examples:
        >>> import numpy as np
        >>> def is_bright(images):  # the deployed model: (N, C, H, W) -> labels (N,)
        ...     return (images.mean((1, 2, 3)) > 0.5).astype(int)
        >>> target = open_target(is_bright, num_classes=2, output_kind="labels")
        >>> target.query(np.full((3, 1, 8, 8), 0.9, dtype=np.float32)).labels.tolist()
        [1, 1, 1]
    """
    declared, others = split_options(options)
    kind = type(target).__name__
    if isinstance(target, Target):
        return _opened(target, declared)
    if device is not None and not isinstance(target, torch.nn.Module):
        raise TargetError(f"device applies to torch modules alone, got a {kind}: leave it out")
    if isinstance(target, str | Path):
        return open_uri(str(target), protocol, declared, others)
    if protocol is not None:
        raise TargetError(f"protocol applies to addresses alone, got a {kind}: leave it out")
    check_options(others, [], f"a {kind}")
    if type(target).__module__.startswith("mlflow.pyfunc"):
        return PyfuncTarget(target, declared)
    if is_keras(target):
        return KerasTarget(target, declared)
    if isinstance(target, torch.nn.Module):
        return TorchTarget(target, declared, device)
    if not isinstance(target, type) and (hasattr(target, "predict_proba") or hasattr(target, "predict")):
        return EstimatorTarget(target, declared)
    if callable(target):
        return CallableTarget(target, declared)
    raise TargetError(
        f"cannot open a {kind} as a target: give an address, a torch module, a scikit-learn estimator or a callable"
    )


def _opened(target: Target, declared: Declared) -> Target:
    """Return a target that is open already; its options cannot change any more."""
    of_pixels = {field.name for field in fields(PixelFormat)}
    for name in OPTIONS:
        value = getattr(declared, name)
        holder = target.pixels if name in of_pixels else target.reading if name == "output" else target
        own = target.class_names if name == "classes" else getattr(holder, name, None)
        if name == "classes" and value is not None:
            value = ClassNames.of(value).in_order
        if value is not None and value != own:
            raise TargetError(
                f"{name} of an opened target is {own!r}, got {value!r}: open the object behind it with other options"
            )
    return target
