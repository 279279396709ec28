"""The layers that a rewritten model is made of: what is left of ours when a model does nothing but predict."""

import keras
import numpy as np
from keras import ops

from vit_keras.layers import PatchEmbedding
from vit_keras.layers.blocks import gelu


@keras.saving.register_keras_serializable("vit_keras")
class InferencePatches(PatchEmbedding):
    """A patch embedding whose convolution takes each row of a patch's pixels as the channels of one pixel.

    Kernels for integers fill three channels up, to eight on the CPUs where that was measured, and compute with the
    zeros. The values of picture and kernel stay in their order.

    Args:
        patch_size: Side P of a patch in pixels, >= 1; must divide the picture's height and width.
        hidden_dim: Width D of a token.

    Call arguments:
        images: `(B, H, W, C)`.

    Returns:
        `(B, H/P * W/P, D)`.

    Raises:
        ValueError: a picture size that `patch_size` does not divide, or one that is not known when building.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), equation 1.
    """

    def build(self, input_shape) -> None:
        self.grid_size(input_shape)
        size = self.patch_size
        self.projection = keras.layers.Conv2D(
            self.hidden_dim,
            (size, 1),
            strides=(size, 1),
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build((input_shape[0], *self._in_rows(input_shape)))

    def call(self, images):
        return super().call(ops.reshape(images, (-1, *self._in_rows(images.shape))))  # (B, H, W/P, P * C)

    def _in_rows(self, shape) -> tuple[int, int, int]:
        _, height, width, channels = shape
        return height, width // self.patch_size, self.patch_size * channels

    def rows(self, kernel: np.ndarray) -> np.ndarray:
        """Returns a `PatchEmbedding`'s kernel, `(P, P, C, D)`, as this layer has it, `(P, 1, P * C, D)`."""
        return kernel.reshape(self.patch_size, 1, -1, self.hidden_dim)


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
    """Multi-head self-attention for prediction.

    Tokens keep their batch axis throughout: GPU delegates refuse a graph whose batch changes on the way.

    Args:
        num_heads: Number of heads H, >= 1; must divide the width D of the input.
        scale_queries: Whether queries are multiplied by `(D/H)**-0.5` here; not where their product is scaled.
        num_prompts: Number P of tokens that ask nothing, the same for all pictures: of them there are only constant
            keys and values.
        give_attention: Whether the attention weights are given too, averaged over the heads.

    Call arguments:
        x: Tokens, `(B, N, D)`.
        log_counts: Logarithm of how many tokens each stands for, `(B, N)`; `None` where each stands for itself.

    Returns:
        `(B, N, D)`, with `give_attention` also `(B, N, N)`: how much each token takes of each; prompts are left out.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), appendix A, equations 5 to 8. Prompts: Jia et al., "Visual Prompt Tuning"
        (arXiv:2203.12119), equation 7. Counts: Bolya et al., "Token Merging" (arXiv:2210.09461), equation 1.
    """

    def __init__(
        self,
        num_heads: int,
        scale_queries: bool = True,
        num_prompts: int = 0,
        give_attention: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.scale_queries = scale_queries
        self.num_prompts = num_prompts
        self.give_attention = give_attention

    def build(self, x_shape, log_counts_shape=None) -> None:
        # Three products, not one: each of queries, keys and values has a range of its own in integers.
        self.query, self.key, self.value, self.out = (
            keras.layers.Dense(x_shape[-1], dtype=self.dtype_policy, name=name)
            for name in ("query", "key", "value", "out")
        )
        for product in (self.query, self.key, self.value, self.out):
            product.build(x_shape)
        if self.num_prompts:
            self.prompt_keys, self.prompt_values = (
                self.add_weight(name=name, shape=(1, self.num_prompts, x_shape[-1]), initializer="zeros")
                for name in ("prompt_keys", "prompt_values")
            )

    def call(self, x, log_counts=None):
        tokens, dim = x.shape[1], x.shape[2]
        query, key, value = self.query(x), self.key(x), self.value(x)  # (B, N, D)
        if self.num_prompts:
            key, value = (
                with_constants(key, self.prompt_keys),
                with_constants(value, self.prompt_values),
            )  # (B, N + P, D)
        if self.scale_queries:
            query = query * (dim // self.num_heads) ** -0.5
        query = ops.transpose(self._heads(query), (0, 2, 1, 3))  # (B, H, N, D/H)
        key = ops.transpose(self._heads(key), (0, 2, 3, 1))  # (B, H, D/H, N)
        value = ops.transpose(self._heads(value), (0, 2, 1, 3))  # (B, H, N, D/H)
        scores = ops.matmul(query, key)
        if log_counts is not None:
            scores = scores + _of_keys(log_counts, self.num_prompts)[:, None]
        weights = ops.softmax(scores, axis=-1)  # (B, H, N, N + P)
        y = ops.matmul(weights, value)  # (B, H, N, D/H)
        y = self.out(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, tokens, dim)))
        return (y, ops.mean(weights, axis=1)[..., :tokens]) if self.give_attention else y

    def _heads(self, x):
        return ops.reshape(x, (-1, x.shape[1], self.num_heads, x.shape[2] // self.num_heads))

    def token_kernel(self) -> np.ndarray:
        """Returns what multiplies the tokens, `(D, 3D)`."""
        return np.concatenate([product.get_weights()[0] for product in (self.query, self.key, self.value)], axis=1)

    def compute_output_shape(self, x_shape, log_counts_shape=None):
        batch, tokens, _ = x_shape
        return (x_shape, (batch, tokens, tokens)) if self.give_attention else x_shape

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "scale_queries": self.scale_queries,
            "num_prompts": self.num_prompts,
            "give_attention": self.give_attention,
        }


@keras.saving.register_keras_serializable("vit_keras")
class InferenceReadout(keras.layers.Layer):
    """What `InferenceAttention` gives for the first tokens, without the keys and values of all of them.

    A head's score is `q @ (x @ W_k).T = (q @ W_k.T) @ x.T`, its result `softmax @ (x @ W_v) = (softmax @ x) @ W_v`.
    For few queries the right sides are less work: the products with `W_k` and `W_v` take a row for each query and head
    instead of one for each token.

    Args:
        num_heads: Number of heads H, >= 1; must divide the width D of the input.
        num_queries: How many tokens ask, from the first: Q >= 1.
        scale_queries: Whether queries are multiplied by `(D/H)**-0.5` here; not where their product is scaled.
        num_prompts: Number P of tokens that ask nothing and are the same for all pictures.
        give_attention: Whether the attention weights are given too, averaged over the heads.

    Call arguments:
        x: Tokens, `(B, N, D)`.
        log_counts: Logarithm of how many tokens each stands for, `(B, N)`; `None` where each stands for itself.

    Returns:
        `(B, Q, D)`, with `give_attention` also `(B, Q, N)`: how much each token takes of each; prompts are left out.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), appendix A, equations 5 to 8.
    """

    def __init__(
        self,
        num_heads: int,
        num_queries: int,
        scale_queries: bool = True,
        num_prompts: int = 0,
        give_attention: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.scale_queries = scale_queries
        self.num_prompts = num_prompts
        self.give_attention = give_attention

    def build(self, x_shape, log_counts_shape=None) -> None:
        self.query, self.key, self.value, self.out = (
            # The keys' bias, the same for all scores of a query, the softmax cancels.
            keras.layers.Dense(x_shape[-1], use_bias=name != "key", dtype=self.dtype_policy, name=name)
            for name in ("query", "key", "value", "out")
        )
        for product in (self.query, self.key, self.value, self.out):
            product.build(x_shape)
        if self.num_prompts:
            shape = (1, self.num_prompts, x_shape[-1])
            self.prompts = self.add_weight(name="prompts", shape=shape, initializer="zeros")

    def call(self, x, log_counts=None):
        tokens, dim, heads, queries = x.shape[1], x.shape[2], self.num_heads, self.num_queries
        own_channels = np.repeat(np.eye(heads, dtype="float32"), dim // heads, axis=1)[None]  # (1, H, D)
        query = self.query(x[:, :queries])  # (B, Q, D)
        if self.scale_queries:
            query = query * (dim // heads) ** -0.5
        if queries == 1:
            query = query * own_channels  # (B, H, D): without what a device would have to reshape.
        else:
            query = ops.reshape(query, (-1, queries, 1, dim)) * own_channels[None]  # (B, Q, H, D)
            query = ops.reshape(query, (-1, queries * heads, dim))  # (B, QH, D)
        query = self.key(query)
        if self.num_prompts:
            x = with_constants(x, self.prompts)  # (B, N + P, D)
        scores = ops.matmul(query, ops.transpose(x, (0, 2, 1)))
        if log_counts is not None:
            scores = scores + _of_keys(log_counts, self.num_prompts)
        weights = ops.softmax(scores, axis=-1)  # (B, QH, N + P)
        y = self.value(ops.matmul(weights, x))  # (B, QH, D)
        if queries == 1:
            y = ops.sum(y * own_channels, axis=1, keepdims=True)  # (B, 1, D)
        else:
            y = ops.sum(ops.reshape(y, (-1, queries, heads, dim)) * own_channels[None], axis=2)  # (B, Q, D)
        y = self.out(y)
        if not self.give_attention:
            return y
        weights = ops.reshape(weights, (-1, queries, heads, weights.shape[-1]))
        return y, ops.mean(weights, axis=2)[..., :tokens]

    def token_kernel(self) -> np.ndarray:
        """Returns what multiplies the tokens, `(D, 3D)`; the kernel of `key` itself is `W_k.T`."""
        query, key, value = (product.get_weights()[0] for product in (self.query, self.key, self.value))
        return np.concatenate([query, key.T, value], axis=1)

    def compute_output_shape(self, x_shape, log_counts_shape=None):
        batch, tokens, dim = x_shape
        shape = batch, self.num_queries, dim
        return (shape, (batch, self.num_queries, tokens)) if self.give_attention else shape

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_queries": self.num_queries,
            "scale_queries": self.scale_queries,
            "num_prompts": self.num_prompts,
            "give_attention": self.give_attention,
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

    def token_kernel(self) -> np.ndarray:
        """Returns what multiplies the tokens, `(D, mlp_dim)`."""
        return self.expand.get_weights()[0]

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "mlp_dim": self.mlp_dim, "approximate_gelu": self.approximate_gelu}


def with_constants(x, constants):
    """Puts tokens that are the same for all pictures, `(1, P, D)`, behind others, `(B, N, D)`: `(B, N + P, D)`."""
    constants = ops.cast(constants, x.dtype)
    constants = ops.broadcast_to(constants, (ops.shape(x)[0], constants.shape[1], constants.shape[2]))
    return ops.concatenate([x, constants], axis=1)


def _of_keys(log_counts, num_prompts: int):
    """What every query's scores of tokens and prompts gain, `(B, 1, N + P)`: a prompt stands for itself."""
    if num_prompts:
        log_counts = ops.pad(log_counts, ((0, 0), (0, num_prompts)))
    return log_counts[:, None]
