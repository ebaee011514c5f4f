"""Endpoints of MLflow Deployments: `deployments:/NAME`, on the target that MLFLOW_DEPLOYMENTS_TARGET names.

Databricks and a deployments server (http...) speak the protocol of the scoring server, and are queried here as any such
server: MLflow's own client repeats requests unseen, up to seven times. Any other target has a plugin, whose client is
called in this process.
"""

import os
import re
from typing import Any
from urllib.parse import quote

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.addresses import first_line, public_url
from surrogates.targets.base import Target
from surrogates.targets.declared import Declared, check_options
from surrogates.targets.http import HttpClient
from surrogates.targets.json_answers import read_json
from surrogates.targets.scoring_server import open_scoring_server

SCHEME = "deployments:/"
# What must stand in the environment, so that a plugin's client repeats no request unseen.
NO_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
NO_RETRIES_OF = {"sagemaker": {"AWS_MAX_ATTEMPTS": "1"}}


def open_deployment(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open an endpoint of the deployments target.

    Args:
        options: Those of a scoring server, for Databricks and for an address; none for a plugin.

    Raises:
        TargetError: No target is set, or the endpoint cannot be used.
    """
    name = uri.removeprefix(SCHEME).strip("/")
    if not uri.startswith(SCHEME) or not re.fullmatch(r"[\w.-]+", name):
        raise TargetError(f"{uri!r} names no endpoint: give {SCHEME}NAME")
    where = _deployments_target()
    if where == "databricks":
        host = os.environ.get("DATABRICKS_HOST", "").rstrip("/")
        if not host:
            raise TargetError(
                f"{uri} is on databricks: set DATABRICKS_HOST, and DATABRICKS_TOKEN or token_env"
            )
        host = host if "://" in host else f"https://{host}"
        options = {"token_env": "DATABRICKS_TOKEN"} | options
        return _on_server(host, "api/2.0/serving-endpoints", "serving-endpoints", name, declared, options)
    if where.startswith("databricks:"):
        raise TargetError(
            f"the deployments target {where!r} is a profile: set MLFLOW_DEPLOYMENTS_TARGET=databricks, "
            "DATABRICKS_HOST and DATABRICKS_TOKEN"
        )
    if where.startswith(("http://", "https://")):
        return _on_server(where.rstrip("/"), "api/2.0/endpoints", "endpoints", name, declared, options)
    check_options(options, [], f"an endpoint of {where}")
    return DeploymentTarget(where, name, declared)


def _on_server(
    host: str, about: str, endpoints: str, name: str, declared: Declared, options: dict[str, Any]
) -> Target:
    """Open an endpoint behind an address, after a look at its description, which is free."""
    part = quote(name, safe="")

    def check(client: HttpClient) -> None:
        server = client.url.removesuffix(f"/{endpoints}/{part}/invocations")
        with client.discreet():
            described = read_json(client.get(f"{server}/{about}/{part}"))
        said = described if isinstance(described, dict) else {}
        kind = str(said.get("endpoint_type") or said.get("task") or "")
        if kind.startswith("llm/"):
            raise TargetError(
                f"endpoint {name!r} is a language model ({kind[:40]}): describe how it sees images in a YAML mapping "
                f"with url: {public_url(client.url)}"
            )

    return open_scoring_server(f"{host}/{endpoints}/{part}/invocations", declared, options, check)


class DeploymentTarget(Target):
    """An endpoint that a plugin's client queries; one call is one attempt, and may be charged whatever comes of it.

    Args:
        where: The deployments target.
        name: The deployment.

    Raises:
        ClassesUnknown: num_classes was not declared.
        TargetError: There is no such plugin or deployment, or its client may repeat requests unseen.
    """

    def __init__(self, where: str, name: str, declared: Declared) -> None:
        for variable, value in (NO_RETRIES | NO_RETRIES_OF.get(where.partition(":")[0], {})).items():
            if os.environ.get(variable) != value:
                raise TargetError(
                    f"the client of {where} may repeat what was charged, unseen by the ledger: set {variable}={value}"
                )
        super().__init__(
            declared.identity or f"{SCHEME}{name}@{where}",
            declared.classes_of(f"endpoint {name!r} of {where}"),
            declared.kind("probabilities"),
            charged_when_sent=True,
            batch_size=declared.batch_size,
            **declared.handed,
        )
        self._client = _plugin_client(where, name)
        self._name = name

    def answer(self, pixels: np.ndarray) -> Any:
        answer = self._client.predict(deployment_name=self._name, inputs=pixels)
        return answer["predictions"] if hasattr(answer, "get_predictions") else answer


def _deployments_target() -> str:
    from mlflow.deployments import get_deployments_target
    from mlflow.exceptions import MlflowException

    try:
        return str(get_deployments_target())
    except MlflowException:
        raise TargetError(
            "no deployments target is set: set MLFLOW_DEPLOYMENTS_TARGET to databricks, an address or a plugin"
        ) from None


def _plugin_client(where: str, name: str) -> Any:
    """Return a plugin's client that knows a deployment."""
    from mlflow.deployments import get_deploy_client

    try:
        client = get_deploy_client(where)
        if client is None:
            raise TargetError(
                f"the deployments target {where!r} has no client: check MLFLOW_DEPLOYMENTS_TARGET"
            )
        client.get_deployment(name)
    except TargetError:
        raise
    except NotImplementedError:
        pass  # it does not describe its deployments
    except Exception as error:
        raise TargetError(
            f"cannot open {SCHEME}{name} on {where} ({first_line(error)}): check MLFLOW_DEPLOYMENTS_TARGET"
        ) from error
    return client
