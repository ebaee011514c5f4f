"""A model of Triton's Python backend (a plain linear classifier); it runs inside Triton."""

import os
import sys
from pathlib import Path

sys.path[:0] = [os.environ["TRITON_PACKAGES"]]

import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402


class TritonPythonModel:
    def initialize(self, arguments):
        with np.load(Path(arguments["model_repository"]) / "weights.npz") as file:
            self._weight, self._bias = file["weight"], file["bias"]

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        images = triton.get_input_tensor_by_name(request, "image").as_numpy()
        scale = 255 if images.dtype == np.uint8 else 1
        logits = images.reshape(len(images), -1).astype(np.float64) / scale @ self._weight.T + self._bias
        outputs = {"logits": logits.astype(np.float32), "labels": logits.argmax(axis=1)}
        wanted = request.requested_output_names()
        return triton.InferenceResponse([triton.Tensor(name, outputs[name]) for name in wanted])
