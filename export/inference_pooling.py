"""Attention pooling for prediction: its query is the same for all pictures."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from vit_keras.layers import AttentionPooling

from .folding import after_affine, product_of, weights_of
from .inference_layers import InferenceMLP, InferenceNormalization


@keras.saving.register_keras_serializable("vit_keras")
class InferencePooling(AttentionPooling):
    """What `AttentionPooling` gives, without queries, keys and the values of all tokens.

    A head's score of a token is `q @ (x @ W_k) = x @ (W_k @ q)`, where `q` is a constant: one product with a column for
    each head. Its result is `softmax @ (x @ W_v) = (softmax @ x) @ W_v`.

    Arguments, what it takes and what it gives are those of `AttentionPooling`.

    Reference:
        Zhai et al., "Scaling Vision Transformers" (arXiv:2106.04560), section 3.2.
    """

    def build(self, input_shape) -> None:
        dim, policy = input_shape[-1], self.dtype_policy
        # The keys' bias, the same for all scores of a head, the softmax cancels.
        self.scores = keras.layers.Dense(self.num_heads, use_bias=False, dtype=policy, name="scores")
        self.value = keras.layers.Dense(dim, dtype=policy, name="value")
        self.out = keras.layers.Dense(dim, dtype=policy, name="out")
        self.norm = InferenceNormalization(self.norm_epsilon, dtype=policy, name="norm")
        self.mlp = InferenceMLP(self.mlp_dim, self.approximate_gelu, dtype=policy, name="mlp")
        for layer in (self.scores, self.value, self.out, self.norm, self.mlp):
            layer.build((*input_shape[:-1], dim))

    def call(self, tokens, return_attention_scores: bool = False):
        dim, heads = tokens.shape[2], self.num_heads
        own_channels = np.repeat(np.eye(heads, dtype="float32"), dim // heads, axis=1)[None]  # (1, H, D)
        weights = ops.softmax(ops.transpose(self.scores(tokens), (0, 2, 1)), axis=-1)  # (B, H, N)
        y = self.value(ops.matmul(weights, tokens))  # (B, H, D)
        y = self.out(ops.sum(y * own_channels, axis=1, keepdims=True))  # (B, 1, D)
        y = y + self.mlp(self.norm(y))
        y = ops.reshape(y, (-1, dim))  # (B, D)
        return (y, weights[:, :, None]) if return_attention_scores else y

    @classmethod
    def of(cls, layer: AttentionPooling, name: str) -> "InferencePooling":
        """Makes the layer that stands for another; once it is built, it takes `folded` weights."""
        return cls(layer.num_heads, layer.mlp_dim, layer.norm_epsilon, layer.approximate_gelu, name=name)


def folded(layer: AttentionPooling, affine: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
    """Returns the weights of the `InferencePooling` that stands for a layer.

    Args:
        layer: The layer.
        affine: Gamma and beta of the LayerNorm before it, if it is to take them over.
    """
    query, query_bias = product_of(layer.query)
    (probe,) = weights_of(layer)[:1]
    query = (probe[0, 0] @ query + query_bias) * layer.head_dim**-0.5  # (D,)
    product = product_of(layer.key_value)
    kernel, bias = after_affine(product, *affine) if affine else product
    key, value = np.split(kernel, 2, axis=1)  # (D, D)
    scores = (key * query).reshape(len(key), layer.num_heads, layer.head_dim).sum(axis=-1)  # (D, H)
    rest = [weights for part in (layer.out, layer.norm, layer.mlp) for weights in weights_of(part)]
    return [scores, value, np.split(bias, 2)[1], *rest]
