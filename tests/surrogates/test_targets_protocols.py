"""Open Inference, ONNX and JSON endpoints answer as the model behind them, and say what they cannot take."""

import base64
import datetime
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from surrogates import ClassesUnknown, QueryLedger, SurrogateError, TargetError, open_target
from surrogates.targets.base import Target
from surrogates.targets.formats import PixelFormat
from surrogates.targets.mapping import read_mapping
from tests.servers.loopback import Handler, serving
from tests.servers.open_inference import Model, open_inference_server

SHAPE = (3, 4, 5)
CLASSES = ["cat", "dog", "eel", "fox"]
IMAGES = np.random.default_rng(0).random((7, *SHAPE)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(60, 4))


def logits(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) @ WEIGHT


def probabilities(images: np.ndarray) -> np.ndarray:
    scores = np.exp(logits(images))
    return scores / scores.sum(axis=1, keepdims=True)


def eight_bit(images: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(images, 0, 1) * 255)


def tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def predict(images: np.ndarray) -> dict[str, np.ndarray]:
    images = images / 255 if images.dtype == np.uint8 else images
    if images.ndim == 4 and images.shape[3] == 3:
        images = images.transpose(0, 3, 1, 2)
    scores = probabilities(images)
    return {"scores": scores.astype(np.float32), "labels": scores.argmax(axis=1)}


SCORES, LABELS = tensor("scores", "FP32", -1, 4), tensor("labels", "INT64", -1)
INPUTS = {
    "FP32": (tensor("image", "FP32", -1, *SHAPE), IMAGES),
    "FP64": (tensor("image", "FP64", -1, *SHAPE), IMAGES),
    "UINT8": (tensor("image", "UINT8", -1, *SHAPE), eight_bit(IMAGES) / 255),
    "flat": (tensor("x", "FP32", -1, 60), IMAGES),
    "hwc": (tensor("image", "FP32", -1, 4, 5, 3), IMAGES),
}


@pytest.mark.parametrize("extensions", [("binary_tensor_data",), ()], ids=["binary", "json"])
@pytest.mark.parametrize(("about", "seen"), INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("input_shape", [SHAPE, None], ids=["shape", "no shape"])
def test_an_open_inference_model_reports_how_to_query_it(
    about: dict, seen: np.ndarray, extensions: tuple, input_shape: Any
) -> None:
    model = Model(predict, [about], [SCORES, LABELS], extensions=extensions)
    with open_inference_server(model) as url:
        target = open_target(url, input_shape=input_shape, batch_size=3)
        assert (target.num_classes, target.output_kind) == (4, "probabilities")
        assert model.served == 0
        answers = target.query(IMAGES)
        assert model.was_binary == bool(extensions)
        assert model.served == 7
    np.testing.assert_allclose(answers.scores, predict(seen)["scores"], rtol=1e-6)
    np.testing.assert_array_equal(answers.labels, probabilities(seen).argmax(axis=1))


def test_an_open_inference_model_with_labels_versions_and_choices() -> None:
    model = Model(predict, [INPUTS["FP32"][0]], [SCORES, LABELS])
    with open_inference_server(model) as url:
        target = open_target(f"{url}/versions/1/infer", output="labels", num_classes=4)
        assert target.output_kind == "labels"
        assert target.identity == f"{url}/versions/1#labels"
        answers = target.query(IMAGES)
        assert answers.scores is None
        np.testing.assert_array_equal(answers.labels, probabilities(IMAGES).argmax(axis=1))
        target = open_target(url, binary=False)
        target.query(IMAGES)
        assert model.was_binary is False
        model.inputs = [tensor("image", "UINT8", -1, *SHAPE)]
        assert open_target(url).preprocessing == "uint8, 0..255"
        model.inputs, model.extensions = [], []  # a server that tells nothing
        target = open_target(url, layout="flat", dtype="float64", output="scores", num_classes=4)
        np.testing.assert_array_equal(target.query(IMAGES).scores, predict(IMAGES)["scores"])
        model.inputs = [tensor("image", "FP32", 1, *SHAPE)]
        assert open_target(url, input_shape=SHAPE, batch_size=8).batch_size == 1  # a fixed batch of one


OIP_FAULTS = {
    "two inputs": ({"inputs": [SCORES, LABELS]}, {}, r"takes inputs \['scores', 'labels'\], expected 1"),
    "bytes": (
        {"inputs": [tensor("x", "BYTES", -1, 1)]},
        {},
        r"takes BYTES, expected one of FP32, FP64, UINT8",
    ),
    "no such output": ({}, {"output": "logits"}, r"output is 'logits', but .* gives scores, labels"),
    "unnamed": (
        {"outputs": [tensor("a", "FP32", -1, 4), tensor("b", "FP32", -1, 4)]},
        {},
        r"outputs a, b: give",
    ),
    "classes": ({}, {"num_classes": 5}, r"num_classes is 5, but the target says 4: leave num_classes out"),
    "dtype": ({}, {"dtype": "uint8"}, r"dtype is 'uint8', but the target says 'float32'"),
    "binary": ({"extensions": []}, {"binary": True}, r"no extension binary_tensor_data"),
    "silent": ({"outputs": []}, {}, r"does not tell its number of classes"),
    "shape of words": ({"inputs": [tensor("x", "FP32", "a", 4)]}, {}, r"no usable 'inputs'"),
    "shape of booleans": ({"outputs": [tensor("x", "FP32", -1, True)]}, {}, r"no usable 'outputs'"),
    "name": ({"inputs": [tensor(5, "FP32", -1, 4)]}, {}, r"no usable 'inputs'"),
    "type": ({"inputs": [tensor("x", ["FP32"], -1, 4)]}, {}, r"no usable 'inputs'"),
    "version": ({"versions": [{"a": 1}]}, {}, r"version \{'a': 1\}, expected a name"),
    "extensions": ({"extensions": 5}, {"binary": True}, r"no extension binary_tensor_data"),
}


@pytest.mark.parametrize(("changes", "options", "message"), OIP_FAULTS.values(), ids=OIP_FAULTS.keys())
def test_what_an_open_inference_model_cannot_answer(changes: dict, options: dict, message: str) -> None:
    model = Model(predict, [INPUTS["FP32"][0]], [SCORES, LABELS])
    vars(model).update(changes)
    with open_inference_server(model) as url, pytest.raises(TargetError, match=message) as caught:
        open_target(url, **options)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ClassesUnknown) == ("does not tell" in message)
    assert model.served == 0


def test_a_binary_answer_cut_short_is_noticed_and_paid_for(tmp_path: Path) -> None:
    model = Model(predict, [INPUTS["FP32"][0]], [SCORES])
    model.cut = 4
    with open_inference_server(model) as url, QueryLedger(tmp_path / "ledger.db", budget=20) as ledger:
        paid = ledger.attach(open_target(url))
        with pytest.raises(TargetError, match=r"tensors of \[112\] bytes in 108 bytes"):
            paid.query(IMAGES)
        assert (ledger.bill()["training"].unknown, model.served) == (7, 7)


def _first(**changes: Any) -> Callable[[dict], dict]:
    """Change the first output of an answer."""
    return lambda answer: answer | {"outputs": [answer["outputs"][0] | changes, *answer["outputs"][1:]]}


TENSORS = {
    "words": (_first(data=["0.5"] * 28), r"answered '0.5', expected numbers"),
    "booleans": (_first(data=[True] * 28), r"answered True, expected numbers"),
    "mixed": (_first(data=[True] + [0.5] * 27), r"answered True, expected numbers"),
    "rows": (_first(data=[[0.1], [0.2, 0.3]]), r"expected numbers in rows of one length"),
    "large": (_first(data=[10**400] * 28), r"expected numbers in rows"),
    "free side": (_first(shape=[-1, 4]), r"shape \[-1, 4\], expected sides"),
    "boolean side": (_first(shape=[True, 28]), r"shape \[True, 28\], expected sides"),
    "no shape": (_first(shape=None), r"shape None, expected sides"),
    "type": (_first(datatype=["FP32"]), r"type \['FP32'\], expected numbers"),
    "size": (_first(parameters={"binary_data_size": -5}), r"binary_data_size -5, expected a number"),
    "size of nothing": (_first(parameters={"binary_data_size": 9}), r"tensors of \[9\] bytes in 0 bytes"),
    "twice": (lambda answer: answer | {"outputs": answer["outputs"] * 2}, r"expected 'scores' once"),
    "list": (lambda answer: [answer], r"no 'outputs'"),
}


@pytest.mark.parametrize(("alter", "message"), TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_that_means_nothing_is_named_and_paid_for(
    alter: Callable, message: str, tmp_path: Path
) -> None:
    model = Model(predict, [INPUTS["FP32"][0]], [SCORES], extensions=())
    model.alter = alter
    with open_inference_server(model) as url, QueryLedger(tmp_path / "ledger.db", budget=20) as ledger:
        with pytest.raises(TargetError, match=message) as caught:
            ledger.attach(open_target(url)).query(IMAGES)
        assert (ledger.bill()["training"].unknown, model.served) == (7, 7)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_named() -> None:
    model = Model(predict, [INPUTS["FP32"][0]], [SCORES])
    with open_inference_server(model) as url:
        with pytest.raises(TargetError, match=r"404 Not Found .*unknown /v2/models/other"):
            open_target(url.replace("digits", "other"))
        with pytest.raises(TargetError, match=r"names no model: give"):
            open_target(url.replace("/v2/models/digits", "/v2"), protocol="open-inference")


# ONNX


class Net(torch.nn.Module):
    """A small convolutional network; `softmax` and `uint8` move a step into the graph."""

    def __init__(self, softmax: bool = False, eight_bit: bool = False) -> None:
        super().__init__()
        self.softmax, self.eight_bit = softmax, eight_bit
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(160, 4)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.float() / 255 if self.eight_bit else images
        scores = self.layers(images)
        return scores.softmax(dim=1) if self.softmax else scores


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def export(model: Net, name: str, fixed: bool = False, **changes: Any) -> Path:
        path = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
        images = torch.from_numpy(eight_bit(IMAGES[:2]).astype(np.uint8) if model.eight_bit else IMAGES[:2])
        torch.onnx.export(
            model.eval(),
            (images[:1] if fixed else images,),
            str(path),
            input_names=["images"],
            output_names=["scores"],
            dynamic_axes=None if fixed else {"images": {0: "n"}, "scores": {0: "n"}},
            dynamo=False,
        )
        return path

    return export


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_an_onnx_file_answers_as_the_network_it_came_from(
    softmax: bool, eight_bits: bool, net: Net, exported: Any
) -> None:
    pytest.importorskip("onnxruntime")
    net.softmax, net.eight_bit = softmax, eight_bits
    target = open_target(
        exported(net, "net"), output_kind="probabilities" if softmax else "logits", threads=1
    )
    assert (target.num_classes, target.input_shape) == (4, SHAPE)
    assert not target.charged_when_sent
    images = eight_bit(IMAGES) if eight_bits else IMAGES
    with torch.inference_mode():
        scores = net(torch.from_numpy(images)).numpy()
    answers = target.query(IMAGES)
    np.testing.assert_array_equal(answers.labels, scores.argmax(axis=1))
    np.testing.assert_allclose(answers.scores, scores, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_onnx_file_is_known_by_its_bytes(net: Net, exported: Any) -> None:
    pytest.importorskip("onnxruntime")
    path = exported(net, "net")
    target = open_target(path, output_kind="logits")
    copy = path.with_name("copy.onnx")
    copy.write_bytes(path.read_bytes())
    assert open_target(copy).identity == target.identity
    copy.with_name("copy.onnx.data").write_bytes(b"other weights")
    assert open_target(copy).identity != target.identity
    with torch.no_grad():
        net.layers[3].bias[0] += 1
    assert open_target(exported(net, "net")).identity != target.identity
    assert open_target(exported(net, "one", fixed=True)).batch_size == 1
    np.testing.assert_allclose(
        open_target(exported(net, "one", fixed=True), output_kind="logits").query(IMAGES).scores[:, 0],
        target.query(IMAGES).scores[:, 0] + 1,
        atol=1e-5,
    )
    assert open_target(path).output_kind == "logits"  # as its last operation says
    with pytest.raises(TargetError, match=r"expected probabilities in \[0, 1\]"):
        open_target(path, output_kind="probabilities").query(IMAGES)
    with pytest.raises(TargetError, match=r"output is 'labels', but model .* gives scores"):
        open_target(path, output="labels")
    with pytest.raises(TargetError, match=r"num_classes is 5, but the target says 4: leave num_classes out"):
        open_target(path, num_classes=5)
    with pytest.raises(TargetError, match=r"takes images of shape \(3, 4, 5\)"):
        target.query(IMAGES[:, :1])


def test_a_broken_onnx_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    for name, message in (
        ("broken", r"cannot load the ONNX model"),
        ("nowhere", r"cannot read the ONNX model"),
    ):
        with pytest.raises(TargetError, match=message) as caught:
            open_target(tmp_path / f"{name}.onnx")
        assert "\n" not in str(caught.value)


# JSON endpoints


class Endpoint:
    """A JSON service: `read` takes images out of a body, `answer` makes one of their probabilities."""

    def __init__(self) -> None:
        self.read: Callable[[Any], np.ndarray] = lambda body: np.asarray(body["inputs"])
        self.answer: Callable[[np.ndarray], Any] = lambda scores: scores.tolist()
        self.bodies: list[Any] = []
        self.headers: list[Any] = []
        self.url = ""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    service = Endpoint()

    class Service(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            service.bodies.append(body)
            service.headers.append(self.headers)
            self.reply(service.answer(probabilities(service.read(body))))

    with serving(Service) as address:
        service.url = f"{address}/classify"
        yield service


def mapped(path: Path, endpoint: Endpoint, **mapping: Any) -> Target:
    file = path / "mapping.yaml"
    file.write_text(yaml.safe_dump({"url": endpoint.url} | mapping))
    return open_target(file)


def decoded(text: str) -> np.ndarray:
    """A base64 PNG as one image (1, C, H, W) in [0, 1]."""
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image).transpose(2, 0, 1)[None] / 255


def ranked(row: np.ndarray, count: int = 4) -> list[dict[str, Any]]:
    order = np.argsort(-row)[:count]
    return [{"label": CLASSES[index], "score": float(row[index])} for index in order]


def test_an_endpoint_in_the_style_of_hugging_face(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.read = lambda body: decoded(body["inputs"])
    endpoint.answer = lambda scores: ranked(scores[0], body_k())

    def body_k() -> int:
        return endpoint.bodies[-1]["parameters"]["top_k"]

    mapping = {
        "images": "png",
        "request": {"inputs": "$images", "parameters": {"top_k": 2}},
        "labels": "*.label",
        "scores": "*.score",
        "classes": CLASSES,
    }
    target = mapped(tmp_path, endpoint, **mapping)
    assert (target.output_kind, target.num_classes, target.batch_size) == ("top_k", 4, 1)
    assert target.preprocessing == "8 bits, uint8, 0..255"
    answers = target.query(IMAGES)
    assert len(endpoint.bodies) == 7
    truth = probabilities(eight_bit(IMAGES) / 255)
    np.testing.assert_array_equal(answers.labels, truth.argmax(axis=1))
    known = ~np.isnan(answers.scores)
    assert (known.sum(axis=1) == 2).all()
    np.testing.assert_array_equal(
        np.argsort(-truth)[:, :2], np.argsort(-np.nan_to_num(answers.scores))[:, :2]
    )
    np.testing.assert_allclose(answers.scores[known], truth[known], rtol=1e-6)

    with QueryLedger(tmp_path / "ledger.db", budget=7) as ledger:  # what a ledger keeps is the same
        paid = ledger.attach(target)
        paid.query(IMAGES)
        np.testing.assert_array_equal(paid.query(IMAGES).scores, answers.scores)
        assert ledger.bill()["training"].answered == 7

    mapping["request"]["parameters"]["top_k"] = 4
    whole = mapped(tmp_path, endpoint, **mapping | {"output_kind": "probabilities"})
    np.testing.assert_allclose(whole.query(IMAGES).scores, truth, rtol=1e-6)
    assert whole.identity != target.identity
    labels = mapped(tmp_path, endpoint, **mapping | {"output_kind": "labels"})
    answers = labels.query(IMAGES)
    assert answers.scores is None
    np.testing.assert_array_equal(answers.labels, truth.argmax(axis=1))
    mapping["request"]["parameters"]["top_k"] = 3
    with pytest.raises(TargetError, match=r"named 3 of 4 classes: open it with output_kind='top_k'"):
        mapped(tmp_path, endpoint, **mapping | {"output_kind": "probabilities"}).query(IMAGES)


@pytest.mark.parametrize("many", [None, 3])
def test_an_endpoint_with_arrays_in_batches(many: int | None, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.read = lambda body: np.asarray(body["data"]["pixels"]).transpose(0, 3, 1, 2) / 255
    endpoint.answer = lambda scores: {"result": [{"p": row.tolist()} for row in scores]}
    target = mapped(
        tmp_path,
        endpoint,
        request={"data": {"pixels": "$images"}, "model": "x"},
        layout="hwc",
        dtype="uint8",
        per_request=many,
        answers="result",
        scores="p",
        num_classes=4,
    )
    np.testing.assert_allclose(target.query(IMAGES).scores, probabilities(eight_bit(IMAGES) / 255), rtol=1e-6)
    assert len(endpoint.bodies) == (1 if many is None else 3)
    assert endpoint.bodies[0]["model"] == "x"


ANSWERS = {
    "label names": (
        lambda scores: {"y": [CLASSES[i] for i in scores.argmax(1)]},
        {"answers": "y", "labels": "", "classes": CLASSES},
    ),
    "named indices": (
        lambda scores: [{"label": f"LABEL_{i}"} for i in scores.argmax(1)],
        {"answers": "", "labels": "label", "classes": {f"LABEL_{i}": i for i in range(4)}},
    ),
    "indices": (
        lambda scores: {"y": scores.argmax(1).tolist()},
        {"answers": "y", "labels": "", "num_classes": 4},
    ),
    "name to score": (
        lambda scores: [{"out": dict(zip(CLASSES, row, strict=True))} for row in scores.tolist()],
        {"answers": "", "scores": "out", "classes": CLASSES},
    ),
    "lists of lists": (
        lambda scores: [ranked(row) for row in scores],
        {"answers": "", "labels": "*.label", "scores": "*.score", "classes": CLASSES},
    ),
    "one label and its score": (
        lambda scores: {"r": [[ranked(row)[0]["label"], float(row.max())] for row in scores]},
        {"answers": "r", "labels": "0", "scores": "1", "classes": CLASSES},
    ),
    "no scores kept": (
        lambda scores: [{"top": ranked(row, 1)[0]} for row in scores],
        {"answers": "", "labels": "top.label", "classes": CLASSES},
    ),
}


@pytest.mark.parametrize(("answer", "mapping"), ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_in_many_shapes(answer: Any, mapping: dict, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answer = answer
    target = mapped(tmp_path, endpoint, request={"inputs": "$images"}, per_request=None, **mapping)
    answers = target.query(IMAGES)
    truth = probabilities(IMAGES)
    np.testing.assert_array_equal(answers.labels, truth.argmax(axis=1))
    assert (answers.scores is None) == (target.output_kind == "labels")
    if answers.scores is not None:
        known = ~np.isnan(answers.scores)
        assert known.any(axis=1).all()
        np.testing.assert_allclose(answers.scores[known], truth[known], rtol=1e-6)


PICTURES = {"images": "png", "per_request": 1}
GOOD = {"request": {"inputs": "$images"}, "per_request": None, "answers": "", "scores": "", "num_classes": 4}
BAD_ANSWERS = {
    "nothing there": (lambda s: [{"x": 1}] * 7, {"scores": "p"}, r"nothing at 'p': 'p' is not in \['x'\]"),
    "too few": (lambda s: s.tolist()[:-1], {}, r"answered 6 answers, expected a list of 7"),
    "a word": (lambda s: "hello", {}, r"answered str, expected a list of 7"),
    "classes": (lambda s: s[:, :3].tolist(), {}, r"answered 3 classes, expected 4"),
    "unknown label": (
        lambda s: ["cta"] * 7,
        {"scores": None, "labels": "", "classes": CLASSES, "num_classes": None},
        r"label 'cta', which classes does not list \(did you mean 'cat'\?\)",
    ),
    "name without classes": (
        lambda s: ["cat"] * 7,
        {"scores": None, "labels": ""},
        r"label 'cat', expected an integer in \[0, 4\)",
    ),
    "half label": (lambda s: [0.5] * 7, {"scores": None, "labels": ""}, r"label 0.5, expected an integer"),
    "nan": (lambda s: (s * np.nan).tolist(), {}, r"answered nan, expected finite"),
    "words for scores": (lambda s: [["a"] * 4] * 7, {}, r"answered 'a', expected numbers"),
    "numbers as words": (
        lambda s: [[str(p) for p in row] for row in s],
        {},
        r"answered '0.*', expected numbers",
    ),
    "booleans for scores": (lambda s: [[True, False, 0.0, 0.0]] * 7, {}, r"answered True, expected numbers"),
    "boolean for a label": (
        lambda s: [True] * 7,
        {"scores": None, "labels": ""},
        r"label True, expected an integer",
    ),
    "boolean for a name": (
        lambda s: [True] * 7,
        {"scores": None, "labels": "", "classes": ["a", "b"], "num_classes": None},
        r"label True, which classes does not list",
    ),
    "a label twice": (
        lambda s: [[{"label": 0, "score": 0.9}, {"label": 0, "score": 0.1}]] * 7,
        {"scores": "*.score", "labels": "*.label"},
        r"scored label 0 twice for one image",
    ),
    "nan in a ranking": (
        lambda s: [[{"label": 0, "score": float("nan")}]] * 7,
        {"scores": "*.score", "labels": "*.label"},
        r"answered nan, expected finite scores",
    ),
    "a score beyond one of two classes": (
        lambda s: [3.5] * 7,
        {"num_classes": 2},
        r"answered 3.5, expected the probability of one of two classes: give output_kind: logits",
    ),
    "logits": (lambda s: (s * 40).tolist(), {}, r"sum to 40, as percentages or counts do"),
}


@pytest.mark.parametrize(("answer", "changes", "message"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_bad_answers_of_an_endpoint_are_named_and_paid_for(
    answer: Any, changes: dict, message: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.answer = answer
    mapping = {
        name: value for name, value in (GOOD | changes).items() if value is not None or name == "per_request"
    }
    target = mapped(tmp_path, endpoint, **mapping)
    with QueryLedger(tmp_path / "ledger.db", budget=20) as ledger:
        with pytest.raises(TargetError, match=message) as caught:
            ledger.attach(target).query(IMAGES)
        assert ledger.bill()["training"].unknown == 7
    assert "\n" not in str(caught.value)


BAD_MAPPINGS = {
    "unknown key": ({"imges": "png"}, r"unknown key 'imges': did you mean 'images'\?"),
    "no url": ({"url": None}, r"url is None: give http"),
    "no place": ({"request": {"inputs": "images"}}, r"request is .*: put \$images in one place"),
    "two places": ({"request": ["$images", "$images"]}, r"put \$images in one place"),
    "images": ({"images": "gif"}, r"images is 'gif': use array, png or jpeg"),
    "images and send": (
        {"images": "raw"},
        r"images is 'raw': use array, png or jpeg; send says how they travel",
    ),
    "send": ({"send": "post"}, r"send is 'post': use one of json, form, multipart, raw"),
    "array in a form": ({"send": "multipart"}, r"send is 'multipart': use images: png or jpeg with it"),
    "request and raw": (
        PICTURES | {"send": "raw"},
        r"request is .*: leave it out: with send: raw the body is",
    ),
    "many in one body": (
        PICTURES | {"send": "raw", "request": "$images", "per_request": 4},
        r"per_request is 4: use 1: with send: raw the body is one picture",
    ),
    "no form": (PICTURES | {"send": "multipart", "request": ["$images"]}, r"request is .*: name the fields"),
    "a field of two lines": (
        PICTURES | {"send": "multipart", "request": {"a\r\nb": "$images"}},
        r"request is .*: name the fields",
    ),
    "many within a field": (
        PICTURES | {"send": "form", "request": {"a": "x$images"}, "per_request": None},
        r"per_request is None: use 1, since \$images is no field of its own",
    ),
    "many within a text": (
        PICTURES | {"request": {"a": "data:image/png;base64,$images"}, "per_request": None},
        r"per_request is None: use 1, since \$images stands within a text",
    ),
    "array within a text": (
        {"request": {"a": "x$images"}},
        r"put \$images in one place of it, as a value of",
    ),
    "quality": ({"quality": 90}, r"quality is 90: use 1 to 100, with images: jpeg"),
    "quality of 0": (PICTURES | {"images": "jpeg", "quality": 0}, r"quality is 0: use 1 to 100"),
    "filename": (
        {"filename": "a.png"},
        r"filename is 'a.png': give the name of a file, with send: multipart",
    ),
    "filename of a path": (
        PICTURES | {"send": "multipart", "filename": "../a.png"},
        r"filename is '../a.png': give the name of a file",
    ),
    "rate": ({"rate": 1e-9}, r"rate is 1e-09: use a number of images a second, at least 0.01"),
    "timeout": ({"timeout": 1e8}, r"timeout is 100000000.0: use seconds, up to 3,600"),
    "headers": ({"headers": ["a"]}, r"headers must map at most 50 names to texts"),
    "a secret in a header": (
        {"headers": {"X-Api-Key": "hush"}},
        r"header X-Api-Key is a secret.*give token_env, its name, and token_header, 'X-Api-Key:'",
    ),
    "a secret without a dash": ({"headers": {"idToken": "hush"}}, r"header idToken is a secret"),
    "a web token": ({"headers": {"X-Id": "eyJhbGciOi.eyJzdWIi.c2ln"}}, r"header X-Id is a secret"),
    "a token in a header": ({"headers": {"X-Id": "Bearer hush"}}, r"header X-Id is a secret"),
    "a header of ours": ({"headers": {"Host": "elsewhere"}}, r"header Host is written by certdef itself"),
    "a header twice": ({"headers": {"X-A": "1", "x-a": "2"}}, r"header x-a is written by certdef itself, or"),
    "a header of two lines": (
        {"headers": {"X-A": "1\r\nX-B: 2"}},
        r"header X-A must be a text of up to 2,000",
    ),
    "a header's name": ({"headers": {"X A": "1"}}, r"headers has the name 'X A': use letters"),
    "a number as header": ({"headers": {"X-A": 1}}, r"header X-A must be a text.*: quote it"),
    "type of a form": (
        PICTURES | {"send": "multipart", "headers": {"content-type": "x"}},
        r"headers is .*: leave Content-Type out: a form writes its own",
    ),
    "positive of four": ({"positive": 1}, r"positive is 1: it says which of two classes one score is for"),
    "positive of none": (
        {"num_classes": None, "classes": ["a", "b"], "positive": "c"},
        r"positive is 'c': it says which of two classes",
    ),
    "positive of a label": (
        {"num_classes": 2, "positive": 0, "labels": "label"},
        r"positive is 0: it says .* scores without labels",
    ),
    "channels of a picture": (
        PICTURES | {"images": "jpeg", "input_shape": [4, 2, 2]},
        r"a JPEG takes 1 or 3 channels, got an image of shape \(2, 2, 4\): use images: array",
    ),
    "layout": ({"layout": "nchw"}, r"layout must be one of chw, hwc, flat, flat_hwc, got 'nchw'"),
    "path": ({"scores": 3}, r"scores is 3: give a dotted path"),
    "no answer": ({"scores": None}, r"labels and scores are missing"),
    "classes": ({"classes": ["a", "a"]}, r"classes is \['a', 'a'\]: list the label names"),
    "count": ({"per_request": 0}, r"per_request is 0: use a whole number"),
    "kind": ({"output_kind": "soft"}, r"output_kind is 'soft': use one of labels, top_k"),
    "no list": ({"answers": None}, r"answers is missing: give the path of the list"),
    "num_classes": ({"num_classes": None}, r"does not tell its number of classes"),
    "token": (
        {"token_env": "HOME"},
        r"wants the value of .* HOME sent to http://127.*--target.token_env HOME",
    ),
    "token name": ({"token_env": "a=b"}, r"token_env is 'a=b': give the name of an environment variable"),
    "token header": ({"token_header": 5}, r"token_header is 5: give 'Name: scheme'"),
    "shape": ({"input_shape": 5}, r"input_shape must be \(channels, height, width\), got 5"),
    "shape of yes": (
        {"input_shape": [True, 4, 4]},
        r"input_shape must be \(channels, height, width\), got \[True",
    ),
    "a million classes": ({"num_classes": 10**9}, r"num_classes is 1000000000: use a whole number from 2 to"),
    "a million indices": ({"classes": {"a": 0, "b": 10**9}}, r"classes is .*: list the label names"),
    "a date": (
        {"request": {"a": "$images", "b": datetime.date(2024, 1, 1)}},
        r"request is .*: use what JSON has",
    ),
    "not finite": ({"request": {"a": "$images", "b": float("nan")}}, r"request is .*: use what JSON has"),
    "identity": ({"identity": 7}, r"identity is 7: give a text"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_MAPPINGS.values(), ids=BAD_MAPPINGS.keys())
def test_bad_mappings_are_named_before_anything_is_sent(
    changes: dict, message: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    with pytest.raises(SurrogateError, match=message) as caught:
        mapped(tmp_path, endpoint, **GOOD | changes)
    assert "\n" not in str(caught.value)
    assert endpoint.bodies == []


def test_a_file_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    for text, message in (
        ("[1, 2]", r"holds a list"),
        ("a: [", r"is no YAML"),
        ("url: x", r"request is missing"),
    ):
        (tmp_path / "m.yml").write_text(text)
        with pytest.raises(TargetError, match=rf"m.yml.*{message}") as caught:
            open_target(tmp_path / "m.yml")
        assert "\n" not in str(caught.value)
    with pytest.raises(TargetError, match=r"cannot read the mapping .*nowhere.yaml"):
        open_target(tmp_path / "nowhere.yaml")


MAPPING = "url: http://127.0.0.1:9/x\nrequest: {i: $images}\nlabels: label\nclasses: [a, b]\n"
HOSTILE_FILES = {
    "aliases": (
        MAPPING + "identity: &a x\ntoken_header: *a\n",
        r"has the alias \*a: write out what it stands for",
    ),
    "a bomb": (
        "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
        r"has the alias \*a0",
    ),
    "itself": ("url: &a [*a]\n", r"has the alias \*a"),
    "deep": ("[" * 100_000, r"nested more than 32 levels deep"),
    "large": ("x: " + "y" * 2**20, r"holds 1,048,579 bytes, expected at most 1,048,576"),
    "twice": (MAPPING + "url: http://elsewhere\n", r"has 'url' twice"),
    "twice within": (MAPPING.replace("{i:", "{i: 1, i:"), r"has 'i' twice"),
    "python": ("url: !!python/object/apply:os.system [true]\n", r"is no YAML \(.*python/object"),
    "no boolean": ("url: !!bool x\n", r"is no YAML"),
    "no date": ("url: 2024-99-99\n", r"is no YAML \(month must be in 1..12"),
    "no number": ("url: !!int ''\n", r"is no YAML"),
    "two documents": (MAPPING + "---\n" + MAPPING, r"is no YAML \(expected a single document"),
    "control": ("url: \x01", r"is no YAML"),
    "empty": ("", r"holds a NoneType"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE_FILES.values(), ids=HOSTILE_FILES.keys())
def test_a_hostile_mapping_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(TargetError, match=rf"^mapping .*m.yaml.*{message}") as caught:
        open_target(tmp_path / "m.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_mapping_that_is_no_text_or_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"url: \xff\xfe")
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(10**11)  # holes, but as long to read
    for name, message in (
        ("binary", "is no YAML .*UTF-8"),
        ("folder", "no regular file"),
        ("pipe", "no regular file"),
        ("huge", "100,000,000,000 bytes"),
    ):
        with pytest.raises(TargetError, match=message):
            open_target(tmp_path / f"{name}.yaml")


def test_a_large_mapping_of_many_classes_is_read(tmp_path: Path) -> None:
    names = "\n".join(f"- class number {index}" for index in range(21_841))
    (tmp_path / "m.yaml").write_text(MAPPING.replace("[a, b]", f"\n{names}"))
    assert open_target(tmp_path / "m.yaml").num_classes == 21_841


@pytest.mark.parametrize(
    "classes", ["[no, yes]", "[007, 010]", "[1.10, 1.20]", "[null, x]", "{on: 0, off: 1}", "[2024-01-01, x]"]
)
def test_class_names_that_yaml_changes_are_kept_as_written(classes: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MAPPING.replace("[a, b]", classes))
    assert open_target(tmp_path / "m.yaml").num_classes == 2
    names = list(read_mapping(tmp_path / "m.yaml").names.indices)
    assert names == [name.partition(":")[0] for name in classes[1:-1].split(", ")]


def test_whole_labels_with_a_point_are_labels(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answer = lambda scores: [float(label) for label in scores.argmax(axis=1)]
    for classes in ({"num_classes": 4}, {"classes": [0, 1, 2, 3]}):
        target = mapped(
            tmp_path,
            endpoint,
            request={"inputs": "$images"},
            per_request=None,
            answers="",
            labels="",
            **classes,
        )
        np.testing.assert_array_equal(target.query(IMAGES).labels, probabilities(IMAGES).argmax(axis=1))


def test_a_mapping_alone_sends_no_variable_anywhere(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_SECRET", "hush")
    named = GOOD | {"token_env": "CLOUD_SECRET", "token_header": "X-Key:"}
    with pytest.raises(TargetError, match=r"--target.token_env CLOUD_SECRET") as caught:
        mapped(tmp_path, endpoint, **named)
    assert "\n" not in str(caught.value)
    assert endpoint.bodies == []
    assert mapped(tmp_path, endpoint, **GOOD) is not None  # nothing to allow
    monkeypatch.setenv("MINE", "mine")
    endpoint.answer = lambda scores: scores.tolist()
    open_target(tmp_path / "mapping.yaml", token_env="MINE").query(IMAGES)
    mapped_file = tmp_path / "mapping.yaml"
    mapped_file.write_text(yaml.safe_dump({"url": endpoint.url} | named))
    for variable, value in (("CLOUD_SECRET", "hush"), ("MINE", "mine")):  # the user's word decides
        open_target(mapped_file, token_env=variable).query(IMAGES)
        assert endpoint.headers[-1]["X-Key"] == value


def test_the_mappings_of_the_documentation_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_TOKEN", "token")
    text = (Path(__file__).parents[2] / "docs" / "targets.md").read_text()
    opened = []
    for block in text.split("```yaml\n")[1:]:
        (tmp_path / "mapping.yaml").write_text(block.split("```")[0])
        opened.append(open_target(tmp_path / "mapping.yaml", token_env="FASHION_TOKEN"))
    assert [(target.output_kind, target.batch_size) for target in opened] == [
        ("top_k", 1),
        ("top_k", 1),
        ("probabilities", 64),
        ("probabilities", 1),
        ("labels", 1),
    ]
    assert [target.num_classes for target in opened] == [2, 10, 10, 2, 2]


# Pixels


def test_pixels_are_rounded_at_the_door_of_any_target() -> None:
    seen: list[np.ndarray] = []

    def answer(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return probabilities(images)

    target = open_target(answer, num_classes=4, quantize=8)
    assert target.preprocessing == "8 bits"
    target.query(IMAGES)
    np.testing.assert_allclose(seen[0] * 255, np.rint(IMAGES * 255), atol=1e-4)
    near = np.float32(np.rint(IMAGES * 255) / 255) + np.float32(1e-4)
    target.query(near, bounded=False)
    np.testing.assert_array_equal(seen[1], seen[0])  # what rounds to the same gets the same answer
    target.query(IMAGES * 3 - 1, bounded=False)
    assert (seen[2].min(), seen[2].max()) == (0, 1)  # noise outside [0, 1] is clipped, as in a PNG


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "nhwc"}, r"layout must be one of chw, hwc, flat, flat_hwc, got 'nhwc'"),
        (
            {"dtype": "int4"},
            r"dtype must be one of float32, float64, float16, uint8, int8, int32, int64, got 'int4'",
        ),
        ({"quantize": 0}, r"quantize must be a number of bits from 1 to 16, got 0: try 8"),
        ({"pixel_range": (1, 0)}, r"pixel_range must be two numbers, lower first, got \(1, 0\)"),
        ({"pixel_range": 255}, r"pixel_range must be two numbers"),
        ({"dtype": "uint8", "pixel_range": (-1, 1)}, r"pixel_range of uint8 must lie in \[0, 255\]"),
        ({"dtype": "int64"}, r"pixels of int64 need pixel_range, what 0 and 1 become"),
        ({"dtype": "int8"}, r"pixels of int8 need pixel_range.*pixel_range=\(-128, 127\)"),
        ({"dtype": "int8", "pixel_range": (0, 255)}, r"pixel_range of int8 must lie in \[-128, 127\]"),
        ({"pixel_range": [[-2, 2], [-1, 3]]}, r"lower first.*give mean and std for a range of each channel"),
        ({"layout": [784, 0]}, r"layout must be one of .*got \[784, 0\]: or list the sides of one image"),
        ({"color": "bgra"}, r"color must be one of rgb, bgr, gray, got 'bgra'"),
        ({"resize": (0, 9)}, r"resize must be \(height, width\) in pixels, got \(0, 9\): try \(224, 224\)"),
        ({"resize": 1.5}, r"resize must be \(height, width\) in pixels, got 1.5"),
        (
            {"mean": 123.7, "std": 58.4},
            r"mean is subtracted from pixels in \[0, 1\].*divide mean and std by 255, mean=\(0.4851,\)",
        ),
        ({"color": "gray", "mean": (0.5, 0.5, 0.5)}, r"mean has 3 values, but color 'gray' has 1 channels"),
        ({"mean": (0.5, "a", 1)}, r"mean must be a number for each channel, got \(0.5, 'a', 1\)"),
        ({"std": (0.5, 0)}, r"std must be a number for each channel, got \(0.5, 0\)"),
        ({"mean": float("nan")}, r"mean must be a number for each channel, got nan"),
        ({"dtype": "uint8", "mean": 0.5}, r"mean makes fractions of pixels, but dtype is uint8"),
    ],
)
def test_bad_pixel_formats_are_named(options: dict, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        PixelFormat(**options)


def test_all_bad_values_of_a_format_are_named_at_once() -> None:
    bad = {
        "layout": "nhwc",
        "dtype": "half",
        "quantize": 99,
        "color": "cmyk",
        "resize": -1,
        "mean": "a",
        "std": 0,
    }
    with pytest.raises(TargetError) as caught:
        open_target(probabilities, num_classes=4, input_shape=(3, 4), **bad)
    lines = str(caught.value).splitlines()
    assert {line.split()[0] for line in lines} == {*bad, "input_shape"}
    assert len(lines) == 8


@pytest.mark.parametrize("pair", [True, False])
def test_top_k_answers_of_a_function(pair: bool) -> None:
    def answer(images: np.ndarray) -> Any:
        scores = probabilities(images)
        order = np.argsort(-scores)[:, :2]
        best = np.take_along_axis(scores, order, axis=1)
        if pair:
            return order, best
        whole = np.full_like(scores, np.nan)
        np.put_along_axis(whole, order, best, axis=1)
        return whole

    answers = open_target(answer, num_classes=4, output_kind="top_k").query(IMAGES)
    truth = probabilities(IMAGES)
    np.testing.assert_array_equal(answers.labels, truth.argmax(axis=1))
    assert (np.isnan(answers.scores).sum(axis=1) == 2).all()
    np.testing.assert_allclose(np.nanmax(answers.scores, axis=1), truth.max(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: np.full((len(x), 4), np.nan), r"named no class for an image"),
        (lambda x: np.full((len(x), 4), np.inf), r"answered inf, expected finite top_k"),
        (lambda x: (np.zeros((len(x), 2)), np.zeros((len(x), 3))), r"expected both \(N, k\)"),
        (
            lambda x: (np.full((len(x), 2), 7), np.zeros((len(x), 2))),
            r"label 7, expected an integer in \[0, 4\)",
        ),
    ],
)
def test_bad_top_k_answers_are_named(answer: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        open_target(answer, num_classes=4, output_kind="top_k").query(IMAGES)
