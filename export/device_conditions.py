"""The conditions that rules name: each looks at one operator and returns why it is refused, or None."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .flatbuffer import OperatorInfo, TensorInfo


@dataclass(frozen=True)
class Node:
    """An operator with its tensors; an optional input that is left out is None."""

    operator: OperatorInfo
    inputs: tuple[TensorInfo | None, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def runtime_inputs(self) -> list[TensorInfo]:
        """The inputs that are no constants."""
        return [tensor for tensor in self.inputs if tensor is not None and not tensor.constant]

    @property
    def activations(self) -> list[TensorInfo]:
        """All inputs but whole numbers that are constants: axes, shapes and the like."""
        found = [tensor for tensor in self.inputs if tensor is not None]
        return [tensor for tensor in found if not (tensor.constant and tensor.dtype in ("int32", "int64"))]

    def input(self, number: int) -> TensorInfo | None:
        """Returns an input, or None where there is none."""
        return self.inputs[number] if number < len(self.inputs) else None

    def values(self, number: int) -> tuple[int, ...]:
        """Returns the values of a small integer constant, empty where they are not known."""
        tensor = self.input(number)
        return (tensor.values or ()) if tensor is not None and tensor.constant else ()

    def axes(self, number: int) -> tuple[int, ...]:
        """Returns axes, counted from the front, that an input holds."""
        first = self.input(0)
        rank = len(first.shape) if first is not None else 0
        return tuple(axis + rank if axis < 0 else axis for axis in self.values(number))


def _quantised(*tensors: TensorInfo | None) -> bool:
    return all(tensor is not None and tensor.dtype in ("int8", "uint8") and tensor.scale > 0 for tensor in tensors)


def _activation(*allowed: str) -> Callable[[Node], str | None]:
    def check(node: Node) -> str | None:
        activation = node.operator.options.get("activation", "NONE")
        return None if activation in allowed else f"with a fused activation, {activation}"

    return check


def _one_dtype(node: Node) -> str | None:
    found = sorted({tensor.dtype for tensor in (*node.activations, *node.outputs)})
    return f"with mixed data types, {', '.join(found)}" if len(found) > 1 else None


def _sum_scales(node: Node) -> str | None:
    for tensor in node.inputs:
        if tensor is not None and _quantised(tensor, node.outputs[0]):
            ratio = tensor.scale / node.outputs[0].scale
            if not 1 / 1024 <= ratio < 256:
                return "with an input scale that is not 1/1024 to 256 times the output's"
    return None


def _product_scales(node: Node) -> str | None:
    one, two, out = node.input(0), node.input(1), node.outputs[0]
    if one is None or two is None or not _quantised(one, two, out):
        return None
    ratio = one.scale * two.scale / out.scale
    return (
        None if 1 / 65536 <= ratio < 256 else "with input scales whose product is not 1/65536 to 256 times the output's"
    )


def _stride_within_filter(node: Node) -> str | None:
    options = node.operator.options
    height, width, tall, wide = (options.get(name, 1) for name in ("stride_h", "stride_w", "filter_h", "filter_w"))
    if height > tall or width > wide:
        return "with strides larger than the filter"
    return "with a 1x1 filter and a stride" if tall == wide == 1 and max(height, width) > 1 else None


def _matmul_dtypes(node: Node) -> str | None:
    one, two = node.input(0), node.input(1)
    if one is None or two is None or (one.dtype == "float32" and two.dtype == "int8"):
        return None
    if one.dtype != two.dtype:
        return f"of {one.dtype} with {two.dtype}"
    if two.dtype == "int8" and two.zero_point:
        return "with a second operand whose zero point is not 0"
    return None


def _scales_equal(*dtypes: str) -> Callable[[Node], str | None]:
    def check(node: Node) -> str | None:
        if node.outputs[0].dtype not in dtypes:
            return None
        found = {(t.scale, t.zero_point) for t in (*node.inputs, *node.outputs) if t is not None and t.dtype in dtypes}
        return "with inputs and output of different scales or zero points" if len(found) > 1 else None

    return check


def _inputs(least: int, most: int) -> Callable[[Node], str | None]:
    def check(node: Node) -> str | None:
        return (
            None if least <= len(node.inputs) <= most else f"of {len(node.inputs)} inputs ({least} to {most} are taken)"
        )

    return check


def _outputs(least: int, most: int) -> Callable[[Node], str | None]:
    def check(node: Node) -> str | None:
        count = len(node.outputs)
        return None if least <= count <= most else f"into {count} outputs ({least} to {most} are taken)"

    return check


def _bias(node: Node) -> str | None:
    return "without a bias" if node.input(2) is None else None


def _conv_dtypes(node: Node) -> str | None:
    one, weights, out = node.input(0), node.input(1), node.outputs[0]
    if one is None or weights is None:
        return "without weights"
    hybrid = one.dtype == "float32" and weights.dtype == "int8"
    if one.dtype != out.dtype or (one.dtype != weights.dtype and not hybrid):
        return f"of {one.dtype} with {weights.dtype} weights into {out.dtype}"
    return None


def _dense_dtypes(node: Node) -> str | None:
    one, weights, out = node.input(0), node.input(1), node.outputs[0]
    if one is None or weights is None:
        return "without weights"
    if len(weights.shape) != 2:
        return f"with weights of rank {len(weights.shape)}"
    small = weights.dtype in ("int8", "int4", "int2") and one.dtype in ("float32", "float16", "int8")
    if one.dtype != out.dtype or (one.dtype != weights.dtype and not small):
        return f"of {one.dtype} with {weights.dtype} weights into {out.dtype}"
    if one.dtype == weights.dtype == "int8" and weights.zero_point:
        return "with weights whose zero point is not 0"
    return None


def _weights_as_input(node: Node) -> str | None:
    one, weights = node.input(0), node.input(1)
    if one is None or weights is None or one.dtype == weights.dtype == node.outputs[0].dtype:
        return None
    return f"of {one.dtype} with {weights.dtype} weights into {node.outputs[0].dtype}"


def _no_hybrid(node: Node) -> str | None:
    one, weights = node.input(0), node.input(1)
    pairs = {"float32": ("float32",), "int8": ("int8", "int4"), "int16": ("int8",)}
    if one is None or weights is None or weights.dtype in pairs.get(one.dtype, (one.dtype,)):
        return None
    return f"of {one.dtype} with {weights.dtype} weights"


def _default_weights(node: Node) -> str | None:
    return "with shuffled weights" if node.operator.options.get("weights_format", 0) else None


def _requantizes_own_dtype(node: Node) -> str | None:
    one, out = node.input(0), node.outputs[0]
    if one is None or one.dtype in ("float32", "float16") or one.dtype == out.dtype:
        return None
    return f"from {one.dtype} to {out.dtype}"


def _no_negative_padding(node: Node) -> str | None:
    return "with negative padding" if any(n < 0 for n in node.values(1)) else None


def _sizes_given(node: Node) -> str | None:
    return "with sizes that are not positive" if any(n <= 0 for n in node.values(2)) else None


def _option_is(name: str, value: float, words: str) -> Callable[[Node], str | None]:
    def check(node: Node) -> str | None:
        found = node.operator.options.get(name, value)
        return None if found == value else f"{words} {found:g}"

    return check


def _block_over_1(node: Node) -> str | None:
    return None if node.operator.options.get("block_size", 2) > 1 else "with a block of 1"


def _masks(*names: str) -> Callable[[Node], str | None]:
    def check(node: Node) -> str | None:
        found = [name.replace("_mask", "") for name in names if node.operator.options.get(name, 0)]
        return f"that slices by {' and '.join(found).replace('_', ' ')} (such as x[:, 0])" if found else None

    return check


def _strides_1(node: Node) -> str | None:
    return "with strides other than 1" if any(n != 1 for n in node.values(3)) else None


def _gpu_broadcast(node: Node) -> str | None:
    """ADD and MUL of tensors of different rank: only three cases of a 4-D tensor are taken."""
    one, two = node.input(0), node.input(1)
    if one is None or two is None:
        return "of other than two inputs"
    short, long = sorted((one.shape, two.shape), key=len)
    if len(short) < 2 or len(short) == len(long):
        return None
    taken = len(long) == 4 and (
        (len(short) == 3 and long[0] == 1)
        or (len(short) == 2 and long[0] == 1 and short == (1, 1))
        or (len(short) == 2 and (long[0], long[3]) == short)
    )
    return None if taken else f"of shapes {_shape(one.shape)} and {_shape(two.shape)}"


def _constant_matrix_2d(node: Node) -> str | None:
    two = node.input(1)
    if two is None or not two.constant or len(two.shape) == 2:
        return None
    return f"with a constant of rank {len(two.shape)} (2 is taken)"


def _vector_of_indices(node: Node) -> str | None:
    indices = node.input(1)
    if indices is None or (len(indices.shape) == 1 and indices.dtype == "int32"):
        return None
    return f"with {indices.dtype} indices of rank {len(indices.shape)} (int32 of rank 1 are taken)"


def _corners_or_centers(node: Node) -> str | None:
    both = node.operator.options.get("align_corners") and node.operator.options.get("half_pixel_centers")
    return "with align_corners and half_pixel_centers" if both else None


def _no_broadcast(node: Node) -> str | None:
    one, two = node.input(0), node.input(1)
    if one is None or two is None or one.shape[:-2] == two.shape[:-2]:
        return None
    return f"that broadcasts {_shape(one.shape)} and {_shape(two.shape)}"


def _output_not_scalar(node: Node) -> str | None:
    return None if node.outputs[0].shape else "into a scalar"


def _not_last_axis(node: Node) -> str | None:
    one, axis = node.input(0), node.operator.options.get("axis", 0)
    return "along the last axis" if one is not None and axis in (-1, len(one.shape) - 1) else None


def _same_dilation(node: Node) -> str | None:
    options = node.operator.options
    same = options.get("dilation_h", 1) == options.get("dilation_w", 1)
    return None if same else "with different dilations in height and width"


def _one_row(node: Node) -> str | None:
    rows = math.prod(node.outputs[0].shape[:-1])
    return None if rows <= 1 else f"of {rows} rows (1 is taken)"


def _elements_16000(node: Node) -> str | None:
    count = math.prod(node.outputs[0].shape)
    return None if count <= 16_000 else f"of {count:,} elements (16,000 are taken)"


def _no_batch_axis(node: Node) -> str | None:
    return "over the batch" if 0 in node.axes(1) else None


def _no_batch_option_axis(node: Node) -> str | None:
    return "along the batch" if node.operator.options.get("axis", 0) == 0 else None


def _no_batch_padding(node: Node) -> str | None:
    return "that pads the batch" if any(node.values(1)[:2]) else None


def _depth_of_4(node: Node) -> str | None:
    one = node.input(0)
    if one is None or not one.shape or len(one.shape) - 1 not in node.axes(1) or one.shape[-1] % 4 == 0:
        return None
    return f"over a last dimension of {one.shape[-1]} (multiples of 4 are taken)"


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


CONDITIONS: dict[str, Callable[[Node], str | None]] = {
    "16000_elements": _elements_16000,
    "beta_1": _option_is("beta", 1.0, "with beta"),
    "bias": _bias,
    "block_over_1": _block_over_1,
    "constant_matrix_2d": _constant_matrix_2d,
    "conv_dtypes": _conv_dtypes,
    "corners_or_centers": _corners_or_centers,
    "default_weights": _default_weights,
    "dense_dtypes": _dense_dtypes,
    "depth_of_4": _depth_of_4,
    "gpu_broadcast": _gpu_broadcast,
    "int8_scales_equal": _scales_equal("int8"),
    "matmul_dtypes": _matmul_dtypes,
    "no_activation": _activation("NONE"),
    "no_batch_axis": _no_batch_axis,
    "no_batch_option_axis": _no_batch_option_axis,
    "no_batch_padding": _no_batch_padding,
    "no_broadcast": _no_broadcast,
    "no_ellipsis_or_new_axis": _masks("ellipsis_mask", "new_axis_mask"),
    "no_hybrid": _no_hybrid,
    "no_masks": _masks("ellipsis_mask", "new_axis_mask", "shrink_axis_mask"),
    "no_negative_padding": _no_negative_padding,
    "not_last_axis": _not_last_axis,
    "one_dtype": _one_dtype,
    "one_row": _one_row,
    "output_not_scalar": _output_not_scalar,
    "plain_activation": _activation("NONE", "RELU", "RELU6", "RELU_N1_TO_1"),
    "product_scales": _product_scales,
    "requantizes_own_dtype": _requantizes_own_dtype,
    "same_dilation": _same_dilation,
    "scales_kept": _scales_equal("int8", "uint8"),
    "sizes_given": _sizes_given,
    "stride_within_filter": _stride_within_filter,
    "strides_1": _strides_1,
    "sum_scales": _sum_scales,
    "ten_inputs": _inputs(1, 10),
    "two_to_five_inputs": _inputs(2, 5),
    "two_to_four_outputs": _outputs(2, 4),
    "uint8_scales_equal": _scales_equal("uint8"),
    "vector_of_indices": _vector_of_indices,
    "weights_as_input": _weights_as_input,
}
