"""From a split to `tf.data.Dataset`s of batches: pixels float32 0 to 255, the model normalises."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from vit_keras.export.saved_model import decode_picture, fit_picture

from .augmentation import augment, draw
from .config import AugmentConfig
from .datasets import Split

IN_MEMORY_BYTES = 2**31
"""Splits of up to so many bytes of pixels are decoded once and kept in memory."""


def load_pixels(split: Split, image_size: tuple[int, int]) -> Split:
    """Decodes and resizes a split once, in parallel, where it fits into memory.

    Args:
        split: Pictures in any form.
        image_size: Height and width in pixels.

    Returns:
        The split with uint8 pixels, `(n, H, W, 3)`; unchanged if they would take more than `IN_MEMORY_BYTES`.
    """
    height, width = image_size
    if isinstance(split.images, np.ndarray) and split.images.shape[1:3] == (height, width):
        return split
    if len(split) * height * width * 3 > IN_MEMORY_BYTES:
        return split
    dataset = tf.data.Dataset.range(len(split)).map(_picture_reader(split, image_size), tf.data.AUTOTUNE)
    pixels = np.empty((len(split), height, width, 3), "uint8")
    for i, picture in enumerate(dataset.as_numpy_iterator()):
        pixels[i] = picture
    return Split(pixels, split.labels, split.framing)


def batches(split: Split, image_size: tuple[int, int], batch_size: int) -> tf.data.Dataset:
    """Returns the pictures in their order, for evaluation.

    Args:
        split: Pictures in any form.
        image_size: Height and width in pixels.
        batch_size: Pictures per batch; the last may be smaller.

    Returns:
        Batches of pixels, float32 `(B, H, W, 3)`, and labels, int32 `(B,)`.
    """
    dataset = tf.data.Dataset.range(len(split)).map(_picture_reader(split, image_size), tf.data.AUTOTUNE)
    dataset = tf.data.Dataset.zip((dataset, tf.data.Dataset.from_tensor_slices(split.labels)))
    return dataset.batch(batch_size).map(lambda x, y: (tf.cast(x, tf.float32), y)).prefetch(tf.data.AUTOTUNE)


def training_batches(
    split: Split,
    image_size: tuple[int, int],
    batch_size: int,
    config: AugmentConfig,
    seed: int,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Returns shuffled and augmented pictures, epoch after epoch without end.

    Order and changes depend on seed, epoch and index alone: a training that starts again at `first_epoch` sees what
    an uninterrupted one would have seen.

    Args:
        split: Pictures in any form.
        image_size: Height and width in pixels.
        batch_size: Pictures per batch; what does not fill one is left out of the epoch.
        config: Augmentation.
        seed: Seed of order and augmentation.
        first_epoch: Epoch to start with.

    Returns:
        Batches of pixels, float32 `(batch_size, H, W, 3)`, and labels, int32 `(batch_size,)`.
    """
    count = len(split)
    labels = tf.constant(split.labels)
    read = _picture_reader(split, image_size)

    def examples(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.cast(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), seed=key)
        order = order[: count - count % batch_size]
        return tf.data.Dataset.from_tensor_slices(order).map(lambda index: (epoch, index))

    def load(epoch: tf.Tensor, index: tf.Tensor):
        return read(index), labels[index], draw(seed, epoch, index, image_size, config)

    dataset = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max).flat_map(examples)
    dataset = dataset.map(load, tf.data.AUTOTUNE).batch(batch_size, drop_remainder=True)
    dataset = dataset.map(lambda x, y, draws: (augment(tf.cast(x, tf.float32), draws, config), y), tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _picture_reader(split: Split, image_size: tuple[int, int]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from an index to the pixels of that picture, uint8 `(H, W, 3)`."""
    images = tf.constant(split.images)
    if images.dtype == tf.uint8:
        if tuple(images.shape[1:3]) == tuple(image_size):
            return lambda i: images[i]
        return lambda i: fit_picture(images[i], image_size, split.framing)
    if isinstance(split.images[0], bytes):
        return lambda i: decode_picture(images[i], image_size, split.framing)
    return lambda i: decode_picture(tf.io.read_file(images[i]), image_size, split.framing)
