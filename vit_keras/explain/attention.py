"""Attention weights out of a trained model, which is left as it is."""

from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops

from ..graph import flat_copy
from ..layers import AttentionPooling, MultiHeadSelfAttention, PromptTokens, TokenRemoval, TransformerBlock
from .layout import TokenLayout


@dataclass
class TappedModel:
    """A float32 copy of a model as a graph, and the attention weights on its way.

    Attributes:
        inputs: The pictures, `(B, H, W, C)`.
        outputs: What the model gives.
        scores: Attention weights block by block, each `(B, H, N, N)`, without learned prompts.
        pooled: What a pooling probe takes of each token, `(B, H, 1, N)`; `None` where the model has none.
    """

    inputs: keras.KerasTensor
    outputs: keras.KerasTensor
    scores: list = field(default_factory=list)
    pooled: keras.KerasTensor | None = None


def tapped_model(model: keras.Model) -> TappedModel:
    """Copies a model and collects its attention weights.

    Raises:
        ValueError: the model is subclassed, or has no transformer block.
    """
    scores: list[keras.KerasTensor] = []
    pooled: list[keras.KerasTensor] = []
    prompts: list[slice] = []  # Where they stand, as long as they do.

    def visit(layer, *args, **kwargs):
        if isinstance(layer, PromptTokens):
            prompts[:] = [slice(layer.num_prefix, layer.num_prefix + layer.num_tokens)]
        elif isinstance(layer, TokenRemoval):
            prompts.clear()
        if not isinstance(layer, (TransformerBlock, MultiHeadSelfAttention, AttentionPooling)):
            return layer(*args, **kwargs)
        output, weights = layer(*args, **kwargs, return_attention_scores=True)
        for cut in prompts:
            weights = _without(weights, cut)
        (pooled if isinstance(layer, AttentionPooling) else scores).append(weights)
        return output

    inputs, outputs = flat_copy(model, visit)
    if not scores:
        raise ValueError(f"model must have transformer blocks to show attention. Received: model={model.name!r}")
    return TappedModel(inputs, outputs, scores, pooled[0] if pooled else None)


def _without(weights: keras.KerasTensor, cut: slice) -> keras.KerasTensor:
    """Cuts tokens out of attention weights, `(B, H, N, N)`."""
    for axis in (2, 3):
        before, _, after = ops.split(weights, [cut.start, cut.stop], axis=axis)
        weights = ops.concatenate([before, after], axis=axis)
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def attention_model(model: keras.Model) -> keras.Model:
    """Builds a model that gives every block's attention weights; the trained model is left as it is.

    Learned prompts are left out, as they are no part of the picture: their rows and columns are cut from the weights,
    and what a token takes from all others is scaled to a sum of 1 again. Of a model in mixed precision the copy
    computes in float32.

    Args:
        model: A functional model with `TransformerBlock`s, nested ones too, such as `create_model` returns.

    Returns:
        A model with the same input and weights, whose output is a list of `(B, H, N, N)`, block after block, and
        behind them, if the model pools by attention, what the probe asks of the tokens, `(B, H, 1, N)`.

    Raises:
        ValueError: the model is subclassed, or has no transformer block.
    """
    tapped = tapped_model(model)
    pooled = [] if tapped.pooled is None else [tapped.pooled]
    return keras.Model(tapped.inputs, [*tapped.scores, *pooled])


def class_attention_model(model: keras.Model) -> keras.Model:
    """Builds a model that gives the attention weights of what is read in the end, `(B, L, H, P + N)`.

    Raises:
        ValueError: the model is subclassed, or has no transformer block or no patch embedding.
    """
    row = TokenLayout.of(model).read_row()  # (1, 1, P + N)
    tapped = tapped_model(model)
    rows = [ops.squeeze(ops.matmul(row, weights), axis=2) for weights in tapped.scores]  # (B, H, P + N)
    return keras.Model(tapped.inputs, ops.stack(rows, axis=1))


def class_attention(model: keras.Model, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Shows what is read in the end looks at, head by head and block by block.

    Args:
        model: A classifier from `create_model`.
        images: Pictures as the model takes them, `(n, H, W, 3)`.
        batch_size: Pictures at a time; memory grows with it, not with n.

    Returns:
        `(n, L, H, height, width)`: of the L blocks and H heads each the attention weights of the class token over the
        patches; without a class token the mean of the patches' weights. Rows are as they are: what goes to prefix
        tokens is missing from their sum.

    Raises:
        ValueError: the model is subclassed, or has no transformer block or no patch embedding.

    Reference:
        Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (arXiv:2104.14294), figure 1.
    """
    found = class_attention_model(model).predict(images, batch_size=batch_size, verbose=0)
    return TokenLayout.of(model).on_grid(found)
