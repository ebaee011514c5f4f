"""Targets by address: the address, or `protocol`, decides what is spoken behind it."""

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.formats import PixelFormat
from surrogates.targets.pyfunc import PyfuncTarget, load_pyfunc

if TYPE_CHECKING:
    from surrogates.targets.http import HttpClient
    from surrogates.targets.served import Wire

# A request of this many images is welcome at most servers; what the target tells or batch_size comes first.
REQUEST_SIZE = 32


@dataclass(frozen=True)
class Declared:
    """What the caller says about a target; None leaves it to the target to tell, or to the default."""

    num_classes: int | None = None
    identity: str | None = None
    output_kind: str | None = None
    input_shape: tuple[int, int, int] | None = None
    batch_size: int | None = None
    layout: str | None = None
    dtype: str | None = None
    pixel_range: tuple[float, float] | None = None
    quantise: int | None = None

    @property
    def pixels(self) -> PixelFormat:
        """The pixel format, with defaults where nothing was declared."""
        return PixelFormat(self.layout or "chw", self.dtype or "float32", self.pixel_range, self.quantise)

    def agreed(self, **known: Any) -> "Declared":
        """Fill in what the target tells of itself; TargetError where it contradicts what was declared."""
        for name, value in known.items():
            mine = getattr(self, name)
            if None not in (mine, value) and mine != value:
                raise TargetError(f"{name} is {mine!r}, but the target says {value!r}: leave {name} out")
        return replace(self, **{name: value for name, value in known.items() if value is not None})


def open_uri(uri: str, protocol: str | None, declared: Declared, options: dict[str, Any]) -> Target:
    """Open what an address names; raises TargetError."""
    protocol = protocol or protocol_of(uri)
    if protocol not in PROTOCOLS:
        raise TargetError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[protocol](uri, declared, options)


def protocol_of(uri: str) -> str:
    """Return the protocol that an address stands for; TargetError where it tells none."""
    if uri.startswith(("http://", "https://")):
        path = re.split(r"[?#]", uri)[0].rstrip("/")
        if path.endswith("/invocations"):
            return "mlflow-server"
        if "/v2/models/" in path:
            return "open-inference"
        from surrogates.targets.http import public_url

        raise TargetError(
            f"no protocol for {public_url(uri)!r}: give .../invocations, .../v2/models/NAME, "
            "protocol='...', or a YAML mapping that describes the endpoint"
        )
    suffix = Path(uri).suffix.lower()
    return {".onnx": "onnx", ".yaml": "json", ".yml": "json"}.get(suffix, "mlflow")


def check_options(options: dict[str, Any], known: list[str], what: str) -> None:
    """Refuse options that a kind of target does not have."""
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            remedy = (
                f"did you mean {close[0]!r}?"
                if close
                else f"it takes {', '.join(known) or 'no such options'}"
            )
            raise TargetError(f"unknown option {name!r} of {what}: {remedy}")


def _open_mlflow(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    check_options(options, [], "an MLflow model in this process")
    return PyfuncTarget(
        load_pyfunc(uri),
        declared.num_classes,
        declared.output_kind,
        identity=declared.identity,
        input_shape=declared.input_shape,
        batch_size=declared.batch_size,
        pixels=declared.pixels,
    )


def _open_onnx(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    from surrogates.targets.onnx import OnnxTarget

    check_options(options, ["output", "threads"], "an ONNX model")
    if declared.dtype is not None:
        raise TargetError("dtype is read from the ONNX model: leave it out")
    return OnnxTarget(
        uri,
        declared.num_classes,
        declared.output_kind,
        identity=declared.identity,
        input_shape=declared.input_shape,
        batch_size=declared.batch_size,
        layout=declared.layout,
        pixel_range=declared.pixel_range,
        quantise=declared.quantise,
        **options,
    )


def _open_scoring_server(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    from surrogates.targets.scoring_server import ScoringServer

    client, rest = _client(uri, options, ["probe"], "an MLflow scoring server")
    parts = urlsplit(client.url)
    client.reach(urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/ping", query="")))
    return _target(ScoringServer(client.url), client, declared, **rest)


def _open_open_inference(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    from surrogates.targets import open_inference as oip

    client, rest = _client(uri, options, ["probe", "output", "binary"], "an Open Inference server")
    output, binary = rest.pop("output", None), rest.pop("binary", None)
    model = oip.read_metadata(client, output)
    datatype, shape = (
        model.input.get("datatype", "FP32"),
        [int(side) for side in model.input.get("shape") or []],
    )
    if datatype not in oip.PIXEL_TYPES:
        raise TargetError(
            f"model {client.url} takes {datatype}, expected one of {', '.join(oip.PIXEL_TYPES)}: "
            "open a function that calls it"
        )
    if binary and not model.binary:
        raise TargetError(f"server of {client.url} lists no extension binary_tensor_data: leave binary out")
    if model.input is oip.DEFAULT_INPUT:  # the server is silent, so the caller decides
        names = {dtype: name for name, dtype in oip.PIXEL_TYPES.items()}
        datatype = names.get(declared.dtype or "float32", "FP32")
    classes, kind = oip.classes_and_kind(model.output)
    declared = declared.agreed(
        num_classes=classes,
        output_kind=None if declared.output_kind else kind,
        dtype=oip.PIXEL_TYPES[datatype],
        layout=declared.layout or (oip.layout_of(shape, declared.input_shape) if shape else None),
    )
    if len(shape) > 1 and shape[0] > 0:
        declared = replace(declared, batch_size=min(shape[0], declared.batch_size or shape[0]))
    wire = oip.OpenInference(
        model.url,
        model.input["name"],
        datatype,
        None if model.output is None else model.output["name"],
        model.binary if binary is None else bool(binary),
    )
    name = model.name + (f"#{output}" if output else "")
    return _target(
        wire,
        client,
        replace(declared, identity=declared.identity or name),
        num_features=shape[1] if len(shape) == 2 and shape[1] > 0 else None,
        **rest,
    )


def _open_json(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    from surrogates.targets.json_endpoint import JsonEndpoint, pixel_format, read_mapping

    mapping = read_mapping(uri)
    if declared.layout or declared.dtype:
        raise TargetError("layout and dtype stand in the mapping: leave them out")
    own = {"token_env": mapping.token_env, "token_header": mapping.token_header}
    options = {name: value for name, value in own.items() if value is not None} | options
    client, rest = _client(mapping.url, options, [], "a JSON endpoint")
    form = pixel_format(mapping)
    shape = mapping.input_shape
    declared = declared.agreed(
        num_classes=mapping.known_classes,
        output_kind=None if declared.output_kind else mapping.kind,
        input_shape=None if shape is None else tuple(shape),
    )
    form = replace(
        form,
        pixel_range=declared.pixel_range or form.pixel_range,
        quantise=declared.quantise or form.quantise,
    )
    declared = replace(
        declared,
        **asdict(form),
        batch_size=mapping.per_request if mapping.per_request else declared.batch_size,
    )
    # Another request or another reading of the answers is another target.
    meaning = {k: v for k, v in asdict(mapping).items() if k not in ("token_env", "token_header", "identity")}
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True, default=str).encode()).hexdigest()[:16]
    name = declared.identity or mapping.identity or f"{client.url}#{digest}"
    wire = JsonEndpoint(mapping, client.url, declared.num_classes or 0, declared.output_kind or "")
    return _target(wire, client, replace(declared, identity=name), **rest)


def _client(
    url: str, options: dict[str, Any], others: list[str], what: str
) -> tuple["HttpClient", dict[str, Any]]:
    """Return a client made with the options of HTTP, and the options that are not of HTTP."""
    from surrogates.targets.http import HttpClient, HttpOptions

    http = [field.name for field in fields(HttpOptions)]
    check_options(options, others + http, what)
    client = HttpClient(url, HttpOptions(**{name: options[name] for name in http if name in options}))
    return client, {name: value for name, value in options.items() if name not in http}


def _target(
    wire: "Wire",
    client: "HttpClient",
    declared: Declared,
    *,
    probe: bool = False,
    num_features: int | None = None,
) -> Target:
    from surrogates.targets import served

    if declared.num_classes is None:
        if not (probe and declared.input_shape):
            raise TargetError(
                f"target {client.url} does not tell its number of classes: give open_target(..., num_classes=...), "
                "or input_shape and probe=True, which pays for one query"
            )
        classes, kind = served.probe(wire, client, declared.input_shape, declared.pixels)
        declared = replace(declared, num_classes=classes, output_kind=declared.output_kind or kind)
    return served.HttpTarget(
        wire,
        client,
        declared.num_classes,
        declared.output_kind or "probabilities",
        identity=declared.identity,
        input_shape=declared.input_shape,
        num_features=num_features,
        request_size=declared.batch_size or REQUEST_SIZE,
        pixels=declared.pixels,
    )


PROTOCOLS: dict[str, Callable[[str, Declared, dict[str, Any]], Target]] = {
    "mlflow": _open_mlflow,
    "mlflow-server": _open_scoring_server,
    "open-inference": _open_open_inference,
    "onnx": _open_onnx,
    "json": _open_json,
}
