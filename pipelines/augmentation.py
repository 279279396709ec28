"""Random changes of training pictures. Every draw is a function of seed, epoch and index, and of nothing else.

What is drawn becomes numbers first (`plan`): one affine map for all geometric changes, one table of 256 values a
channel for all pointwise ones, one saturation, however many operations there are. Then each picture is filtered,
mirrored, warped and recoloured (`change_picture`), and the batch is noised, erased and mixed (`change_batch`). The
order is always this one: filters, geometry, tables, saturation, noise, erasing, mixing.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from .augment_config import Changes
from .transforms import (
    STATISTICAL_OPS,
    TABLE_OPS,
    affine_maps,
    blur,
    compiled,
    compose_tables,
    erase,
    histograms,
    look_up,
    mix,
    saturate,
    sharpen,
    size_of,
    warp,
)

RAND_AUGMENT_OPS = (
    *TABLE_OPS,
    *("saturation", "sharpness", "rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
)
"""RandAugment's operations: timm's set with strengths that increase, which DeiT was trained with."""
_APPLIED = 0.5  # As there, an operation that was drawn is applied half of the time,
_MAGNITUDE_DEVIATION = 0.5  # and its magnitude is drawn from a normal distribution.
_NOTHING = -1
_QUANTILES = 2**14
_ERASED_AREA = (0.02, 1 / 3)  # Random erasing: share of the picture,
_ERASED_RATIO = (0.3, 1 / 0.3)  # and height by width.

# Numbers in [0, 1) that are drawn for a picture, by what they decide: fixed places, so that switching one change on or
# off leaves the draws of the others as they were.
_LANES = {"crop": 4, "flip": 1, "warp": 4, "three": 2, "jitter": 3, "erase": 8, "mix": 4}
_LANES_PER_OP = 4


class Plan(NamedTuple):
    """What shall happen to a picture, or with a leading batch axis to several. S is the number of tables.

    Attributes:
        crop: Height and width of the random crop over the root of the picture's area, and how far down and right of
            where it can lie, in [0, 1); `(4,)`.
        flip: Whether to mirror left to right.
        sharpness: Factor of sharpness minus 1; 0 for none.
        blur: Deviation of a Gaussian blur in pixels; 0 for none.
        warp: From output to input positions about the centre, `(3, 3)`.
        warped: Whether that is anything but the identity.
        ops: Operations by table, in order, int32 `(S,)`: indices into `TABLE_OPS`, others for none.
        strengths: Their strengths, `(S,)`.
        saturation: Factor of saturation; 1 for none.
        erase: Top, bottom, left and right of the erased box in pixels, int32 `(4,)`.
        colour: Its colour, 0 to 255, `(3,)`.
        mix: Numbers in [0, 1) for MixUp or CutMix, the share, and the box's centre, `(4,)`: a batch follows its first.
        key: Key of the noise, int64 `(2,)`.
    """

    crop: tf.Tensor
    flip: tf.Tensor
    sharpness: tf.Tensor
    blur: tf.Tensor
    warp: tf.Tensor
    warped: tf.Tensor
    ops: tf.Tensor
    strengths: tf.Tensor
    saturation: tf.Tensor
    erase: tf.Tensor
    colour: tf.Tensor
    mix: tf.Tensor
    key: tf.Tensor


# What is drawn


@compiled
def plan(key: tf.Tensor, indices: tf.Tensor, image_size: tuple[int, int], changes: Changes) -> Plan:
    """Draws for several pictures.

    Args:
        key: Seed and epoch, int64 `(2,)`.
        indices: Of the pictures, int64 `(B,)`: the same index in the same epoch draws the same.
        image_size: Height and width of the changed pictures, in pixels.
        changes: Which, and how strongly.
    """
    num_ops = changes.rand_augment_ops if changes.rand_augment else 0
    num_lanes = sum(_LANES.values()) + _LANES_PER_OP * num_ops

    def draw(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        own = tf.random.experimental.stateless_fold_in(key, index)
        return tf.random.stateless_uniform((num_lanes,), own), own

    signature = (tf.TensorSpec((num_lanes,), tf.float32), tf.TensorSpec((2,), tf.int64))
    lanes, keys = tf.map_fn(draw, indices, fn_output_signature=signature)  # (B, num_lanes), (B, 2)
    *parts, slots = tf.split(lanes, [*_LANES.values(), _LANES_PER_OP * num_ops], axis=1)
    drawn = dict(zip(_LANES, parts, strict=True))
    op, level, sign = _rand_augment(tf.reshape(slots, (tf.shape(indices)[0], num_ops, _LANES_PER_OP)), changes)

    def strength(name: str, scale: float) -> tf.Tensor:
        """What an operation does in every slot, `(B, S)`; 0 where another one is drawn."""
        return tf.where(op == RAND_AUGMENT_OPS.index(name), scale * level * sign, 0.0)

    maps = _maps(drawn["warp"], strength, num_ops, image_size, changes)
    choice = tf.cast(drawn["three"][:, 0] * 3, tf.int32) if changes.three_augment else tf.fill(tf.shape(indices), -1)
    jitter = 1 + changes.color_jitter * (2 * drawn["jitter"] - 1)
    factor = tf.where((op == TABLE_OPS.index("contrast")) | (op == TABLE_OPS.index("brightness")), 0.9 * sign, 0.0)
    ops, strengths = _tables(choice, jitter, op, tf.where(factor == 0, level, 1 + factor * level), changes)
    saturation = jitter[:, 2] * tf.reduce_prod(1 + strength("saturation", 0.9), axis=1)
    box, colour = _erased(drawn["erase"], image_size, changes)
    return Plan(
        crop=_cropped(drawn["crop"], changes),
        flip=tf.logical_and(drawn["flip"][:, 0] < 0.5, changes.flip),
        sharpness=tf.reduce_prod(1 + strength("sharpness", 0.9), axis=1) - 1,
        blur=tf.where(choice == 2, 0.1 + 1.9 * drawn["three"][:, 1], 0.0),
        warp=maps,
        warped=tf.reduce_any(tf.abs(maps - tf.eye(3)) > 1e-6, axis=(1, 2)),
        ops=ops,
        strengths=strengths,
        saturation=tf.where(choice == 0, 0.0, saturation),
        erase=box,
        colour=colour,
        mix=drawn["mix"],
        key=keys,
    )


def _cropped(drawn: tf.Tensor, changes: Changes) -> tf.Tensor:
    """Returns `Plan.crop` of several pictures, `(B, 4)`: area and proportions drawn as in Inception's training.

    Reference:
        Szegedy et al., "Going Deeper with Convolutions" (arXiv:1409.4842), section 6.
    """
    side = tf.sqrt(changes.crop_area + (1 - changes.crop_area) * drawn[:, :1])
    stretch = tf.exp((drawn[:, 1:2] - 0.5) * math.log(4 / 3))  # Root of the proportions, which lie in 3/4 to 4/3.
    return tf.concat([side / stretch, side * stretch, drawn[:, 2:]], axis=1)


def _rand_augment(slots: tf.Tensor, changes: Changes) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns operations, levels in 0 to 1 and signs, each `(B, S)`."""
    which, applied, strength, sign = tf.unstack(slots, axis=2)
    op = tf.cast(which * len(RAND_AUGMENT_OPS), tf.int32)
    op = tf.where(applied < _APPLIED, op, _NOTHING)
    normal = tf.math.ndtri(tf.clip_by_value(strength, 1e-6, 1 - 1e-6))
    level = tf.clip_by_value(changes.rand_augment + _MAGNITUDE_DEVIATION * normal, 0.0, 10.0) / 10
    return op, level, tf.where(sign < 0.5, -1.0, 1.0)


def _maps(drawn: tf.Tensor, strength, num_ops: int, image_size: tuple[int, int], changes: Changes) -> tf.Tensor:
    """Composes all geometric changes, `(B, 3, 3)`."""
    height, width = image_size
    signed = 2 * drawn - 1
    none = tf.zeros_like(signed[:, 0])
    maps = affine_maps(
        angle=signed[:, 2] * math.radians(changes.rotation),
        shear_x=none,
        shear_y=none,
        scale=1 / (1 + signed[:, 3] * changes.zoom),
        x=signed[:, 0] * changes.shift * width,
        y=signed[:, 1] * changes.shift * height,
    )
    angle, shear_x, shear_y = strength("rotate", math.pi / 6), strength("shear_x", 0.3), strength("shear_y", 0.3)
    x, y = strength("translate_x", 0.45 * width), strength("translate_y", 0.45 * height)
    for s in range(num_ops):
        maps @= affine_maps(angle[:, s], shear_x[:, s], shear_y[:, s], none + 1, x[:, s], y[:, s])
    return maps


def _tables(
    choice: tf.Tensor, jitter: tf.Tensor, op: tf.Tensor, strength: tf.Tensor, changes: Changes
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns all operations by table and their strengths, `(B, S)` each: 3-Augment's, the jitter's, RandAugment's."""
    like = tf.zeros_like(choice)
    ops, strengths = [op], [strength]
    if not changes.recolours:  # One that does nothing, for TensorFlow dies of unbatching a tensor without size.
        ops, strengths = [tf.fill(tf.shape(jitter[:, :1]), _NOTHING)], [jitter[:, :1]]
    if changes.color_jitter:
        ops.insert(0, tf.stack([like + TABLE_OPS.index(name) for name in ("brightness", "contrast")], axis=1))
        strengths.insert(0, jitter[:, :2])
    if changes.three_augment:
        ops.insert(0, tf.where(choice == 1, TABLE_OPS.index("solarize"), _NOTHING)[:, None])
        strengths.insert(0, tf.fill(tf.shape(ops[0]), 0.5))
    return tf.concat(ops, axis=1), tf.concat(strengths, axis=1)


def _erased(drawn: tf.Tensor, image_size: tuple[int, int], changes: Changes) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the boxes that random erasing paints over, int32 `(B, 4)`, empty for most, and their colours `(B, 3)`."""
    size = tf.constant([image_size], tf.float32)  # (1, 2)
    low, high = _ERASED_AREA
    area = (low + (high - low) * drawn[:, 1:2]) * image_size[0] * image_size[1]
    low, high = (math.log(ratio) / 2 for ratio in _ERASED_RATIO)
    stretch = tf.exp(low + (high - low) * drawn[:, 2:3])
    side = tf.minimum(tf.sqrt(area) * tf.concat([stretch, 1 / stretch], axis=1), size)  # (B, 2)
    side *= tf.where(drawn[:, :1] < changes.erasing, 1.0, 0.0)
    start = drawn[:, 3:5] * (size - side)
    edges = tf.stack([start, start + side], axis=2)  # (B, 2, 2): top and bottom, left and right
    return tf.cast(tf.reshape(edges, (-1, 4)) + 0.5, tf.int32), 255 * drawn[:, 5:8]


# What is done


def crop_box(crop: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Returns the window of a random resized crop: top, left, height and width in pixels, int32 `(4,)`.

    A window that would stick out is cut to the picture, where other code draws again.

    Args:
        crop: `Plan.crop` of one picture.
        shape: Height and width of the picture, int32 `(2,)`.
    """
    size = tf.cast(shape, tf.float32)
    box = tf.clip_by_value(tf.round(tf.sqrt(tf.reduce_prod(size)) * crop[:2]), 1.0, size)
    return tf.cast(tf.concat([crop[2:] * (size - box + 1), box], axis=0), tf.int32)


def change_picture(picture: tf.Tensor, own: Plan, changes: Changes) -> tf.Tensor:
    """Filters, mirrors, warps and recolours one picture, uint8 `(H, W, 3)`; what is not drawn costs nothing."""
    if changes.rand_augment:
        picture = tf.cond(own.sharpness == 0, lambda p=picture: p, lambda p=picture: sharpen(p, own.sharpness))
    if changes.three_augment:
        picture = tf.cond(own.blur == 0, lambda p=picture: p, lambda p=picture: blur(p, own.blur))
    if changes.flip:
        picture = tf.cond(own.flip, lambda p=picture: tf.reverse(p, (1,)), lambda p=picture: p)
    if changes.warps:
        picture = tf.cond(own.warped, lambda p=picture: warp(p, own.warp, changes.fill), lambda p=picture: p)
    if changes.recolours:
        tabled = tf.reduce_any((own.ops >= 0) & (own.ops < len(TABLE_OPS)))
        picture = tf.cond(tabled, lambda p=picture: _tabled(p, own), lambda p=picture: p)
        picture = tf.cond(
            own.saturation == 1, lambda p=picture: p, lambda p=picture: saturate(p[None], own.saturation[None])[0]
        )
    return picture


def _tabled(picture: tf.Tensor, own: Plan) -> tf.Tensor:
    """Applies the operations by table to one picture, uint8 `(H, W, 3)`, of which there is at least one."""
    reads = tf.reduce_any(own.ops[:, None] == [TABLE_OPS.index(name) for name in STATISTICAL_OPS])
    tables = tf.cond(
        reads,
        lambda: compose_tables(own.ops[None], own.strengths[None], histograms(picture[None])),
        lambda: compose_tables(own.ops[None], own.strengths[None]),
    )  # (1, 3, 256)
    return look_up(picture[None], tables)[0]


def change_batch(
    pictures: tf.Tensor, labels: tf.Tensor, own: Plan, changes: Changes, num_classes: int | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds noise, erases and mixes.

    Args:
        pictures: uint8 `(B, H, W, 3)`.
        labels: int32 `(B,)`.
        own: One plan per picture.
        changes: Which, and how strongly.
        num_classes: Number of classes; needed where pictures are mixed.

    Returns:
        Pictures, uint8, or float32 where noise was added (it may lead beyond 0 to 255), `(B, H, W, 3)`; labels as they
        were, or, mixed, the share of every class, float32 `(B, num_classes)`.
    """
    x = pictures
    if changes.noise:
        shape = (*size_of(pictures), 1)
        noise = tf.map_fn(lambda key: tf.random.stateless_normal(shape, key), own.key, fn_output_signature=tf.float32)
        x = tf.cast(x, tf.float32) + 255.0 * changes.noise * noise  # Not clipped: that would brighten dark pictures.
    if changes.erasing:
        x = erase(x, own.erase, own.colour)
    if changes.mixes:
        share, box, label_share = _mixing(own.mix[0], size_of(pictures), changes)
        x = mix(x, share, box)
        labels = tf.one_hot(labels, num_classes)
        labels = label_share * labels + (1 - label_share) * tf.reverse(labels, (0,))
    return x, labels


def _mixing(drawn: tf.Tensor, image_size: tuple[int, int], changes: Changes) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns how a batch is mixed: a picture's share, the box that it has no share in, and its label's share.

    Reference:
        MixUp: Zhang et al. (arXiv:1710.09412). CutMix: Yun et al. (arXiv:1905.04899), section 3.1.
    """
    cut = drawn[0] < (0.5 if changes.mixup else 1.0) if changes.cutmix else tf.constant(False)
    share = tf.where(cut, _beta(drawn[1], changes.cutmix), tf.round(256 * _beta(drawn[1], changes.mixup)) / 256)
    size = tf.constant(list(image_size), tf.float32)
    half = tf.sqrt(1 - share) * size / 2
    centre = drawn[2:] * size
    edges = tf.round(tf.clip_by_value(tf.stack([centre - half, centre + half], axis=1), 0.0, size[:, None]))  # (2, 2)
    edges *= tf.cast(cut, tf.float32)
    inside = tf.reduce_prod((edges[:, 1] - edges[:, 0]) / size)  # The box may have been cut off at an edge.
    return (
        tf.where(cut, 1.0, share),
        tf.cast(tf.reshape(edges, (4,)), tf.int32),
        tf.where(cut, 1 - inside, share),
    )


def _beta(uniform: tf.Tensor, alpha: float) -> tf.Tensor:
    """Turns a number in [0, 1) into one of the distribution Beta(alpha, alpha), by its quantiles."""
    from scipy.special import betaincinv

    if not alpha:
        return tf.ones_like(uniform)
    quantiles = tf.constant(betaincinv(alpha, alpha, np.linspace(0, 1, _QUANTILES + 1)), tf.float32)
    place = uniform * _QUANTILES
    index = tf.cast(place, tf.int32)
    low, high = tf.gather(quantiles, index), tf.gather(quantiles, index + 1)
    return low + (high - low) * (place - tf.floor(place))
