"""What a Vision Transformer attends to: attention weights of a trained model, and their rollout."""

import keras
import numpy as np
from keras import ops

from .layers import (
    AttentionPooling,
    MultiHeadSelfAttention,
    PatchEmbedding,
    PromptTokens,
    TokenRemoval,
    TransformerBlock,
)
from .layers.dense import merged_weights, plain_config


def attention_model(model: keras.Model) -> keras.Model:
    """Builds a model that gives every block's attention weights; the trained model is left as it is.

    Learned prompts are left out, as they are no part of the picture: their rows and columns are cut from the weights,
    and what a token takes from all others is scaled to a sum of 1 again.

    Args:
        model: A flat functional model with `TransformerBlock`s, such as `create_model` returns.

    Returns:
        A model with the same input and weights, whose output is a list of `(B, H, N, N)`, block after block, and
        behind them, if the model pools by attention, what the probe asks of the tokens, `(B, H, 1, N)`.

    Raises:
        ValueError: the model has no transformer block.
    """
    scores: list[keras.KerasTensor] = []
    prompts: list[slice] = []  # Where they stand, as long as they do.

    def collect(layer, *args, **kwargs):
        if isinstance(layer, PromptTokens):
            prompts[:] = [slice(layer.num_prefix, layer.num_prefix + layer.num_tokens)]
        elif isinstance(layer, TokenRemoval):
            prompts.clear()
        if not isinstance(layer, (TransformerBlock, MultiHeadSelfAttention, AttentionPooling)):
            return layer(*args, **kwargs)
        output, weights = layer(*args, **kwargs, return_attention_scores=True)
        for cut in prompts:
            weights = _without(weights, cut)
        scores.append(weights)
        return output

    clone = keras.models.clone_model(model, clone_function=_plain_copy, call_function=collect)
    if not scores:
        raise ValueError(f"model must have transformer blocks to show attention. Received: model={model.name!r}")
    for old, new in zip(model.layers, clone.layers, strict=True):
        new.set_weights(merged_weights(old))
    return keras.Model(clone.inputs, scores)


def _plain_copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    return type(layer).from_config(plain_config(layer))


def _without(weights: keras.KerasTensor, cut: slice) -> keras.KerasTensor:
    """Cuts tokens out of attention weights, `(B, H, N, N)`."""
    for axis in (2, 3):
        before, _, after = ops.split(weights, [cut.start, cut.stop], axis=axis)
        weights = ops.concatenate([before, after], axis=axis)
    return weights / ops.sum(weights, axis=-1, keepdims=True)


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


def rollout_maps(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Shows where the pooled result comes from: the rollout of its tokens over the patch grid.

    Args:
        model: A classifier from `create_model`: of the rollout, the class token's row is taken, under average
            pooling the mean row, under attention pooling the mean row weighted by the probe's attention.
        images: Pictures as the model takes them, `(B, H, W, 3)`.

    Returns:
        `(B, H/patch, W/patch)`, each map scaled to a sum of 1.

    Raises:
        ValueError: the model has no transformer block or no patch embedding.
    """
    patches = [layer for layer in model.layers if isinstance(layer, PatchEmbedding)]
    if not patches:
        raise ValueError(f"model must have a PatchEmbedding. Received: model={model.name!r}")
    height, width = patches[0].grid_size(model.input_shape)
    scores = attention_model(model).predict(images, verbose=0)
    scores = scores if isinstance(scores, list) else [scores]
    pools = any(isinstance(layer, AttentionPooling) for layer in model.layers)
    rollout = attention_rollout(scores[:-1] if pools else scores)  # (B, N, N)
    num_prefix = rollout.shape[-1] - height * width
    if pools:
        row = (scores[-1].mean(axis=1) @ rollout)[:, 0]  # (B, N)
    elif any(layer.name == "class_token" for layer in model.layers):
        row = rollout[:, 0]
    else:
        row = rollout[:, num_prefix:].mean(axis=1)
    maps = row[:, num_prefix:].reshape(-1, height, width)
    return maps / maps.sum(axis=(1, 2), keepdims=True)
