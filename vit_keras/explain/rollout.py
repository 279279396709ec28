"""Attention rollout: attention followed through all blocks, from what is read back to the patches."""

import keras
import numpy as np
from keras import ops

from .attention import tapped_model
from .layout import TokenLayout


def attention_rollout(scores: list[np.ndarray]) -> np.ndarray:
    """Follows attention through all blocks: how much of every input token is in every output token.

    Args:
        scores: Attention weights per block, each `(B, H, N, N)`.

    Returns:
        `(B, N, N)`; rows sum to 1.

    Reference:
        Abnar, Zuidema, "Quantifying Attention Flow in Transformers" (arXiv:2005.00928), section 3: heads averaged,
        0.5 A + 0.5 I for the residual connection, multiplied from the first block to the last.
    """
    identity = np.eye(scores[0].shape[-1])
    rollout = identity
    for block in scores:
        mixed = 0.5 * np.asarray(block, "float64").mean(axis=1) + 0.5 * identity  # (B, N, N)
        rollout = mixed / mixed.sum(axis=-1, keepdims=True) @ rollout
    return rollout


def rollout_model(model: keras.Model) -> keras.Model:
    """Builds a model that gives the rollout of what is read in the end, `(B, height, width)`, in one pass.

    A row of the rollout is a row times one matrix after another, from the last block to the first: no product of two
    matrices is needed, and no attention weights leave the graph.

    Args:
        model: A classifier from `create_model`: of the rollout, the class token's row is taken, under average
            pooling the mean row, under attention pooling the mean row weighted by the probe's attention.

    Raises:
        ValueError: the model is subclassed, or has no transformer block or no patch embedding.
    """
    layout = TokenLayout.of(model)
    tapped = tapped_model(model)
    row = layout.read_row() if tapped.pooled is None else ops.mean(tapped.pooled, axis=1)  # (B, 1, N)
    for weights in reversed(tapped.scores):
        row = ops.add(0.5 * row, 0.5 * ops.matmul(row, ops.mean(weights, axis=1)))
    row = row[:, 0, layout.num_prefix :]
    row = row / ops.sum(row, axis=1, keepdims=True)
    return keras.Model(tapped.inputs, ops.reshape(row, (-1, *layout.grid)))


def rollout_maps(model: keras.Model, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Shows where the pooled result comes from: the rollout of its tokens over the patch grid.

    Args:
        model: As of `rollout_model`.
        images: Pictures as the model takes them, `(n, H, W, 3)`.
        batch_size: Pictures at a time; memory grows with it, not with n.

    Returns:
        `(n, height, width)` in patches, each map scaled to a sum of 1.

    Raises:
        ValueError: the model is subclassed, or has no transformer block or no patch embedding.

    Reference:
        As of `attention_rollout`.
    """
    return np.asarray(rollout_model(model).predict(images, batch_size=batch_size, verbose=0))
