"""From a Keras model to a SavedModel for servers, and the one way in which encoded pictures become pixels."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from vit_keras.graph import as_classifier

from .exactness import gives_chances, scores_of
from .files import refuse_existing, replacing
from .framing import Framing
from .structure import flatten


def to_saved_model(
    model: keras.Model, path: str | Path, overwrite: bool = False, framing: Framing | None = None
) -> Path:
    """Exports a classifier as a SavedModel with two signatures, both of a dynamic batch.

    `serving_default` takes `images`, float32 `(B, H, W, 3)` with pixels 0 to 255; `serving_bytes` takes `encoded`,
    strings `(B,)` with the content of JPEG, PNG, GIF or BMP files. Both give `logits` and `probabilities`,
    `(B, num_classes)`.

    Args:
        model: A Keras model from pixels to logits. Mixed precision becomes float32.
        path: The folder to write.
        overwrite: Whether to replace a folder that is there already.
        framing: How `serving_bytes` brings pictures to the model's size.

    Returns:
        The path.

    Raises:
        FileExistsError: the folder exists and `overwrite` is false.
    """
    path = refuse_existing(path, overwrite)
    model = as_classifier(model)
    if any(part.dtype_policy.name != "float32" for part in model._flatten_layers()):
        model = flatten(model, own_norms=False)
    image_size = model.input_shape[1:3]

    are_chances = gives_chances(scores_of(model))

    def serve(images):
        scores = model(images, training=False)
        if are_chances:  # By a softmax that cannot be taken off: their logarithms are logits.
            return {"logits": tf.math.log(tf.maximum(scores, 1e-37)), "probabilities": scores}
        return {"logits": scores, "probabilities": tf.nn.softmax(scores)}

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

    The picture is turned upright as its EXIF block says, the middle with the right proportions is cut out and resized
    with antialiasing. Gray, palette and CMYK pictures become RGB, alpha is dropped, of 16 bits the higher 8 are kept,
    of an animation the first frame is taken.

    Args:
        encoded: Scalar string: content of a JPEG, PNG, GIF or BMP file.
        image_size: Height and width of the result, in pixels.
        framing: How much of the middle is kept, and how it is resized.

    Returns:
        uint8 `(H, W, 3)`.
    """
    picture = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return fit_picture(upright(picture, orientation(encoded)), image_size, framing)


_EXIF = r"(?:Exif\x00\x00|eXIf)"  # In front of the block in a JPEG and in a PNG.
_TURNED = (
    r"\C*" + _EXIF + r"\C*"
    r"(?:\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]\x00|\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08])\C*"
)
_HEAD_BYTES = 4096
"""EXIF comes first in a JPEG file, and the orientation among its first entries."""


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads from a picture file's EXIF block how the camera was held; the pixels are not decoded.

    A picture that stands upright costs one regular expression over the file's first 4 KB.

    Args:
        encoded: Scalar string: content of a picture file.

    Returns:
        int32 scalar, 1 (upright) to 8; 1 where the file does not say, or says something else.

    Reference:
        Exif 2.32, section 4.6.4, tag 0x0112; TIFF 6.0, section 2, image file directories.
    """
    head = tf.strings.substr(encoded, 0, _HEAD_BYTES)
    return tf.cond(tf.strings.regex_full_match(head, _TURNED), lambda: _read_orientation(head), lambda: 1)


def _read_orientation(head: tf.Tensor) -> tf.Tensor:
    """Looks the tag up in the first image file directory, whatever its byte order: the second is the preview's."""
    block = tf.strings.regex_replace(head, r"^\C*?" + _EXIF, "", replace_global=False)
    block = tf.pad(tf.cast(tf.io.decode_raw(block, tf.uint8), tf.int64), [[0, 32]])
    little = block[0] == ord("I")
    low, high = tf.where(little, block[:-1], block[1:]), tf.where(little, block[1:], block[:-1])
    words = low + 256 * high  # The 16-bit number at every byte.
    start = tf.where(little, words[4] + 65536 * words[6], words[6] + 65536 * words[4])
    last = tf.size(words, tf.int64) - 32
    start = tf.minimum(start, last)
    entries = start + 2 + 12 * tf.range(tf.minimum(words[start], (last - start) // 12))
    found = (tf.gather(words, entries) == 0x0112) & (tf.gather(words, entries + 2) == 3)
    value = tf.reduce_max(tf.where(found, tf.gather(words, entries + 8), 0))
    return tf.where((value >= 1) & (value <= 8), tf.cast(value, tf.int32), 1)


def upright(picture: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns and mirrors a picture so that it stands as it was seen; one that does already is passed on as it is.

    Args:
        picture: `(h, w, channels)`.
        orientation: int32 scalar, 1 to 8, as EXIF has it.

    Returns:
        `(h, w, channels)`, or `(w, h, channels)` from orientation 5 on.
    """

    def turned() -> tf.Tensor:
        transposed = tf.cond(orientation >= 5, lambda: tf.transpose(picture, (1, 0, 2)), lambda: picture)
        is_one_of = [tf.reduce_any(orientation == tf.constant(values)) for values in ((3, 4, 7, 8), (2, 3, 6, 7))]
        return tf.raw_ops.Reverse(tensor=transposed, dims=tf.stack([*is_one_of, False]))

    result = tf.cond(orientation == 1, lambda: picture, turned)
    result.set_shape((None, None, picture.shape[-1]))
    return result


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
