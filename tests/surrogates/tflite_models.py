"""Small TFLite files, written with the schema that LiteRT brings: a linear map of the image, and what may be around it."""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
}
CODES = {name: code for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


class Graph:
    """A model in the making: tensors and operators in the order in which they are added."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.operatorCodes = 3, []
        self.model.buffers = [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str = "float32",
        *,
        data: np.ndarray | None = None,
        scale: tuple[float, int] | None = None,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, TYPES[dtype], 0
        tensor.shape = [max(side, 1) for side in shape]
        if min(shape, default=1) < 0:
            tensor.shapeSignature = list(shape)
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale[0]], [scale[1]]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(
        self, name: str, inputs: list[int], output: int, options: Any = None, kind: str = "NONE"
    ) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = CODES[name], min(CODES[name], 127), 1
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes)
        operator.inputs, operator.outputs = inputs, [output]
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        self.model.operatorCodes.append(code)
        self.graph.operators.append(operator)
        return output

    def describe(self, normalization: tuple[list[float], list[float]]) -> None:
        """Add metadata: the only input is normalized so."""
        builder = flatbuffers.Builder(256)

        def vector(values: list[int], write: Any = builder.PrependUOffsetTRelative) -> int:
            builder.StartVector(4, len(values), 4)
            for value in reversed(values):
                write(value)
            return builder.EndVector()

        def table(size: int, **slots: int) -> int:
            builder.StartObject(size)
            for name, value in slots.items():
                builder.PrependUOffsetTRelativeSlot(int(name[1:]), value, 0)
            return builder.EndObject()

        mean, std = (vector(values, builder.PrependFloat32) for values in normalization)
        options = table(2, _0=mean, _1=std)
        builder.StartObject(2)
        builder.PrependUint8Slot(0, 1, 0)  # NormalizationOptions
        builder.PrependUOffsetTRelativeSlot(1, options, 0)
        units = vector([builder.EndObject()])
        tensors = vector([table(7, _4=units)])
        name = builder.CreateString("linear")
        graphs = vector([table(8, _2=tensors)])
        builder.Finish(table(8, _0=name, _3=graphs), b"M001")
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(bytes(builder.Output()), np.uint8)
        entry.name, entry.buffer = "TFLITE_METADATA", len(self.model.buffers)
        self.model.buffers.append(buffer)
        self.model.metadata = [entry]

    def bytes(self, inputs: list[int], outputs: list[int]) -> bytes:
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def linear(
    weight: np.ndarray,
    shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    scale: tuple[float, int] | None = None,
    plain: bool = False,
    end: str | None = None,
    also: bool = False,
    normalization: tuple[list[float], list[float]] | None = None,
) -> bytes:
    """Return the file of a model that takes tensors of a shape and answers weight @ image.

    Args:
        weight: (K, values).
        shape: Of its input, the batch first, -1 for a side that is free.
        dtype: Of its input.
        scale: What a step of its integers is worth, and the integer that stands for 0.
        plain: Whether its integers are what they are, not steps of a scale.
        end: SOFTMAX, LOGISTIC, ARG_MAX or None.
        also: Whether it gives the sums before the end too, as `sums`.
        normalization: Mean and std of pixels from 0 to 255, in the file's metadata.
    """
    graph, classes, batch = Graph(), len(weight), max(shape[0], 1)
    if normalization is not None:
        graph.describe(normalization)
    first = taken = graph.tensor("image", shape, dtype, scale=scale)
    if plain:
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = TYPES[dtype], TYPES["float32"]
        taken = graph.operator("CAST", [first], graph.tensor("real", shape), options, "CastOptions")
    elif dtype != "float32":
        taken = graph.operator(
            "DEQUANTIZE",
            [first],
            graph.tensor("real", shape),
            schema.DequantizeOptionsT(),
            "DequantizeOptions",
        )
    weights = graph.tensor("weight", weight.shape, data=weight.astype(np.float32))
    sums = graph.tensor("sums", (batch, classes))
    dense = schema.FullyConnectedOptionsT()
    graph.operator("FULLY_CONNECTED", [taken, weights, -1], sums, dense, "FullyConnectedOptions")
    last = sums
    if end == "SOFTMAX":
        softmax = schema.SoftmaxOptionsT()
        softmax.beta = 1.0
        last = graph.operator(
            end, [sums], graph.tensor("answer", (batch, classes)), softmax, "SoftmaxOptions"
        )
    elif end == "LOGISTIC":
        last = graph.operator(end, [sums], graph.tensor("answer", (batch, classes)))
    elif end == "ARG_MAX":
        axis = graph.tensor("axis", (), "int32", data=np.int32([1]))
        arg_max = schema.ArgMaxOptionsT()
        arg_max.outputType = TYPES["int64"]
        answer = graph.tensor("answer", (batch,), "int64")
        last = graph.operator(end, [sums, axis], answer, arg_max, "ArgMaxOptions")
    if end is not None:  # a change of shape alone tells nothing
        shape_options = schema.ReshapeOptionsT()
        shape_options.newShape = [batch] if end == "ARG_MAX" else [batch, classes]
        wanted = graph.tensor("shape", (len(shape_options.newShape),), "int32", data=np.int32([-1, classes]))
        if end != "ARG_MAX":
            last = graph.operator(
                "RESHAPE",
                [last, wanted],
                graph.tensor("out", (batch, classes)),
                shape_options,
                "ReshapeOptions",
            )
    return graph.bytes([first], [sums, last] if also else [last])
