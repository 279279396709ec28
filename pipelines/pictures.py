"""Picture files: which are accepted, and what is wrong with the others."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF")  # MPO: a camera's JPEG with a preview.
SMALLEST_SIDE = 4
"""Pictures with a shorter side, in pixels, are refused: they are broken thumbnails or tracking pixels."""


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be used, and what is wrong with it, in a few words."""

    picture: str
    fault: str


def read_picture(picture: str | Path | bytes) -> np.ndarray:
    """Decodes a picture in full.

    Pillow finds what is cut off, which TensorFlow passes; TensorFlow must read the file too, for it will in training.

    Args:
        picture: A file's path, or its content.

    Returns:
        uint8 pixels `(h, w, 3)`, upright.

    Raises:
        ValueError: it is none, or damaged; the message says so in a few words.
    """
    import tensorflow as tf
    from PIL import Image, UnidentifiedImageError

    from vit_keras.export.saved_model import orientation, upright

    try:
        content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        if not content:
            raise ValueError("the file is empty")
        _load(content)
        encoded = tf.constant(content)
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return upright(pixels, orientation(encoded)).numpy()
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except UnidentifiedImageError:
        raise ValueError("not a picture") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(f"damaged ({str(error).splitlines()[0]})") from None


def _load(content: bytes) -> None:
    """Lets Pillow decode a picture, and refuses what TensorFlow would not take."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        if picture.format not in FORMATS:
            raise ValueError(f"{picture.format} inside, not one of {', '.join(FORMATS)}")
        if min(picture.size) < SMALLEST_SIDE:
            size = f"{picture.width}x{picture.height}"
            raise ValueError(f"{size} pixels, at least {SMALLEST_SIDE}x{SMALLEST_SIDE} expected")
        if picture.format == "BMP" and picture.mode in ("1", "P"):
            raise ValueError("a BMP with a palette, which TensorFlow cannot read; save it as PNG")
        try:
            picture.load()
        except ValueError as error:
            raise OSError(str(error)) from error


def picture_fault(picture: str | Path | bytes) -> str | None:
    """Says what is wrong with a picture file, or with the content of one, in a few words; `None` if nothing is."""
    try:
        read_picture(picture)
    except ValueError as error:
        return str(error)
    return None


def in_parallel(
    function: Callable[[Any], Any], items: Sequence[Any], progress: Callable[[int, int], None] | None = None
) -> list[Any]:
    """Calls a function with each item, in threads, and returns the results in the items' order.

    Args:
        function: What to call.
        items: What to call it with.
        progress: Is called with the number of finished items and of all, after each.
    """
    results = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(function, items):
            results.append(result)
            if progress:
                progress(len(results), len(items))
    return results
