"""What a TensorFlow Lite file says of itself, read with bounds. Runs nothing of it.

A hostile file may hold any number anywhere. Python's flatbuffers reader cannot leave the file: a wrong offset is an
exception. What is left to bound is how much is read: every count is held against a limit and the size of the file.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 2**32
MAX_SUBGRAPHS = 1_000
MAX_OPERATORS = 100_000
MAX_TENSORS = 200_000
MAX_LINKS = 1_000_000
"""Most inputs and outputs of all operators together."""
MAX_RANK = 16
MAX_NAME = 20_000
MAX_TEXT = 2**26
"""Longest name of a tensor, and most characters of all names together: many tensors may share one name."""
MAX_VALUES = 16
"""Integer constants of at most so many elements (axes, permutations, slices) are read."""

_OPTIONS = {
    "activation": "FusedActivationFunction",
    "adj_x": "AdjX",
    "adj_y": "AdjY",
    "align_corners": "AlignCorners",
    "alpha": "Alpha",
    "approximate": "Approximate",
    "axis": "Axis",
    "beta": "Beta",
    "block_size": "BlockSize",
    "depth_multiplier": "DepthMultiplier",
    "dilation_h": "DilationHFactor",
    "dilation_w": "DilationWFactor",
    "ellipsis_mask": "EllipsisMask",
    "filter_h": "FilterHeight",
    "filter_w": "FilterWidth",
    "half_pixel_centers": "HalfPixelCenters",
    "keep_dims": "KeepDims",
    "keep_num_dims": "KeepNumDims",
    "new_axis_mask": "NewAxisMask",
    "shrink_axis_mask": "ShrinkAxisMask",
    "stride_h": "StrideH",
    "stride_w": "StrideW",
    "weights_format": "WeightsFormat",
}
"""Our name to the schema's, for every option that a rule looks at; all are numbers."""

_DAMAGE = (
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a file declares it.

    Attributes:
        name: Its name; the converter writes the path of the Keras layer into it.
        dtype: Such as `"float32"` or `"int8"`.
        shape: Its sizes; 1 stands for what is not known before the file runs.
        dynamic: Whether a size is not known before the file runs.
        constant: Whether the file holds its values.
        values: The values of a small integer constant, else None.
        scales: Number of scales: 0 is not quantised, 1 per tensor, more per channel.
        scale: The first scale, 0 without any.
        zero_point: The first zero point, 0 without any.
        channel: The dimension that several scales belong to.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dynamic: bool = False
    constant: bool = False
    values: tuple[int, ...] | None = None
    scales: int = 0
    scale: float = 0.0
    zero_point: int = 0
    channel: int = 0


@dataclass(frozen=True)
class OperatorInfo:
    """An operator of a file.

    Attributes:
        name: Such as `"FULLY_CONNECTED"`; of a custom operator its own name, such as `"FlexTranspose"`.
        custom: Whether it is none of the builtin operators.
        version: Version of the operator.
        inputs: Numbers of its tensors; -1 where an optional one is left out.
        outputs: Numbers of its tensors.
        options: What it is set to, by the names in this module's table.
        subgraph: Number of its subgraph; 0 is what runs first.
    """

    name: str
    custom: bool
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]
    subgraph: int = 0


@dataclass(frozen=True)
class FileInfo:
    """What a file is made of.

    Attributes:
        bytes: Its size.
        tensors: All tensors of all subgraphs.
        operators: All operators in their order; their numbers of tensors point into `tensors`.
        inputs: Numbers of the tensors that a caller fills in.
        outputs: Numbers of the tensors that a caller reads.
    """

    bytes: int
    tensors: tuple[TensorInfo, ...]
    operators: tuple[OperatorInfo, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the first output is a softmax's, perhaps of another type: probabilities, not logits."""
        made_by = {output: operator for operator in self.operators for output in operator.outputs}
        operator = made_by.pop(self.outputs[0], None) if self.outputs else None
        while operator and operator.inputs and operator.name in ("DEQUANTIZE", "QUANTIZE"):
            operator = made_by.pop(operator.inputs[0], None)  # Each once: a cycle has an end.
        return operator is not None and operator.name == "SOFTMAX"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "FileInfo":
        """Returns what `dataclasses.asdict` and JSON have made of one."""
        tensors = tuple(TensorInfo(**_tuples(tensor)) for tensor in value["tensors"])
        operators = tuple(OperatorInfo(**_tuples(operator)) for operator in value["operators"])
        return cls(value["bytes"], tensors, operators, tuple(value["inputs"]), tuple(value["outputs"]))


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def read_file(path: str | Path) -> FileInfo:
    """Reads what a TensorFlow Lite file is made of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, no TensorFlow Lite file, damaged, or larger than this reader's limits.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No TensorFlow Lite file at {path}.")
    size = path.stat().st_size
    if not 8 < size <= MAX_BYTES:
        raise ValueError(f"{path} must be a TensorFlow Lite file of 9 to {MAX_BYTES:,} bytes. Received: {size:,}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[4:8] != b"TFL3":
            raise ValueError(f"{path} is not a TensorFlow Lite file: its bytes 4 to 7 are not 'TFL3'.")
        reader = _Reader(content, size)
        try:
            return reader.read()
        except _DAMAGE as error:
            message = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} is a damaged TensorFlow Lite file: {message[:300]}") from None
        finally:
            reader.close()


class _Reader:
    """Reads one file's model; every count that it meets is bounded."""

    def __init__(self, content: mmap.mmap, size: int) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema, self._size = schema, size
        self._view = memoryview(content)
        self._dtypes = _names(schema.TensorType)
        self._builtins = _names(schema.BuiltinOperator)
        self._activations = _names(schema.ActivationFunctionType)
        self._option_classes = _names(schema.BuiltinOptions)
        self._links = self._text = 0
        self._model: Any = None

    def close(self) -> None:
        """Lets go of the file."""
        self._model = None
        self._view.release()

    def read(self) -> FileInfo:
        """Reads the model."""
        self._model = self._schema.Model.GetRootAs(self._view, 0)
        count = self._count(self._model.SubgraphsLength(), MAX_SUBGRAPHS, "subgraphs", 1)
        tensors: list[TensorInfo] = []
        operators: list[OperatorInfo] = []
        ends: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        for number in range(count):
            graph, first = self._model.Subgraphs(number), len(tensors)
            length = self._count(graph.TensorsLength(), MAX_TENSORS - first, "tensors")
            tensors += [self._tensor(graph.Tensors(i)) for i in range(length)]
            length = self._count(graph.OperatorsLength(), MAX_OPERATORS - len(operators), "operators")
            ranges = (first, len(tensors))
            operators += [self._operator(graph.Operators(i), number, ranges) for i in range(length)]
            if number == 0:
                ends = self._indices(graph, "Inputs", ranges), self._indices(graph, "Outputs", ranges)
        return FileInfo(self._size, tuple(tensors), tuple(operators), *ends)

    def _count(self, count: int, most: int, what: str, item_bytes: int = 4, least: int = 0) -> int:
        if not least <= count <= min(most, self._size // item_bytes):
            raise ValueError(f"{count:,} {what} in {self._size:,} bytes")
        return count

    def _indices(self, table: Any, field: str, ranges: tuple[int, int]) -> tuple[int, ...]:
        length = self._count(getattr(table, f"{field}Length")(), MAX_LINKS, field.lower())
        self._links += length
        self._count(self._links, MAX_LINKS, "inputs and outputs", item_bytes=1)
        first, end = ranges
        numbers = [getattr(table, field)(i) for i in range(length)]
        for number in numbers:
            if not -1 <= number < end - first:
                raise ValueError(f"tensor number {number:,} of {end - first:,}")
        return tuple(number + first if number >= 0 else -1 for number in numbers)

    def _tensor(self, tensor: Any) -> TensorInfo:
        rank = self._count(tensor.ShapeLength(), MAX_RANK, "dimensions")
        shape = tuple(tensor.Shape(i) for i in range(rank))
        signature = [tensor.ShapeSignature(i) for i in range(self._count(tensor.ShapeSignatureLength(), MAX_RANK, ""))]
        if any(n < -1 for n in shape) or math.prod(shape) > 2**48:
            raise ValueError(f"a tensor of shape {shape}")
        dtype = self._dtypes[tensor.Type()].lower()
        content = self._content(tensor.Buffer())
        quantization = self._quantization(tensor.Quantization())
        values = self._values(content, dtype, math.prod(shape)) if content is not None else None
        return TensorInfo(
            self._name(tensor.Name()),
            dtype,
            tuple(max(n, 1) if n < 0 else n for n in shape),
            dynamic=-1 in signature or -1 in shape,
            constant=content is not None,
            values=values,
            **quantization,
        )

    def _name(self, name: bytes | None) -> str:
        name = (name or b"")[:MAX_NAME]
        self._text += len(name)
        if self._text > MAX_TEXT:
            raise ValueError(f"more than {MAX_TEXT:,} characters of names")
        return printable(name.decode(errors="replace"))

    def _content(self, number: int) -> tuple[int, Any] | None:
        """Returns number of bytes and table of a buffer, or None of an empty one; checks that it lies in the file."""
        if not 0 <= number < self._count(self._model.BuffersLength(), MAX_TENSORS * 2, "buffers", 4):
            raise ValueError(f"buffer number {number:,} of {self._model.BuffersLength():,}")
        buffer = self._model.Buffers(number)
        if buffer.Offset() > 1:  # Behind the flatbuffer, as ai-edge-quantizer writes it.
            if buffer.Offset() + buffer.Size() > self._size:
                raise ValueError(f"a buffer at {buffer.Offset():,} of {buffer.Size():,} bytes in {self._size:,} bytes")
            return buffer.Size(), buffer
        length = self._count(buffer.DataLength(), self._size, "bytes of a buffer", item_bytes=1)
        return (length, buffer) if length else None

    def _values(self, content: tuple[int, Any], dtype: str, elements: int) -> tuple[int, ...] | None:
        length, buffer = content
        item = {"int32": 4, "int64": 8}.get(dtype)
        if item is None or elements > MAX_VALUES or length < elements * item:
            return None
        form = f"<{elements}{'i' if item == 4 else 'q'}"
        if buffer.Offset() > 1:
            return struct.unpack_from(form, self._view, buffer.Offset())
        return struct.unpack(form, bytes(buffer.Data(i) for i in range(elements * item)))

    def _quantization(self, table: Any) -> dict[str, Any]:
        if table is None:
            return {}
        scales = self._count(table.ScaleLength(), self._size, "scales")
        zeros = self._count(table.ZeroPointLength(), self._size, "zero points", item_bytes=8)
        if not scales:
            return {}
        scale = table.Scale(0)
        return {
            "scales": scales,
            "scale": float(scale) if math.isfinite(scale) else 0.0,
            "zero_point": int(table.ZeroPoint(0)) if zeros else 0,
            "channel": table.QuantizedDimension(),
        }

    def _operator(self, operator: Any, subgraph: int, ranges: tuple[int, int]) -> OperatorInfo:
        codes = self._count(self._model.OperatorCodesLength(), MAX_OPERATORS, "operator codes")
        if not 0 <= operator.OpcodeIndex() < codes:
            raise ValueError(f"operator code {operator.OpcodeIndex():,} of {codes:,}")
        code = self._model.OperatorCodes(operator.OpcodeIndex())
        name = self._builtins[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        custom = name == "CUSTOM"
        if custom:
            name = self._name((code.CustomCode() or b"CUSTOM")[:100])
        inputs, outputs = (self._indices(operator, field, ranges) for field in ("Inputs", "Outputs"))
        return OperatorInfo(name, custom, code.Version(), inputs, outputs, self._options(operator), subgraph)

    def _options(self, operator: Any) -> dict[str, Any]:
        table, kind = operator.BuiltinOptions(), self._option_classes[operator.BuiltinOptionsType()]
        if table is None or kind == "NONE":
            return {}
        options = getattr(self._schema, kind)()
        options.Init(table.Bytes, table.Pos)
        found = {ours: getattr(options, theirs)() for ours, theirs in _OPTIONS.items() if hasattr(options, theirs)}
        if "activation" in found:
            found["activation"] = self._activations[found["activation"]]
        return {name: value for name, value in found.items() if not isinstance(value, float) or math.isfinite(value)}


def printable(text: str) -> str:
    """Returns a text from a file without characters that could steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
