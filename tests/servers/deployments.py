"""The routes of Databricks model serving and of an MLflow deployments server, with one model `digits` behind both.

    GET  /api/2.0/serving-endpoints/digits    POST /serving-endpoints/digits/invocations    Databricks, with a token
    GET  /api/2.0/endpoints/digits            POST /endpoints/digits/invocations            a deployments server

It also is a plugin of mlflow.deployments, `certdef-test:/`, whose client answers in the same process.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse

from tests.servers.loopback import Handler, serving

TOKEN = "hush-hush-4711"


class Deployments:
    """What the server charged and was sent, and the statuses of its next answers; 0 answers well."""

    def __init__(self, model: Callable[[np.ndarray], np.ndarray]) -> None:
        self.model = model
        self.statuses: deque[int] = deque()
        self.charged = self.requests = self.looked_at = 0
        self.url = ""


class _Handler(Handler):
    made: Deployments

    def do_GET(self) -> None:
        self.made.looked_at += 1
        about = {
            "/api/2.0/serving-endpoints/digits": {"name": "digits", "state": {"ready": "READY"}},
            "/api/2.0/endpoints/digits": {"name": "digits", "endpoint_type": "classification"},
            "/api/2.0/endpoints/chat": {"name": "chat", "endpoint_type": "llm/v1/chat"},
        }
        if self.path not in about:
            self.reply({"error": f"unknown {self.path}"}, 404)
        elif "serving" in self.path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply({"error": "no token"}, 403)
        else:
            self.reply(about[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.body())
        self.made.requests += 1
        if self.path not in ("/serving-endpoints/digits/invocations", "/endpoints/digits/invocations"):
            return self.reply({"error": f"unknown {self.path}"}, 404)
        if "serving" in self.path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply({"error": "no token"}, 403)
        status = self.made.statuses.popleft() if self.made.statuses else 0
        if status == 429:
            return self.reply({"error": "slow down"}, 429, {"Retry-After": "0"})
        images = np.asarray(body["inputs"], np.float64)
        self.made.charged += len(images)
        self.reply({"predictions": self.made.model(images).tolist()}, status or 200)


@contextmanager
def deployments_server(model: Callable[[np.ndarray], np.ndarray]) -> Iterator[Deployments]:
    """Yield a server with this model."""
    made = Deployments(model)
    with serving(type("Handler", (_Handler,), {"made": made})) as address:
        made.url = address
        yield made


class Client(BaseDeploymentClient):
    """The plugin's client: `digits` answers with the sums of its model, and breaks when it is told to."""

    calls: ClassVar[list[tuple[int, ...]]] = []
    broken = False

    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: Any = None) -> Any:
        Client.calls.append(inputs.shape)
        if Client.broken:
            raise ConnectionError("the line is dead")
        rows = inputs.reshape(len(inputs), -1)
        scores = np.stack([rows.mean(axis=1), 1 - rows.mean(axis=1)], axis=1)
        inputs[:] = 0  # a client may write into what it gets
        return PredictionsResponse({"predictions": scores.tolist()})

    def get_deployment(self, name: str, endpoint: Any = None) -> dict[str, str]:
        if name != "digits":
            raise ValueError(f"no deployment {name}")
        return {"name": name}

    def create_deployment(self, *_: Any, **__: Any) -> None: ...

    def update_deployment(self, *_: Any, **__: Any) -> None: ...

    def delete_deployment(self, *_: Any, **__: Any) -> None: ...

    def list_deployments(self, *_: Any, **__: Any) -> list[Any]:
        return [{"name": "digits"}]


def run_local(*_: Any, **__: Any) -> None: ...


def target_help() -> str:
    return "answers the mean"
