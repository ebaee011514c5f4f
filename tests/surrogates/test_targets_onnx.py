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
