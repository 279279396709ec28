"""The systems of phones that bundles are written for, as data, and the kind of file that suits them."""

from collections.abc import Iterable
from dataclasses import dataclass

from vit_keras.messages import nearest

from .quantize import KINDS

PHONE_KIND = "static_int8"
"""The kind that a bundle holds where it is among those that are made: it is the CPUs' kind."""


@dataclass(frozen=True)
class Platform:
    """A system that apps are written for, and what its runtime can do.

    Attributes:
        name: What users type after `--bundle`.
        source: The file with the code.
        ends: Types of input and output that the code can fill and read.
        lacks: Types that no tensor may have.
        because: Why not others, in a sentence.
    """

    name: str
    source: str
    ends: tuple[str, ...]
    lacks: tuple[str, ...]
    because: str


PLATFORMS: dict[str, Platform] = {
    platform.name: platform
    for platform in (
        Platform(
            "android",
            "PictureClassifier.kt",
            ("float32", "uint8", "int8", "int16"),
            (),
            "LiteRT's Kotlin interface has no others.",
        ),
        Platform(
            "ios",
            "PictureClassifier.swift",
            ("float32", "uint8"),
            ("int4", "int16"),
            "TensorFlow Lite 2.17, the newest in CocoaPods, has no GELU in int16, no way from int8 to int16 and no "
            "weights in 4 bits, and its Swift interface no int8.",
        ),
    )
}


def chosen_platforms(names: Iterable[str]) -> tuple[Platform, ...]:
    """Returns platforms by name in the table's order, each once.

    Raises:
        ValueError: a name that is not in the table, with the nearest one.
    """
    names = list(names)
    for name in names:
        if name not in PLATFORMS:
            known = ", ".join(PLATFORMS)
            raise ValueError(f"Unknown platform {name!r}.{nearest(name, PLATFORMS)} Known platforms: {known}")
    return tuple(platform for platform in PLATFORMS.values() if platform.name in names)


def bundled_kind(kinds: Iterable[str]) -> str:
    """Returns the kind of file that a bundle holds: `static_int8` where that is among them, else the first."""
    kinds = list(kinds)
    return PHONE_KIND if PHONE_KIND in kinds else kinds[0]


def check_bundles(names: Iterable[str], kinds: Iterable[str]) -> None:
    """Refuses, before a file is made, platforms whose runtime could not run it.

    Args:
        names: Names of platforms.
        kinds: Kinds of file that will be made.

    Raises:
        ValueError: an unknown platform, or one whose runtime cannot run the kind that its bundle would hold.
    """
    for platform in chosen_platforms(names):
        kind = KINDS[bundled_kind(kinds)]
        weights = {f"int{rule.weights}" for rule in kind.rules if rule.weights}
        if kind.input_dtype not in platform.ends or weights & set(platform.lacks):
            raise ValueError(
                f"A bundle for {platform.name} must hold a kind that its runtime can run: {platform.because} "
                f"Received: kind={kind.name!r}"
            )
