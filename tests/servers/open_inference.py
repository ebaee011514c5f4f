"""A server of the Open Inference Protocol with its binary tensor extension, written from the specification."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.servers.loopback import Handler, serving

TYPES = {
    "FP32": "<f4",
    "FP64": "<f8",
    "FP16": "<f2",
    "UINT8": "u1",
    "INT8": "i1",
    "INT32": "<i4",
    "INT64": "<i8",
}


class Model:
    """What a model takes and gives, and what the server was last sent."""

    def __init__(
        self,
        predict: Callable[[np.ndarray], dict[str, np.ndarray]],
        inputs: list[dict[str, Any]],
        outputs: list[dict[str, Any]],
        *,
        extensions: tuple[str, ...] = ("binary_tensor_data",),
        versions: tuple[str, ...] = ("1",),
    ) -> None:
        self.predict, self.inputs, self.outputs = predict, inputs, outputs
        self.extensions, self.versions = list(extensions), list(versions)
        self.was_binary: bool | None = None
        self.served = 0
        self.cut = 0  # bytes to leave out at the end of binary answers
        self.alter: Callable[[dict[str, Any]], Any] = lambda answer: answer


class _Handler(Handler):
    model: Model

    def do_GET(self) -> None:
        if self.path == "/v2":
            self.reply({"name": "ours", "version": "1", "extensions": self.model.extensions})
        elif self.path in ("/v2/models/digits", "/v2/models/digits/versions/1"):
            about = {"name": "digits", "versions": self.model.versions, "platform": "numpy"}
            self.reply(about | {"inputs": self.model.inputs, "outputs": self.model.outputs})
        else:
            self.reply({"error": f"unknown {self.path}"}, 404)

    def do_POST(self) -> None:
        raw = self.body()
        length = self.headers.get("Inference-Header-Content-Length")
        head = json.loads(raw if length is None else raw[: int(length)])
        tensor = head["inputs"][0]
        about = self.model.inputs[0] if self.model.inputs else tensor
        if (tensor["name"], tensor["datatype"]) != (about["name"], about["datatype"]):
            return self.reply({"error": f"no input {tensor['name']} of {tensor['datatype']}"}, 400)
        kind = TYPES[tensor["datatype"]]
        self.model.was_binary = "parameters" in tensor
        if self.model.was_binary:
            data = raw[int(length) :]
            if len(data) != tensor["parameters"]["binary_data_size"]:
                return self.reply({"error": "wrong binary_data_size"}, 400)
            images = np.frombuffer(data, kind).reshape(tensor["shape"])
        else:
            images = np.asarray(tensor["data"], kind).reshape(tensor["shape"])
        self.model.served += len(images)
        answers = self.model.predict(images)
        wanted = [output["name"] for output in head.get("outputs", [])] or list(answers)
        if not set(wanted) <= set(answers):
            return self.reply({"error": f"no output {wanted}"}, 400)
        outputs, tail = [], b""
        binary = head.get("parameters", {}).get("binary_data_output", False)
        for name in wanted:
            datatype = {"f4": "FP32", "f8": "FP64", "i8": "INT64"}[answers[name].dtype.str[1:]]
            output = {"name": name, "datatype": datatype, "shape": list(answers[name].shape)}
            if binary:
                part = answers[name].astype(TYPES[datatype]).tobytes()
                output["parameters"] = {"binary_data_size": len(part)}
                tail += part
            else:
                output["data"] = answers[name].ravel().tolist()
            outputs.append(output)
        body = json.dumps(self.model.alter({"model_name": "digits", "outputs": outputs})).encode()
        if not binary:
            return self.reply(body)
        tail = tail[: len(tail) - self.model.cut]
        return self.reply(
            body + tail,
            headers={
                "Inference-Header-Content-Length": str(len(body)),
                "Content-Type": "application/octet-stream",
            },
        )


@contextmanager
def open_inference_server(model: Model) -> Iterator[str]:
    """Yield the address of a server with the model `digits`."""
    with serving(type("Handler", (_Handler,), {"model": model})) as address:
        yield f"{address}/v2/models/digits"
