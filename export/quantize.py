"""The kinds of TensorFlow Lite file, as data: what is integer in each, and how each is made."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vit_keras.messages import nearest


def layer_of(tensor: str) -> str:
    """Returns the name of the Keras layer that a tensor of a converted file came from.

    The converter joins the names of fused operators with `;` and leaves paths such as
    `vit_1/block_0_attention_1/qkv_1/MatMul`; the first is the operator whose result the tensor is. Keras numbers every
    part once more while it is traced. The logits and the file's result have no path: they are called `"output"`.
    """
    parts = next((p for p in tensor.split(";") if p), "").split("/")
    if len(parts) < 3:
        return parts[0] if len(parts) == 2 else "output"
    return parts[1].removesuffix("_1") if parts[0].endswith("_1") else parts[1]


def layer_pattern(layer: str) -> str:
    """Returns a regular expression for the names of the tensors whose `layer_of` is `layer`."""
    return "^[^/;]+(:0)?;*$" if layer == "output" else f"^;*[^/;]+/{re.escape(layer)}(_1)?/"


@dataclass(frozen=True)
class Rule:
    """How some operators are computed; of several rules that fit an operator, the last one holds.

    Attributes:
        operators: Names of TensorFlow Lite operators; `"*"` for all.
        weights: Bits of the weights; `None` where all stays float32.
        activations: Bits of the activations, calibrated; `None` where they stay float32 and products quantise them
            on the fly.
        block: How many weights of a row share a scale; `None` for one scale per output channel.
        layers: Regular expression that is searched in the names of the operator's results.
    """

    operators: tuple[str, ...]
    weights: int | None = 8
    activations: int | None = None
    block: int | None = None
    layers: str = ".*"


@dataclass(frozen=True)
class Kind:
    """One kind of TensorFlow Lite file. All kinds are made of the float32 file.

    Attributes:
        name: What users type, and the middle of the file's name.
        summary: What is stored and computed in which type.
        suits: Where the kind is at its best.
        rules: How its operators are computed; those that no rule names stay float32.
        input_dtype: NumPy name of the type that the file takes pixels in; integer types are scaled.
        integer_only: Whether no operator may touch a float tensor.
        ranges: How the ranges of its activations are chosen, a name in `RANGES`.
        max_drop: Points of accuracy on validation pictures that a file may lose to be of use; `None` for no limit.
        on_request: Whether the kind is made only where it is named.
    """

    name: str
    summary: str
    suits: str
    rules: tuple[Rule, ...] = ()
    input_dtype: str = "float32"
    integer_only: bool = False
    ranges: str = "closest"
    max_drop: float | None = None
    on_request: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether sample pictures are needed."""
        return any(rule.activations for rule in self.rules)

    @property
    def cuts(self) -> bool:
        """Whether its ranges may leave out what is rare: those of 16 bits hold all, whatever `ranges` says."""
        return self.ranges != "minmax" and any(rule.activations == 8 for rule in self.rules)

    @property
    def headroom(self) -> float:
        """How much wider than on the sample pictures a range is: 16 bits have room for what these did not show."""
        return 1.5 if self.rules and all(rule.activations == 16 for rule in self.rules) else 1.0

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded to integers."""
        return any(rule.weights in (4, 8) for rule in self.rules)

    def rule_for(self, operator: str, result: str) -> Rule | None:
        """Returns the rule that holds for an operator whose result is the tensor `result`."""
        fitting = [r for r in self.rules if {"*", operator} & set(r.operators) and re.search(r.layers, result)]
        return fitting[-1] if fitting else None

    def relaxed(self, layers: Sequence[str]) -> "Kind":
        """Returns the kind with some layers computed more finely.

        An integer-only kind computes them with int16 activations; others quantise the activations of their products on
        the fly, with a range for each picture, with int8 weights, and leave the rest in float32.
        """
        if not layers:
            return self
        pattern = f"({'|'.join(map(layer_pattern, layers))})"
        finer = (Rule(("*",), activations=16),) if self.integer_only else (_FLOAT_ATTENTION, Rule(PRODUCTS))
        finer = [dataclasses.replace(rule, layers=pattern) for rule in finer]
        return dataclasses.replace(self, rules=(*self.rules, *finer))

    def for_outliers(self) -> "Kind":
        """Returns the kind for a model in whose residual stream some channels stand out.

        An integer-only int8 kind carries the stream and its LayerNorms in int16: in 8 bits, channels of 30 leave
        channels of 1 with nine values.
        """
        if not self.integer_only or any(rule.activations == 16 for rule in self.rules):
            return self
        norms = Rule(("ADD", "MEAN", "MUL", "RSQRT", "SUB"), activations=16, layers="[_/]norm(_1)?/")
        sums = Rule(("ADD", "CONCATENATION"), activations=16, layers="_add|position|token")
        return dataclasses.replace(self, rules=(*self.rules, norms, sums))

    def broken_blocks(self, rows: Mapping[tuple[str, str], int]) -> list[str]:
        """Returns the results of those products whose rows of weights are no whole number of blocks.

        Args:
            rows: How many weights stand in a row of a product, by its operator and the name of its result.
        """
        rules = {product: self.rule_for(*product) for product in rows}
        return [product[1] for product, rule in rules.items() if rule and rule.block and rows[product] % rule.block]

    def with_whole_blocks(self, rows: Mapping[tuple[str, str], int]) -> "Kind":
        """Returns the kind with 8 bits and a scale per channel for the products that `broken_blocks` names."""
        broken = self.broken_blocks(rows)
        if not broken:
            return self
        pattern = f"^;*({'|'.join(map(re.escape, broken))});*$"  # The quantiser puts a semicolon behind each name.
        return dataclasses.replace(self, rules=(*self.rules, Rule(("FULLY_CONNECTED",), layers=pattern)))

    def only(self, layer: str) -> "Kind":
        """Returns the kind with one layer quantised and all others in float32."""
        pattern = layer_pattern(layer)
        rules = [dataclasses.replace(r, layers=f"^(?=.*{pattern})(?=.*{r.layers})") for r in self.rules]
        return dataclasses.replace(self, rules=tuple(rules), input_dtype="float32", integer_only=False)


PRODUCTS = ("FULLY_CONNECTED", "CONV_2D")
"""The operators that nearly all of the time and of the bytes go into."""

_OUTSIDE_BLOCKS = (Rule(("CONV_2D",)), Rule(("FULLY_CONNECTED",), layers=layer_pattern("output")))
"""Pixels to tokens, and tokens to logits: ranges of their own for each picture keep results in float32."""

_INT8_ATTENTION = (
    Rule(("BATCH_MATMUL",), activations=8),
    Rule(("RESHAPE", "SPLIT", "TRANSPOSE"), activations=8, layers="attention[^/]*/"),
)
"""Attention's own products, and what moves queries, keys and values from one product to the next; not the softmax."""
_FLOAT_MERGING = Rule(("BATCH_MATMUL",), weights=None, layers="token_merging/")
"""Which patches are merged is found in float: one product, once."""
_FLOAT_ATTENTION = Rule(("BATCH_MATMUL", "RESHAPE", "SPLIT", "TRANSPOSE"), weights=None)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("float32", "float32 weights and arithmetic", "reference"),
        Kind("float16", "float16 weights", "GPUs, half the size", (Rule(("*",), weights=16),)),
        Kind(
            "dynamic_int8",
            "int8 weights; activations quantised on the fly",
            "CPUs, where there are no pictures to calibrate with",
            (Rule(PRODUCTS),),
        ),
        Kind(
            "static_int8",
            "products in int8, calibrated but for the first and the last; the rest float32",
            "CPUs: the fastest kind there",
            (Rule(("FULLY_CONNECTED",), activations=8), *_INT8_ATTENTION, _FLOAT_MERGING, *_OUTSIDE_BLOCKS),
        ),
        Kind(
            "full_int8",
            "int8, where channels stand out int16 between the products; uint8 pixels in and logits out",
            "integer-only accelerators and microcontrollers",
            (Rule(("*",), activations=8),),
            input_dtype="uint8",
            integer_only=True,
        ),
        Kind(
            "int16x8",
            "int16 activations, int8 weights, int16 pixels in and logits out",
            "integer-only accelerators, where int8 loses too much",
            (Rule(("*",), activations=16),),
            input_dtype="int16",
            integer_only=True,
        ),
        Kind(
            "int4",
            "int4 weights, a scale for every 32; activations quantised on the fly",
            "CPUs, where bytes count most",
            (Rule(("CONV_2D",)), Rule(("FULLY_CONNECTED",), weights=4, block=32)),
            max_drop=0.5,
            on_request=True,
        ),
    )
}

ROUNDINGS: dict[str, str] = {
    "compensated": "so that the errors of weights cancel on the calibration pictures",
    "nearest": "each weight to the nearest number",
}
"""How weights become integers."""

DEFAULT_KINDS = tuple(kind.name for kind in KINDS.values() if not kind.on_request)
"""The kinds that are made where none are named."""


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Returns `kinds` as a tuple in the table's order, each once.

    Raises:
        ValueError: a name that is not in the table, with the nearest one, or no name at all.
    """
    kinds = list(kinds)
    if not kinds:
        raise ValueError(f"kinds must name at least one of {', '.join(KINDS)}. Received: kinds=()")
    for name in kinds:
        if name not in KINDS:
            raise ValueError(f"Unknown kind {name!r}.{nearest(name, KINDS)} Known kinds: {', '.join(KINDS)}")
    return tuple(name for name in KINDS if name in kinds)


MOST_MERGED = 0.5
"""Every patch that is merged joins one of the others: at most half of them can."""


def check_merging(merge_tokens: float, kinds: Iterable[str], with_attention: bool) -> None:
    """Refuses merged patches where files cannot have them.

    Args:
        merge_tokens: Share of the patches that are merged into others.
        kinds: Names in `KINDS`.
        with_attention: Whether files give their attention, which is drawn over all patches.

    Raises:
        ValueError: a share outside 0 to 0.5, an integer-only kind, or `with_attention`.
    """
    if not 0 <= merge_tokens <= MOST_MERGED:
        raise ValueError(f"merge_tokens must be 0 to {MOST_MERGED}. Received: merge_tokens={merge_tokens}")
    if merge_tokens and with_attention:
        raise ValueError(f"merge_tokens must be 0 with with_attention. Received: merge_tokens={merge_tokens}")
    if merge_tokens and (integers := [kind for kind in kinds if KINDS[kind].integer_only]):
        raise ValueError(
            f"merge_tokens has operators that no integer kernel computes: it must be 0 for {', '.join(integers)}. "
            f"Received: merge_tokens={merge_tokens}"
        )
