"""Every option of the pixel format on every protocol: the same answers as the model behind it on pixels prepared by hand."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.linear_model import LogisticRegression

from surrogates import QueryLedger, TargetError, open_target
from tests.servers.loopback import Handler, serving
from tests.servers.open_inference import TYPES, Model, open_inference_server

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

CLASSES = 4
COLOR = np.random.default_rng(0).random((5, 3, 8, 6)).astype(np.float32)
GRAY = np.random.default_rng(1).random((5, 1, 8, 6)).astype(np.float32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# By hand


def sized(images: np.ndarray, *size: int) -> np.ndarray:
    torch_images = torch.from_numpy(images)
    return torch.nn.functional.interpolate(
        torch_images, size=size, mode="bilinear", antialias=True, align_corners=False
    ).numpy()


def normalized(images: np.ndarray, mean: Any = MEAN, std: Any = STD) -> np.ndarray:
    return (images - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))


def grayed(images: np.ndarray) -> np.ndarray:
    return np.einsum("nchw,c->nhw", images.astype(np.float64), (0.299, 0.587, 0.114))[:, None]


def rows_last(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class Form:
    """A pixel format: its options, images, and what becomes of them by hand.

    Args:
        options: Of open_target.
        images: What is queried.
        seen: What the model is to get.
        reported: The options that a model which reports its input makes needless.
    """

    options: dict[str, Any]
    images: np.ndarray
    seen: np.ndarray
    reported: tuple[str, ...] = ("dtype", "layout")

    def undeclared(self, *names: str) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name not in names}


FORMS = {
    "nothing": Form({}, COLOR, COLOR),
    "hwc": Form({"layout": "hwc"}, COLOR, rows_last(COLOR)),
    "rows": Form({"layout": "flat"}, COLOR, COLOR.reshape(5, -1)),
    "rows of pixels": Form({"layout": "flat_hwc"}, COLOR, rows_last(COLOR).reshape(5, -1), ("dtype",)),
    "sides of a column": Form({"layout": [48, 1]}, GRAY, GRAY.reshape(5, 48, 1)),
    "sides without channel": Form({"layout": (8, 6)}, GRAY, GRAY[:, 0]),
    "sides of channels": Form({"layout": [3, 48]}, COLOR, COLOR.reshape(5, 3, 48)),
    "sides of pixels": Form({"layout": [48, 3]}, COLOR, rows_last(COLOR).reshape(5, 48, 3)),
    "sides with a time": Form({"layout": [3, 1, 8, 6]}, COLOR, COLOR[:, :, None]),
    "gray of color": Form({"color": "gray"}, COLOR, grayed(COLOR).astype(np.float32)),
    "color of gray": Form({"color": "rgb"}, GRAY, GRAY.repeat(3, axis=1)),
    "bgr": Form({"color": "bgr"}, COLOR, COLOR[:, ::-1]),
    "bgr of gray": Form({"color": "bgr", "layout": "hwc"}, GRAY, rows_last(GRAY.repeat(3, axis=1))),
    "larger": Form({"resize": 16}, COLOR, sized(COLOR, 16, 16)),
    "smaller": Form({"resize": (3, 5)}, COLOR, sized(COLOR, 3, 5)),
    "mean and std": Form({"mean": MEAN, "std": STD}, COLOR, normalized(COLOR).astype(np.float32)),
    "one mean": Form({"mean": 0.5}, COLOR, COLOR - np.float32(0.5)),
    "means of bgr": Form(
        {"color": "bgr", "mean": MEAN[::-1], "std": STD[::-1]},
        GRAY,
        normalized(GRAY.repeat(3, axis=1), MEAN[::-1], STD[::-1]).astype(np.float32),
    ),
    "range": Form({"pixel_range": (-1, 1)}, COLOR, COLOR * 2 - 1),
    "mean before range": Form(
        {"mean": MEAN, "pixel_range": (0, 255), "color": "bgr"},
        COLOR,
        (normalized(COLOR[:, ::-1], MEAN, 1) * 255).astype(np.float32),
    ),
    "bytes": Form({"dtype": "uint8"}, COLOR, np.rint(COLOR.astype(np.float64) * 255).astype(np.uint8)),
    "signed bytes": Form(
        {"dtype": "int8", "pixel_range": (-128, 127)},
        COLOR,
        (np.rint(COLOR.astype(np.float64) * 255) - 128).astype(np.int8),
    ),
    "double": Form({"dtype": "float64"}, COLOR, COLOR.astype(np.float64)),
    "half": Form({"dtype": "float16"}, COLOR, COLOR.astype(np.float16)),
    "whole numbers": Form(
        {"dtype": "int32", "pixel_range": (0, 16)},
        COLOR,
        np.rint(COLOR.astype(np.float64) * 16).astype(np.int32),
    ),
    "rounded": Form({"quantize": 3}, COLOR, (np.rint(COLOR * 7) / 7).astype(np.float32)),
    "everything": Form(
        {
            "resize": (12, 9),
            "color": "rgb",
            "quantize": 5,
            "mean": MEAN,
            "std": STD,
            "pixel_range": (0, 2),
            "dtype": "float64",
            "layout": "hwc",
        },
        GRAY,
        rows_last(normalized(np.rint(sized(GRAY, 12, 9).repeat(3, axis=1) * 31) / 31) * 2),
    ),
}


# The model behind


def weight(features: int) -> np.ndarray:
    return np.random.default_rng(features).normal(size=(features, CLASSES)) / 20


def logits(seen: np.ndarray) -> np.ndarray:
    """What the model answers, whatever the sides of its input."""
    rows = np.asarray(seen, np.float64).reshape(len(seen), -1)
    return rows @ weight(rows.shape[1])


class Behind(mlflow.pyfunc.PythonModel):
    """The same model for MLflow; counts what it is asked, and refuses any other form than the one that it takes."""

    calls = 0

    def predict(self, context, model_input, params=None):  # MLflow reads type hints as a schema
        Behind.calls += 1
        return logits(model_input)


# Protocols


@contextmanager
def function(form: Form, folder: Path) -> Iterator[Any]:
    def model(images: np.ndarray) -> np.ndarray:
        assert images.dtype == form.seen.dtype
        assert images.shape[1:] == form.seen.shape[1:]
        return logits(images)

    yield open_target(model, num_classes=CLASSES, output_kind="logits", identity="f", **form.options)


@contextmanager
def module(form: Form, folder: Path) -> Iterator[Any]:
    features = form.seen[0].size
    linear = torch.nn.Linear(features, CLASSES, bias=False).double()
    linear.weight.data = torch.from_numpy(weight(features).T.copy())

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert tuple(images.shape[1:]) == form.seen.shape[1:]
            return self.linear(images.flatten(1).double())

    yield open_target(Net(), num_classes=CLASSES, **form.options)


@contextmanager
def estimator(form: Form, folder: Path) -> Iterator[Any]:
    features = form.seen[0].size
    model = LogisticRegression().fit(np.eye(features)[np.arange(CLASSES)], np.arange(CLASSES))
    model.coef_, model.intercept_ = weight(features).T.copy(), np.zeros(CLASSES)
    yield open_target(model, **form.options)


@contextmanager
def pyfunc(form: Form, folder: Path) -> Iterator[Any]:
    spec = TensorSpec(form.seen.dtype, (-1, *form.seen.shape[1:]))
    mlflow.pyfunc.save_model(
        folder / "m",
        python_model=Behind(),
        signature=ModelSignature(Schema([spec])),
        pip_requirements=["numpy"],
    )
    declared = form.undeclared(*form.reported)
    yield open_target(folder / "m", num_classes=CLASSES, output_kind="logits", **shaped(form, declared))


@contextmanager
def open_inference(form: Form, folder: Path) -> Iterator[Any]:
    kinds = {np.dtype(kind): name for name, kind in TYPES.items()}
    sides = list(form.seen.shape[1:])
    image = {"name": "image", "datatype": kinds[form.seen.dtype], "shape": [-1, *sides]}
    model = Model(
        lambda images: {"logits": logits(images)},
        [image],
        [{"name": "logits", "datatype": "FP64", "shape": [-1, CLASSES]}],
    )
    with open_inference_server(model) as url:
        declared = form.undeclared(*form.reported)
        yield open_target(url, output_kind="logits", **shaped(form, declared))


@contextmanager
def onnx_file(form: Form, folder: Path) -> Iterator[Any]:
    path = saved(folder / "m.onnx", ["n", *form.seen.shape[1:]], form.seen.dtype)
    yield open_target(path, output_kind="logits", **shaped(form, form.undeclared(*form.reported)))


@contextmanager
def json_service(form: Form, folder: Path) -> Iterator[Any]:
    class Server(Handler):
        def do_POST(self) -> None:
            import json

            self.reply({"scores": logits(np.array(json.loads(self.body())["x"], form.seen.dtype)).tolist()})

    import yaml

    with serving(Server) as url:
        mapping = {"url": f"{url}/score", "request": {"x": "$images"}, "per_request": 4, "answers": "scores"}
        mapping |= {"scores": "", "num_classes": CLASSES, "output_kind": "logits"}
        form_of = {
            key: list(value) if isinstance(value, tuple) else value for key, value in form.options.items()
        }
        quantize = {"quantize": form_of.pop("quantize")} if "quantize" in form_of else {}
        (folder / "m.yaml").write_text(yaml.safe_dump(mapping | form_of))
        yield open_target(folder / "m.yaml", **quantize)


def shaped(form: Form, declared: dict[str, Any]) -> dict[str, Any]:
    """What a job declares besides: the shape of its images."""
    return {"input_shape": form.images.shape[1:]} | declared


def saved(
    path: Path, shape: list[Any], dtype: Any, *, output: list[Any] | None = None, **metadata: str
) -> Path:
    """Save the model as an ONNX graph with an input of this shape; its batch is 1 where the shape has none."""
    helper, proto = onnx.helper, onnx.TensorProto
    sides = shape[1:] if output is None else shape
    features = int(np.prod([side for side in sides if isinstance(side, int)]))
    table = onnx.numpy_helper.from_array(weight(features), "w")
    rows = onnx.numpy_helper.from_array(np.array([-1, features]), "rows")
    answer = onnx.numpy_helper.from_array(np.array([-1, CLASSES] if output is None else output), "answer")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["double"], to=proto.DOUBLE),
            helper.make_node("Reshape", ["double", "rows"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["scores"]),
            helper.make_node("Reshape", ["scores", "answer"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)],
        [helper.make_tensor_value_info("logits", proto.DOUBLE, output or [shape[0], CLASSES])],
        [table, rows, answer],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {name.replace("_", ".", 1): value for name, value in metadata.items()})
    onnx.save(model, path)
    return path


PROTOCOLS: dict[str, Callable] = {
    "function": function,
    "torch module": module,
    "estimator": estimator,
    "pyfunc": pyfunc,
    "Open Inference": open_inference,
    "ONNX": onnx_file,
    "JSON": json_service,
}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS.keys())
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_model_answers_as_on_pixels_prepared_by_hand(
    form: Form, protocol: Callable, tmp_path: Path
) -> None:
    with protocol(form, tmp_path) as target:
        answers = target.query(form.images)
    truth = logits(form.seen)
    if target.output_kind == "probabilities":
        truth = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers.scores, truth, rtol=2e-4, atol=2e-5)


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own scoring server with a model without signature."""
    import uvicorn
    from mlflow.pyfunc import scoring_server

    path = tmp_path_factory.mktemp("served") / "m"
    mlflow.pyfunc.save_model(path, python_model=Behind(), pip_requirements=["numpy"])
    config = uvicorn.Config(
        scoring_server.init(mlflow.pyfunc.load_model(path)), port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/invocations"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_scoring_server_answers_as_on_pixels_prepared_by_hand(form: Form, mlflow_server: str) -> None:
    target = open_target(
        mlflow_server, num_classes=CLASSES, output_kind="logits", columns=None, **form.options
    )
    np.testing.assert_allclose(target.query(form.images).scores, logits(form.seen), rtol=2e-4, atol=2e-5)


# Sides and batches of a graph


SIDES = {
    "rows": [1, 784],
    "channels first": [1, 1, 28, 28],
    "channels last": [1, 28, 28, 1],
    "a row without batch": [784],
    "a column": [1, 784, 1],
    "a column without batch": [784, 1],
    "no channel": [1, 28, 28],
    "no channel, no batch": [28, 28],
    "no batch": [28, 28, 1],
    "a row behind ones": [1, 1, 1, 784],
    "free batch": ["n", 784, 1],
    "free sides": ["n", 1, "h", "w"],
    "three of a kind": [3, 784],
    "of three axes more": [2, 1, 1, 1, 28, 28],
}


@pytest.mark.parametrize("declared", [{}, {"input_shape": (1, 28, 28)}], ids=["alone", "with a shape"])
@pytest.mark.parametrize("shape", SIDES.values(), ids=SIDES.keys())
def test_a_graph_opens_without_options_whatever_its_sides(
    shape: list[Any], declared: dict, tmp_path: Path
) -> None:
    if shape == [28, 28] and not declared:
        declared = {"layout": [28, 28]}  # else 28 rows of 28 values
    images = np.random.default_rng(2).random((7, 1, 28, 28)).astype(np.float32)
    batched = (
        isinstance(shape[0], str) or np.prod([side for side in shape[1:] if isinstance(side, int)]) == 784
    )
    path = saved(tmp_path / "m.onnx", shape, np.float32, output=None if batched else [CLASSES])
    if shape == ["n", 1, "h", "w"]:
        model = onnx.load(path)
        model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 784]), "rows"))
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight(784), "w"))
        onnx.save(model, path)
    target = open_target(path, output_kind="logits", **declared)
    assert target.num_classes == CLASSES
    np.testing.assert_allclose(target.query(images).scores, logits(images), rtol=1e-4, atol=1e-5)
    session = ort.InferenceSession(path)
    size = shape[0] if batched and isinstance(shape[0], int) else 1
    direct = (
        images[:size].reshape(*(side if isinstance(side, int) else -1 for side in shape))
        if shape != ["n", 1, "h", "w"]
        else images
    )
    assert (
        session.run(None, {"x": direct})[0].reshape(-1, CLASSES)[:1].argmax()
        == target.query(images[:1]).labels[0]
    )


def test_the_network_of_a_verification_competition_opens_without_options(data_root: Path) -> None:
    path = data_root / "targets/mnistfc/mnist-net_256x2.onnx"
    if not path.exists():
        pytest.skip(f"no {path}")
    kept = np.load(data_root / "targets/mnistfc/images.npz")
    images = (kept["images"] / 255).astype(np.float32)
    session = ort.InferenceSession(path)
    direct = np.concatenate([session.run(None, {"0": image.reshape(1, 784, 1)})[0] for image in images])
    for declared in ({}, {"input_shape": (1, 28, 28)}, {"layout": [784, 1]}, {"layout": [1, 784, 1]}):
        answers = open_target(path, output_kind="logits", **declared).query(images[:, None])
        np.testing.assert_allclose(answers.scores, direct, rtol=1e-5, atol=1e-5)
        assert (answers.labels == kept["labels"]).mean() > 0.9


@pytest.mark.parametrize("batch", [[], [1], [-1]])
def test_a_missing_batch_axis_is_honored_behind_a_server(batch: list[int]) -> None:
    """One image a request, in the shape that the server reports, and scores without a batch too."""
    shapes = []

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(images.shape)
        scores = logits(images.reshape(-1, 144))
        return {"scores": scores if batch else scores[0]}

    image = {"name": "image", "datatype": "FP32", "shape": [*batch, 3, 8, 6]}
    scores = {"name": "scores", "datatype": "FP64", "shape": [*batch, CLASSES]}
    with open_inference_server(Model(predict, [image], [scores])) as url:
        target = open_target(url, output_kind="logits", input_shape=(3, 8, 6))
        assert target.num_classes == CLASSES
        np.testing.assert_allclose(target.query(COLOR).scores, logits(COLOR), rtol=1e-4, atol=1e-5)
    expected = {"[]": [(3, 8, 6)] * 5, "[1]": [(1, 3, 8, 6)] * 5, "[-1]": [(5, 3, 8, 6)]}
    assert shapes == expected[str(batch)]


def test_metadata_of_images_in_a_graph_are_read(tmp_path: Path) -> None:
    """The names that ONNX itself has for them; what is declared wins."""
    said = {"Image_BitmapPixelFormat": "Bgr8", "Image_NominalPixelRange": "NominalRange_0_255"}
    path = saved(tmp_path / "m.onnx", ["n", 3, 8, 6], np.float32, **said)
    target = open_target(path, output_kind="logits", input_shape=(3, 8, 6))
    assert target.preprocessing == "bgr, 0..255"
    np.testing.assert_allclose(target.query(COLOR).scores, logits(COLOR[:, ::-1] * 255), rtol=1e-4, atol=1e-3)
    other = open_target(path, output_kind="logits", input_shape=(3, 8, 6), color="rgb", pixel_range=(0, 1))
    assert other.preprocessing == ""
    np.testing.assert_allclose(other.query(COLOR).scores, logits(COLOR), rtol=1e-4, atol=1e-5)


# Refusals


REFUSED = {  # images, what the model takes, options, what is said
    "another size": (
        COLOR,
        ((3, 224, 224), "float32"),
        {},
        [
            r"input_shape is \(3, 8, 6\): resize the images, or give resize=\(224, 224\) \(--target.resize \[224,224\]\)"
        ],
    ),
    "another size, channels last": (
        COLOR,
        ((224, 200, 3), "float32"),
        {},
        [r"of shape \(3, 224, 200\) \(hwc .*give resize=\(224, 200\)"],
    ),
    "gray images": (GRAY, ((3, 8, 6), "float32"), {}, [r"give color='rgb' or 'bgr' \(--target.color rgb\)"]),
    "gray model": (COLOR, ((8, 6, 1), "float32"), {}, [r"give color='gray' \(--target.color gray\)"]),
    "both": (
        GRAY,
        ((3, 32, 32), "float32"),
        {},
        [r"give resize=\(32, 32\).*, and give color='rgb' or 'bgr'"],
    ),
    "bgr of a gray model": (
        COLOR,
        ((1, 8, 6), "float32"),
        {"color": "bgr"},
        [r"color is 'bgr': give color='gray'"],
    ),
    "another resize": (
        COLOR,
        ((3, 32, 32), "float32"),
        {"resize": 30},
        [r"resize is \(30, 30\): .*resize=\(32, 32\)"],
    ),
    "longer rows": (COLOR, ((27,), "float32"), {}, [r"takes 27 values .*give resize=\(3, 3\)"]),
    "gray rows": (COLOR, ((48,), "float32"), {}, [r"takes 48 values .*give color='gray'"]),
    "four channels": (COLOR, ((4, 8, 6), "float32"), {}, [r"give images of 4 channels"]),
    "joined otherwise": (
        GRAY,
        ((12, 4), "float32"),
        {},
        [r"takes images of sides \(12, 4\), but input_shape is"],
    ),
    "several at once": (
        GRAY,
        ((3, 8, 6), "float32"),
        {"dtype": "uint8", "mean": (0.5, 0.5)},
        [r"dtype is 'uint8', but the target says 'float32'", r"color='rgb' or 'bgr'", r"mean has 2 values"],
    ),
    "whole numbers": (COLOR, ((3, 8, 6), "int32"), {}, [r"pixels of int32 need pixel_range"]),
    "signed bytes": (COLOR, ((3, 8, 6), "int8"), {}, [r"pixels of int8 need pixel_range.*\(-128, 127\)"]),
    "fractions": (
        COLOR,
        ((3, 8, 6), "uint8"),
        {"mean": 0.5},
        [r"mean makes fractions of pixels, but dtype is uint8"],
    ),
    "sides": (
        COLOR,
        ((3, 8, 6), "float32"),
        {"layout": [144, 1]},
        [r"layout is \(144, 1\), but .*leave layout out"],
    ),
}


@contextmanager
def counted_pyfunc(sides: tuple, dtype: str, folder: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    spec = TensorSpec(np.dtype(dtype), (-1, *sides))
    mlflow.pyfunc.save_model(
        folder / "m",
        python_model=Behind(),
        signature=ModelSignature(Schema([spec])),
        pip_requirements=["numpy"],
    )
    Behind.calls = 0
    yield folder / "m", lambda: Behind.calls


@contextmanager
def counted_server(sides: tuple, dtype: str, folder: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    kind = {np.dtype(kind): name for name, kind in TYPES.items()}[np.dtype(dtype)]
    model = Model(
        lambda images: {"s": logits(images)},
        [{"name": "x", "datatype": kind, "shape": [-1, *sides]}],
        [{"name": "s", "datatype": "FP64", "shape": [-1, CLASSES]}],
    )
    with open_inference_server(model) as url:
        yield url, lambda: model.served


@contextmanager
def counted_graph(sides: tuple, dtype: str, folder: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    yield (
        saved(folder / "m.onnx", ["n", *sides], dtype),
        lambda: 0,
    )  # an opened graph has no counter: it is refused at opening


@pytest.mark.parametrize("opened", [counted_pyfunc, counted_server, counted_graph])
@pytest.mark.parametrize(("images", "taken", "options", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_model_contradicts_is_refused_at_opening_with_its_remedy(
    images: np.ndarray, taken: Any, options: dict, said: list[str], opened: Any, tmp_path: Path
) -> None:
    import re

    with opened(*taken, tmp_path) as (uri, calls):
        with pytest.raises(TargetError) as caught:
            open_target(
                uri, num_classes=CLASSES, output_kind="logits", input_shape=images.shape[1:], **options
            )
        lines = str(caught.value).splitlines()
        assert len(lines) == len(said)
        for line, pattern in zip(lines, said, strict=True):
            assert re.search(pattern, line)
        assert calls() == 0


UNFIT = {
    "mean": ({"mean": (0.1, 0.2)}, COLOR, r"mean has 2 values, but images have 3 channels"),
    "four channels": (
        {"color": "gray"},
        np.zeros((1, 4, 8, 6), np.float32),
        r"images have 4 channels, expected 1 or 3",
    ),
    "sides": (
        {"layout": [784, 1]},
        GRAY,
        r"layout is \(784, 1\), 784 values, but images have 48 .*give resize or color",
    ),
    "all of them": (
        {"layout": [9], "mean": (0.1, 0.2), "color": None},
        COLOR,
        r"mean has 2 values.*\n.*layout is \(9,\), 9 values",
    ),
}


@pytest.mark.parametrize("known", [True, False], ids=["shape", "no shape"])
@pytest.mark.parametrize(("options", "images", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_images_that_do_not_fit_never_reach_a_model(
    options: dict, images: np.ndarray, message: str, known: bool, mlflow_server: str
) -> None:
    asked: list[int] = []

    def model(pixels: np.ndarray) -> np.ndarray:
        asked.append(len(pixels))
        return logits(pixels)

    for target in (model, mlflow_server):
        calls = Behind.calls
        shape = {"input_shape": images.shape[1:]} if known else {}
        with pytest.raises(TargetError, match=message):
            open_target(target, num_classes=CLASSES, output_kind="logits", **shape, **options).query(images)
        assert (asked, Behind.calls) == ([], calls)


# Ledgers


def test_answers_under_another_order_of_values_are_other_answers(tmp_path: Path) -> None:
    """A wrong layout that was paid for must not answer for the right one."""
    seen = []

    def model(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return logits(images)

    names = itertools.product(["flat", "flat_hwc"], ["rgb", "bgr"])
    with QueryLedger(tmp_path / "ledger.db", {"evaluation": 100}) as ledger:
        for layout, color in [*names, ("flat", None)]:
            target = open_target(
                model,
                num_classes=CLASSES,
                output_kind="logits",
                identity="m",
                input_shape=(3, 8, 6),
                layout=layout,
                color=color,
            )
            answers = ledger.attach(target, purpose="evaluation").query(COLOR)
            order = COLOR[:, ::-1] if color == "bgr" else COLOR
            rows = order if layout == "flat" else rows_last(order)
            np.testing.assert_allclose(answers.scores, logits(rows), rtol=1e-4, atol=1e-5)
    assert [len(images) for images in seen] == [
        5
    ] * 4  # rgb is what color images are: nothing is paid for it again


def test_what_changes_nothing_is_not_part_of_the_name() -> None:
    options = {"num_classes": CLASSES, "identity": "m"}

    def name(images: np.ndarray, **given: Any) -> str:
        return open_target(logits, **options, input_shape=images.shape[1:], **given).preprocessing

    assert name(COLOR, color="rgb") == name(COLOR, resize=(8, 6)) == name(COLOR, layout="flat") == ""
    assert name(GRAY, color="gray") == name(GRAY, layout="hwc") == ""
    assert name(GRAY, color="rgb") == "rgb"
    assert name(COLOR, color="bgr", resize=8) == "resized to 8x8, bgr"
    assert name(COLOR, layout="hwc") == "hwc"
    assert open_target(logits, **options, color="rgb", resize=8).preprocessing == "resized to 8x8, rgb"
