"""From a picture to tokens: patch embedding, learned prefix tokens, and how to take some out again."""

import keras
from keras import ops

from .dense import freeze_parts


@keras.saving.register_keras_serializable("vit_keras")
class PatchEmbedding(keras.layers.Layer):
    """Cuts a picture into square patches and projects each one linearly: the `x_p E` of equation 1.

    A convolution whose stride is its kernel size; equal to flattening each patch row by row and multiplying by E.

    Args:
        patch_size: Side of a patch in pixels, >= 1; must divide the picture's height and width.
        hidden_dim: Width D of a token.

    Call arguments:
        images: `(B, H, W, C)`.

    Returns:
        `(B, H/patch_size * W/patch_size, D)`, patches row by row.

    Raises:
        ValueError: a picture size that `patch_size` does not divide, or one that is not known when building.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), equation 1.
    """

    def __init__(self, patch_size: int, hidden_dim: int, **kwargs) -> None:
        super().__init__(**kwargs)
        if patch_size < 1:
            raise ValueError(f"patch_size must be >= 1. Received: patch_size={patch_size}")
        self.patch_size = patch_size
        self.hidden_dim = hidden_dim

    def build(self, input_shape) -> None:
        self.grid_size(input_shape)
        self.projection = keras.layers.Conv2D(
            self.hidden_dim,
            self.patch_size,
            strides=self.patch_size,
            data_format="channels_last",
            kernel_initializer="lecun_normal",
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build(input_shape)
        freeze_parts(self)

    def call(self, images):
        x = self.projection(images)  # (B, H/P, W/P, D)
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], self.hidden_dim))  # (B, N, D)

    def grid_size(self, shape: tuple[int | None, ...]) -> tuple[int, int]:
        """Returns the patches per column and row of pictures of a `shape`, `(B, H, W, C)`."""
        height, width = shape[1:3]
        if not height or not width or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                "image_size must be a fixed height and width that patch_size divides. "
                f"Received: image_size=({height}, {width}), patch_size={self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def compute_output_shape(self, input_shape):
        height, width = self.grid_size(input_shape)
        return input_shape[0], height * width, self.hidden_dim

    def get_config(self) -> dict:
        return {**super().get_config(), "patch_size": self.patch_size, "hidden_dim": self.hidden_dim}


@keras.saving.register_keras_serializable("vit_keras")
class PrefixTokens(keras.layers.Layer):
    """Puts learned tokens, such as the class token, before the patch tokens.

    Args:
        num_tokens: Number of tokens P, >= 1.
        initializer: Initialiser of the tokens; zeros as in the reference code.

    Call arguments:
        tokens: `(B, N, D)`.

    Returns:
        `(B, P + N, D)`.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), equation 1: `[x_class; x_p E]`.
    """

    def __init__(self, num_tokens: int = 1, initializer="zeros", **kwargs) -> None:
        super().__init__(**kwargs)
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be >= 1. Received: num_tokens={num_tokens}")
        self.num_tokens = num_tokens
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape) -> None:
        self.prefix = self.add_weight(
            name="prefix", shape=(1, self.num_tokens, input_shape[-1]), initializer=self.initializer
        )

    def call(self, tokens):
        prefix = ops.cast(self.prefix, tokens.dtype)
        prefix = ops.broadcast_to(prefix, (ops.shape(tokens)[0], self.num_tokens, tokens.shape[-1]))
        return ops.concatenate([prefix, tokens], axis=1)

    def compute_output_shape(self, input_shape):
        batch, tokens, dim = input_shape
        return batch, self.num_tokens + tokens, dim

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable("vit_keras")
class TokenSlice(keras.layers.Layer):
    """Takes a run of tokens and keeps their axis: one that shrinks it (`x[:, 0]`) leaves the fast path on devices.

    Args:
        start: First token.
        stop: Token after the last; `None` for all that follow.

    Call arguments:
        tokens: `(B, N, D)`.

    Returns:
        `(B, stop - start, D)`.
    """

    def __init__(self, start: int = 0, stop: int | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.start = start
        self.stop = stop

    def call(self, tokens):
        return tokens[:, self.start : self.stop]

    def compute_output_shape(self, input_shape):
        batch, tokens, dim = input_shape
        return batch, len(range(tokens)[self.start : self.stop]), dim

    def get_config(self) -> dict:
        return {**super().get_config(), "start": self.start, "stop": self.stop}
