"""What a model reports of its input and output decides how it is queried and read, whatever the protocol."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import Array, DataType

from surrogates import TargetError, open_target
from surrogates.targets.formats import PixelFormat, channel_axis
from surrogates.targets.records import unpack
from tests.servers.loopback import Handler, serving
from tests.servers.open_inference import Model, open_inference_server

SHAPE = (3, 4, 5)
IMAGES = np.random.default_rng(0).random((7, *SHAPE)).astype(np.float32)
LEVELS = np.rint(IMAGES * 255)


class Reading(mlflow.pyfunc.PythonModel):
    """Keeps what it gets, and answers what `answer` makes of the number of images."""

    got: Any = None

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self.answer = answer

    def predict(self, context, model_input, params=None):  # MLflow reads type hints as a schema
        Reading.got = model_input
        return self.answer(len(model_input))


def uniform(count: int) -> np.ndarray:
    return np.full((count, 4), 0.25)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Save a model with a signature, load it and open it as a target."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folders = itertools.count()

    def opened(
        inputs: Any = None, outputs: Any = None, answer: Callable[[int], Any] = uniform, **options: Any
    ) -> Any:
        parts = [None if specs is None else Schema(specs) for specs in (inputs, outputs)]
        path = tmp_path / str(next(folders))
        mlflow.pyfunc.save_model(
            path,
            python_model=Reading(answer),
            signature=None if parts == [None, None] else ModelSignature(*parts),
            pip_requirements=["numpy"],
        )
        return open_target(path, **{"num_classes": 4} | options)

    return opened


def tensor(dtype: str, *sides: int, name: str | None = None) -> list[TensorSpec]:
    return [TensorSpec(np.dtype(dtype), sides, name=name)]


def columns(kind: str, count: int) -> list[ColSpec]:
    return [ColSpec(kind, f"pixel_{place}") for place in range(count)]


TAKEN = {
    "float32": (tensor("float32", -1, *SHAPE), {}, IMAGES),
    "float64": (tensor("float64", -1, *SHAPE), {}, IMAGES.astype(np.float64)),
    "uint8": (tensor("uint8", -1, *SHAPE), {}, LEVELS.astype(np.uint8)),
    "float16": (tensor("float16", -1, *SHAPE), {}, IMAGES.astype(np.float16)),
    "int64": (tensor("int64", -1, *SHAPE), {"pixel_range": (0, 255)}, LEVELS.astype(np.int64)),
    "channels last": (tensor("uint8", -1, 4, 5, 3), {}, LEVELS.astype(np.uint8).transpose(0, 2, 3, 1)),
    "free sides": (tensor("float32", -1, -1, -1, 3), {}, IMAGES.transpose(0, 2, 3, 1)),
    "rows": (tensor("float32", -1, 60), {}, IMAGES.reshape(7, 60)),
    "rows of pixels": (
        tensor("float32", -1, 60),
        {"layout": "hwc"},
        IMAGES.transpose(0, 2, 3, 1).reshape(7, 60),
    ),
    "layout wins": (tensor("float32", -1, -1, -1, -1), {"layout": "hwc"}, IMAGES.transpose(0, 2, 3, 1)),
    "columns": (columns("double", 60), {}, IMAGES.reshape(7, 60).astype(np.float64)),
    "float columns": (columns("float", 60), {}, IMAGES.reshape(7, 60)),
    "columns of both": (
        columns("float", 30) + [ColSpec("double", f"b{place}") for place in range(30)],
        {},
        IMAGES.reshape(7, 60).astype(np.float64),
    ),
    "columns of both, unnamed": (
        [ColSpec("double")] + [ColSpec("float") for place in range(59)],
        {},
        IMAGES.reshape(7, 60).astype(np.float64),
    ),
    "whole columns": (
        columns("long", 60),
        {"pixel_range": (0, 16)},
        np.rint(IMAGES.astype(np.float64) * 16).reshape(7, 60).astype(np.int64),
    ),
    "no signature": (None, {}, IMAGES),
    "normalized": (
        tensor("float32", -1, *SHAPE),
        {"mean": [0.5, 0.4, 0.3], "std": 0.2},
        ((IMAGES - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))) / 0.2).astype(np.float32),
    ),
}


@pytest.mark.parametrize("shape", [SHAPE, None], ids=["shape", "no shape"])
@pytest.mark.parametrize(("inputs", "options", "seen"), TAKEN.values(), ids=TAKEN.keys())
def test_a_model_gets_what_its_signature_takes(
    inputs: Any, options: dict, seen: np.ndarray, shape: Any, opened: Any
) -> None:
    target = opened(inputs, input_shape=shape, **options)
    assert len(target.query(IMAGES)) == 7
    got = Reading.got.to_numpy() if isinstance(Reading.got, pd.DataFrame) else Reading.got
    assert got.dtype == seen.dtype
    np.testing.assert_allclose(got, seen, rtol=1e-6)


REFUSED_INPUTS = {
    "whole numbers": (tensor("int64", -1, *SHAPE), {}, r"pixels of int64 need pixel_range"),
    "whole columns": (columns("long", 60), {}, r"pixels of int64 need pixel_range"),
    "text": (columns("string", 60), {}, r"takes string, expected one of float32"),
    "mixed": (columns("long", 30) + [ColSpec("double", f"b{k}") for k in range(30)], {}, r"float64, int64"),
    "arrays": ([ColSpec(Array(DataType.double), "image")], {}, r"takes array, expected one of float32"),
    "complex": (tensor("complex64", -1, *SHAPE), {}, r"takes complex64"),
    "several": (
        tensor("float32", -1, *SHAPE, name="a") + tensor("float32", -1, 2, name="b"),
        {},
        r"takes tensors a, b, expected 1: open a function",
    ),
    "no channels": (
        tensor("float32", -1, 4, 5),
        {"input_shape": SHAPE},
        r"takes images of sides \(4, 5\), but input_shape is \(3, 4, 5\): give color='gray'",
    ),
    "one free side": (tensor("float32", -1), {}, r"takes shape \(-1,\), expected \(N, values\)"),
    "either": (tensor("float32", -1, 8, 8, 8), {}, r"may be first or last: give layout='chw' or 'hwc'"),
    "another shape": (
        tensor("float32", -1, 3, 8, 8),
        {"input_shape": SHAPE},
        r"takes images of shape \(3, 8, 8\) .*input_shape is \(3, 4, 5\): resize",
    ),
    "another length": (tensor("float32", -1, 61), {"input_shape": SHAPE}, r"takes 61 values per image"),
    "flat": (tensor("float32", -1, *SHAPE), {"layout": "flat"}, r"4 axes, but layout is 'flat'"),
    "dtype": (
        tensor("float32", -1, *SHAPE),
        {"dtype": "uint8"},
        r"the target says 'float32': leave dtype out",
    ),
    "a batch of 4": (
        tensor("float32", 4, *SHAPE),
        {},
        r"batches of 4 images and nothing else: give batch_size",
    ),
    "means": (
        tensor("float32", -1, *SHAPE),
        {"mean": [0.5, 0.5], "input_shape": SHAPE},
        r"mean has 2 values, but images have 3 channels",
    ),
}


@pytest.mark.parametrize(("inputs", "options", "message"), REFUSED_INPUTS.values(), ids=REFUSED_INPUTS.keys())
def test_what_no_image_can_be_is_refused_at_opening(
    inputs: Any, options: dict, message: str, opened: Any
) -> None:
    Reading.got = None
    with pytest.raises(TargetError, match=message) as caught:
        opened(inputs, **options)
    assert "\n" not in str(caught.value)
    assert Reading.got is None


def test_an_old_repair_by_hand_still_holds(opened: Any) -> None:
    target = opened(tensor("uint8", -1, *SHAPE), dtype="uint8")
    target.query(IMAGES)
    np.testing.assert_array_equal(Reading.got, LEVELS)
    assert target.preprocessing == "uint8, 0..255"


# Tables


def table(**named: Any) -> Callable[[int], pd.DataFrame]:
    """A table with these columns, the first `count` rows."""
    return lambda count: pd.DataFrame(named)[:count]


TRUTH = [2, 0, 1, 2, 1, 0, 2]
SCORED = np.eye(3)[TRUTH] * 0.6 + 0.4 / 3


ANSWERED = {
    "labels and how sure": (table(prediction=TRUTH, probability=SCORED.max(1)), "labels", {}),
    "one column": (table(anything=TRUTH), "labels", {}),
    "series": (lambda count: pd.Series(TRUTH[:count]), "labels", {}),
    "a list a row": (table(labels=TRUTH, scores=SCORED.tolist()), "probabilities", {}),
    "columns in order": (
        lambda count: pd.DataFrame(SCORED[:count], columns=["a", "b", "c"]),
        "probabilities",
        {},
    ),
    "numbered columns": (
        lambda count: pd.DataFrame(SCORED[:count, ::-1], columns=["p_2", "p_1", "p_0"]),
        "probabilities",
        {},
    ),
    "columns by name": (
        lambda count: pd.DataFrame(SCORED[:count, ::-1], columns=["c", "b", "a"]),
        "probabilities",
        {"classes": ["a", "b", "c"]},
    ),
    "texts": (
        table(label=[["a", "b", "c"][label] for label in TRUTH]),
        "labels",
        {"classes": ["a", "b", "c"]},
    ),
}


@pytest.mark.parametrize(("answer", "kind", "options"), ANSWERED.values(), ids=ANSWERED.keys())
def test_tables_mean_the_same_in_this_process_and_behind_a_server(
    answer: Any, kind: str, options: dict, opened: Any
) -> None:
    target = opened(None, None, answer, num_classes=3, output_kind=kind, **options)
    inside = target.query(IMAGES)
    assert inside.labels.tolist() == TRUTH
    served = answer(7)
    predictions = served.to_dict("records") if isinstance(served, pd.DataFrame) else served.to_list()

    class Server(Handler):
        def do_POST(self) -> None:
            self.body()
            self.reply({"predictions": predictions})

        def do_GET(self) -> None:
            self.reply({})

    with serving(Server) as url:
        behind = open_target(f"{url}/invocations", num_classes=3, output_kind=kind, **options).query(IMAGES)
    np.testing.assert_array_equal(behind.labels, inside.labels)
    if kind == "probabilities":
        np.testing.assert_array_equal(behind.scores, inside.scores)
        np.testing.assert_allclose(inside.scores, SCORED, rtol=1e-6)


REFUSED_TABLES = {
    "from 1": ({"p_1": [0.5], "p_2": [0.5]}, r"expected one for each class from 0 on: give classes"),
    "a class and how sure": ({"digit": [1], "how_sure": [0.9]}, r"answered fields \['digit', 'how_sure'\]"),
    "texts": ({"animal": ["cat"], "how_sure": [0.9]}, r"answered fields \['animal', 'how_sure'\]"),
}


@pytest.mark.parametrize(("named", "message"), REFUSED_TABLES.values(), ids=REFUSED_TABLES.keys())
def test_tables_that_do_not_tell_are_refused(named: dict, message: str) -> None:
    for answer in (pd.DataFrame(named), named):
        with pytest.raises(TargetError, match=message):
            unpack(answer)
    twice = pd.DataFrame([[0.5, 0.5]], columns=["p", "p"])
    with pytest.raises(TargetError, match="columns of the same name"):
        unpack(twice)


OUTPUTS = {
    "text tensor": ([TensorSpec(np.dtype("str"), (-1,))], r"signature answers str.*give classes="),
    "text column": (
        [ColSpec("string", "label"), ColSpec("double", "p")],
        r"answers texts in 'label': give cl",
    ),
    "fields": ([ColSpec("string", "animal"), ColSpec("double", "p")], r"answers fields animal, p, expected"),
    "one text column": ([ColSpec("string")], r"answers texts in None: give classes="),
}


@pytest.mark.parametrize(("outputs", "message"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_texts_that_a_signature_promises_are_refused_at_opening(
    outputs: Any, message: str, opened: Any
) -> None:
    with pytest.raises(TargetError, match=message):
        opened(tensor("float32", -1, *SHAPE), outputs)
    if "fields" in message:
        return
    target = opened(
        tensor("float32", -1, *SHAPE),
        outputs,
        table(label=["b"] * 7),
        num_classes=None,
        classes=["a", "b"],
        output_kind="labels",
    )
    assert target.query(IMAGES).labels.tolist() == [1] * 7


def test_a_signature_of_records_is_no_list_of_classes(opened: Any) -> None:
    """A served certificate has nine fields, and one of them is the prediction."""
    fields = [ColSpec("long", "prediction"), ColSpec("double", "radius"), ColSpec("boolean", "abstained")]
    answer = table(prediction=TRUTH, radius=[0.1] * 7, abstained=[False] * 7)
    target = opened(tensor("float32", -1, *SHAPE), fields, answer, num_classes=3)
    assert target.output_kind == "labels"
    assert target.query(IMAGES).labels.tolist() == TRUTH


# MLflow's scoring server


def test_columns_of_a_server_are_asked_for_only_where_rows_are_declared() -> None:
    asked: list[dict] = []

    class Server(Handler):
        """A model of a table, as MLflow words its refusals; `columns` is what it wants."""

        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            import json

            body = json.loads(self.body())
            asked.append(body)
            if body.get("dataframe_split", {}).get("columns") != ["a [0]", "b]."]:
                message = (
                    "Failed. Error: Model is missing inputs ['a [0]', 'b].']. Note that there were extra."
                )
                self.reply({"error_code": "INVALID_PARAMETER_VALUE", "message": message}, 400)
            else:
                self.reply({"predictions": [[0.25, 0.75]] * len(body["dataframe_split"]["data"])})

    image = np.full((3, 1, 1, 2), 0.5, np.float32)
    with serving(Server) as url:
        open_target(f"{url}/invocations", num_classes=2)
        assert asked == []
        target = open_target(f"{url}/invocations", num_classes=2, layout="flat")
        assert [body["dataframe_split"]["data"] for body in asked] == [[]]  # nothing is asked of the model
        assert target.query(image).labels.tolist() == [1, 1, 1]
        with pytest.raises(TargetError, match="takes 2 values per image, got 3"):
            target.query(np.zeros((1, 3, 1, 1), np.float32))
        listed = open_target(f"{url}/invocations", num_classes=2, columns=["a [0]", "b]."])
        assert listed.query(image).labels.tolist() == [1, 1, 1]
        with pytest.raises(TargetError, match=r"columns must list the names of columns, each once"):
            open_target(f"{url}/invocations", num_classes=2, columns=["a", "a"])


# Open Inference


OIP = {
    "a batch of 4": ({"shape": [4, *SHAPE]}, {}, r"batches of 4 images and nothing else: give batch_size=1"),
    "whole numbers": ({"datatype": "INT64"}, {}, r"pixels of int64 need pixel_range"),
    "another size": (
        {},
        {"input_shape": (3, 8, 5)},
        r"input_shape is \(3, 8, 5\): resize the images, or give",
    ),
    "other channels": (
        {},
        {"input_shape": (1, 4, 5)},
        r"input_shape is \(1, 4, 5\): give color='rgb' or 'bgr'",
    ),
}


@pytest.mark.parametrize(("changes", "options", "message"), OIP.values(), ids=OIP.keys())
def test_what_a_paid_model_cannot_take_is_refused_at_opening(
    changes: dict, options: dict, message: str
) -> None:
    image = {"name": "image", "datatype": "FP32", "shape": [-1, *SHAPE]} | changes
    scores = {"name": "scores", "datatype": "FP32", "shape": [-1, 4]}
    model = Model(lambda images: {"scores": uniform(len(images))}, [image], [scores])
    with open_inference_server(model) as url:
        with pytest.raises(TargetError, match=message):
            open_target(url, **options)
        if "batch" in message:
            assert open_target(url, batch_size=1).request_size == 1
        model.inputs[0]["shape"], model.outputs = [-1, *SHAPE], [scores | {"datatype": "BYTES"}]
        model.inputs[0]["datatype"] = "FP32"
        with pytest.raises(TargetError, match=r"answers BYTES, expected numbers"):
            open_target(url, num_classes=4)
    assert model.served == 0


# Sides


@pytest.mark.parametrize(
    ("sides", "axis"),
    [
        ((3, 32, 32), 0),
        ((32, 32, 3), 2),
        ((32, 32, 4), 2),
        ((4, 32, 32), 0),
        ((64, 64, 13), 2),
        ((13, 64, 64), 0),
        ((28, 28, 2), 2),
        ((1, 8, 8), 0),
        ((8, 8, 8), None),
        ((8, 64, 8), None),
        ((-1, -1, 3), 2),
        ((-1, -1, -1), None),
    ],
)
def test_the_channels_are_found_or_not_guessed(sides: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(sides) == axis


def test_a_mean_for_each_channel_goes_out_in_units_of_the_range() -> None:
    """As Caffe has it: BGR, 0 to 255, a mean for each channel subtracted."""
    mean, std = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)
    form = PixelFormat("hwc", "float32", (0, 255), 8, mean, std, color="bgr")
    levels = LEVELS[:, ::-1] / 255
    expected = (levels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1)) * 255
    np.testing.assert_allclose(form.encode(IMAGES), expected.transpose(0, 2, 3, 1), rtol=1e-6)
    assert form.name == "bgr, 8 bits, mean 0.406/0.456/0.485, std 0.225/0.224/0.229, 0..255, hwc"
    assert PixelFormat(mean=0.5).name != PixelFormat(mean=0.5000001).name
    with pytest.raises(TargetError, match="mean has 3 values, but images have 1 channels"):
        PixelFormat(mean=mean).encode(IMAGES[:, :1])
