"""The old version of your own target, which guides the votes of the new one: a file that runs here, asked for free.

Its answers choose the draws that the target is paid for, as a surrogate's do, and cannot make a certificate wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import surrogates
from certdef.config.job import ConfigError, RunConfig, without_password
from certify.guided.from_old import named_class
from surrogates.targets.uris import protocol_of

LOCAL = ("mlflow", "onnx", "tflite")  # protocols whose answers cost nothing
LEAST = 1e-6  # a probability below it is as good as none
OF_THE_ADDRESS = ("protocol", "headers")  # options of the target that say how to reach it, not in what form


class Baseline(nn.Module):
    """An old version as a guide: noisy images (B, C, H, W) -> logits (B, K).

    Args:
        target: The old version; asked without a ledger.
    """

    def __init__(self, target: surrogates.Target) -> None:
        super().__init__()
        self._target, self._named = target, named_class(target.num_classes)

    @property
    def identity(self) -> str:
        """What it is, by its content."""
        return self._target.identity

    def forward(self, noisy: Tensor) -> Tensor:
        answers = self._target.query(
            noisy.cpu(), bounded=False
        )  # noise leaves [0, 1], for it as for the target
        kind = self._target.output_kind
        if answers.scores is None or kind not in ("probabilities", "logits"):
            scores: Any = self._named[answers.labels]
        else:
            scores = np.log(np.maximum(answers.scores, LEAST)) if kind == "probabilities" else answers.scores
        return torch.from_numpy(np.asarray(scores, dtype=np.float32)).to(noisy.device)


def open_baseline(
    config: RunConfig, shape: tuple[int, int, int], target: surrogates.Target
) -> surrogates.Target | None:
    """Open the old version in the form of the new one; nothing is asked. None where the job has none.

    Args:
        config: The job.
        shape: (C, H, W) of its images.
        target: The new version.

    Raises:
        ConfigError: It does not run here, can't be opened, or has other classes.
    """
    uri = config.certify.baseline
    if uri is None:
        return None
    form = {name: value for name, value in config.target.form.items() if name not in OF_THE_ADDRESS}
    problem = f"certify.baseline is {without_password(uri)!r}"
    try:
        if protocol_of(uri) not in LOCAL:
            raise ConfigError(
                f"{problem}: a guide is asked many times for each paid vote, give a model that runs here (NAME.onnx, "
                "NAME.tflite, or an MLflow model)"
            )
        old = surrogates.open_target(uri, input_shape=shape, **form)
    except surrogates.SurrogateError as error:
        raise ConfigError(f"{problem}: {error}") from error
    if old.num_classes != target.num_classes:
        raise ConfigError(
            f"{problem}, of {old.num_classes} classes, and the target has {target.num_classes}: a version with other "
            "classes is certified from scratch, leave certify.baseline out"
        )
    return old
