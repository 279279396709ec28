"""Attention as a second output of a file: what a client draws over the picture, without the Keras model.

The output is `(B, 1 + R, N)`, N tokens: class and register tokens, then the patches row by row. Its first row says how
much of each token is pooled in the end. Behind it stand, for each block from the first to the last, the rows of its
attention weights, averaged over the heads: a row for each token, and how much it takes of each. Of the last block there
may be only the first rows, those of the tokens that are read. A metadata entry tells the grid of the patches.
"""

import json
import struct
from collections.abc import Sequence

import numpy as np

from .packing import check_model

OUTPUT = "attention"
"""The output's name in a signature."""
ENTRY = "VIT_KERAS_ATTENTION"
"""Metadata entry with JSON: `grids`, height and width in patches for the file's graphs, one after another."""


def entry_of(grids: Sequence[tuple[int, int]]) -> bytes:
    """Returns the content of the metadata entry of a file with a graph for each grid."""
    return json.dumps({"grids": grids}).encode()


def read_grids(content: bytes) -> tuple[tuple[int, int], ...]:
    """Reads the grids of a file's graphs from its metadata; none where the file gives no attention.

    Raises:
        ValueError: the content is no TensorFlow Lite file, or the entry is damaged.
    """
    model = check_model(content)
    for index in range(model.MetadataLength()):
        try:
            entry = model.Metadata(index)
            if entry.Name() != ENTRY.encode():
                continue
            grids = json.loads(bytes(model.Buffers(entry.Buffer()).DataAsNumpy()))["grids"]
            found = tuple((int(height), int(width)) for height, width in grids)
            if not found or min(map(min, found)) < 1:
                raise ValueError(f"{grids} are no heights and widths")
            return found
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, struct.error) as error:
            raise ValueError(f"{ENTRY} must hold the grids of the file's graphs. Received: {error}") from error
    return ()


def rollout(rows: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Follows attention from what is pooled back through all blocks to the patches.

    Args:
        rows: What a file gave, `(n, 1 + R, N)`.
        grid: Height and width in patches.

    Returns:
        `(n, height, width)`, each map scaled to a sum of 1.

    Raises:
        ValueError: rows of another grid.

    Reference:
        Abnar, Zuidema, "Quantifying Attention Flow in Transformers" (arXiv:2005.00928), section 3: of every block
        0.5 A + 0.5 I, for its residual connection.
    """
    rows, (height, width) = np.asarray(rows, "float64"), grid
    if height * width > rows.shape[2]:
        raise ValueError(
            f"grid must have no more patches than there are tokens, {rows.shape[2]}. Received: grid={height}x{width}"
        )
    row, rows = rows[:, :1], rows[:, 1:]  # (n, 1, N), (n, R, N)
    count = rows.shape[2]
    for start in reversed(range(0, rows.shape[1], count)):
        block = rows[:, start : start + count]  # (n, Q, N)
        block = block / np.maximum(block.sum(axis=2, keepdims=True), 1e-12)
        row = 0.5 * row + 0.5 * row[..., : block.shape[1]] @ block
    maps = row[:, 0, count - height * width :].reshape(-1, height, width)
    return maps / np.maximum(maps.sum(axis=(1, 2), keepdims=True), 1e-12)
