"""What a Vision Transformer attends to: attention weights of a trained model, and their rollout."""

import keras
import numpy as np

from .layers import AttentionPooling, MultiHeadSelfAttention, PatchEmbedding, TransformerBlock


def attention_model(model: keras.Model) -> keras.Model:
    """Builds a model that gives every block's attention weights; the trained model is left as it is.

    Args:
        model: A flat functional model with `TransformerBlock`s, such as `create_model` returns.

    Returns:
        A model with the same input and weights, whose output is a list of `(B, H, N, N)`, block after block, and
        behind them, if the model pools by attention, what the probe asks of the tokens, `(B, H, 1, N)`.

    Raises:
        ValueError: the model has no transformer block.
    """
    scores: list[keras.KerasTensor] = []

    def collect(layer, *args, **kwargs):
        if not isinstance(layer, (TransformerBlock, MultiHeadSelfAttention, AttentionPooling)):
            return layer(*args, **kwargs)
        output, weights = layer(*args, **kwargs, return_attention_scores=True)
        scores.append(weights)
        return output

    clone = keras.models.clone_model(model, call_function=collect)
    if not scores:
        raise ValueError(f"model must have transformer blocks to show attention. Received: model={model.name!r}")
    clone.set_weights(model.get_weights())
    return keras.Model(clone.inputs, scores)


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
