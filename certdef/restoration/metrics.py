"""How good a restoration is: PSNR and SSIM of each image, by torchmetrics (optional extra `restoration`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from certdef.config.job import ConfigError


def psnr(restored: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (N,), for images (N, C, H, W) in [0, 1]."""
    measure = _torchmetrics().peak_signal_noise_ratio
    return measure(restored, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(restored: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al., IEEE TIP 2004; Gaussian window of sigma 1.5) of each image, (N,)."""
    measure = _torchmetrics().structural_similarity_index_measure
    return measure(restored, truth, data_range=1.0, reduction="none")


def _torchmetrics() -> Any:
    try:
        import torchmetrics.functional.image as functional
    except ImportError as error:
        raise ConfigError("PSNR and SSIM need torchmetrics: pip install 'certdef[restoration]'") from error
    return functional
