"""certdef's models as MLflow pyfunc models, and the certified classifier behind MLflow's scoring server."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, scoring_server
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

import certify
from certdef.config.job import ConfigError, RunConfig
from certdef.models.storage import PARAMS, CertifiedClassifier, load_model
from certdef.tracking.mlflow import connect

__all__ = ["ServedModel", "answer", "log_estimator", "log_served", "scoring_app", "serve", "set_model"]

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
}


def answer(certificate: certify.Certificate, seed: int) -> dict[str, Any]:
    """A certificate as the scoring server returns it; the radius is in [0,1] pixel units."""
    return {key: kind(getattr(certificate, key)) for key, kind in ANSWER.items() if key != "seed"} | {
        "seed": seed
    }


class ServedModel(PythonModel):
    """A saved folder (certdef.models.storage) behind MLflow's pyfunc interface."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["model"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(folder, self.device)
        spec = json.loads((folder / "model.json").read_text())
        self.softmax = spec["kind"] == "classifier" and spec.get("answers") != "logits"

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        images = np.asarray(model_input, dtype=np.float32)
        if isinstance(self.model, CertifiedClassifier):
            certificates, seed = self.model.certify(images, **(params or {}))
            return [answer(certificate, seed) for certificate in certificates]
        with torch.inference_mode():
            outputs = [
                self.model(batch.to(self.device, copy=True)) for batch in torch.from_numpy(images).split(1024)
            ]
        scores = torch.cat(outputs)
        return (scores.softmax(1) if self.softmax else scores).cpu().numpy()


def log_served(folder: Path, name: str, example: np.ndarray, registered_model: str | None = None) -> str:
    """Log a saved folder as a pyfunc model in the active run; returns its URI."""
    spec = json.loads((folder / "model.json").read_text())
    inputs = Schema([TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:]))])
    params = None
    if spec["kind"] == "certified":
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
        name=name,
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"model": str(folder)},
        # MLflow's hints forget that None is the default
        signature=ModelSignature(inputs=inputs, outputs=outputs, params=params),  # type: ignore[arg-type]
        input_example=example,
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
    """A loaded model that refuses params it does not know, where MLflow would drop them in silence."""

    def __init__(self, model: Any):
        self.model, self.metadata = model, model.metadata

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        unknown = sorted(set(params or {}) - set(PARAMS))
        if unknown:
            message = f"unknown params {', '.join(unknown)}: this model takes {', '.join(PARAMS)}"
            raise MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
        try:
            return self.model.predict(data, params=params)
        except ValueError as error:  # what was wrong with the request
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


def scoring_app(model_uri: str) -> Any:
    """MLflow's scoring server (an ASGI application) for a logged model of certdef's.

    Raises:
        ConfigError: The model can't be loaded.
    """
    try:
        model = mlflow.pyfunc.load_model(model_uri)
    except (MlflowException, OSError) as error:
        raise ConfigError(
            f"model {model_uri!r} can't be loaded ({str(error).splitlines()[0]}): certdef run registers it"
        ) from error
    # its hint names a class of MLflow; the server uses predict and metadata alone
    return scoring_server.init(StrictModel(model))  # type: ignore[arg-type]


def serve(config: RunConfig, *, model: str | None = None, host: str = "127.0.0.1", port: int = 5001) -> None:
    """Serve the registered certified classifier until interrupted: POST /invocations answers certificates.

    Args:
        config: The job that registered it.
        model: MLflow model URI; default the latest version of the configuration's registered model.
        host: Address to listen on.
        port: Port to listen on.
    """
    import uvicorn

    connect(config)
    # A certificate takes seconds, not milliseconds.
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "600")
    uvicorn.run(
        scoring_app(model or f"models:/{config.registered_model}/latest"),
        host=host,
        port=port,
        log_level="warning",
    )
