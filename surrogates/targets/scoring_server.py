"""MLflow's scoring server (`mlflow models serve`, SageMaker, Databricks): POST .../invocations."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.http import Reply
from surrogates.targets.records import unpack
from surrogates.targets.served import read_json


@dataclass(frozen=True)
class ScoringServer:
    """The protocol of MLflow 2 and 3: {"inputs": array} in, {"predictions": array, records or columns} out."""

    url: str

    def encode(self, pixels: np.ndarray) -> tuple[bytes, dict[str, str]]:
        """Write a batch; Python's floats keep every bit of a float32."""
        return json.dumps({"inputs": pixels.tolist()}).encode(), {"Content-Type": "application/json"}

    def decode(self, reply: Reply, count: int) -> Any:
        """Read the predictions."""
        answer = read_json(reply)
        if not isinstance(answer, dict) or "predictions" not in answer:
            raise TargetError("target answered no 'predictions': is this an MLflow scoring server?")
        return unpack(answer["predictions"])
