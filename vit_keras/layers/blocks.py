"""The transformer encoder block and its MLP."""

import keras

from .attention import MultiHeadSelfAttention
from .normalization import LayerNormalization
from .regularization import LayerScale, StochasticDepth


@keras.saving.register_keras_serializable("vit_keras")
class MLP(keras.layers.Layer):
    """Two dense layers with an exact GELU between them.

    Args:
        mlp_dim: Width of the hidden layer.
        dropout_rate: Dropout after each dense layer, in [0, 1).

    Call arguments:
        x: `(B, N, D)`.
        training: Whether dropout is active.

    Returns:
        `(B, N, D)`.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), section 3.1; biases start at normal(1e-6) as in the reference code.
    """

    def __init__(self, mlp_dim: int, dropout_rate: float = 0.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.mlp_dim = mlp_dim
        self.dropout_rate = dropout_rate
        self.supports_masking = True

    def build(self, input_shape) -> None:
        bias = keras.initializers.RandomNormal(stddev=1e-6)
        self.expand = keras.layers.Dense(
            self.mlp_dim, activation="gelu", bias_initializer=bias, dtype=self.dtype_policy, name="expand"
        )
        self.expand.build(input_shape)
        self.contract = keras.layers.Dense(
            input_shape[-1], bias_initializer=bias.clone(), dtype=self.dtype_policy, name="contract"
        )
        self.contract.build((*input_shape[:-1], self.mlp_dim))
        self.dropout = keras.layers.Dropout(self.dropout_rate, dtype=self.dtype_policy, name="dropout")

    def call(self, x, training: bool = False):
        x = self.dropout(self.expand(x), training=training)
        return self.dropout(self.contract(x), training=training)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "mlp_dim": self.mlp_dim, "dropout_rate": self.dropout_rate}


@keras.saving.register_keras_serializable("vit_keras")
class TransformerBlock(keras.layers.Layer):
    """A pre-LayerNorm encoder block: equations 2 and 3.

    `z' = z + MSA(LN(z))`, then `z' + MLP(LN(z'))`, each branch optionally scaled and dropped.

    Args:
        num_heads: Number of attention heads; must divide the width D.
        mlp_dim: Hidden width of the MLP.
        use_qkv_bias: Whether queries, keys and values have a bias.
        dropout_rate: Dropout after the attention's output and in the MLP, in [0, 1).
        attention_dropout_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of both branches, in [0, 1).
        layer_scale_init: Start of LayerScale's factors; `None` for no LayerScale.

    Call arguments:
        x: `(B, N, D)`.
        training: Whether dropout and stochastic depth are active.
        return_attention_scores: Whether to return the attention weights too.

    Returns:
        `(B, N, D)`, or with `return_attention_scores` the pair of it and the attention weights, `(B, H, N, N)`.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), equations 2 and 3.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        use_qkv_bias: bool = True,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.use_qkv_bias = use_qkv_bias
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init = layer_scale_init
        self.supports_masking = True

    def build(self, input_shape) -> None:
        policy = self.dtype_policy
        self.attention_norm = LayerNormalization(dtype=policy, name="attention_norm")
        self.attention = MultiHeadSelfAttention(
            self.num_heads, self.use_qkv_bias, self.attention_dropout_rate, dtype=policy, name="attention"
        )
        self.mlp_norm = LayerNormalization(dtype=policy, name="mlp_norm")
        self.mlp = MLP(self.mlp_dim, self.dropout_rate, dtype=policy, name="mlp")
        self.dropout = keras.layers.Dropout(self.dropout_rate, dtype=policy, name="dropout")
        self.attention_drop_path = StochasticDepth(self.drop_path_rate, dtype=policy, name="attention_drop_path")
        self.mlp_drop_path = StochasticDepth(self.drop_path_rate, dtype=policy, name="mlp_drop_path")
        self.attention_scale = self.mlp_scale = None
        if self.layer_scale_init is not None:
            self.attention_scale = LayerScale(self.layer_scale_init, dtype=policy, name="attention_scale")
            self.mlp_scale = LayerScale(self.layer_scale_init, dtype=policy, name="mlp_scale")
            self.attention_scale.build(input_shape)
            self.mlp_scale.build(input_shape)
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            layer.build(input_shape)

    def call(self, x, training: bool = False, return_attention_scores: bool = False):
        y, scores = self.attention(self.attention_norm(x), training=training, return_attention_scores=True)
        y = self.dropout(y, training=training)
        if self.attention_scale is not None:
            y = self.attention_scale(y)
        x = x + self.attention_drop_path(y, training=training)
        y = self.mlp(self.mlp_norm(x), training=training)
        if self.mlp_scale is not None:
            y = self.mlp_scale(y)
        x = x + self.mlp_drop_path(y, training=training)
        return (x, scores) if return_attention_scores else x

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
            "mlp_dim": self.mlp_dim,
            "use_qkv_bias": self.use_qkv_bias,
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "drop_path_rate": self.drop_path_rate,
            "layer_scale_init": self.layer_scale_init,
        }
