"""The transformer encoder block and its MLP."""

import keras
from keras import ops

from .attention import MultiHeadSelfAttention
from .dense import AdaptableDense, freeze_parts
from .normalization import LayerNormalization
from .regularization import LayerScale, StochasticDepth


@keras.saving.register_keras_serializable("vit_keras")
class MLP(keras.layers.Layer):
    """Two dense layers with a GELU between them.

    Args:
        mlp_dim: Width of the hidden layer.
        dropout_rate: Dropout after each dense layer, in [0, 1).
        approximate_gelu: Whether GELU is approximated by a tanh, as Flax does by default; exact otherwise.
        kernel_initializer: Initialiser of both products.

    Call arguments:
        x: `(..., D)`.
        training: Whether dropout is active.

    Returns:
        `(..., D)`.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), section 3.1; biases start at normal(1e-6) as in the reference code.
    """

    def __init__(
        self,
        mlp_dim: int,
        dropout_rate: float = 0.0,
        approximate_gelu: bool = False,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.mlp_dim = mlp_dim
        self.dropout_rate = dropout_rate
        self.approximate_gelu = approximate_gelu
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True

    def build(self, input_shape) -> None:
        bias = keras.initializers.RandomNormal(stddev=1e-6)
        # An initialiser draws the same numbers each time: every weight needs a copy with a seed of its own.
        self.expand, self.contract = (
            AdaptableDense(
                units,
                kernel_initializer=self.kernel_initializer.clone(),
                bias_initializer=bias.clone(),
                dtype=self.dtype_policy,
                name=name,
            )
            for units, name in ((self.mlp_dim, "expand"), (input_shape[-1], "contract"))
        )
        self.expand.build(input_shape)
        self.contract.build((*input_shape[:-1], self.mlp_dim))
        self.dropout = keras.layers.Dropout(self.dropout_rate, dtype=self.dtype_policy, name="dropout")
        freeze_parts(self)

    def call(self, x, training: bool = False):
        shape = x.shape
        # In two dimensions a product and its bias stand next to one another, and TensorFlow fuses them.
        x = ops.reshape(x, (-1, shape[-1]))  # (B * N, D)
        x = gelu(self.expand(x), self.approximate_gelu, training)
        x = self.contract(self.dropout(x, training=training))
        return self.dropout(ops.reshape(x, (-1, *shape[1:])), training=training)  # (B, N, D)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "mlp_dim": self.mlp_dim,
            "dropout_rate": self.dropout_rate,
            "approximate_gelu": self.approximate_gelu,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def gelu(x, approximate: bool = False, training: bool = False):
    """Returns the GELU of `x`, on TensorFlow's backend in the forms that it computes and differentiates fastest.

    Keras's form takes the complementary error function, which costs TensorFlow more passes over the widest tensor of
    a block. The form of inference becomes TensorFlow Lite's GELU operator; that of training would not convert.

    Reference:
        Hendrycks, Gimpel, "Gaussian Error Linear Units" (arXiv:1606.08415), section 2.
    """
    if approximate or keras.backend.backend() != "tensorflow":
        return ops.gelu(x, approximate)
    if training:
        return x * (0.5 * ops.erf(x * 0.5**0.5) + 0.5)
    return 0.5 * x * (1.0 + ops.erf(x * 0.5**0.5))


@keras.saving.register_keras_serializable("vit_keras")
class TransformerBlock(keras.layers.Layer):
    """A pre-LayerNorm encoder block: equations 2 and 3.

    `z' = z + MSA(LN(z))`, then `z' + MLP(LN(z'))`, each branch optionally scaled and dropped. A frozen block
    (`trainable = False`) drops nothing in training either, as Keras's frozen BatchNormalization uses what it has seen.

    Args:
        num_heads: Number of attention heads; must divide the width D.
        mlp_dim: Hidden width of the MLP.
        use_qkv_bias: Whether queries, keys and values have a bias.
        dropout_rate: Dropout after the attention's output and in the MLP, in [0, 1).
        attention_dropout_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of both branches, in [0, 1).
        layer_scale_init: Start of LayerScale's factors; `None` for no LayerScale.
        norm_epsilon: Added to the variance in the LayerNorms, > 0.
        approximate_gelu: Whether the MLP's GELU is approximated by a tanh; exact otherwise.
        kernel_initializer: Initialiser of all products; Xavier's uniform one if `None`.
        remat: Whether training computes both branches a second time for the gradient instead of keeping what they
            computed: less memory, more time. Stochastic depth may be used with it, dropout may not.

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
        norm_epsilon: float = 1e-6,
        approximate_gelu: bool = False,
        kernel_initializer=None,
        remat: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if remat and (dropout_rate or attention_dropout_rate):
            raise ValueError(
                "remat draws no random numbers twice, so it needs dropout_rate=0 and attention_dropout_rate=0. "
                f"Received: dropout_rate={dropout_rate}, attention_dropout_rate={attention_dropout_rate}"
            )
        self.remat = remat
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.use_qkv_bias = use_qkv_bias
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init = layer_scale_init
        self.norm_epsilon = norm_epsilon
        self.approximate_gelu = approximate_gelu
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True

    def build(self, input_shape) -> None:
        policy = self.dtype_policy
        self.attention_norm = LayerNormalization(self.norm_epsilon, dtype=policy, name="attention_norm")
        self.attention = MultiHeadSelfAttention(
            self.num_heads,
            self.use_qkv_bias,
            self.attention_dropout_rate,
            self.kernel_initializer,
            dtype=policy,
            name="attention",
        )
        self.mlp_norm = LayerNormalization(self.norm_epsilon, dtype=policy, name="mlp_norm")
        self.mlp = MLP(
            self.mlp_dim,
            self.dropout_rate,
            self.approximate_gelu,
            self.kernel_initializer or "glorot_uniform",
            dtype=policy,
            name="mlp",
        )
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
        freeze_parts(self)

    def call(self, x, training: bool = False, return_attention_scores: bool = False):
        drops = training and self.trainable
        if self.remat and training and not return_attention_scores:
            attend, expand = (keras.remat(f) for f in (self._attend_and_forget, self._expand))
            x = x + self.attention_drop_path(attend(x), training=drops)
            return x + self.mlp_drop_path(expand(x), training=drops)
        y, scores = self._attend(x, drops)
        x = x + self.attention_drop_path(y, training=drops)
        x = x + self.mlp_drop_path(self._expand(x, drops), training=drops)
        return (x, scores) if return_attention_scores else x

    def _attend(self, x, training: bool = False):
        """The first branch, and its attention weights."""
        y, scores = self.attention(self.attention_norm(x), training=training, return_attention_scores=True)
        y = self.dropout(y, training=training)
        return y if self.attention_scale is None else self.attention_scale(y), scores

    def _attend_and_forget(self, x):
        return self._attend(x)[0]

    def _expand(self, x, training: bool = False):
        """The second branch."""
        y = self.mlp(self.mlp_norm(x), training=training)
        return y if self.mlp_scale is None else self.mlp_scale(y)

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
            "norm_epsilon": self.norm_epsilon,
            "approximate_gelu": self.approximate_gelu,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "remat": self.remat,
        }
