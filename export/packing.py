"""Rewriting a TensorFlow Lite file: another metadata entry, and every buffer where the schema wants it.

TensorFlow's converter aligns buffers to 4 bytes where the schema says 16, and ai-edge-quantizer leaves weights behind
the flatbuffer, where not every reader finds them and metadata writers cut them off.
"""

import hashlib
import struct
from collections.abc import Mapping

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools.flatbuffer_utils import update_packed_buffer

Part = bytes | memoryview

ALIGNMENT = 16
"""The schema's alignment of a buffer's content, in bytes."""
LARGEST = 2**31 - 2**20
"""Most bytes of a file that is one flatbuffer; a little less than its readers accept."""
_TENSOR_NAME = 10  # Where a Tensor's table of fields says where its name is.
_SUBGRAPH_OUTPUTS = 8  # Where a SubGraph's table of fields says where its outputs are.


def check_model(content: bytes | bytearray) -> schema.Model:
    """Returns the root of a TensorFlow Lite file, or raises `ValueError` where the content is none."""
    if bytes(content[4:8]) != b"TFL3":
        raise ValueError(
            f"content must be that of a TensorFlow Lite file. Received: {len(content)} bytes, {bytes(content[:8])!r}…"
        )
    return schema.Model.GetRootAs(content)


def result_name(content: bytes | bytearray) -> str:
    """Returns the name of the tensor that a TensorFlow Lite file gives first."""
    graph = check_model(content).Subgraphs(0)
    return graph.Tensors(graph.Outputs(0)).Name().decode()


def results_of(content: bytes | bytearray) -> list[tuple[str, list[str]]]:
    """Returns every operator of a TensorFlow Lite file, in its order: its name, and those of its results."""
    model = check_model(content)
    graph = model.Subgraphs(0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    kinds = [names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    return [
        (kinds[o.OpcodeIndex()], [graph.Tensors(int(i)).Name().decode() for i in o.OutputsAsNumpy()]) for o in operators
    ]


def with_entry(content: bytes, name: str, data: bytes) -> list[Part]:
    """Adds a metadata entry to a model, aligns its buffers, and takes them all into the flatbuffer.

    Buffers stay outside only where the flatbuffer would become larger than 2 GB; the entry is always inside.

    Args:
        content: Content of a TensorFlow Lite file.
        name: Name of the entry.
        data: Its bytes.

    Returns:
        The parts of the new file, in their order.

    Raises:
        ValueError: the content is no TensorFlow Lite file, or one that holds such an entry already, buffers beyond its
            end, or options outside the flatbuffer.
    """
    model = schema.ModelT.InitFromObj(check_model(content))
    model.metadata = model.metadata or []
    if name.encode() in [entry.name for entry in model.metadata]:
        raise ValueError(f"content must hold no metadata entry {name} yet. Received: one that does")
    if any(operator.largeCustomOptionsOffset for graph in model.subgraphs for operator in graph.operators or []):
        raise ValueError("content must hold builtin operators only. Received: options outside the flatbuffer")
    for buffer in model.buffers:
        _fetch(buffer, content)
    old = [buffer for buffer in model.buffers if buffer.data is not None]
    model.metadata.append(schema.MetadataT(name=name, buffer=len(model.buffers)))
    model.buffers.append(schema.BufferT(data=np.frombuffer(data, "uint8")))
    size = len(content) + len(data) + 2**16
    if size + ALIGNMENT * len(old) <= LARGEST:
        return [_packed(model, size)]
    return _packed_outside(model, old)


def with_batch_axis(content: bytes) -> bytes:
    """Gives products the batch axis back that the converter takes from them.

    TensorFlow's converter turns a product on `(1, N, D)` that follows a RESHAPE into one on `(N, D)`, and lets the
    addition behind it broadcast `(N, D)` over `(1, N, D)`: GPU delegates refuse both.

    Args:
        content: Content of a TensorFlow Lite file.

    Returns:
        The same graph, in which such a RESHAPE, its FULLY_CONNECTED and that one's result have the shape `(1, N, D)`.
    """
    model = schema.ModelT.InitFromObj(check_model(content))
    for buffer in model.buffers:
        _fetch(buffer, content)
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    for graph in model.subgraphs:
        readers: dict[int, list[schema.OperatorT]] = {}
        for operator in graph.operators:
            for index in operator.inputs:
                readers.setdefault(int(index), []).append(operator)

        def sole_reader(tensor: int, code: int, readers=readers) -> schema.OperatorT | None:
            found = readers.get(tensor, [])
            return found[0] if len(found) == 1 and codes[found[0].opcodeIndex] == code else None

        for reshape in graph.operators:
            tensor = int(reshape.outputs[0])
            if codes[reshape.opcodeIndex] != schema.BuiltinOperator.RESHAPE or len(graph.tensors[tensor].shape) != 2:
                continue
            product = sole_reader(tensor, schema.BuiltinOperator.FULLY_CONNECTED)
            if product is None:
                continue
            addition = sole_reader(int(product.outputs[0]), schema.BuiltinOperator.ADD)
            if addition is None or len(graph.tensors[int(addition.outputs[0])].shape) != 3:
                continue
            for index in (tensor, int(product.outputs[0])):
                graph.tensors[index].shape = np.array([1, *graph.tensors[index].shape], "int32")
                graph.tensors[index].shapeSignature = None
            product.builtinOptions.keepNumDims = True
            _set_shape(model, graph, reshape, graph.tensors[tensor].shape)
    return bytes(_packed(model, len(content) + 2**20))


def with_scores_first(content: bytes) -> bytes:
    """Puts a graph's output of class scores, `(B, num_classes)`, before that of its attention, `(B, rows, tokens)`.

    TensorFlow's converter has an order of its own, and programs that know nothing of the second read the first.

    Args:
        content: Content of a TensorFlow Lite file.

    Returns:
        The same graph with its outputs in the order of their ranks.
    """
    changed = bytearray(content)
    graph = check_model(changed).Subgraphs(0)
    outputs = graph.OutputsAsNumpy()  # A view of the content.
    outputs[:] = sorted(outputs.tolist(), key=lambda index: graph.Tensors(index).ShapeLength())
    return bytes(changed)


def with_named_logits(content: bytes) -> bytes:
    """Calls what a final SOFTMAX takes `logits`: without a path, as the result of a graph that ends without one.

    Args:
        content: Content of a TensorFlow Lite file.

    Returns:
        The same graph. The name is written over the old one; a graph without such a SOFTMAX stays as it is.
    """
    last = ("SOFTMAX", [result_name(content)])
    operators = results_of(content)
    if last not in operators:
        return content
    changed = bytearray(content)
    graph = check_model(changed).Subgraphs(0)
    table = graph.Tensors(graph.Operators(operators.index(last)).Inputs(0))._tab
    start = table.Indirect(table.Pos + table.Offset(_TENSOR_NAME))
    (length,) = struct.unpack_from("<I", changed, start)
    name = b"logits"
    if length >= len(name):
        struct.pack_into(f"<I{length + 1}s", changed, start, len(name), name)  # Filled up with zeros.
    return bytes(changed)


def with_all_results(content: bytes) -> bytes:
    """Makes what every operator gives an output of the graph, behind its own outputs.

    A runtime then keeps it, and may still fuse and delegate what it likes.

    Args:
        content: Content of a TensorFlow Lite file.

    Returns:
        The same graph. The list of its outputs stands behind all else; nothing but the reference to it is changed.
    """
    graph = check_model(content).Subgraphs(0)
    own = [graph.Outputs(i) for i in range(graph.OutputsLength())]
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    written = [operator.Outputs(i) for operator in operators for i in range(operator.OutputsLength())]
    outputs = np.array([*dict.fromkeys([*own, *written])], "<i4")
    reference = graph._tab.Pos + graph._tab.Offset(_SUBGRAPH_OUTPUTS)
    gap = -len(content) % 4
    start = len(content) + gap
    view = memoryview(content)
    parts = view[:reference], struct.pack("<I", start - reference), view[reference + 4 :], bytes(gap)
    return b"".join((*parts, struct.pack("<I", len(outputs)), outputs.tobytes()))


def merged(contents: Mapping[str, bytes]) -> bytes:
    """Puts files into one, a signature each.

    Args:
        contents: Name of the signature to the content of a TensorFlow Lite file with one graph and one signature.

    Returns:
        A file with all graphs in their order, the first being the one that runs where no signature is named. Buffers
        of equal content, as the weights of one network for two picture sizes, are held once. Metadata is the first's.
    """
    if len(contents) == 1:
        return next(iter(contents.values()))
    models = []
    for content in contents.values():
        models.append(schema.ModelT.InitFromObj(check_model(content)))
        for buffer in models[-1].buffers:
            _fetch(buffer, content)
    whole = models[0]
    codes = {_code_key(code): index for index, code in enumerate(whole.operatorCodes)}
    buffers: dict[bytes, int] = {}
    for index, buffer in enumerate(whole.buffers):
        buffers.setdefault(_digest(buffer), index)
    for name, model in zip(contents, models, strict=True):
        (graph,), (signature,) = model.subgraphs, model.signatureDefs
        signature.signatureKey = name.encode()
        if model is whole:
            continue
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            tensor.buffer = buffers.setdefault(_digest(buffer), len(whole.buffers))
            if tensor.buffer == len(whole.buffers):
                whole.buffers.append(buffer)
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            operator.opcodeIndex = codes.setdefault(_code_key(code), len(whole.operatorCodes))
            if operator.opcodeIndex == len(whole.operatorCodes):
                whole.operatorCodes.append(code)
        signature.subgraphIndex = len(whole.subgraphs)
        whole.subgraphs.append(graph)
        whole.signatureDefs.append(signature)
    return bytes(_packed(whole, sum(len(buffer.data) for buffer in whole.buffers if buffer.data is not None) + 2**22))


def _code_key(code: schema.OperatorCodeT) -> tuple:
    return code.builtinCode, code.deprecatedBuiltinCode, code.version, code.customCode


def _digest(buffer: schema.BufferT) -> bytes:
    return b"" if buffer.data is None else hashlib.sha256(buffer.data).digest()


def _set_shape(model: schema.ModelT, graph: schema.SubGraphT, reshape: schema.OperatorT, shape: np.ndarray) -> None:
    """Gives a RESHAPE a target of its own: the converter lets several share one."""
    old = graph.tensors[reshape.inputs[1]]
    model.buffers.append(schema.BufferT(data=np.frombuffer(shape.tobytes(), "uint8")))
    name = old.name + b"/%d" % len(graph.tensors)
    tensor = schema.TensorT(shape=[len(shape)], type=old.type, buffer=len(model.buffers) - 1, name=name)
    graph.tensors.append(tensor)
    reshape.inputs = np.array([reshape.inputs[0], len(graph.tensors) - 1], "int32")
    if reshape.builtinOptions is not None:
        reshape.builtinOptions.newShape = shape


class _Builder(flatbuffers.Builder):
    """A builder that keeps to the schema's alignment of bytes, as the generated code does not, and copies them once."""

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, ALIGNMENT)
        self.head -= x.size
        np.frombuffer(self.Bytes, "uint8")[self.head : self.head + x.size] = x
        return self.EndVector()


def _fetch(buffer: schema.BufferT, content: bytes) -> None:
    """Turns a buffer behind the flatbuffer into one inside; nothing is copied yet."""
    start, size = buffer.offset, buffer.size
    if start > 1 and size:  # 0 and 1 stand for nothing.
        if start + size > len(content):
            raise ValueError(
                f"content must be whole. Received: {len(content)} bytes, and a buffer up to {start + size}"
            )
        buffer.data = np.frombuffer(content, "uint8", size, start)
    buffer.offset = buffer.size = 0


def _packed(model: schema.ModelT, size: int = 2**16) -> memoryview:
    builder = _Builder(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return memoryview(builder.Bytes)[builder.Head() :]  # Output() would copy.


def _packed_outside(model: schema.ModelT, outside: list[schema.BufferT]) -> list[Part]:
    """Packs a model with some of its buffers behind the flatbuffer."""
    contents = {}
    for index, buffer in enumerate(model.buffers):
        if buffer in outside:
            contents[index], buffer.data = buffer.data, None
            buffer.offset = buffer.size = 1  # Keeps room for the true ones.
    front = _packed(model)
    parts: list[Part] = [front]
    root, end = schema.Model.GetRootAs(front), len(front)
    for index, data in contents.items():
        gap = -end % ALIGNMENT
        update_packed_buffer(root.Buffers(index), offset=end + gap, size=len(data))
        parts += [bytes(gap), data.data]
        end += gap + len(data)
    return parts
