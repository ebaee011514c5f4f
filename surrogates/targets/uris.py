"""Targets by address: the address, or `protocol`, decides which file of this folder opens it."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.declared import Declared

# A protocol is one file with a function that opens an address: open(uri, declared, options) -> Target.
PROTOCOLS = {
    "mlflow": ("pyfunc", "open_mlflow"),
    "mlflow-server": ("scoring_server", "open_scoring_server"),
    "deployments": ("deployments", "open_deployment"),
    "open-inference": ("open_inference", "open_open_inference"),
    "onnx": ("onnx", "open_onnx"),
    "tflite": ("tflite", "open_tflite"),
    "json": ("json_endpoint", "open_json"),
}

# A mapping to start from, on one line.
EXAMPLE = '{{url: "{url}", images: png, send: multipart, request: {{file: $images}}, labels: class, classes: [cat, dog]}}'


def open_uri(uri: str, protocol: str | None, declared: Declared, options: dict[str, Any]) -> Target:
    """Open what an address names.

    Raises:
        TargetError: No such protocol, or what the protocol raises.
    """
    protocol = protocol or protocol_of(uri)
    if protocol not in PROTOCOLS:
        raise TargetError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    file, function = PROTOCOLS[protocol]
    return getattr(import_module(f"surrogates.targets.{file}"), function)(uri, declared, options)


def protocol_of(uri: str) -> str:
    """Return the protocol that an address stands for.

    Raises:
        TargetError: The address has none.
    """
    if uri.startswith(("http://", "https://")):
        path = re.split(r"[?#]", uri)[0].rstrip("/")
        if path.endswith("/invocations"):
            return "mlflow-server"
        if "/v2/models/" in path:
            return "open-inference"
        from surrogates.targets.addresses import public_url

        raise TargetError(
            f"no protocol for {public_url(uri)!r}: give .../invocations, .../v2/models/NAME, protocol='...', or a file "
            f"NAME.yaml that describes the service, such as {EXAMPLE.format(url=public_url(uri))}"
        )
    if uri.startswith("deployments:"):
        return "deployments"
    suffix = Path(uri).suffix.lower()
    return {".onnx": "onnx", ".tflite": "tflite", ".yaml": "json", ".yml": "json"}.get(suffix, "mlflow")
