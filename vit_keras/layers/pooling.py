"""From tokens to one vector."""

import keras
from keras import ops

from .blocks import MLP
from .dense import AdaptableDense, freeze_parts
from .normalization import LayerNormalization


@keras.saving.register_keras_serializable("vit_keras")
class AttentionPooling(keras.layers.Layer):
    """Multi-head attention pooling (MAP): a learned probe asks all tokens, then an MLP with a residual connection.

    Args:
        num_heads: Number of heads H, >= 1; must divide the width D of the input.
        mlp_dim: Hidden width of the MLP.
        norm_epsilon: Added to the variance in the LayerNorm, > 0.
        approximate_gelu: Whether the MLP's GELU is approximated by a tanh; exact otherwise.

    Call arguments:
        tokens: `(B, N, D)`.
        return_attention_scores: Whether to return the attention weights too.

    Returns:
        `(B, D)`, or with `return_attention_scores` the pair of it and the softmax weights, `(B, H, 1, N)`.

    Raises:
        ValueError: `num_heads` that does not divide D.

    Reference:
        Zhai et al., "Scaling Vision Transformers" (arXiv:2106.04560), section 3.2, and `MAPHead` in big_vision.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        norm_epsilon: float = 1e-6,
        approximate_gelu: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be >= 1. Received: num_heads={num_heads}")
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.norm_epsilon = norm_epsilon
        self.approximate_gelu = approximate_gelu

    def build(self, input_shape) -> None:
        dim, policy = input_shape[-1], self.dtype_policy
        if dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide the width of the input. Received: num_heads={self.num_heads}, width={dim}"
            )
        self.head_dim = dim // self.num_heads
        self.probe = self.add_weight(name="probe", shape=(1, 1, dim), initializer="glorot_uniform")
        # Xavier limits of two separate (D, D) products, not of one (D, 2D) product.
        uniform = keras.initializers.RandomUniform(-((3 / dim) ** 0.5), (3 / dim) ** 0.5)
        self.query = AdaptableDense(dim, dtype=policy, name="query")
        self.key_value = AdaptableDense(2 * dim, kernel_initializer=uniform, dtype=policy, name="key_value")
        self.out = AdaptableDense(dim, dtype=policy, name="out")
        self.norm = LayerNormalization(self.norm_epsilon, dtype=policy, name="norm")
        self.mlp = MLP(self.mlp_dim, approximate_gelu=self.approximate_gelu, dtype=policy, name="mlp")
        self.key_value.build(input_shape)
        for layer in (self.query, self.out, self.norm, self.mlp):
            layer.build((input_shape[0], dim))
        freeze_parts(self)

    def call(self, tokens, return_attention_scores: bool = False):
        count, dim = tokens.shape[1], tokens.shape[2]
        query = self.query(ops.cast(self.probe, tokens.dtype)) * self.head_dim**-0.5  # (1, 1, D)
        query = ops.reshape(query, (1, self.num_heads, 1, self.head_dim))  # (1, H, 1, D/H)
        key, value = (
            ops.reshape(part, (-1, count, self.num_heads, self.head_dim))  # (B, N, H, D/H)
            for part in ops.split(self.key_value(tokens), 2, axis=-1)
        )
        scores = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1)))  # (B, H, 1, N)
        scores = ops.softmax(scores, axis=-1)
        y = ops.matmul(scores, ops.transpose(value, (0, 2, 1, 3)))  # (B, H, 1, D/H)
        y = self.out(ops.reshape(y, (-1, dim)))  # (B, D)
        y = y + self.mlp(self.norm(y))  # (B, D)
        return (y, scores) if return_attention_scores else y

    def compute_output_spec(self, tokens, return_attention_scores: bool = False):
        batch, count, dim = tokens.shape
        y = keras.KerasTensor((batch, dim), dtype=self.compute_dtype)
        if not return_attention_scores:
            return y
        return y, keras.KerasTensor((batch, self.num_heads, 1, count), dtype=self.compute_dtype)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "norm_epsilon": self.norm_epsilon,
            "approximate_gelu": self.approximate_gelu,
        }
