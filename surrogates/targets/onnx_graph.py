"""What an ONNX graph ends in, which tells the kind of its scores."""

import mmap
from dataclasses import dataclass
from pathlib import Path

from surrogates.targets.kinds import kind_of_op
from surrogates.targets.onnx_files import message_fields

GRAPH, NODE = 7, 1  # fields of a Model and of a Graph in onnx.proto ...
INPUT, OUTPUT, OP = 1, 2, 4  # ... and of a Node
# Operations that hand on what their first input holds.
PASSING = frozenset(
    [
        "Identity",
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Dropout",
        "QuantizeLinear",
        "DequantizeLinear",
    ]
)
LONGEST = 100  # operations that are followed


@dataclass(frozen=True)
class Node:
    """An operation: its name and the tensors that it reads."""

    op: str
    inputs: tuple[str, ...]


def kind_of_output(path: Path, output: str, columns: int | None) -> str | None:
    """Return the kind of an output of a model, which was read before; None where its graph does not tell.

    Args:
        columns: Of the output, None where they are not known.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        makers = _makers(raw)
    for _ in range(LONGEST):
        node = makers.get(output)
        if node is None or not node.inputs:
            return None
        if node.op == "Add":  # of a bias, behind a product
            before = [makers[name] for name in node.inputs if name in makers]
            return "logits" if any(each.op in ("MatMul", "Gemm", "Conv") for each in before) else None
        if node.op not in PASSING:
            return kind_of_op(node.op, columns)
        output = node.inputs[0]
    return None


def _makers(raw: mmap.mmap) -> dict[str, Node]:
    """Return which operation of the graph makes each tensor."""
    makers: dict[str, Node] = {}
    for field, start, end in message_fields(raw, 0, len(raw)):
        nodes = message_fields(raw, start, end) if field == GRAPH else ()
        for number, first, last in nodes:
            if number == NODE:
                parts = [(part, raw[begin:stop].decode()) for part, begin, stop in _texts(raw, first, last)]
                op = next((text for part, text in parts if part == OP), "")
                inputs = tuple(text for part, text in parts if part == INPUT)
                makers |= {text: Node(op, inputs) for part, text in parts if part == OUTPUT}
    return makers


def _texts(raw: mmap.mmap, start: int, end: int) -> list[tuple[int, int, int]]:
    return [each for each in message_fields(raw, start, end) if each[0] in (INPUT, OUTPUT, OP)]
