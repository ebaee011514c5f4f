"""The Open Inference Protocol, version 2, over HTTP: KServe, Triton, MLServer, OpenVINO, TorchServe.

Source: the protocol's REST specification and its binary tensor extension, github.com/kserve/open-inference-protocol.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.classes import REMEDY, ClassNames
from surrogates.targets.declared import Declared
from surrogates.targets.http import HttpClient, Reply, client_of
from surrogates.targets.json_answers import json_numbers, quoted, read_json
from surrogates.targets.records import LABEL_NAMES, named_columns, unpack
from surrogates.targets.served import open_served
from surrogates.targets.signatures import ModelInput, refuse_fixed_batch

PIXEL_TYPES = {
    "FP32": "float32",
    "FP64": "float64",
    "UINT8": "uint8",
    "FP16": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
}
NUMBER_TYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
JSON_LENGTH = "Inference-Header-Content-Length"
SILENT = ModelInput("the model", "float32", ())
DEFAULT_INPUT = {"name": "input-0", "datatype": "FP32", "shape": []}


def open_open_inference(uri: str, declared: Declared, options: dict[str, Any]) -> Target:
    """Open a model of an Open Inference server.

    Args:
        options: Those of HTTP, `output` (name of the output to read), `binary` (tensors travel as bytes), `probe`.

    Raises:
        TargetError: The server cannot be reached, or reports what does not fit.
    """
    client, rest = client_of(uri, options, ["probe", "binary"], "an Open Inference server")
    binary = rest.pop("binary", None)
    with client.discreet():
        return _open(client, declared, binary, rest)


def _open(client: HttpClient, declared: Declared, binary: bool | None, rest: dict[str, Any]) -> Target:
    model = read_metadata(client, declared.output, declared.output_kind)
    what = f"model {client.url}"
    datatype = model.input.get("datatype", "FP32")
    if datatype not in PIXEL_TYPES:
        raise TargetError(
            f"{what} takes {datatype}, expected one of {', '.join(PIXEL_TYPES)}: open a function that calls it"
        )
    if binary and not model.binary:
        raise TargetError(f"server of {client.url} lists no extension binary_tensor_data: leave binary out")
    if model.input is DEFAULT_INPUT:  # the server is silent, so the caller decides
        names = {dtype: name for name, dtype in PIXEL_TYPES.items()}
        datatype = names.get(declared.dtype or "float32", "FP32")
    shape = tuple(side if side > 0 else -1 for side in model.input.get("shape") or [])
    taken = ModelInput(what, PIXEL_TYPES[datatype], shape).placed(declared)
    classes, kind, sure = classes_and_kind(model.output, without_batch=taken.without_batch)
    answered = (model.output or {}).get("datatype", "FP32")
    if answered not in NUMBER_TYPES and (answered != "BYTES" or declared.names is None):
        remedy = f"if these are names, {REMEDY}; or " if answered == "BYTES" else ""
        raise TargetError(f"{what} answers {answered}, expected numbers: {remedy}give output='another one'")
    declared = taken.honored(
        declared.agreed(num_classes=classes, output_kind=None if declared.output_kind or not sure else kind)
    )
    declared = refuse_fixed_batch(taken.batch, declared, what)
    chosen = f"#{declared.output}" if declared.output is not None else ""
    name = model.name + client.name.removeprefix(client.url) + chosen
    return open_served(
        OpenInference(
            model.url,
            model.input["name"],
            datatype,
            None if model.output is None else model.output["name"],
            model.binary if binary is None else bool(binary),
            taken,
            declared.names,
        ),
        client,
        replace(declared, identity=declared.identity or name),
        num_features=taken.num_features,
        assumed=kind or "probabilities",
        **rest,
    )


@dataclass(frozen=True)
class OpenInference:
    """The protocol for one model of a server.

    Args:
        url: Where requests are posted.
        input: Name of the only input.
        datatype: Its type, a key of PIXEL_TYPES.
        output: Name of the output that is read; None for the only one.
        binary: Whether tensors travel as bytes behind the JSON.
        taken: What the model reports of its input.
        names: The names of the classes, where the caller lists them.
    """

    url: str
    input: str
    datatype: str
    output: str | None
    binary: bool
    taken: ModelInput = SILENT
    names: ClassNames | None = None

    def encode(self, pixels: np.ndarray) -> tuple[bytes, dict[str, str]]:
        """Write an inference request, with its tensor as JSON or as bytes behind the JSON."""
        pixels = self.taken.arranged(pixels, fill=False)
        tensor: dict[str, Any] = {"name": self.input, "shape": list(pixels.shape), "datatype": self.datatype}
        request: dict[str, Any] = {"inputs": [tensor]}
        if self.output is not None:
            request["outputs"] = [{"name": self.output}]
        if not self.binary:
            tensor["data"] = pixels.ravel().tolist()
            return json.dumps(request).encode(), {"Content-Type": "application/json"}
        raw = pixels.astype(NUMBER_TYPES[self.datatype]).tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        request["parameters"] = {"binary_data_output": True}
        head = json.dumps(request).encode()
        return head + raw, {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}

    def decode(self, reply: Reply, count: int) -> np.ndarray:
        """Read the output tensor of an inference response."""
        head, raw = reply, b""
        if length := reply.headers.get(JSON_LENGTH):
            if not re.fullmatch("[0-9]{1,18}", length) or int(length) > len(reply.body):
                raise TargetError(
                    f"target answered {JSON_LENGTH} {quoted(length)} and {len(reply.body)} bytes"
                )
            head = Reply(reply.body[: int(length)], reply.headers)
            raw = reply.body[int(length) :]
        answer = read_json(head)
        outputs = answer.get("outputs") if isinstance(answer, dict) else None
        if not isinstance(outputs, list) or not all(isinstance(tensor, dict) for tensor in outputs):
            raise TargetError("target answered no 'outputs': does it speak the Open Inference Protocol?")
        sizes = [_binary_size(tensor) for tensor in outputs]
        if sum(filter(None, sizes)) != len(raw):
            raise TargetError(f"target answered tensors of {sizes} bytes in {len(raw)} bytes")
        names = [tensor.get("name") for tensor in outputs]
        chosen = [0] if self.output is None and len(outputs) == 1 else _places(names, self.output)
        if len(chosen) != 1:
            raise TargetError(
                f"target answered outputs {quoted(names)}, expected {self.output!r} once: give output='a name'"
            )
        # Binary tensors lie one behind the other, in the order of the outputs.
        start, size = sum(filter(None, sizes[: chosen[0]])), sizes[chosen[0]]
        values = _tensor(outputs[chosen[0]], None if size is None else raw[start : start + size])
        return unpack(self.taken.answered(values, len(values)) if values.ndim else values, self.names)


@dataclass(frozen=True)
class ModelMetadata:
    """What a server reports about a model.

    Args:
        url: Where requests are posted.
        name: Its address, with the version where the server reports that it has only one.
        input: Name, type and shape of its only input.
        output: Name, type and shape of the output to read, where the server reports them.
        binary: Whether tensors may travel as bytes.
    """

    url: str
    name: str
    input: dict[str, Any]
    output: dict[str, Any] | None
    binary: bool


def read_metadata(client: HttpClient, output: str | int | None, kind: str | None = None) -> ModelMetadata:
    """Read from a server, free of charge, what the model takes and gives.

    Args:
        output: Name or place of the output to read, unset by its name.
        kind: What was declared of it.

    Raises:
        TargetError: The server cannot be reached, or its metadata cannot be used.
    """
    match = re.fullmatch(
        r"(.*)/v2/models/[^/?]+(/versions/[^/?]+)?", client.url.removesuffix("/infer").rstrip("/")
    )
    if match is None:
        raise TargetError(
            f"address {client.url} names no model: give .../v2/models/NAME or .../NAME/versions/V"
        )
    url = match.group(0)
    model = read_json(client.get(url))
    server = read_json(client.get(f"{match.group(1)}/v2"))
    inputs, outputs = (_tensors(model, name) for name in ("inputs", "outputs"))
    if len(inputs) > 1:
        names = [tensor["name"] for tensor in inputs]
        raise TargetError(f"model {url} takes inputs {names}, expected 1: open a function that calls it")
    versions = model.get("versions") if isinstance(model, dict) else None
    version = None
    if isinstance(versions, list) and len(versions) == 1 and match.group(2) is None:
        version = versions[0]
        if not isinstance(version, str | int):
            raise TargetError(f"target's metadata has version {quoted(version)}, expected a name")
    extensions = server.get("extensions") if isinstance(server, dict) else None
    return ModelMetadata(
        url=f"{url}/infer",
        name=url if version is None else f"{url}/versions/{version}",
        input=inputs[0] if inputs else DEFAULT_INPUT,
        output=_choose(outputs, output, kind, url),
        binary=isinstance(extensions, list) and "binary_tensor_data" in extensions,
    )


def classes_and_kind(
    output: dict[str, Any] | None, *, without_batch: bool = False
) -> tuple[int | None, str | None, bool]:
    """Return the number of classes and "labels", as far as an output's name and metadata have them, and whether it is sure."""
    if output is None:
        return None, None, False
    shape = output.get("shape") or []
    whole = not str(output.get("datatype", "FP")).startswith("FP")
    if without_batch:
        shape = [-1, *shape]
    if output["name"] in LABEL_NAMES or len(shape) == 1 or (whole and shape[-1:] == [1]):
        return None, "labels", whole
    return (int(shape[-1]) if shape and int(shape[-1]) > 1 else None), None, False


def _choose(
    outputs: list[dict[str, Any]], wanted: str | int | None, kind: str | None, url: str
) -> dict[str, Any] | None:
    """Return the output to read: the named or counted one, the only one, or the one with a known name."""
    names = [tensor["name"] for tensor in outputs]
    if wanted not in names and str(wanted).isdecimal() and int(str(wanted)) < len(names):
        wanted = names[int(str(wanted))]
    if wanted is not None:
        if names and wanted not in names:
            raise TargetError(f"output is {wanted!r}, but {url} gives {', '.join(names)}: choose one of them")
        return next((tensor for tensor in outputs if tensor["name"] == wanted), {"name": wanted})
    if len(outputs) < 2:
        return outputs[0] if outputs else None
    name = named_columns(names, kind)
    if name is not None:
        return outputs[names.index(name)]
    raise TargetError(f"model {url} gives outputs {', '.join(names)}: give output='one of them'")


def _tensors(model: Any, field: str) -> list[dict[str, Any]]:
    tensors = (model.get(field) if isinstance(model, dict) else None) or []
    if not isinstance(tensors, list) or not all(_is_described(tensor) for tensor in tensors):
        raise TargetError(
            f"target's metadata has no usable {field!r}: does it speak the Open Inference Protocol?"
        )
    return tensors


def _is_described(tensor: Any) -> bool:
    """Whether metadata of a tensor are of the types that the protocol has for them."""
    return (
        isinstance(tensor, dict)
        and isinstance(tensor.get("name"), str)
        and isinstance(tensor.get("datatype", ""), str)
        and _is_shape(tensor.get("shape") or [])
    )


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(side) is int for side in shape)


def _binary_size(tensor: dict[str, Any]) -> int | None:
    """Return the bytes of a tensor behind the JSON; None where it is in the JSON."""
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and (type(size) is not int or size < 0):
        raise TargetError(f"target answered binary_data_size {quoted(size)}, expected a number of bytes")
    return size


def _places(names: list[Any], name: str | None) -> list[int]:
    return [place for place, each in enumerate(names) if each == name]


def _tensor(tensor: dict[str, Any], raw: bytes | None) -> np.ndarray:
    """Return an output tensor as an array, from its JSON data or from its bytes."""
    datatype, shape, data = tensor.get("datatype"), tensor.get("shape"), tensor.get("data")
    if not isinstance(datatype, str) or datatype not in (*NUMBER_TYPES, "BYTES"):
        raise TargetError(f"target answered a tensor of type {quoted(datatype)}, expected numbers")
    if not isinstance(shape, list) or not _is_shape(shape) or min(shape, default=0) < 0:
        raise TargetError(f"target answered a tensor of shape {quoted(shape)}, expected sides")
    try:
        if datatype == "BYTES":
            values = _texts(data if raw is None else _split(raw))
        elif raw is not None:
            values = np.frombuffer(raw, dtype=NUMBER_TYPES[datatype])
        else:
            values = (
                np.array(data, dtype=bool) if _are_booleans(datatype, data) else json_numbers(data)
            ).ravel()
            if datatype.startswith("FP"):  # JSON writes 1.0 as 1
                values = values.astype(np.float64)
        return values.reshape(shape)
    except TargetError:
        raise
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"target answered a tensor that does not fill its shape {quoted(shape)} ({error})"
        ) from None


def _split(raw: bytes) -> list[bytes]:
    """Return the elements of a binary tensor of BYTES: each behind its length in 4 bytes.

    Raises:
        ValueError: One is cut short.
    """
    elements, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise ValueError("a text is cut short")
        elements.append(raw[at + 4 : end])
        at = end
    return elements


def _texts(elements: Any) -> np.ndarray:
    """Return the elements of a tensor of BYTES as texts.

    Raises:
        ValueError: One is no text.
    """
    texts = [each.decode() if isinstance(each, bytes) else each for each in elements]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not all are texts")
    return np.array(texts, dtype=object)


def _are_booleans(datatype: str, data: Any) -> bool:
    """Whether a tensor of booleans, the one type of which true and false are values, holds them."""
    return datatype == "BOOL" and isinstance(data, list) and all(type(value) is bool for value in data)
