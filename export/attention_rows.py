"""Building the second output that `attention.py` describes: the rows of a model's attention weights."""

import keras
from keras import ops

from vit_keras.explain.layout import TokenLayout
from vit_keras.layers import PatchEmbedding, PrefixTokens


class AttentionRows:
    """Collects attention weights while a model is built.

    Attributes:
        pooled: How much of each token a pooling layer takes, `(B, 1, N)`; `None` where no layer says so.
        left_out: Tokens that are no part of the picture, while they are there.
    """

    def __init__(self) -> None:
        self.pooled = None
        self.left_out: slice | None = None
        self._blocks: list = []

    def take(self, tokens, weights):
        """Keeps a block's weights, `(B, Q, N)`, and returns its tokens."""
        if cut := self.left_out:
            if weights.shape[1] == weights.shape[2]:
                weights = ops.concatenate([weights[:, : cut.start], weights[:, cut.stop :]], axis=1)
            weights = ops.concatenate([weights[..., : cut.start], weights[..., cut.stop :]], axis=2)
        self._blocks.append(weights)
        return tokens

    def joined(self, model: keras.Model):
        """Returns the output, `(B, 1 + R, N)`.

        Args:
            model: The flat model that is rewritten: it says what is pooled where no layer did.
        """
        if self.pooled is not None:
            return keras.layers.Concatenate(axis=1, name="attention_rows")([self.pooled, *self._blocks])
        rows = keras.layers.Concatenate(axis=1, name="attention_rows")(self._blocks)
        layer = PrefixTokens(1, name="attention_pooled")
        rows = layer(rows)
        layer.set_weights([TokenLayout.of(model).read_row()])
        return rows


def patch_grid(model: keras.Model) -> tuple[int, int]:
    """Returns a model's height and width in patches."""
    patches = next(layer for layer in model.layers if isinstance(layer, PatchEmbedding))
    return patches.grid_size(patches.input.shape)
