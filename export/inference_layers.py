"""The layers that a rewritten model is made of: what is left of ours when a model does nothing but predict."""

import keras
from keras import ops

from vit_keras.layers.blocks import gelu


@keras.saving.register_keras_serializable("vit_keras")
class InferenceNormalization(keras.layers.Layer):
    """Layer normalisation with only the parts that could not be moved into the products around it.

    Args:
        epsilon: Added to the variance, > 0.
        subtract_mean: Whether the mean over the channels is subtracted; not needed where it is zero already.
        affine: Whether gamma and beta are applied.
        scale: Whether gamma alone is applied.

    Call arguments:
        x: `(..., D)`.

    Returns:
        `(..., D)`.

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization" (arXiv:1607.06450), equation 4.
    """

    def __init__(
        self, epsilon: float = 1e-6, subtract_mean: bool = True, affine: bool = True, scale: bool = False, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.subtract_mean = subtract_mean
        self.affine = affine
        self.scale = scale

    def build(self, input_shape) -> None:
        if self.affine or self.scale:
            self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer="ones")
        if self.affine:
            self.beta = self.add_weight(name="beta", shape=(input_shape[-1],), initializer="zeros")

    def call(self, x):
        if self.subtract_mean:
            x = x - ops.mean(x, axis=-1, keepdims=True)
        deviation = ops.rsqrt(ops.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        if self.scale:
            return x * self.gamma * deviation  # In this order: a factor next to a product, the converter folds into it.
        x = x * deviation
        return x * self.gamma + self.beta if self.affine else x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "subtract_mean": self.subtract_mean,
            "affine": self.affine,
            "scale": self.scale,
        }


@keras.saving.register_keras_serializable("vit_keras")
class InferenceAttention(keras.layers.Layer):
    """Multi-head self-attention for prediction: queries of the first tokens only, if no more are needed.

    Tokens keep their batch axis throughout: GPU delegates refuse a graph whose batch changes on the way.

    Args:
        num_heads: Number of heads H, >= 1; must divide the width D of the input.
        num_queries: How many tokens ask, from the first; all if `None`.
        scale_queries: Whether queries are multiplied by `(D/H)**-0.5` here; not where their product is scaled.

    Call arguments:
        x: Tokens, `(B, N, D)`.

    Returns:
        `(B, num_queries, D)`.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), appendix A, equations 5 to 8.
    """

    def __init__(self, num_heads: int, num_queries: int | None = None, scale_queries: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.scale_queries = scale_queries

    def build(self, input_shape) -> None:
        dim = input_shape[-1]
        parts = {"query": 1, "key_value": 2} if self.num_queries else {"qkv": 3}
        self.products = [keras.layers.Dense(n * dim, dtype=self.dtype_policy, name=name) for name, n in parts.items()]
        self.out = keras.layers.Dense(dim, dtype=self.dtype_policy, name="out")
        for product in (*self.products, self.out):
            product.build(input_shape)

    def call(self, x):
        tokens, dim = x.shape[1], x.shape[2]
        queries = self.num_queries or tokens
        if self.num_queries:
            query = self.products[0](x[:, :queries])  # (B, Q, D)
            key, value = ops.split(self.products[1](x), 2, axis=-1)  # (B, N, D)
        else:
            query, key, value = ops.split(self.products[0](x), 3, axis=-1)
        if self.scale_queries:
            query = query * (dim // self.num_heads) ** -0.5
        query = ops.transpose(self._heads(query, queries), (0, 2, 1, 3))  # (B, H, Q, D/H)
        key = ops.transpose(self._heads(key, tokens), (0, 2, 3, 1))  # (B, H, D/H, N)
        value = ops.transpose(self._heads(value, tokens), (0, 2, 1, 3))  # (B, H, N, D/H)
        y = ops.matmul(ops.softmax(ops.matmul(query, key), axis=-1), value)  # (B, H, Q, D/H)
        return self.out(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, queries, dim)))  # (B, Q, D)

    def _heads(self, x, tokens: int):
        return ops.reshape(x, (-1, tokens, self.num_heads, x.shape[-1] // self.num_heads))

    def compute_output_shape(self, input_shape):
        batch, tokens, dim = input_shape
        return batch, self.num_queries or tokens, dim

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_queries": self.num_queries,
            "scale_queries": self.scale_queries,
        }


@keras.saving.register_keras_serializable("vit_keras")
class InferenceMLP(keras.layers.Layer):
    """Two dense layers with a GELU between them, on tokens that keep their batch axis.

    Args:
        mlp_dim: Width of the hidden layer.
        approximate_gelu: Whether GELU is approximated by a tanh; exact otherwise.

    Call arguments:
        x: `(B, N, D)`.

    Returns:
        `(B, N, D)`.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), section 3.1.
    """

    def __init__(self, mlp_dim: int, approximate_gelu: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.mlp_dim = mlp_dim
        self.approximate_gelu = approximate_gelu

    def build(self, input_shape) -> None:
        self.expand = keras.layers.Dense(self.mlp_dim, dtype=self.dtype_policy, name="expand")
        self.contract = keras.layers.Dense(input_shape[-1], dtype=self.dtype_policy, name="contract")
        self.expand.build(input_shape)
        self.contract.build((*input_shape[:-1], self.mlp_dim))

    def call(self, x):
        return self.contract(gelu(self.expand(x), self.approximate_gelu))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "mlp_dim": self.mlp_dim, "approximate_gelu": self.approximate_gelu}
