"""Black boxes by protocol, and the one door that opens them all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from surrogates.errors import TargetError
from surrogates.targets.base import Answers, Target, check_images
from surrogates.targets.callables import CallableTarget, TorchTarget
from surrogates.targets.estimators import EstimatorTarget
from surrogates.targets.formats import PixelFormat
from surrogates.targets.pyfunc import PyfuncTarget
from surrogates.targets.uris import Declared, check_options, open_uri

__all__ = ["Answers", "PixelFormat", "Target", "check_images", "open_target"]


def open_target(
    target: Target | str | Path | torch.nn.Module | Callable[..., Any] | Any,
    *,
    num_classes: int | None = None,
    identity: str | None = None,
    output_kind: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    pixel_range: tuple[float, float] | None = None,
    quantise: int | None = None,
    protocol: str | None = None,
    **options: Any,
) -> Target:
    """Open a black box: an address, a torch module, a scikit-learn estimator, or a callable.

    An address is http(s)://.../invocations (MLflow scoring server), http(s)://.../v2/models/NAME (Open
    Inference Protocol), a file NAME.onnx, a NAME.yaml that maps any JSON endpoint, or an MLflow model URI or
    folder; protocol ("mlflow-server", "open-inference", "onnx", "json", "mlflow") decides where it does not.

    num_classes is taken from the target where it tells (classes_, num_classes, a signature, metadata);
    output_kind ("labels", "top_k", "probabilities" or "logits") defaults to what the target tells, to "logits"
    for a torch module and to "probabilities" otherwise. identity defaults to a fingerprint of the weights, the
    address, or the qualified name of the callable: name a target yourself when its behaviour may change under
    the same name. input_shape is (C, H, W); batch_size splits large queries, for a service into requests.
    layout ("chw", "hwc", "flat"), dtype ("float32", "float64", "uint8"), pixel_range (what 0 and 1 become) and
    quantise (bits that pixels are rounded to) are the form in which images go in. A service takes options of
    HTTP too (token_env, timeout, rate, concurrency ...: surrogates.targets.http.HttpOptions), `output` and
    `binary` (Open Inference), and probe=True, which pays for one query outside any ledger to learn
    num_classes. Nothing else is asked here but health and metadata, which are free. Raises TargetError.
    """
    declared = Declared(
        num_classes,
        identity,
        output_kind,
        None if input_shape is None else tuple(input_shape),
        batch_size,
        layout,
        dtype,
        None if pixel_range is None else tuple(pixel_range),
        quantise,
    )
    if isinstance(target, Target):
        return _opened(target, declared)
    if device is not None and not isinstance(target, torch.nn.Module):
        raise TargetError(
            f"device applies to torch modules alone, got a {type(target).__name__}: leave it out"
        )
    if isinstance(target, str | Path):
        return open_uri(str(target), protocol, declared, options)
    if protocol is not None:
        raise TargetError(f"protocol applies to addresses alone, got a {type(target).__name__}: leave it out")
    check_options(options, [], f"a {type(target).__name__}")
    common: dict[str, Any] = {
        "identity": identity,
        "input_shape": declared.input_shape,
        "batch_size": batch_size,
        "pixels": declared.pixels,
    }
    if type(target).__module__.startswith("mlflow.pyfunc"):
        return PyfuncTarget(target, num_classes, output_kind, **common)
    if isinstance(target, torch.nn.Module):
        known = getattr(target, "num_classes", None)
        classes = _classes(target, known if num_classes is None else num_classes)
        return TorchTarget(target, classes, output_kind or "logits", device=device, **common)
    if not isinstance(target, type) and (hasattr(target, "predict_proba") or hasattr(target, "predict")):
        return EstimatorTarget(target, num_classes, output_kind, **common)
    if callable(target):
        classes = _classes(target, num_classes)
        return CallableTarget(target, classes, output_kind or "probabilities", **common)
    raise TargetError(
        f"cannot open a {type(target).__name__} as a target: "
        "give an address, a torch module, a scikit-learn estimator or a callable"
    )


def _opened(target: Target, declared: Declared) -> Target:
    """Return a target that is open already; its options cannot change any more."""
    for name in ("num_classes", "identity", "output_kind", "input_shape", "batch_size"):
        value = getattr(declared, name)
        if value is not None and value != getattr(target, name):
            raise TargetError(
                f"{name} of an opened target is {getattr(target, name)!r}, got {value!r}: "
                "open the object behind it with other options"
            )
    for name in ("layout", "dtype", "pixel_range", "quantise"):
        value = getattr(declared, name)
        if value is not None and value != getattr(target.pixels, name):
            raise TargetError(
                f"{name} of an opened target is {getattr(target.pixels, name)!r}, got {value!r}: "
                "open the object behind it with other options"
            )
    return target


def _classes(target: object, num_classes: Any) -> Any:
    if num_classes is None:
        raise TargetError(
            f"{type(target).__name__} does not tell its number of classes: "
            "give open_target(..., num_classes=...)"
        )
    return num_classes
