"""Position embeddings, added to the tokens: the `E_pos` of equation 1."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("vit_keras")
class LearnedPositionEmbedding(keras.layers.Layer):
    """Adds one learned vector to every token.

    Grid and prefix are told, not guessed from the number of tokens: that is what lets the grid be interpolated for
    another picture size while prefix tokens keep their positions.

    Args:
        grid_size: Patches per column and row, `(height, width)`.
        num_prefix: Number of prefix tokens P before the patch tokens.

    Call arguments:
        tokens: `(B, P + N, D)` with N = height * width.

    Returns:
        `(B, P + N, D)`.

    Raises:
        ValueError: a number of tokens that is not `num_prefix + height * width`.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), equation 1 and appendix D.4; normal(0.02) as in the reference code.
    """

    def __init__(self, grid_size: tuple[int, int], num_prefix: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        height, width = grid_size
        self.grid_size = (height, width)
        self.num_prefix = num_prefix

    def build(self, input_shape) -> None:
        _check_tokens(input_shape[1], self.grid_size, self.num_prefix)
        self.position = self.add_weight(
            name="position", shape=(1, *input_shape[1:]), initializer=keras.initializers.RandomNormal(stddev=0.02)
        )

    def call(self, tokens):
        return tokens + ops.cast(self.position, tokens.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "grid_size": list(self.grid_size), "num_prefix": self.num_prefix}


@keras.saving.register_keras_serializable("vit_keras")
class Sincos1DPositionEmbedding(keras.layers.Layer):
    """Adds fixed sine and cosine positions along the sequence, prefix tokens included.

    Args:
        temperature: Ratio of the longest to the shortest wavelength, nearly.

    Call arguments:
        tokens: `(B, N, D)` with D even.

    Returns:
        `(B, N, D)`.

    Raises:
        ValueError: an odd D.

    Reference:
        Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762), section 3.5: sine at even, cosine at odd
        channels.
    """

    def __init__(self, temperature: float = 10_000.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, input_shape) -> None:
        _, tokens, dim = input_shape
        self.position = sincos_1d(tokens, dim, self.temperature)[None]

    def call(self, tokens):
        return tokens + ops.cast(ops.convert_to_tensor(self.position), tokens.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable("vit_keras")
class Sincos2DPositionEmbedding(keras.layers.Layer):
    """Adds fixed 2-D sine and cosine positions to the patch tokens; prefix tokens get none.

    Args:
        grid_size: Patches per column and row, `(height, width)`.
        num_prefix: Number of prefix tokens P before the patch tokens.
        temperature: Ratio of the longest to the shortest wavelength.

    Call arguments:
        tokens: `(B, P + N, D)` with N = height * width and D divisible by 4.

    Returns:
        `(B, P + N, D)`.

    Raises:
        ValueError: D not divisible by 4 or below 8, or a number of tokens that is not `num_prefix + height * width`.

    Reference:
        Beyer, Zhai, Kolesnikov, "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580), and its code in
        big_vision; Chen, Xie, He, "An Empirical Study of Training Self-Supervised ViTs" (arXiv:2104.02057).
    """

    def __init__(
        self, grid_size: tuple[int, int], num_prefix: int = 0, temperature: float = 10_000.0, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        height, width = grid_size
        self.grid_size = (height, width)
        self.num_prefix = num_prefix
        self.temperature = temperature

    def build(self, input_shape) -> None:
        _, tokens, dim = input_shape
        _check_tokens(tokens, self.grid_size, self.num_prefix)
        position = np.zeros((1, tokens, dim), "float32")
        position[0, self.num_prefix :] = sincos_2d(self.grid_size, dim, self.temperature)
        self.position = position

    def call(self, tokens):
        return tokens + ops.cast(ops.convert_to_tensor(self.position), tokens.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "grid_size": list(self.grid_size),
            "num_prefix": self.num_prefix,
            "temperature": self.temperature,
        }


def _check_tokens(tokens: int, grid_size: tuple[int, int], num_prefix: int) -> None:
    if tokens != num_prefix + grid_size[0] * grid_size[1]:
        raise ValueError(
            f"tokens must number num_prefix + height * width of grid_size. Received: tokens={tokens}, "
            f"num_prefix={num_prefix}, grid_size={grid_size}"
        )


def sincos_1d(length: int, dim: int, temperature: float = 10_000.0) -> np.ndarray:
    """Returns sine and cosine positions of a sequence, `(length, dim)`: sine at even, cosine at odd channels."""
    if dim % 2:
        raise ValueError(f"dim must be even for sine and cosine positions. Received: dim={dim}")
    angle = np.arange(length)[:, None] * temperature ** -(np.arange(0, dim, 2) / dim)  # (N, D/2)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, dim).astype("float32")


def sincos_2d(grid_size: tuple[int, int], dim: int, temperature: float = 10_000.0) -> np.ndarray:
    """Returns sine and cosine positions of a grid, `(height * width, dim)`: sin x, cos x, sin y, cos y."""
    if dim % 4 or dim < 8:
        raise ValueError(f"dim must be a multiple of 4 and at least 8 for 2-D positions. Received: dim={dim}")
    y, x = np.mgrid[: grid_size[0], : grid_size[1]]
    omega = temperature ** -(np.arange(dim // 4) / (dim // 4 - 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega  # (N, D/4)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype("float32")
