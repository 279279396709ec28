"""The kinds of TensorFlow Lite file, as data: what is integer in each, and how each is made."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from vit_keras.messages import nearest


class Method(Enum):
    """Which tool turns the graph into a kind."""

    CONVERTER = "TensorFlow's converter"
    QUANTIZER = "ai-edge-quantizer, on the float32 file"


@dataclass(frozen=True)
class Kind:
    """One kind of TensorFlow Lite file.

    Attributes:
        name: What users type, and the middle of the file's name.
        summary: What is stored and computed in which type.
        suits: Where the kind is at its best.
        method: The tool that makes it.
        input_dtype: NumPy name of the type that the file takes pixels in; integer types are scaled.
        calibrated: Whether sample pictures are needed.
        integer_only: Whether no operator may touch a float tensor.
    """

    name: str
    summary: str
    suits: str
    method: Method
    input_dtype: str = "float32"
    calibrated: bool = False
    integer_only: bool = False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("float32", "float32 weights and arithmetic", "reference", Method.CONVERTER),
        Kind("float16", "float16 weights", "GPUs, half the size", Method.CONVERTER),
        Kind(
            "dynamic_int8",
            "int8 weights; activations quantised on the fly",
            "CPUs, where there are no pictures to calibrate with",
            Method.QUANTIZER,
        ),
        Kind(
            "static_int8",
            "FULLY_CONNECTED and CONV_2D in int8, calibrated; the rest float32",
            "CPUs: the fastest kind there",
            Method.QUANTIZER,
            calibrated=True,
        ),
        Kind(
            "full_int8",
            "int8 throughout, uint8 pixels in and logits out",
            "integer-only accelerators and microcontrollers",
            Method.CONVERTER,
            input_dtype="uint8",
            calibrated=True,
            integer_only=True,
        ),
        Kind(
            "int16x8",
            "int16 activations, int8 weights, int16 pixels in and logits out",
            "integer-only accelerators, where int8 loses too much",
            Method.CONVERTER,
            input_dtype="int16",
            calibrated=True,
            integer_only=True,
        ),
    )
}


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
