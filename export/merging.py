"""Fewer tokens: patches that are alike become one, early in a model, so that the blocks behind have less to compute."""

import keras
import numpy as np
from keras import ops


def merged_after(num_blocks: int) -> int:
    """Returns how many blocks of a model run before patches are merged: the sixth part, at least one."""
    return max(1, num_blocks // 6)


@keras.saving.register_keras_serializable("vit_keras")
class TokenMerging(keras.layers.Layer):
    """Merges the patches that are most alike, once: bipartite soft matching.

    Every second patch looks for the nearest among the others, by the Euclidean distance of their tokens without the
    mean over the channels. Those that found the nearest ones join them, as the mean of all that meet; the others stay.
    Tokens before the patches stay as they are.

    Args:
        num_merged: How many patches are merged into others: 1 <= R, at most half of them.
        num_prefix: How many tokens stand before the patches.

    Call arguments:
        x: Tokens, `(B, N, D)`.

    Returns:
        The tokens, `(B, N - R, D)`; the logarithm of how many each stands for, `(B, N - R)`, which what attends to them
        adds to its scores; and for each of the N tokens the place of the one that stands for it, int32 `(B, N)`.

    Reference:
        Bolya et al., "Token Merging: Your ViT But Faster" (arXiv:2210.09461), section 3 and equation 1. There some are
        merged in each block, by the cosine of their keys. To find the pairs costs a device as much for one of them as
        for many, and behind a block the tokens' distance was the better measure: see docs/edge.md.
    """

    def __init__(self, num_merged: int, num_prefix: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_merged = num_merged
        self.num_prefix = num_prefix

    def build(self, input_shape) -> None:
        patches = input_shape[1] - self.num_prefix
        if not 1 <= self.num_merged <= patches // 2:
            raise ValueError(
                f"num_merged must be 1 to {patches // 2}, half of the {patches} patches. "
                f"Received: num_merged={self.num_merged}"
            )
        self.num_others = patches // 2
        place = np.arange(patches)
        self.interleaved = np.where(place % 2, patches - self.num_others, 0) + place // 2

    def call(self, x):
        merged, prefix = self.num_merged, self.num_prefix
        patches = x[:, prefix:]
        own, others = patches[:, ::2], patches[:, 1::2]  # (B, A, D), (B, O, D)
        num_own = own.shape[1]
        nearest, partners = (part[..., 0] for part in ops.top_k(_nearness(own, others), 1))  # (B, A)
        order = ops.top_k(nearest, num_own)[1]  # (B, A), those that found the nearest first
        joining, staying = order[:, :merged], order[:, merged:]
        joins = ops.one_hot(_gathered(partners, joining), self.num_others, dtype=x.dtype)  # (B, R, O)
        counts = 1 + ops.sum(joins, axis=1)  # (B, O)
        others = others + ops.matmul(ops.transpose(joins, (0, 2, 1)), _gathered(own, joining))
        others = others / counts[..., None]
        tokens = ops.concatenate([x[:, :prefix], _gathered(own, staying), others], axis=1)  # (B, N - R, D)
        alone = ops.zeros_like(tokens[:, : prefix + num_own - merged, 0])
        places = self._places(ops.cast(partners, "int32"), ops.cast(order, "float32"))
        return tokens, ops.concatenate([alone, ops.log(counts)], axis=1), places

    def _places(self, partners, order):
        """Where what stands for each token is, `(B, N)`, from the partner and the rank of every second patch."""
        num_own, first = partners.shape[1], self.num_prefix
        first_other = first + num_own - self.num_merged
        rank = ops.cast(ops.top_k(-order, num_own)[1], "int32")  # The inverse of a permutation is the order of it.
        own = ops.where(rank < self.num_merged, first_other + partners, first - self.num_merged + rank)
        others = first_other + ops.arange(self.num_others, dtype="int32")
        before = ops.arange(first, dtype="int32")
        before, others = (ops.broadcast_to(part, (ops.shape(own)[0], part.shape[0])) for part in (before, others))
        patches = ops.take(ops.concatenate([own, others], axis=1), self.interleaved, axis=1)
        return ops.concatenate([before, patches], axis=1)

    def compute_output_shape(self, input_shape):
        batch, tokens, dim = input_shape
        left = tokens - self.num_merged
        return (batch, left, dim), (batch, left), (batch, tokens)

    def compute_output_spec(self, x):
        tokens, log_counts, places = self.compute_output_shape(x.shape)
        tokens, log_counts = (keras.KerasTensor(shape, self.compute_dtype) for shape in (tokens, log_counts))
        return tokens, log_counts, keras.KerasTensor(places, "int32")

    def get_config(self) -> dict:
        return {**super().get_config(), "num_merged": self.num_merged, "num_prefix": self.num_prefix}


@keras.saving.register_keras_serializable("vit_keras")
class TokenUnmerging(keras.layers.Layer):
    """Gives every token back what stands for it, so that what reads all of them finds as many as there were.

    Call arguments:
        x: Tokens, `(B, M, D)`.
        places: For each of the N tokens the place of the one that stands for it, int32 `(B, N)`.

    Returns:
        `(B, N, D)`.
    """

    def call(self, x, places):
        return _gathered(x, places)

    def compute_output_shape(self, x_shape, places_shape):
        return (*places_shape, x_shape[2])


def _nearness(x, y):
    """The negative squared distance of tokens, `(B, A, D)` and `(B, O, D)`, without their means: `(B, A, O)`.

    Where the residual stream is centred, tokens have lost their means before.
    """
    x, y = (tokens - ops.mean(tokens, axis=-1, keepdims=True) for tokens in (x, y))
    of_x, of_y = (ops.sum(tokens * tokens, axis=-1) for tokens in (x, y))
    return 2 * ops.matmul(x, ops.transpose(y, (0, 2, 1))) - of_x[:, :, None] - of_y[:, None]


def _gathered(x, places):
    """Picks for every picture rows of its own: `x` is `(B, N, ...)`, `places` `(B, R)`; returns `(B, R, ...)`."""
    batch = ops.shape(x)[0]
    if x.shape[0] != 1:  # A file's batch is known and mostly one.
        places = places + x.shape[1] * ops.arange(batch, dtype=places.dtype)[:, None]
    rows = ops.take(ops.reshape(x, (-1, *x.shape[2:])), ops.reshape(places, (-1,)), axis=0)
    return ops.reshape(rows, (batch, places.shape[1], *x.shape[2:]))
