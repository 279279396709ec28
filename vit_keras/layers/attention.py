"""Multi-head self-attention."""

import keras
from keras import ops

from .dense import AdaptableDense, freeze_parts


@keras.saving.register_keras_serializable("vit_keras")
class MultiHeadSelfAttention(keras.layers.Layer):
    """Multi-head self-attention (MSA) with one fused query-key-value product.

    The product is cut with one SPLIT and the heads stay an axis of their own, so that the exported graph holds no
    per-head slice and no batch axis other than 1: both cost a lot on a device.

    Args:
        num_heads: Number of heads H, >= 1; must divide the width D of the input.
        use_qkv_bias: Whether queries, keys and values have a bias, as all published ViTs do.
        dropout_rate: Dropout on the attention weights, in [0, 1).
        kernel_initializer: Initialiser of the products; Xavier's uniform one if `None`, as in the ViT reference code.
        seed: Seed of the dropout; `None` for a random one.

    Call arguments:
        x: Tokens, `(B, N, D)`.
        training: Whether dropout is active.
        return_attention_scores: Whether to return the attention weights too.

    Returns:
        `(B, N, D)`, or with `return_attention_scores` the pair of it and the softmax weights, `(B, H, N, N)`: row i
        holds what token i takes from every token.

    Raises:
        ValueError: `num_heads` that does not divide D.

    Reference:
        Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv:2010.11929), appendix A, equations 5 to 8.
    """

    def __init__(
        self,
        num_heads: int,
        use_qkv_bias: bool = True,
        dropout_rate: float = 0.0,
        kernel_initializer=None,
        seed: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be >= 1. Received: num_heads={num_heads}")
        self.num_heads = num_heads
        self.use_qkv_bias = use_qkv_bias
        self.dropout_rate = dropout_rate
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.supports_masking = True

    def build(self, input_shape) -> None:
        dim = input_shape[-1]
        if dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide the width of the input. Received: num_heads={self.num_heads}, width={dim}"
            )
        self.head_dim = dim // self.num_heads
        # Xavier limits of three separate (D, D) products, as in the reference code, not of one (D, 3D) product.
        uniform = keras.initializers.RandomUniform(-((3 / dim) ** 0.5), (3 / dim) ** 0.5, seed=self.seed)
        self.qkv = AdaptableDense(
            3 * dim,
            use_bias=self.use_qkv_bias,
            kernel_initializer=self.kernel_initializer.clone() if self.kernel_initializer else uniform,
            dtype=self.dtype_policy,
            name="qkv",
        )
        self.qkv.build(input_shape)
        self.out = AdaptableDense(
            dim,
            kernel_initializer=self.kernel_initializer.clone() if self.kernel_initializer else "glorot_uniform",
            dtype=self.dtype_policy,
            name="out",
        )
        self.out.build(input_shape)
        self.dropout = keras.layers.Dropout(self.dropout_rate, seed=self.seed, dtype=self.dtype_policy, name="dropout")
        freeze_parts(self)

    def call(self, x, training: bool = False, return_attention_scores: bool = False):
        tokens, dim = x.shape[1], x.shape[2]
        query, key, value = (
            ops.reshape(part, (-1, tokens, self.num_heads, self.head_dim))  # (B, N, H, D/H)
            for part in ops.split(self.qkv(ops.reshape(x, (-1, dim))), 3, axis=-1)  # (B * N, D)
        )
        query = ops.transpose(query * self.head_dim**-0.5, (0, 2, 1, 3))  # (B, H, N, D/H)
        key = ops.transpose(key, (0, 2, 3, 1))  # (B, H, D/H, N)
        value = ops.transpose(value, (0, 2, 1, 3))  # (B, H, N, D/H)
        scores = ops.softmax(ops.matmul(query, key), axis=-1)  # (B, H, N, N)
        y = ops.matmul(self.dropout(scores, training=training), value)  # (B, H, N, D/H)
        y = self.out(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, dim)))  # (B * N, D)
        y = ops.reshape(y, (-1, tokens, dim))  # (B, N, D)
        return (y, scores) if return_attention_scores else y

    def compute_output_spec(self, x, training: bool = False, return_attention_scores: bool = False):
        y = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return y
        batch, tokens, _ = x.shape
        return y, keras.KerasTensor((batch, self.num_heads, tokens, tokens), dtype=self.compute_dtype)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "use_qkv_bias": self.use_qkv_bias,
            "dropout_rate": self.dropout_rate,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }
