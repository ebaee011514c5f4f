"""MLflow's scoring server (`mlflow models serve`, SageMaker, Databricks): POST .../invocations."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.declared import Declared
from surrogates.targets.http import Reply, client_of
from surrogates.targets.json_answers import numbers, read_json
from surrogates.targets.records import unpack
from surrogates.targets.served import open_served


def open_scoring_server(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open a model behind MLflow's scoring server; it reports nothing but that it is there.

    Args:
        options: Those of HTTP, and `probe`.

    Raises:
        TargetError: The server cannot be reached.
    """
    client, rest = client_of(uri, options, ["probe"], "an MLflow scoring server")
    parts = urlsplit(client.url)
    client.reach(urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/ping", query="")))
    return open_served(ScoringServer(client.url), client, declared, **rest)


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
        values = unpack(answer["predictions"])
        return values if isinstance(values, np.ndarray) else numbers(values)
