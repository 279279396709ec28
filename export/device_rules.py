"""What delegates, compilers and runtimes take of a TensorFlow Lite file, as data, each with its source.

A rule says which data types, ranks, versions and constants an operator may have and names further conditions, which are
functions in `device_conditions.py`. An operator without a rule is refused. What no source says is listed under
`caveats`; drivers may still refuse what passes here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FLOAT = ("float32", "float16")
INT8 = ("int8", "uint8")
FLOAT_OR_INT8 = (*FLOAT, *INT8)
ANY = (*FLOAT_OR_INT8, "int16", "int32", "int64", "uint16", "uint32", "bool", "int4")

_LITERT = "https://github.com/google-ai-edge/LiteRT/blob/f67457790c9c"
_MICRO = "https://github.com/tensorflow/tflite-micro/blob/90b983c2b3f1/tensorflow/lite/micro"


@dataclass(frozen=True)
class Source:
    """Where rules come from: the page or file, and which state of it was read."""

    url: str
    state: str


@dataclass(frozen=True)
class Rule:
    """What is taken of one operator.

    Attributes:
        dtypes: Data types of the inputs and outputs that are not constants.
        outputs: Data types of the outputs, where they differ from `dtypes`.
        ranks: Least and largest rank of the first input that is not a constant, and of the outputs.
        version: Newest version of the operator; 0 is any.
        constants: Numbers of the inputs that must be constants.
        needs: Names of further conditions.
    """

    dtypes: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    ranks: tuple[int, int] = (0, 8)
    version: int = 0
    constants: tuple[int, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuleSet:
    """What one piece of software takes.

    Attributes:
        name: What a `Target` calls it.
        title: The software.
        sources: Where the rules come from.
        operators: Operator name to rule.
        falls_back: What becomes of an operator that is refused.
        dynamic: Whether tensors of unknown size are taken.
        max_rank: Largest rank of any tensor.
        inner_dims: So many of the last dimensions may be larger than 1; 0 is all.
        one_batch: Whether all tensors must have the batch size of the first input.
        unpacks: Data types of constants that DEQUANTIZE may read: they are unpacked when the file is loaded.
        caveats: What could not be verified, and what the rules leave out.
    """

    name: str
    title: str
    sources: tuple[Source, ...]
    operators: Mapping[str, Rule]
    falls_back: str
    dynamic: bool = False
    max_rank: int = 8
    inner_dims: int = 0
    one_batch: bool = False
    unpacks: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


def _each(names: str, *args, **kwargs) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), Rule(*args, **kwargs))


_READ = "commit f67457790c9c of 2026-08-21, read 2026-11-21"

_XNNPACK = RuleSet(
    "xnnpack",
    "XNNPACK delegate",
    (Source(f"{_LITERT}/tflite/delegates/xnnpack/xnnpack_delegate.cc", _READ),),
    {
        **_each(
            "ABS CEIL COS EXP FLOOR GELU HARD_SWISH LOG NEG RELU RELU6 RELU_N1_TO_1 ROUND RSQRT SIN SQRT SQUARE", FLOAT
        ),
        **_each("ELU", (*FLOAT, "int8")),
        **_each("LOGISTIC TANH LEAKY_RELU", FLOAT_OR_INT8),
        **_each("DIV", FLOAT, needs=("plain_activation",)),
        **_each("MAXIMUM MINIMUM SQUARED_DIFFERENCE", FLOAT),
        **_each("PRELU", FLOAT, constants=(1,)),
        **_each("ADD SUB", FLOAT_OR_INT8, needs=("plain_activation", "one_dtype", "sum_scales")),
        **_each("MUL", FLOAT_OR_INT8, needs=("plain_activation", "one_dtype", "product_scales")),
        **_each("AVERAGE_POOL_2D", FLOAT, needs=("plain_activation", "stride_within_filter")),
        **_each("MAX_POOL_2D", FLOAT_OR_INT8, needs=("plain_activation", "stride_within_filter")),
        **_each("BATCH_MATMUL", FLOAT_OR_INT8, ranks=(2, 6), needs=("matmul_dtypes",)),
        **_each("CONCATENATION", FLOAT_OR_INT8, needs=("two_to_five_inputs", "uint8_scales_equal")),
        **_each(
            "CONV_2D", FLOAT_OR_INT8, ranks=(4, 4), constants=(1, 2), needs=("bias", "plain_activation", "conv_dtypes")
        ),
        **_each(
            "DEPTHWISE_CONV_2D",
            FLOAT_OR_INT8,
            ranks=(4, 4),
            constants=(1, 2),
            needs=("bias", "plain_activation", "weights_as_input"),
        ),
        **_each("TRANSPOSE_CONV", FLOAT_OR_INT8, constants=(0, 1), needs=("plain_activation",)),
        **_each(
            "FULLY_CONNECTED",
            FLOAT_OR_INT8,
            constants=(1, 2),
            needs=("plain_activation", "default_weights", "dense_dtypes"),
        ),
        **_each("MEAN SUM REDUCE_MAX REDUCE_MIN", FLOAT_OR_INT8, constants=(1,)),
        **_each("PAD", FLOAT_OR_INT8, ranks=(1, 6), constants=(1,), needs=("no_negative_padding",)),
        **_each("RESHAPE", FLOAT_OR_INT8, constants=(1,), needs=("scales_kept",)),
        **_each("RESIZE_BILINEAR", FLOAT_OR_INT8, ranks=(4, 4), constants=(1,)),
        **_each("SLICE", FLOAT_OR_INT8, constants=(1, 2), needs=("sizes_given",)),
        **_each("SOFTMAX", FLOAT, needs=("beta_1",)),
        **_each("SPACE_TO_DEPTH DEPTH_TO_SPACE", FLOAT_OR_INT8, needs=("block_over_1",)),
        **_each("SPLIT", FLOAT_OR_INT8, constants=(0,), needs=("two_to_four_outputs",)),
        **_each("STRIDED_SLICE", FLOAT_OR_INT8, constants=(1, 2, 3), needs=("no_masks", "strides_1")),
        **_each("TRANSPOSE", FLOAT_OR_INT8, ranks=(1, 6), constants=(1,)),
        **_each("QUANTIZE", FLOAT_OR_INT8, needs=("requantizes_own_dtype",)),
        **_each("DEQUANTIZE", INT8, FLOAT),
    },
    "the interpreter runs it with its own kernels on the same CPU; each change of hands costs time",
    dynamic=True,
    max_rank=6,
    unpacks=("float16", "int8"),
    caveats=("operators on variables and composites are not looked at",),
)

_GPU_UNARY = "ABS COS ELU EXP FLOOR GELU LOG LOGISTIC NEG RSQRT SIGN SIN SQRT SQUARE TANH"

_GPU = RuleSet(
    "gpu",
    "TensorFlow Lite's GPU delegate",
    (
        Source(f"{_LITERT}/tflite/delegates/gpu/common/model_builder.cc", _READ),
        Source(f"{_LITERT}/tflite/delegates/gpu/common/model_builder_helper.cc", _READ),
        Source(f"{_LITERT}/tflite/tools/versioning/gpu_compatibility.cc", _READ),
    ),
    {
        **_each(_GPU_UNARY, FLOAT_OR_INT8, version=2),
        **_each("RELU RELU6 RELU_N1_TO_1 LEAKY_RELU QUANTIZE", FLOAT_OR_INT8, version=2),
        **_each("HARD_SWISH PACK TILE UNPACK SPLIT SPLIT_V", FLOAT_OR_INT8),
        **_each("PRELU", FLOAT_OR_INT8, version=1),
        **_each("ADD", FLOAT_OR_INT8, needs=("gpu_broadcast",)),
        **_each("MUL", FLOAT_OR_INT8, version=3, needs=("gpu_broadcast",)),
        **_each("SUB DIV MAXIMUM MINIMUM POW SQUARED_DIFFERENCE FLOOR_DIV FLOOR_MOD", FLOAT_OR_INT8, version=2),
        **_each("AVERAGE_POOL_2D MAX_POOL_2D", FLOAT_OR_INT8, version=2),
        **_each("BATCH_MATMUL", FLOAT_OR_INT8, needs=("constant_matrix_2d",)),
        **_each("CAST", (*FLOAT, "int32", "bool")),
        **_each("CONCATENATION", FLOAT_OR_INT8, version=2),
        **_each("CONV_2D", FLOAT_OR_INT8, version=6),
        **_each("DEPTHWISE_CONV_2D", FLOAT_OR_INT8, version=6, ranks=(4, 4)),
        **_each("TRANSPOSE_CONV", FLOAT_OR_INT8, version=3),
        **_each("FULLY_CONNECTED", FLOAT_OR_INT8, version=9, needs=("default_weights",)),
        **_each("DEQUANTIZE", INT8, FLOAT, version=3),
        **_each("GATHER", (*FLOAT_OR_INT8, "int32"), version=1, needs=("vector_of_indices",)),
        **_each("MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD", FLOAT_OR_INT8, constants=(1,)),
        **_each("PAD PADV2", FLOAT_OR_INT8, version=2, ranks=(3, 4), constants=(1,)),
        **_each("MIRROR_PAD", FLOAT_OR_INT8, version=2, ranks=(3, 4), constants=(1,)),
        **_each("RESHAPE", FLOAT_OR_INT8, version=1, constants=(1,)),
        **_each("RESIZE_BILINEAR", FLOAT_OR_INT8, version=3, constants=(1,), needs=("corners_or_centers",)),
        **_each("RESIZE_NEAREST_NEIGHBOR", FLOAT_OR_INT8, version=3, constants=(1,)),
        **_each("SELECT SELECT_V2", (*FLOAT_OR_INT8, "bool"), version=1),
        **_each("SLICE", FLOAT_OR_INT8, version=2, ranks=(3, 4), constants=(1, 2)),
        **_each("SOFTMAX", FLOAT_OR_INT8, version=2, needs=("beta_1",)),
        **_each("SPACE_TO_DEPTH DEPTH_TO_SPACE", FLOAT_OR_INT8, version=2, needs=("block_over_1",)),
        **_each("STRIDED_SLICE", FLOAT_OR_INT8, version=4, ranks=(3, 4), constants=(1, 2, 3), needs=("no_masks",)),
        **_each("TRANSPOSE", FLOAT_OR_INT8, version=4, constants=(1,)),
    },
    "by default the largest group of neighbours runs on the GPU and all else on the CPU",
    max_rank=4,
    one_batch=True,
    unpacks=("float16",),
    caveats=(
        "comparisons and logical operators, which are taken before some operators only, are counted as refused",
        "the OpenGL backend refuses tensors whose batch differs; not verified for the OpenCL and Metal backends",
        "int8 files are taken as Android's delegate takes them by default, and computed in float",
        "LiteRT's newer GPU accelerator (ML Drift) has other rules",
    ),
)

_EDGETPU = RuleSet(
    "edgetpu",
    "Edge TPU compiler",
    (
        Source("https://coral.ai/docs/edgetpu/models-intro/", "a stored copy, read 2026-11-21"),
        Source(
            "https://developer.axis.com/computer-vision/on-device/system-on-chip/artpec-7/supported-ops/",
            "the same table for another host with this chip; a stored copy that ends in its middle, read 2026-11-21",
        ),
    ),
    {
        **_each("ADD SUB MUL MAXIMUM MINIMUM LOGISTIC TANH RELU RELU6 RELU_N1_TO_1 QUANTIZE", INT8),
        **_each("L2_NORMALIZATION EXPAND_DIMS RESHAPE SPACE_TO_DEPTH SLICE", INT8),
        **_each("AVERAGE_POOL_2D MAX_POOL_2D", INT8, needs=("no_activation",)),
        **_each("CONCATENATION", INT8, needs=("no_activation",)),
        **_each("CONV_2D DEPTHWISE_CONV_2D", INT8, constants=(1, 2), needs=("same_dilation",)),
        **_each("FULLY_CONNECTED", INT8, constants=(1, 2), needs=("default_weights", "one_row")),
        **_each("MEAN", INT8, constants=(1,), needs=("no_batch_axis", "depth_of_4")),
        **_each("REDUCE_MAX REDUCE_MIN SUM", INT8, constants=(1,), needs=("no_batch_axis",)),
        **_each("PACK", INT8, needs=("no_batch_option_axis",)),
        **_each("PAD", INT8, constants=(1,), needs=("no_batch_padding",)),
        **_each("PRELU", INT8, constants=(1,)),
        **_each("RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR", INT8, constants=(1,)),
        **_each("SOFTMAX", INT8, needs=("one_row", "16000_elements")),
        **_each("SPLIT SQUEEZE", INT8),
        **_each("STRIDED_SLICE", INT8, constants=(1, 2, 3), needs=("strides_1", "no_ellipsis_or_new_axis")),
        **_each("RSQRT SQUARED_DIFFERENCE TRANSPOSE TRANSPOSE_CONV", INT8),
    },
    "the compiler ends at the first operator that it refuses: that one and all after it run on the host's CPU",
    inner_dims=3,
    caveats=(
        "not verified: RSQRT, SQUARED_DIFFERENCE, SUM, TRANSPOSE, TRANSPOSE_CONV; the copies that were read lack them",
        "the table asks for a one-dimensional output of FULLY_CONNECTED; whether the compiler takes a sequence of "
        "tokens as many of them was not tried: there was no compiler at hand",
        "large tensors may be refused for their size",
    ),
)

_NN = ("float32", *INT8)
_NN32 = (*_NN, "int32")

_NNAPI = RuleSet(
    "nnapi",
    "NNAPI delegate",
    (
        Source(
            f"{_LITERT}/tflite/delegates/nnapi/nnapi_delegate.cc", f"{_READ}, for feature level 7 (Android 12, updated)"
        ),
    ),
    {
        **_each("ADD", _NN32, version=2, ranks=(0, 4)),
        **_each("MUL SUB", _NN32, version=3, ranks=(0, 4)),
        **_each("SQUARED_DIFFERENCE", _NN32, version=2, ranks=(0, 4)),
        **_each("DIV", ("float32",), version=1, ranks=(0, 4)),
        **_each("MAXIMUM MINIMUM", _NN32, version=3),
        **_each("ABS EXP LOG POW COS SIN SQRT FLOOR ELU LOG_SOFTMAX", ("float32",), version=1),
        **_each("RSQRT", _NN, version=2),
        **_each("NEG", ("float32", "int32"), version=2),
        **_each("RELU RELU6 RELU_N1_TO_1 LOGISTIC TANH", _NN, version=2),
        **_each("HARD_SWISH DEPTH_TO_SPACE", _NN),
        **_each("LEAKY_RELU PRELU", _NN, version=1),
        **_each("AVERAGE_POOL_2D MAX_POOL_2D SPACE_TO_DEPTH", _NN, version=2),
        **_each("ARG_MAX ARG_MIN", (*_NN32, "float16"), ("int32",), version=2),
        **_each(
            "BATCH_MATMUL", ("float32", "int32", "int8"), version=2, ranks=(2, 4), needs=("one_dtype", "no_broadcast")
        ),
        **_each("CAST", _NN32, version=1),
        **_each("CONCATENATION", (*_NN, "float16"), version=2, ranks=(0, 4), needs=("no_activation",)),
        **_each("CONV_2D", _NN, version=5, ranks=(4, 4), needs=("bias",)),
        **_each("DEPTHWISE_CONV_2D", _NN, version=3, ranks=(4, 4)),
        **_each("TRANSPOSE_CONV", _NN, version=4, constants=(0, 1)),
        **_each("FULLY_CONNECTED", _NN, version=5),
        **_each("DEQUANTIZE", INT8, ("float32",), version=2),
        **_each("QUANTIZE", _NN, INT8, version=2),
        **_each("EXPAND_DIMS", (*_NN32, "float16"), version=1, constants=(1,)),
        **_each("GATHER", (*_NN32, "float16"), version=2),
        **_each("L2_NORMALIZATION", _NN, version=2, needs=("no_activation",)),
        **_each("MEAN", _NN, version=2, ranks=(0, 4), needs=("output_not_scalar",)),
        **_each("SUM REDUCE_PROD", ("float32",), version=1, needs=("output_not_scalar",)),
        **_each("REDUCE_MAX REDUCE_MIN", _NN, version=2),
        **_each("MIRROR_PAD", _NN32, version=2),
        **_each("PAD PADV2", _NN, version=2),
        **_each("PACK", _NN32, version=2),
        **_each("UNPACK", _NN, version=2, ranks=(0, 4), needs=("not_last_axis",)),
        **_each("RESHAPE", _NN32, version=1, ranks=(0, 4), constants=(1,)),
        **_each("RESIZE_BILINEAR", _NN, version=3, ranks=(4, 4), constants=(1,)),
        **_each("RESIZE_NEAREST_NEIGHBOR", _NN, version=3, constants=(1,)),
        **_each("SELECT", (*_NN32, "bool"), version=2),
        **_each("SLICE", _NN32, version=2),
        **_each("SOFTMAX", _NN, version=2, ranks=(0, 4)),
        **_each("SPLIT", _NN32, version=3, constants=(0,)),
        **_each("SPLIT_V", _NN32, version=2, constants=(1, 2)),
        **_each("SQUEEZE", _NN, version=1),
        **_each("STRIDED_SLICE", _NN, version=2),
        **_each("TILE", _NN32, version=1),
        **_each("TOPK_V2", _NN32, version=2, constants=(1,)),
        **_each("TRANSPOSE", _NN, version=2, constants=(1,)),
        **_each("LESS LESS_EQUAL GREATER GREATER_EQUAL EQUAL NOT_EQUAL", (*_NN32, "bool"), ("bool",), version=2),
        **_each("LOGICAL_AND LOGICAL_OR LOGICAL_NOT", ("bool",), version=1),
    },
    "the interpreter runs it on the CPU",
    caveats=(
        "what a phone's driver takes of this is decided on the phone",
        "unknown sizes are taken with an option that is off by default",
    ),
)

_QNN = RuleSet(
    "qnn",
    "Qualcomm's compiler plugin for LiteRT (QNN, Hexagon)",
    (
        Source(f"{_LITERT}/litert/vendors/qualcomm/compiler/qnn_compose_graph.cc", _READ),
        Source(f"{_LITERT}/litert/vendors/qualcomm/compiler/Qualcomm_QNN_Compiler.md", _READ),
    ),
    {
        **_each("ABS ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_TO CAST CEIL", ANY),
        **_each("CONCATENATION CONV_2D COS CUMSUM DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE DIV", ANY),
        **_each("DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP FLOOR FLOOR_DIV FULLY_CONNECTED GATHER", ANY),
        **_each("FLOOR_MOD", ("int32",)),
        **_each("GATHER_ND GELU GREATER GREATER_EQUAL HARD_SWISH L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS", ANY),
        **_each("LESS_EQUAL LOG LOG_SOFTMAX LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM MAX_POOL_2D MEAN", ANY),
        **_each("MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_ALL", ANY),
        **_each("REDUCE_ANY REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR", ANY),
        **_each(
            "RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SCATTER_ND SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX", ANY
        ),
        **_each("SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB", ANY),
        **_each("SOFTMAX SUM TANH TILE TOPK_V2 TRANSPOSE TRANSPOSE_CONV UNPACK", ANY),
    },
    "it is left out of the compiled graph and runs on the CPU",
    caveats=(
        "not verified: data types and ranks per operator; the plugin's code was read, not the SDK's table of chips",
        "the plugin compiles an unknown size as 1, for the time being by its own words; that is counted as refused",
    ),
)

_M = ("float32", "int8", "int16")
_M32 = (*_M, "int32")

_MICRO_SET = RuleSet(
    "micro",
    "TensorFlow Lite Micro",
    (
        Source(f"{_MICRO}/micro_mutable_op_resolver.h", "commit 90b983c2b3f1 of 2026-08-20, read 2026-11-21"),
        Source(f"{_MICRO}/kernels", "reference kernels at the same commit"),
    ),
    {
        **_each("ADD SUB MUL SQUARED_DIFFERENCE", _M32),
        **_each("DIV", ("float32", "int8", "int32")),
        **_each("MAXIMUM MINIMUM", (*_M32, "int64")),
        **_each("CEIL COS EXP FLOOR LOG NEG ROUND SIN SQRT SQUARE", ("float32",)),
        **_each("ELU HARD_SWISH RSQRT", ("float32", "int8")),
        **_each("ABS LEAKY_RELU LOGISTIC PRELU RELU RELU6 TANH SOFTMAX", _M),
        **_each("AVERAGE_POOL_2D MAX_POOL_2D", _M),
        **_each("ARG_MAX ARG_MIN", ("float32", "int8"), ("int32",)),
        **_each("BATCH_MATMUL", _M, ranks=(2, 5), needs=("one_dtype",)),
        **_each("BROADCAST_TO", ANY, ranks=(0, 5), constants=(1,)),
        **_each("CAST", _M32, (*_M32, "bool")),
        **_each("CONCATENATION", (*_M32, "int64", "bool"), needs=("no_activation", "ten_inputs", "int8_scales_equal")),
        **_each("CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED TRANSPOSE_CONV", _M, needs=("no_hybrid",)),
        **_each("DEQUANTIZE", ("int8", "int16", "uint8"), ("float32",)),
        **_each("QUANTIZE", (*_M32, "uint8"), ("int8", "int16", "int32", "uint8")),
        **_each("DEPTH_TO_SPACE SPACE_TO_DEPTH", ("float32", "int8"), ranks=(4, 4)),
        **_each("EXPAND_DIMS", _M, constants=(1,)),
        **_each("GATHER GATHER_ND", ("float32", "int8", "int32")),
        **_each("L2_NORMALIZATION LOG_SOFTMAX CUMSUM", ("float32", "int8")),
        **_each("MEAN SUM", _M, constants=(1,)),
        **_each("REDUCE_MAX REDUCE_MIN", ("float32", "int8"), constants=(1,)),
        **_each("PACK", (*_M32, "int64")),
        **_each("UNPACK", _M32),
        **_each("PAD PADV2", _M32, constants=(1,)),
        **_each("RESHAPE SQUEEZE", ANY),
        **_each("RESIZE_BILINEAR", ("float32", "int8"), ranks=(4, 4), constants=(1,)),
        **_each("RESIZE_NEAREST_NEIGHBOR", _M, ranks=(4, 4), constants=(1,)),
        **_each("SELECT_V2", (*_M, "bool")),
        **_each("SHAPE", ANY, ("int32",)),
        **_each("SLICE", (*_M32, "bool"), ranks=(0, 5)),
        **_each("SPLIT", _M32, constants=(0,)),
        **_each("SPLIT_V", _M32, constants=(2,)),
        **_each("STRIDED_SLICE", (*_M32, "bool"), ranks=(0, 4), constants=(1, 2, 3)),
        **_each("TRANSPOSE", _M, ranks=(0, 5), constants=(1,)),
    },
    "there is nothing to fall back to: the file does not run",
    caveats=(
        "only the reference kernels were read; the optimised ones of single chips were not",
        "whether the tensors fit into a chip's memory is not looked at",
        "MIRROR_PAD, comparisons, variables and control flow exist there, and are counted as refused",
    ),
)

RULE_SETS: dict[str, RuleSet] = {rules.name: rules for rules in (_XNNPACK, _GPU, _EDGETPU, _NNAPI, _QNN, _MICRO_SET)}
