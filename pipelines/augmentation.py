"""Random changes of training pictures. Every draw is a function of seed, epoch and index, and of nothing else."""

import math
from typing import NamedTuple, cast

import tensorflow as tf

from .config import AugmentConfig


class Draws(NamedTuple):
    """What chance decides for one picture, or with a leading batch axis for several.

    Attributes:
        warp: Numbers in [0, 1) for shift x and y, rotation, zoom and flip, `(5,)`.
        noise: Standard normal numbers, `(H, W, 1)`; `(1, 1, 1)` where the configuration has no noise.
    """

    warp: tf.Tensor
    noise: tf.Tensor


def draw(seed: int, epoch: tf.Tensor, index: tf.Tensor, image_size: tuple[int, int], config: AugmentConfig) -> Draws:
    """Draws for the picture at `index` in `epoch`."""
    key = tf.random.experimental.stateless_fold_in(tf.stack([tf.cast(seed, tf.int64), epoch]), index)
    warp_key, noise_key = tf.unstack(tf.random.experimental.stateless_split(key, 2))
    noise_shape = (*image_size, 1) if config.noise else (1, 1, 1)
    return Draws(tf.random.stateless_uniform((5,), warp_key), tf.random.stateless_normal(noise_shape, noise_key))


def augment(images: tf.Tensor, draws: Draws, config: AugmentConfig) -> tf.Tensor:
    """Changes pictures at random: one warp, then noise.

    Args:
        images: float32 `(B, H, W, 3)`, pixels 0 to 255.
        draws: One per picture.
        config: How strongly; a setting of 0 leaves that change out.

    Returns:
        float32 `(B, H, W, 3)`; noise may lead beyond 0 to 255.
    """
    if config.shift or config.rotation or config.zoom or config.flip:
        images = _warp(images, draws.warp, config)
    if config.noise:
        images += 255.0 * config.noise * draws.noise  # Not clipped: that would brighten dark pictures.
    return images


def _warp(images: tf.Tensor, draws: tf.Tensor, config: AugmentConfig) -> tf.Tensor:
    """Shifts, rotates, zooms and flips in one bilinear resampling; what comes from outside a picture is black."""
    height, width = cast("tuple[int, int]", tuple(images.shape[1:3]))
    signed = 2 * draws - 1
    shift_x, shift_y = signed[:, 0] * config.shift * width, signed[:, 1] * config.shift * height
    angle = signed[:, 2] * math.radians(config.rotation)
    scale = 1 / (1 + signed[:, 3] * config.zoom)
    mirror = tf.where(draws[:, 4] < 0.5, -1.0, 1.0) if config.flip else tf.ones_like(scale)
    # Output pixel (x, y) takes from input pixel (a x + b y + c, d x + e y + f), about the picture's centre.
    a, b = mirror * scale * tf.cos(angle), -scale * tf.sin(angle)
    d, e = mirror * scale * tf.sin(angle), scale * tf.cos(angle)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    c = centre_x - a * centre_x - b * centre_y + shift_x
    f = centre_y - d * centre_x - e * centre_y + shift_y
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, c, d, e, f, zero, zero], axis=1),  # (B, 8)
        output_shape=(height, width),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
