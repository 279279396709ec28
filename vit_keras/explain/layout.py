"""Where a model's tokens stand in the picture, and which of them are read in the end."""

from dataclasses import dataclass

import keras
import numpy as np

from ..graph import is_functional, layers_of
from ..layers import AttentionPooling, PatchEmbedding, PrefixTokens


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of a Vision Transformer: prefix tokens first, then the patches, row by row.

    Attributes:
        grid: Height and width in patches.
        patch_size: Side of a patch in pixels.
        num_prefix: Number P of prefix tokens: class, distillation and register tokens; learned prompts do not count.
        pooling: What is read in the end: `"token"` (the first one), `"average"` (the mean of the patches) or
            `"attention"` (what a learned probe asks for).
    """

    grid: tuple[int, int]
    patch_size: int
    num_prefix: int
    pooling: str

    @classmethod
    def of(cls, model: keras.Model) -> "TokenLayout":
        """Finds the layout from a model's layers, those of nested models included.

        Raises:
            ValueError: the model is subclassed, or has not exactly one `PatchEmbedding`.
        """
        layers = list(layers_of(model)) if is_functional(model) else []
        patches = [layer for layer in layers if isinstance(layer, PatchEmbedding)]
        if len(patches) != 1:
            raise ValueError(
                f"model must be functional, with one PatchEmbedding. Received: model={getattr(model, 'name', model)!r} "
                f"with {len(patches)}"
            )
        (embedding,) = patches
        pooling = "average"
        if any(isinstance(layer, AttentionPooling) for layer in layers):
            pooling = "attention"
        elif any(layer.name == "class_token" for layer in layers):
            pooling = "token"
        prefix = sum(layer.num_tokens for layer in layers if isinstance(layer, PrefixTokens))
        grid = embedding.grid_size(embedding.input.shape)
        return cls(grid, embedding.patch_size, prefix, pooling)

    @property
    def num_tokens(self) -> int:
        """Number of all tokens, P + N."""
        return self.num_prefix + self.grid[0] * self.grid[1]

    def read_row(self) -> np.ndarray:
        """Returns how much of each token is read in the end, float32 `(1, 1, P + N)`; under attention pooling, where
        the picture decides, of each patch the same."""
        row = np.zeros((1, 1, self.num_tokens), "float32")
        if self.pooling == "token":
            row[..., 0] = 1
        else:
            row[..., self.num_prefix :] = 1 / (self.grid[0] * self.grid[1])
        return row

    def on_grid(self, values: np.ndarray) -> np.ndarray:
        """Cuts prefix tokens off the last axis, `(…, P + N)`, and lays the patches out, `(…, height, width)`."""
        values = np.asarray(values)[..., self.num_prefix :]
        return values.reshape(*values.shape[:-1], *self.grid)
