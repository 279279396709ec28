"""From a split to `tf.data.Dataset`s of batches: pixels float32 0 to 255, the model normalises."""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from vit_keras.export.files import free_bytes, replacing
from vit_keras.export.saved_model import decode_picture, fit_picture, orientation, upright

from .augment_config import AugmentConfig, Changes
from .augmentation import Plan, change_batch, change_picture, crop_box, plan
from .config import BALANCES
from .datasets import Split, class_weights
from .distribution import Process
from .records import encoded_reader

IN_MEMORY_BYTES = 2**31
"""Splits of up to so many bytes of pixels are decoded once and kept in memory."""
ON_DISK_BYTES = 2**36
"""Larger ones of up to so many are kept on disk."""


def load_pixels(
    split: Split,
    image_size: tuple[int, int],
    folder: str | Path | None = None,
    process: Process | None = None,
) -> Split:
    """Decodes and resizes a split once, in parallel: into memory, or into a file if that is too small.

    Args:
        split: Pictures in any form.
        image_size: Height and width in pixels.
        folder: Where to keep the pixels that `IN_MEMORY_BYTES` have no room for; a whole file that is there already,
            of the same pictures, is used.
        process: This process of several that share the folder; the first one writes the file, the others wait for it.

    Returns:
        The split with uint8 pixels, `(n, H, W, 3)`; unchanged if they have room nowhere: without a folder, or if they
        would take more than `ON_DISK_BYTES` or half of the disk's free space.
    """
    height, width = image_size
    shape = (len(split), height, width, 3)
    if isinstance(split.images, np.ndarray) and split.images.shape[1:3] == (height, width):
        return split
    if math.prod(shape) <= IN_MEMORY_BYTES:
        return replace(split, images=_fill(np.empty(shape, "uint8"), split, image_size))
    if folder is None:
        return split
    file = Path(folder) / f"{_digest(split)}.{height}x{width}.npy"

    def write() -> None:
        if file.exists() or math.prod(shape) > min(ON_DISK_BYTES, free_bytes(folder) // 2):
            return
        with replacing(file) as temporary:
            pixels = np.lib.format.open_memmap(temporary, "w+", "uint8", shape)
            _fill(pixels, split, image_size).flush()

    (process or Process()).first(write)
    if not file.exists():
        return split
    return replace(split, images=np.load(file, mmap_mode="r", allow_pickle=False))


def _fill(pixels: np.ndarray, split: Split, image_size: tuple[int, int]) -> np.ndarray:
    dataset = tf.data.Dataset.range(len(split)).map(_picture_reader(split, image_size), tf.data.AUTOTUNE)
    for i, picture in enumerate(dataset.as_numpy_iterator()):
        pixels[i] = picture
    return pixels


def _digest(split: Split) -> str:
    """Tells other pictures, those in another order, and those in another framing apart."""
    digest = hashlib.blake2b(repr(split.framing).encode(), digest_size=16)
    for i in range(len(split)):
        image = split.images[i]
        if isinstance(image, str):
            facts = Path(image).stat()
            image = f"{image}\n{facts.st_size}\n{facts.st_mtime_ns}\n".encode()
        digest.update(image if isinstance(image, bytes) else np.ascontiguousarray(image).data)
    return digest.hexdigest()


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
    first_step: int = 0,
    num_classes: int | None = None,
    balance: str = "none",
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Returns shuffled and augmented pictures, epoch after epoch without end.

    Order and changes depend on seed, epoch and index alone, not on the number of threads: a training that starts again
    at `first_epoch` and `first_step` sees what an uninterrupted one would have seen.

    Args:
        split: Pictures in any form.
        image_size: Height and width in pixels.
        batch_size: Pictures per batch; what does not fill one is left out of the epoch.
        config: Augmentation.
        seed: Seed of order and augmentation.
        first_epoch: Epoch to start with.
        first_step: Batch of that epoch to start with.
        num_classes: Number of classes; needed with MixUp or CutMix.
        balance: `"none"`, `"sampling"` (pictures of rare classes are drawn more often) or `"weights"` (they weigh more:
            batches have a third part, the weights).
        shard: Number of this host, and how many hosts share each batch: `batch_size` is that of one of them.

    Returns:
        Batches of pixels, uint8 `(batch_size, H, W, 3)`, float32 where noise is added, and labels, int32
        `(batch_size,)`, or with MixUp or CutMix the share of each class, float32 `(batch_size, num_classes)`.

    Raises:
        ValueError: an unknown `balance`, pictures to be mixed without `num_classes`, or fewer pictures than a batch.
    """
    if balance not in BALANCES:
        raise ValueError(f"balance must be one of {', '.join(BALANCES)}. Received: balance={balance!r}")
    changes = config.changes(image_size)
    if changes.mixes and num_classes is None:
        raise ValueError("num_classes must be given with MixUp or CutMix. Received: num_classes=None")
    host, hosts = shard
    if batch_size * hosts > len(split):
        raise ValueError(
            f"batch_size must be at most the {len(split)} pictures, of all hosts together. "
            f"Received: batch_size={batch_size}, shard={shard}"
        )
    classes = num_classes or int(split.labels.max()) + 1
    weights = class_weights(split.labels, classes) if balance != "none" else None
    with tf.device("CPU"):
        labels = tf.constant(split.labels)
        places = tf.constant(Process(host, hosts).training_rows(len(split), batch_size * hosts))
    places = tf.reshape(places, (-1, batch_size))
    order = _Order(split.labels, places, changes.repeats, seed, weights if balance == "sampling" else None)
    read = _cropping_reader(split, image_size, changes)

    def draw(epoch: tf.Tensor, indices: tf.Tensor, numbers: tf.Tensor) -> tuple[tf.Tensor, Plan]:
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        return indices, plan(key, numbers, image_size, changes)

    def load(index: tf.Tensor, own: Plan) -> tuple[tf.Tensor, tf.Tensor, Plan]:
        return change_picture(read(index, own.crop), own, changes), labels[index], own

    dataset = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max)
    dataset = dataset.flat_map(lambda epoch: order(epoch, tf.where(epoch == first_epoch, first_step, 0)))
    # One thread more than cores: a slow picture holds up those behind it. tf.data's own choice was slower, unsteady.
    dataset = (
        dataset.map(draw)
        .prefetch(1)
        .unbatch()
        .map(load, (os.cpu_count() or 1) + 1)
        .batch(batch_size, drop_remainder=True)
    )
    return dataset.map(_finisher(changes, num_classes, weights if balance == "weights" else None)).prefetch(2)


@dataclass(frozen=True)
class _Order:
    """Which pictures stand in which batch of an epoch, of whose order the batches take the `places`, `(steps, B)`."""

    labels: np.ndarray
    places: tf.Tensor
    repeats: int
    seed: int
    weights: np.ndarray | None

    def __call__(self, epoch: tf.Tensor, first_step: tf.Tensor) -> tf.data.Dataset:
        """Returns the batches of an epoch from a step on: the epoch, indices, and what changes are drawn by, `(B,)`.

        That is the picture and which copy of it, wherever these stand; where a picture is drawn as often as it comes,
        it is the place in the epoch.
        """
        count = len(self.labels)
        key = tf.stack([tf.constant(self.seed, tf.int64), epoch])
        if self.weights is None:
            order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), seed=key)
        else:
            edges = np.cumsum(self.weights[self.labels], dtype="float64")
            drawn = tf.random.stateless_uniform((count,), key, dtype=tf.float64) * edges[-1]
            order = tf.searchsorted(tf.constant(edges), drawn, side="right", out_type=tf.int64)
        places = self.places[first_step:]
        indices = tf.gather(order, places // self.repeats)
        copies = tf.math.floormod(places, self.repeats)
        numbers = indices * self.repeats + copies if self.weights is None else places
        return tf.data.Dataset.from_tensor_slices((indices, numbers)).map(lambda i, number: (epoch, i, number))


def _finisher(
    changes: Changes, num_classes: int | None, weights: np.ndarray | None
) -> Callable[[tf.Tensor, tf.Tensor, Plan], tuple[tf.Tensor, ...]]:
    """Returns a function from a batch's pictures, labels and plans to what `model.fit` takes; `weights` by class."""

    def finish(pictures: tf.Tensor, labels: tf.Tensor, own: Plan) -> tuple[tf.Tensor, ...]:
        pictures, targets = change_batch(pictures, labels, own, changes, num_classes)
        if weights is None:
            return pictures, targets
        if changes.mixes:
            return pictures, targets, tf.linalg.matvec(targets, tf.constant(weights))
        return pictures, targets, tf.gather(weights, labels)

    return finish


def _picture_reader(split: Split, image_size: tuple[int, int]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from an index to the pixels of that picture, uint8 `(H, W, 3)`."""
    get = _source(split)
    if isinstance(split.images, np.ndarray):
        if split.images.shape[1:3] == tuple(image_size):
            return get
        return lambda i: fit_picture(get(i), image_size, split.framing)
    return lambda i: decode_picture(get(i), image_size, split.framing)


def _cropping_reader(
    split: Split, image_size: tuple[int, int], changes: Changes
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function from an index and `Plan.crop` to the pixels of a random resized crop, uint8 `(H, W, 3)`.

    Without random crops the framing decides what is cut out.
    """
    if changes.crop_area == 1:
        whole = _picture_reader(split, image_size)
        return lambda i, _crop: whole(i)
    get = _source(split)
    if isinstance(split.images, np.ndarray):
        return lambda i, crop: _crop(get(i), crop, image_size)
    return lambda i, crop: _decode_crop(get(i), crop, image_size)


def _source(split: Split) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from an index to a picture's pixels, uint8 `(h, w, 3)`, or to its file's content."""
    if isinstance(split.images, np.memmap):
        file, shape = split.images, split.images.shape[1:]

        def read(i: np.ndarray) -> np.ndarray:
            return np.asarray(file[i])

        return lambda i: tf.ensure_shape(tf.numpy_function(read, (i,), tf.uint8), shape)
    if isinstance(split.images, np.ndarray):
        with tf.device("CPU"):  # All pictures of a split: the GPU's memory is for the model.
            pixels = tf.constant(np.asarray(split.images))
        return lambda i: pixels[i]
    return encoded_reader(split.images)


def _decode_crop(encoded: tf.Tensor, crop: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Decodes no more of a JPEG than its random crop, and a large one at a fraction of its size."""
    turned = orientation(encoded)

    def fused() -> tf.Tensor:
        box = crop_box(crop, tf.image.extract_jpeg_shape(encoded)[:2])
        spare = _spare(box, image_size)
        halvings = tf.reduce_sum(tf.cast(spare >= [2.0, 4.0, 8.0], tf.int32))
        decoders = [
            lambda ratio=ratio: tf.image.decode_and_crop_jpeg(encoded, _smaller(box, ratio), channels=3, ratio=ratio)
            for ratio in (1, 2, 4, 8)
        ]
        return _resize(tf.switch_case(halvings, decoders), image_size)

    def plain() -> tf.Tensor:
        picture = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return _crop(upright(picture, turned), crop, image_size)

    return tf.cond(tf.io.is_jpeg(encoded) & (turned == 1), fused, plain)


def _smaller(box: tf.Tensor, ratio: int) -> tf.Tensor:
    """Returns a window, int32 `(4,)`, in the pixels of a picture decoded at a fraction: its edges, rounded."""
    if ratio == 1:
        return box
    first, last = (box[:2] + ratio // 2) // ratio, (box[:2] + box[2:] + ratio // 2) // ratio
    return tf.concat([first, last - first], axis=0)


def _crop(picture: tf.Tensor, crop: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Cuts a random resized crop out of a picture, uint8 `(h, w, 3)`."""
    box = crop_box(crop, tf.shape(picture)[:2])
    top, left, height, width = tf.unstack(box)
    cut = picture[top : top + height, left : left + width]
    far = _spare(box, image_size) >= 2
    return tf.cond(far, lambda: _resize(cut, image_size, antialias=True), lambda: _resize(cut, image_size))


def _spare(box: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Returns how many times as large as needed a window is, in that direction where it is least."""
    return tf.reduce_min(tf.cast(box[2:], tf.float32) / tf.constant(image_size, tf.float32))


def _resize(picture: tf.Tensor, image_size: tuple[int, int], antialias: bool = False) -> tf.Tensor:
    """Resizes bilinearly, uint8 to uint8. TensorFlow has a fast way for float32 only."""
    resized = tf.image.resize(tf.cast(picture, tf.float32), image_size, antialias=antialias)
    return tf.ensure_shape(tf.cast(resized + 0.5, tf.uint8), (*image_size, 3))
