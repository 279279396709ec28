"""From a Keras model to a SavedModel for servers, and the one way in which encoded pictures become pixels."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from .files import refuse_existing, replacing
from .framing import Framing


def to_saved_model(
    model: keras.Model, path: str | Path, overwrite: bool = False, framing: Framing | None = None
) -> Path:
    """Exports a classifier as a SavedModel with two signatures, both of a dynamic batch.

    `serving_default` takes `images`, float32 `(B, H, W, 3)` with pixels 0 to 255; `serving_bytes` takes `encoded`,
    strings `(B,)` with the content of JPEG, PNG, GIF or BMP files. Both give `logits` and `probabilities`,
    `(B, num_classes)`.

    Args:
        model: A Keras model from pixels to logits.
        path: The folder to write.
        overwrite: Whether to replace a folder that is there already.
        framing: How `serving_bytes` brings pictures to the model's size.

    Returns:
        The path.

    Raises:
        FileExistsError: the folder exists and `overwrite` is false.
    """
    path = refuse_existing(path, overwrite)
    image_size = model.input_shape[1:3]

    def serve(images):
        logits = model(images, training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    def serve_bytes(encoded):
        pixels = tf.map_fn(lambda e: decode_picture(e, image_size, framing), encoded, fn_output_signature=tf.uint8)
        return serve(tf.cast(pixels, tf.float32))

    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")]
    archive.add_endpoint("serving_default", serve, signature)
    archive.add_endpoint("serving_bytes", serve_bytes, [tf.TensorSpec((None,), tf.string, name="encoded")])
    with replacing(path) as temporary, quiet_tensorflow():
        archive.write_out(str(temporary), verbose=False)
    return path


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Keeps TensorFlow's "Assets written to" from the user's screen."""
    tensorflow_logger = tf.get_logger()
    level = tensorflow_logger.level
    tensorflow_logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        tensorflow_logger.setLevel(level)


def decode_picture(encoded: tf.Tensor, image_size: tuple[int, int], framing: Framing | None = None) -> tf.Tensor:
    """Turns the content of a picture file into pixels of the size that a model takes.

    The middle with the right proportions is cut out and resized with antialiasing. Gray, palette and CMYK pictures
    become RGB, alpha is dropped, of an animation the first frame is taken.

    Args:
        encoded: Scalar string: content of a JPEG, PNG, GIF or BMP file.
        image_size: Height and width of the result, in pixels.
        framing: How much of the middle is kept, and how it is resized.

    Returns:
        uint8 `(H, W, 3)`.
    """
    return fit_picture(tf.io.decode_image(encoded, channels=3, expand_animations=False), image_size, framing)


def fit_picture(picture: tf.Tensor, image_size: tuple[int, int], framing: Framing | None = None) -> tf.Tensor:
    """Cuts the middle out of a uint8 picture, `(h, w, 3)`, and resizes it to `image_size`, `(H, W, 3)`."""
    height, width = image_size
    framing = framing or Framing()
    shape = tf.shape(picture)
    scale = tf.minimum(shape[0] / height, shape[1] / width)
    ready = tf.reduce_all(shape[:2] == image_size)
    scale *= tf.where(ready, tf.ones_like(scale), tf.cast(framing.crop_fraction, scale.dtype))
    box = tf.cast(tf.maximum(tf.round([scale * height, scale * width]), 1), tf.int32)
    offset = (shape[:2] - box) // 2
    picture = tf.slice(picture, [offset[0], offset[1], 0], [box[0], box[1], 3])
    picture = tf.image.resize(picture, image_size, framing.interpolation, antialias=True)
    return tf.ensure_shape(tf.saturate_cast(tf.round(picture), tf.uint8), (height, width, 3))
