"""What a model expects of pictures before it sees them. Imports no TensorFlow."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Framing:
    """How a picture is brought to the size that a model takes. A picture that has it already is left as it is.

    Attributes:
        interpolation: `"bilinear"` or `"bicubic"`, with antialiasing.
        crop_fraction: Share of the middle that is kept, in (0, 1]; 1 cuts only what the proportions demand.
    """

    interpolation: str = "bilinear"
    crop_fraction: float = 1.0


def check_image_sizes(sizes: Iterable[int | tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Returns picture sizes as pairs of height and width, each once.

    Raises:
        ValueError: a size that is not one or two whole numbers >= 1.
    """
    if not isinstance(sizes, Iterable) or isinstance(sizes, str):
        raise ValueError(f"image_sizes must be a list of sizes. Received: image_sizes={sizes!r}")
    pairs: dict[tuple[int, int], None] = {}
    for size in sizes:
        pair = tuple(size) if isinstance(size, Iterable) else (size, size)
        if len(pair) != 2 or not all(isinstance(side, (int, np.integer)) and side >= 1 for side in pair):
            raise ValueError(f"image_sizes must hold one or two whole numbers >= 1 each. Received: {size!r}")
        pairs[int(pair[0]), int(pair[1])] = None
    return tuple(pairs)
