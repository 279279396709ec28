"""Rounding weights so that their errors cancel: each weight's error is made good by those that are rounded after it.

Rounded to the nearest, a product's weights have errors that add up at random. What the product computes on real
pictures says how an error of one weight can be balanced by others of the same output channel.

Reference:
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
    (arXiv:2210.17323), in the form of Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane
    Algorithm" (arXiv:2507.18553): from the last column to the first, which needs no inverse.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .packing import check_model
from .quantize import Kind

DAMPING = 0.01
"""Added to the diagonal of the inputs' products, as a share of its mean: directions that no picture shows stay near."""
ROWS_PER_WEIGHT = 8
"""Inputs that are looked at for every weight of an output channel, ..."""
MOST_ROWS = 4096
"""... and at most, or twice as many as there are weights."""
MOST_INPUTS = 8192
"""Products of more inputs, as behind a Flatten, are rounded to the nearest: a `Gram` has the square of that."""
_BLOCK = 64
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Product:
    """A FULLY_CONNECTED or CONV_2D with constant weights.

    Attributes:
        operator: Its name.
        inputs: Name of the tensor that it takes.
        result: Name of the tensor that it gives.
        weights: Float32 `(out, in)`, a view of the file's content; of a convolution `(out, height * width * in)`.
        bias: Float32 `(out,)`, a view as well; `None` where there is none.
        buffer: Number of the buffer that the weights lie in: products may share one.
        window: Height and width of a convolution whose windows lie side by side, else `None`.
    """

    operator: str
    inputs: str
    result: str
    weights: np.ndarray
    bias: np.ndarray | None
    buffer: int
    window: tuple[int, int] | None

    @property
    def source(self) -> tuple:
        """What the rows that it multiplies are cut from, and how."""
        return self.inputs, self.window, self.weights.shape[1]

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Returns what each output of the product is computed from, `(n, in)`."""
        if self.window is None:
            return values.reshape(-1, values.shape[-1])
        (h, w), (n, height, width, channels) = self.window, values.shape
        values = values[:, : height // h * h, : width // w * w]
        values = values.reshape(n, height // h, h, width // w, w, channels)
        return values.transpose(0, 1, 3, 2, 4, 5).reshape(-1, h * w * channels)


def products(content: bytes | bytearray) -> Iterator[Product]:
    """Yields the products of a float32 file. Of a `bytearray` the weights can be written to."""
    model = check_model(content)
    graph = model.Subgraphs(0)
    names = {getattr(schema.BuiltinOperator, name): name for name in ("FULLY_CONNECTED", "CONV_2D")}
    for operator in (graph.Operators(i) for i in range(graph.OperatorsLength())):
        code = model.OperatorCodes(operator.OpcodeIndex())
        name = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
        if name is None:
            continue
        inputs, weights, result = (
            graph.Tensors(int(i)) for i in (operator.Inputs(0), operator.Inputs(1), operator.Outputs(0))
        )
        buffer = model.Buffers(weights.Buffer())
        window = _window(operator, inputs, weights) if name == "CONV_2D" else None
        constant = weights.Type() == schema.TensorType.FLOAT32 and buffer.DataLength()
        if constant and (name == "FULLY_CONNECTED" or window):
            values = buffer.DataAsNumpy().view("<f4").reshape(weights.Shape(0), -1)
            bias = _bias(model, graph, operator)
            yield Product(name, inputs.Name().decode(), result.Name().decode(), values, bias, weights.Buffer(), window)


def _bias(model: schema.Model, graph: schema.SubGraph, operator: schema.Operator) -> np.ndarray | None:
    """The constant bias of a product."""
    if operator.InputsLength() < 3 or operator.Inputs(2) < 0:
        return None
    buffer = model.Buffers(graph.Tensors(operator.Inputs(2)).Buffer())
    return buffer.DataAsNumpy().view("<f4") if buffer.DataLength() else None


def _window(operator: schema.Operator, inputs: schema.Tensor, weights: schema.Tensor) -> tuple[int, int] | None:
    """Height and width of a convolution's windows if they lie side by side, cover nothing twice and all channels."""
    options = schema.Conv2DOptions()
    options.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
    size = weights.Shape(1), weights.Shape(2)
    beside = size == (options.StrideH(), options.StrideW()) and options.DilationHFactor() == 1
    whole = options.Padding() == schema.Padding.VALID and weights.Shape(3) == inputs.Shape(3)
    return size if beside and whole else None


class Rounding:
    """Rounds the weights of a file for a kind, with what the products take on sample pictures.

    Args:
        float32: Content of the float32 file.
    """

    def __init__(self, float32: bytes) -> None:
        # Of weights that are used twice the first use decides.
        found = {product.buffer: product for product in reversed([*products(float32)])}.values()
        found = [product for product in found if product.weights.shape[1] <= MOST_INPUTS]
        self._sources = {product.result: product.source for product in found}
        self._products = {product.source: product for product in found}  # Products of the same inputs have one Gram.
        self._grams = {source: Gram(product.weights.shape[1]) for source, product in self._products.items()}
        self._rounded: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def see(self, name: str, values: np.ndarray) -> None:
        """Takes in what a tensor of the float32 file was on one batch of pictures."""
        for source, product in self._products.items():
            gram = self._grams[source]
            if product.inputs == name and not gram.full:
                gram.add(product.rows(values))

    def __call__(self, float32: bytes, kind: Kind) -> bytearray:
        """Returns the content of the file with the weights that the kind quantises where their integers will be.

        Args:
            float32: Content of the file that was looked at, or of one with the same products for other pictures.
            kind: What it is to become.
        """
        content = bytearray(float32)
        for product in products(content):
            rule = kind.rule_for(product.operator, product.result)
            if rule is None or rule.weights not in (4, 8) or product.result not in self._sources:
                continue
            key = product.result, rule.weights, rule.block
            if key not in self._rounded:
                gram = self._grams[self._sources[product.result]].sum()
                self._rounded[key] = compensated(product.weights, gram, rule.weights, rule.block)
            product.weights[:] = dequantized(*self._rounded[key])
        return content


class Gram:
    """The products of a product's inputs, `x.T @ x`, summed over samples.

    Args:
        size: Weights of an output channel.
    """

    def __init__(self, size: int) -> None:
        self._wanted = min(ROWS_PER_WEIGHT * size, max(MOST_ROWS, 2 * size))
        self._sum = np.zeros((size, size), "float32")
        self._waiting: list[np.ndarray] = []

    @property
    def full(self) -> bool:
        """Whether enough samples were added."""
        return self._wanted <= 0

    def add(self, rows: np.ndarray) -> None:
        """Adds samples, `(n, size)`."""
        self._waiting.append(rows)
        self._wanted -= len(rows)
        if self.full or sum(map(len, self._waiting)) >= _ROWS_AT_ONCE:  # One large product is faster than many small.
            self.sum()

    def sum(self) -> np.ndarray:
        """Returns the sum, `(size, size)`."""
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._sum += rows.T @ rows
            self._waiting = []
        return self._sum


def compensated(
    weights: np.ndarray, gram: np.ndarray, bits: int, block: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds the weights of a product to multiples of their scales.

    The largest weight of every group that shares a scale keeps its size, so that a quantiser finds the same scale.

    Args:
        weights: `(out, in)`.
        gram: Products of the inputs, summed over samples: `x.T @ x`, `(in, in)`.
        bits: Bits of the integers, 2 to 8, symmetric about zero.
        block: How many weights of a row share a scale, one that float16 can hold; `None` for one scale per row.

    Returns:
        Integers, int8 `(in, out)`, and their scales, float32 `(groups, out)`: see `dequantized`.
    """
    gram = gram.astype("float64")
    diagonal = np.einsum("ii->i", gram)
    diagonal += DAMPING * diagonal.mean() + 1e-12
    factor = np.linalg.cholesky(gram)
    factor /= np.einsum("ii->i", factor).copy()  # Column i: what the errors of later weights ask of weight i.
    # Row i from here on, and of the weights too: what is read together lies side by side.
    factor = factor.T.astype("float32", order="C")
    columns = np.ascontiguousarray(weights.T)
    top = 2 ** (bits - 1) - 1
    errors = np.zeros_like(columns)
    integers = np.empty(columns.shape, "int8")
    size = len(columns)
    scale, largest = _scale(columns, top)
    scales = []
    for start in reversed(range(0, size, block or _BLOCK)):
        stop = min(start + (block or _BLOCK), size)
        wanted = columns[start:stop] + factor[start:stop, stop:] @ errors[stop:]
        if block:
            scale, largest = _scale(wanted, top)
            scale = np.maximum(scale.astype("float16").astype("float32"), 1e-7)
            scales.insert(0, scale)
            largest = largest + start
        for i in reversed(range(start, stop)):
            target = wanted[i - start] + factor[i, i + 1 : stop] @ errors[i + 1 : stop]
            integer = np.rint(target / scale)
            np.clip(integer, -top, top, out=integer)
            kept = np.flatnonzero(largest == i)
            integer[kept] = np.where(target[kept] != 0, np.copysign(top, target[kept]), integer[kept])
            integers[i] = integer
            np.subtract(columns[i], integer * scale, out=errors[i])
    return integers, np.stack(scales) if block else scale[None]


def dequantized(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns the weights of a product, float32 `(out, in)`, of integers `(in, out)` and scales `(groups, out)`."""
    grouped = integers.reshape(len(scales), -1, integers.shape[1])
    return (grouped * scales[:, None]).reshape(integers.shape).T


def _scale(columns: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scale of every channel, and where its largest weight stands, of weights `(in, out)`."""
    sizes = np.abs(columns)
    largest = sizes.argmax(axis=0)
    return np.maximum(sizes.max(axis=0) / top, 1e-30), largest
