"""ONNX files: what decides their answers is in their identity, and what they take and give is honored."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surrogates import LedgerError, QueryLedger, TargetError, open_target
from surrogates.targets.onnx_files import MESSAGES, external_files

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT

SHAPE = (1, 8, 8)
WEIGHT = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).random((10, *SHAPE), np.float32)


def linear(
    weight: np.ndarray = WEIGHT,
    *,
    shape: tuple[Any, ...] = ("n", *SHAPE),
    dtype: int = FLOAT,
    last: list[Any] | None = None,
    constant: bool = False,
) -> Any:
    """A linear classifier of flattened images, as an ONNX model; `constant` keeps its weight in a node."""
    tensor = numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(dtype)), "w")
    nodes = [
        helper.make_node("Flatten", ["images"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["scores"]),
    ]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    graph = helper.make_graph(
        nodes + (last or []),
        "linear",
        [helper.make_tensor_value_info("images", dtype, list(shape))],
        [helper.make_tensor_value_info("answer" if last else "scores", dtype, [shape[0], weight.shape[1]])],
        [] if constant else [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def saved(path: Path, model: Any, *locations: str) -> Path:
    """Save a model; its weights go to `locations` in turn, where there are any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in locations:
        (path.parent / name).unlink(missing_ok=True)
    if locations:
        onnx.save_model(
            model,
            path,
            save_as_external_data=True,
            location=locations[0],
            size_threshold=0,
            convert_attribute=True,
        )
    else:
        onnx.save(model, path)
    return path


def labels(scores: np.ndarray) -> list[int]:
    return scores.argmax(axis=1).tolist()


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("location", ["weights.bin", "net.onnx.data", "other.onnx.data"])
def test_weights_outside_of_the_graph_are_part_of_the_identity(
    location: str, constant: bool, tmp_path: Path
) -> None:
    path, rows = tmp_path / "net.onnx", IMAGES.reshape(10, -1)
    first = open_target(saved(path, linear(constant=constant), location), output_kind="logits")
    graph = path.read_bytes()
    with QueryLedger(tmp_path / "ledger.db", 20) as ledger:
        assert ledger.attach(first).query(IMAGES).labels.tolist() == labels(rows @ WEIGHT)
    again = open_target(saved(path, linear(constant=constant), location), output_kind="logits")
    assert again.identity == first.identity
    other = open_target(saved(path, linear(-WEIGHT, constant=constant), location), output_kind="logits")
    assert path.read_bytes() == graph  # the weights alone have changed
    assert other.identity != first.identity
    with (
        pytest.raises(LedgerError, match="belongs to target"),
        QueryLedger(tmp_path / "ledger.db", 20) as ledger,
    ):
        ledger.attach(other).query(IMAGES)
    assert other.query(IMAGES).labels.tolist() == labels(rows @ -WEIGHT)


def test_identities_of_ledgers_that_are_there_hold(tmp_path: Path) -> None:
    """One file, or NAME.onnx.data beside it: the sha256 of the bytes, one behind the other, as ever."""
    import hashlib

    alone = saved(tmp_path / "net.onnx", linear())
    beside = saved(tmp_path / "big.onnx", linear(), "big.onnx.data")
    for path, files in ((alone, [alone]), (beside, [beside, tmp_path / "big.onnx.data"])):
        raw = b"".join(file.read_bytes() for file in files)
        assert open_target(path).identity == f"onnx:{hashlib.sha256(raw).hexdigest()}"


def test_tensors_are_found_wherever_a_graph_may_hold_them() -> None:
    for name, fields in MESSAGES.items():
        inner = {"Entry": "StringStringEntry"}
        numbers = {
            field.number: field.message_type.name.removesuffix("Proto")
            for field in getattr(onnx, f"{name}Proto").DESCRIPTOR.fields
            if field.message_type is not None
        }
        assert {number: inner.get(kind, kind) for number, kind in fields.items()}.items() <= numbers.items()
        holding = {"Tensor", "SparseTensor", "Graph", "Node", "Attribute", "Function"}
        assert {number for number, kind in numbers.items() if kind in holding} <= {*fields, 20}


@pytest.mark.parametrize("location", ["../weights.bin", "/dev/zero", "nowhere.bin", "folder"])
def test_weights_that_are_not_beside_the_model_are_refused(location: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "model" / "net.onnx", linear(), "weights.bin")
    (path.parent / "folder").mkdir()
    (tmp_path / "weights.bin").write_bytes((path.parent / "weights.bin").read_bytes())
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        TargetError, match=rf"its weights lie in '{location}'.*put it beside the model"
    ) as caught:
        open_target(path)
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_one_error(tmp_path: Path) -> None:
    whole = saved(tmp_path / "net.onnx", linear(), "weights.bin").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut.onnx").write_bytes(whole[:end])
        with suppress(TargetError):  # and no other error
            external_files(tmp_path / "cut.onnx")
    assert external_files(tmp_path / "net.onnx") == {tmp_path / "weights.bin"}


# What goes in and comes out


@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_a_batch_fixed_in_the_graph_is_filled_up(count: int, tmp_path: Path) -> None:
    target = open_target(saved(tmp_path / "four.onnx", linear(shape=(4, *SHAPE))), output_kind="logits")
    answers = target.query(IMAGES[:count])
    np.testing.assert_allclose(answers.scores, IMAGES[:count].reshape(count, -1) @ WEIGHT, rtol=1e-4)
    small = open_target(tmp_path / "four.onnx", output_kind="logits", batch_size=3)
    np.testing.assert_array_equal(small.query(IMAGES[:count]).labels, answers.labels)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_that_is_none_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=f"batch_size must be a positive integer, got {size}"):
        open_target(saved(tmp_path / "m.onnx", linear()), output_kind="logits", batch_size=size)


def test_half_precision_rounds_the_pixels_and_says_so(tmp_path: Path) -> None:
    half = onnx.TensorProto.FLOAT16
    target = open_target(saved(tmp_path / "half.onnx", linear(WEIGHT / 8, dtype=half)), output_kind="logits")
    assert target.preprocessing == "float16"
    expected = IMAGES.astype(np.float16).reshape(10, -1) @ (WEIGHT / 8).astype(np.float16)
    np.testing.assert_allclose(target.query(IMAGES).scores, expected, atol=0.01)


def test_one_sigmoid_output_is_the_probability_of_class_1(tmp_path: Path) -> None:
    weight, last = np.linspace(-1, 1, 64)[:, None], [helper.make_node("Sigmoid", ["scores"], ["answer"])]
    path = saved(tmp_path / "binary.onnx", linear(weight, last=last))
    answers = open_target(path, num_classes=2).query(IMAGES)
    truth = 1 / (1 + np.exp(-IMAGES.reshape(10, -1) @ weight))
    np.testing.assert_allclose(answers.scores, np.hstack([1 - truth, truth]), rtol=1e-5)
    assert answers.labels.tolist() == (truth[:, 0] > 0.5).astype(int).tolist()


def test_a_mean_and_a_deviation_for_each_channel(tmp_path: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    weight = np.kron(np.eye(3), np.ones((64, 1))) / 64
    images = np.random.default_rng(0).random((20, 3, 8, 8), np.float32)
    path = saved(tmp_path / "net.onnx", linear(weight, shape=("n", 3, 8, 8)))
    target = open_target(path, output_kind="logits", mean=mean, std=std)
    normalized = (images - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(
        target.query(images).scores, normalized.mean(axis=(2, 3)), rtol=1e-4, atol=1e-6
    )
    plain = open_target(path, output_kind="logits")
    assert plain.identity == target.identity
    assert plain.subject != target.subject  # a ledger keeps their answers apart
    with pytest.raises(TargetError, match="mean has 2 values, but images have 3 channels"):
        open_target(path, mean=(0.5, 0.5), input_shape=(3, 8, 8))


def zipped(keys: list[Any]) -> Any:
    """A linear classifier whose probabilities come as a map from its own classes, and its labels as names."""
    kind = "classlabels_strings" if isinstance(keys[0], str) else "classlabels_int64s"
    nodes = [
        helper.make_node("Softmax", ["scores"], ["answer"], axis=1),
        helper.make_node("ZipMap", ["answer"], ["zipped"], domain="ai.onnx.ml", **{kind: keys}),
    ]
    model = linear(last=nodes)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    key = onnx.TensorProto.STRING if isinstance(keys[0], str) else onnx.TensorProto.INT64
    row = helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, []))
    model.graph.output[0].CopyFrom(helper.make_value_info("zipped", helper.make_sequence_type_proto(row)))
    return model


def test_a_map_of_classes_is_read_by_their_names(tmp_path: Path) -> None:
    truth = (IMAGES.reshape(10, -1) @ WEIGHT).argmax(axis=1)
    numbered = saved(tmp_path / "numbered.onnx", zipped([2, 0, 4]))
    answers = open_target(numbered, num_classes=5).query(IMAGES)
    assert answers.labels.tolist() == np.array([2, 0, 4])[truth].tolist()
    assert (answers.scores[:, [1, 3]] == 0).all()
    with pytest.raises(TargetError, match="answered class 4, but num_classes is 3"):
        open_target(numbered, num_classes=3).query(IMAGES)
    named = saved(tmp_path / "named.onnx", zipped(["cat", "ant", "bee"]))
    with pytest.raises(TargetError, match="answers the names of its classes in zipped: give classes="):
        open_target(named, num_classes=3)
    answers = open_target(named, classes=["bee", "cat", "ant"]).query(IMAGES)
    assert answers.labels.tolist() == np.array([1, 2, 0])[truth].tolist()


def with_labels(own: list[Any]) -> Any:
    """A linear classifier with scores in the order of its columns, and labels that are its own classes."""
    model = linear()
    table = np.array(own, dtype=object if isinstance(own[0], str) else np.int64)
    kind = onnx.TensorProto.STRING if isinstance(own[0], str) else onnx.TensorProto.INT64
    model.graph.initializer.append(helper.make_tensor("own", kind, [len(own)], table.tolist()))
    model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0))
    model.graph.node.append(helper.make_node("Gather", ["own", "best"], ["label"]))
    model.graph.output.append(helper.make_tensor_value_info("label", kind, ["n"]))
    return model


def test_scores_whose_columns_are_other_classes_are_not_taken_by_position(tmp_path: Path) -> None:
    """As skl2onnx writes a model without a map: a label, and a column of scores for each class."""
    truth = (IMAGES.reshape(10, -1) @ WEIGHT).argmax(axis=1)
    plain = saved(tmp_path / "plain.onnx", with_labels([0, 1, 2]))
    assert open_target(plain, output_kind="logits").query(IMAGES).labels.tolist() == truth.tolist()
    shifted = saved(tmp_path / "shifted.onnx", with_labels([1, 2, 3]))
    with pytest.raises(
        TargetError, match=r"answers class \d where column \d of its scores is largest: give cla"
    ):
        open_target(shifted, output_kind="logits").query(IMAGES)
    named = saved(tmp_path / "named.onnx", with_labels(["ant", "bee", "cat"]))
    with pytest.raises(TargetError, match="answers the names of its classes in label: give classes="):
        open_target(named, output_kind="logits")
    for path, classes in ((shifted, [1, 2, 3]), (named, ["ant", "bee", "cat"])):
        target = open_target(path, output_kind="logits", classes=classes)
        assert target.query(IMAGES).labels.tolist() == truth.tolist()
        with pytest.raises(TargetError, match="of its scores is largest"):
            open_target(path, output_kind="logits", classes=classes[::-1]).query(IMAGES)
    labels = open_target(named, output="label", classes=["cat", "bee", "ant"])
    assert labels.query(IMAGES).labels.tolist() == (2 - truth).tolist()
