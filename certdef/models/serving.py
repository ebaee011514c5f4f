"""certdef's models as MLflow pyfunc models, and the certified classifier behind MLflow's scoring server."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel, scoring_server
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

import certify
from certdef.config.job import ConfigError, RunConfig
from certdef.models.requests import Patience, Stopped, Watched
from certdef.models.storage import FRESH, PARAMS, CertifiedClassifier, load_model, read_spec
from certdef.tracking.mlflow import connect
from surrogates.distillation.inference import images_at_once

__all__ = [
    "Limits",
    "ServedModel",
    "answer",
    "log_estimator",
    "log_served",
    "scoring_app",
    "serve",
    "set_model",
]

STOP_SECONDS = 5  # for requests that are under way when the server stops
KINDS = {int: "long", float: "double", str: "string", bool: "boolean"}
ANSWER = {
    "prediction": int,
    "radius": float,
    "norm": str,
    "abstained": bool,
    "p_lower": float,
    "n": int,
    "alpha": float,
    "subject": str,
    "seed": int,
    "seed_by": str,  # server or client: who knew the seed beforehand
}
OF_THE_REQUEST = ("seed", "seed_by")
FEW = {"n0": 10, "n": 100}  # draws of the example: MLflow tries it out each time that a model is logged


@dataclass(frozen=True)
class Limits:
    """What a request may ask of the server.

    Args:
        n: Largest n, and n0.
        votes: Most votes of a request: images x (n0 + n).
        seed: Whether a request may name the seed. Who knows it beforehand can search for images whose votes mislead.
    """

    n: int = 100_000
    votes: int = 2_000_000
    seed: bool = False

    def check(self, images: int, params: dict[str, Any], defaults: dict[str, Any]) -> None:
        """Refuse a request that asks for more, before any vote.

        Raises:
            ConfigError: One line that names the value and the bound.
        """
        if not self.seed and params.get("seed", FRESH) != FRESH:
            raise ConfigError("seed: this server chooses it, and its answer names it; leave it out")
        draws = {name: params.get(name, default) for name, default in defaults.items()}
        for name, value in draws.items():
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} is {value!r}: use a whole number of at least 1")
            if value > self.n:
                raise ConfigError(f"{name} is {value}: this server allows {self.n} at most")
        votes = images * sum(draws.values())
        if votes > self.votes:
            raise ConfigError(
                f"{images} images x {sum(draws.values())} draws are {votes} votes: this server allows {self.votes} "
                "in a request, send fewer images or a smaller n"
            )


def answer(certificate: certify.Certificate, seed: int, seed_by: str) -> dict[str, Any]:
    """A certificate as the scoring server returns it; the radius is in [0,1] pixel units."""
    of_the_image = {key: kind for key, kind in ANSWER.items() if key not in OF_THE_REQUEST}
    given = {key: kind(getattr(certificate, key)) for key, kind in of_the_image.items()}
    return given | {"seed": seed, "seed_by": seed_by}


class ServedModel(PythonModel):
    """A saved folder (certdef.models.storage) behind MLflow's pyfunc interface."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["model"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(folder, self.device)
        spec = read_spec(folder)
        self.softmax = spec["kind"] == "classifier" and spec.get("answers") != "logits"

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        images = np.asarray(model_input, dtype=np.float32)
        if isinstance(self.model, CertifiedClassifier):
            certificates, seed = self.model.certify(images, progress=Patience(), **(params or {}))
            seed_by = "server" if (params or {}).get("seed", FRESH) == FRESH else "client"
            return [answer(certificate, seed, seed_by) for certificate in certificates]
        with torch.inference_mode():
            batches = torch.from_numpy(images).split(images_at_once(images.shape[1:], 1024))
            outputs = [self.model(batch.to(self.device, copy=True)) for batch in batches]
        scores = torch.cat(outputs)
        return (scores.softmax(1) if self.softmax else scores).cpu().numpy()


def log_served(folder: Path, name: str, example: np.ndarray, registered_model: str | None = None) -> str:
    """Log a saved folder as a pyfunc model in the active run; returns its URI."""
    spec = read_spec(folder)
    inputs = Schema([TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:]))])
    params: ParamSchema | None = None
    request: Any = example
    if spec["kind"] == "certified":
        request = (example[:1], FEW)
        outputs = Schema([ColSpec(KINDS[kind], key) for key, kind in ANSWER.items()])
        params = ParamSchema(
            [ParamSpec(key, KINDS[type(value)], value) for key, value in (PARAMS | spec["defaults"]).items()]
        )
    elif spec["kind"] in ("network", "purifier"):
        outputs = inputs
    else:
        num_classes = spec["networks"]["classifier"]["num_classes"]
        outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, num_classes))])
    info = mlflow.pyfunc.log_model(
        name=name.replace(".", "-"),  # a law's label may have a dot, a model's name may not
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"model": str(folder)},
        # MLflow's hints forget that None is the default
        signature=ModelSignature(inputs=inputs, outputs=outputs, params=params),  # type: ignore[arg-type]
        input_example=request,
        pip_requirements=[f"certdef=={version('certdef')}", f"torch=={torch.__version__.split('+')[0]}"],
        registered_model_name=registered_model,
    )
    return info.model_uri


def log_estimator(estimator: Any, name: str, num_features: int, num_classes: int) -> str:
    """Log a scikit-learn classifier that answers probabilities, in the active run; returns its URI."""
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_features))]),
        outputs=Schema([TensorSpec(np.dtype(np.float64), (-1, num_classes))]),
    )
    info = mlflow.sklearn.log_model(
        estimator,
        name=name,
        signature=signature,
        pyfunc_predict_fn="predict_proba",
        pip_requirements=["scikit-learn", "skops"],
        # scikit-learn's own classes for calibrated probabilities; skops, unlike pickle, loads nothing that is not named
        skops_trusted_types=[
            "sklearn.calibration._CalibratedClassifier",
            "sklearn.calibration._SigmoidCalibration",
        ],
    )
    return info.model_uri


class StrictModel:
    """A loaded model that refuses requests beyond the server's limits, and params that MLflow would drop in silence."""

    def __init__(self, model: Any, limits: Limits):
        self.model, self.metadata, self.limits = model, model.metadata, limits
        schema = model.metadata.get_params_schema()
        defaults = {} if schema is None else {param.name: param.default for param in schema.params}
        self.draws = {name: defaults[name] for name in ("n0", "n") if name in defaults}
        try:
            limits.check(1, {}, self.draws)
        except ConfigError as error:
            raise ConfigError(
                f"the model's own default is beyond the limits ({error}): raise --max-n or --max-votes"
            ) from error

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        params = params or {}
        unknown = sorted(set(params) - set(PARAMS))
        if unknown:
            taken = [name for name in PARAMS if name != "seed" or self.limits.seed]
            message = f"unknown params {', '.join(unknown)}: this server takes {', '.join(taken)}"
            raise MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
        try:
            self.limits.check(len(data), params, self.draws)
            return self.model.predict(data, params=params)
        except ValueError as error:  # what was wrong with the request
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        except Stopped as error:
            message = "the request was ended before its answer"
            raise MlflowException(message, error_code=TEMPORARILY_UNAVAILABLE) from error


def scoring_app(model_uri: str, limits: Limits | None = None) -> Watched:
    """MLflow's scoring server (an ASGI application) for a logged model of certdef's.

    Args:
        model_uri: MLflow model URI.
        limits: What a request may ask for.

    Raises:
        ConfigError: The model can't be loaded, or its own defaults are beyond the limits.
    """
    try:
        model = mlflow.pyfunc.load_model(model_uri)
    except (MlflowException, OSError) as error:
        raise ConfigError(
            f"model {model_uri!r} can't be loaded ({str(error).splitlines()[0]}): certdef run registers it"
        ) from error
    # its hint names a class of MLflow; the server uses predict and metadata alone
    return Watched(scoring_server.init(StrictModel(model, limits or Limits())))  # type: ignore[arg-type]


def serve(
    config: RunConfig,
    *,
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 5001,
    limits: Limits | None = None,
    ready: Callable[[str, str], None] = lambda model, address: None,
) -> None:
    """Serve the registered certified classifier until interrupted: POST /invocations answers certificates.

    The work on a request ends when its client leaves; SIGTERM and Ctrl-C end it for all within seconds.

    Args:
        config: The job that registered it.
        model: MLflow model URI; default the latest version of the configuration's registered model.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        limits: What a request may ask for.
        ready: Called with the model and the address once requests are answered.

    Raises:
        ConfigError: The port is taken, or the model can't be loaded.
    """
    import uvicorn

    uri = model or f"models:/{config.registered_model}/latest"
    with _listening(host, port) as listener:  # before the model is loaded: a taken port is known at once
        connect(config)
        # A certificate takes seconds, not milliseconds.
        os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "600")
        app = scoring_app(uri, limits)

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: Any) -> None:
                app.stop()
                super().handle_exit(sig, frame)

        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=STOP_SECONDS)
        name = f"[{host}]" if ":" in host else host
        ready(uri, f"http://{name}:{listener.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # the way to stop it
            Server(settings).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: The address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise ConfigError(
            f"port {port} of {host} can't be listened on ({reason}): choose another with --port"
        ) from error
