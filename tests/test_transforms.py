"""Each change of pixels against Pillow's, SciPy's, TensorFlow's own, or arithmetic."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from vit_keras.pipelines import transforms
from vit_keras.pipelines.transforms import (
    STATISTICAL_OPS,
    TABLE_OPS,
    affine_maps,
    blur,
    compose_tables,
    erase,
    histograms,
    look_up,
    mix,
    saturate,
    sharpen,
    warp,
)


def picture(seed=0, side=48):
    """A picture with dark and bright parts, and not the whole range of values."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20 + 10 * seed, 200 + 10 * seed, (6, 6, 3), dtype="uint8")
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def tabled(image, *operations):
    """Applies operations by table, each a name and a strength."""
    ops = tf.constant([[TABLE_OPS.index(name) for name, _ in operations]])
    strengths = tf.constant([[strength for _, strength in operations]], tf.float32)
    return look_up(image[None], compose_tables(ops, strengths, histograms(image[None])))[0].numpy()


PILLOW = {
    "auto_contrast": (0.5, ImageOps.autocontrast),
    "equalize": (0.5, ImageOps.equalize),
    "invert": (0.5, ImageOps.invert),
    "posterize": (0.55, lambda image: ImageOps.posterize(image, 2)),
    "solarize": (0.5, lambda image: ImageOps.solarize(image, 128)),
    "contrast": (1.7, lambda image: ImageEnhance.Contrast(image).enhance(1.7)),
    "brightness": (0.3, lambda image: ImageEnhance.Brightness(image).enhance(0.3)),
}


@pytest.mark.parametrize("name", PILLOW)
def test_tables_are_pillows(name):
    strength, reference = PILLOW[name]
    for image in (picture(0), picture(4)):
        expected = np.asarray(reference(Image.fromarray(image))).astype(int)
        found = tabled(image, (name, strength)).astype(int)
        assert np.abs(found - expected).max() <= 1
        assert np.abs(expected - image).max() > 20


def test_solarize_add_brightens_what_is_dark():
    image = picture()
    expected = np.where(image < 128, np.minimum(image + 55, 255), image)
    np.testing.assert_array_equal(tabled(image, ("solarize_add", 0.5)), expected)


def test_tables_are_composed_in_their_order():
    image = picture()
    for first, second in (("invert", "solarize_add"), ("contrast", "equalize"), ("posterize", "auto_contrast")):
        strengths = {"contrast": 1.5}
        one = tabled(image, (first, strengths.get(first, 0.5)))
        expected = tabled(one, (second, strengths.get(second, 0.5)))
        both = tabled(image, *((name, strengths.get(name, 0.5)) for name in (first, second)))
        np.testing.assert_array_equal(both, expected)
        swapped = tabled(image, *((name, strengths.get(name, 0.5)) for name in (second, first)))
        assert (swapped != both).any()


def test_a_table_that_does_nothing_changes_nothing():
    images = np.stack([picture(0), picture(1)])
    ops = tf.constant([[-1, -1], [len(TABLE_OPS), -1]])
    tables = compose_tables(ops, tf.ones((2, 2)), histograms(images))
    np.testing.assert_array_equal(look_up(images, tables), images)


def test_without_histograms_the_operations_that_need_none_are_the_same():
    ops = tf.constant([[index, other] for index in range(len(TABLE_OPS)) for other in (-1, 2)])
    strengths = tf.fill(tf.shape(ops), 0.7)
    counts = histograms(tf.repeat(picture()[None], len(ops), axis=0))
    found, read = compose_tables(ops, strengths).numpy(), compose_tables(ops, strengths, counts).numpy()
    for i, name in enumerate(TABLE_OPS[index] for index in ops[:, 0].numpy()):
        if name in STATISTICAL_OPS:
            plain = compose_tables(tf.stack([[-1, ops[i, 1]]]), strengths[:1]).numpy()[0]
            np.testing.assert_array_equal(found[i], plain)
            assert (read[i] != found[i]).any(), name
        else:
            np.testing.assert_array_equal(found[i], read[i])


def test_pictures_of_a_batch_have_tables_of_their_own():
    images = np.stack([picture(0), picture(1), picture(2)])
    ops = tf.constant([[TABLE_OPS.index(name)] for name in ("equalize", "invert", "brightness")])
    found = look_up(images, compose_tables(ops, tf.constant([[0.5], [0.5], [0.5]]), histograms(images))).numpy()
    for image, result, name in zip(images, found, ("equalize", "invert", "brightness"), strict=True):
        np.testing.assert_array_equal(result, tabled(image, (name, 0.5)))


def test_histograms_count_every_channel():
    images = np.stack([picture(0), picture(1)])
    expected = [[np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)] for image in images]
    np.testing.assert_array_equal(histograms(images), expected)


def test_histograms_of_large_pictures_are_samples(monkeypatch):
    image = picture(0, 96)
    whole = tabled(image, ("equalize", 0.5)).astype(int)
    monkeypatch.setattr(transforms, "_STATISTICS_SIDE", 32)
    sampled = histograms.python_function(image[None])
    assert sampled.numpy().sum() == 3 * 32 * 32
    ops = tf.constant([[TABLE_OPS.index("equalize")]])
    found = look_up(image[None], compose_tables(ops, tf.ones((1, 1)), sampled))[0].numpy().astype(int)
    assert np.abs(found - whole).mean() < 4 < np.abs(found - image).mean()


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.8])
def test_saturation_is_pillows(factor):
    image = picture()
    expected = np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor)).astype(int)
    found = saturate(image[None], tf.constant([factor]))[0].numpy().astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (factor == 1.0) == (found == image).all()


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.9])
def test_sharpness_is_pillows(factor):
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype="uint8")
    expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor)).astype(int)
    found = sharpen(tf.constant(image), tf.constant(factor - 1)).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.0])
def test_blur_is_a_gaussian(deviation):
    image = np.random.default_rng(0).integers(0, 256, (30, 26, 3), dtype="uint8")
    expected = gaussian_filter(image.astype(float), (deviation, deviation, 0), mode="mirror", radius=6)
    found = blur(tf.constant(image), tf.constant(deviation)).numpy()
    assert np.abs(found - expected).max() <= 1


def test_blur_takes_pictures_smaller_than_its_kernel():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype="uint8")
    found = blur(tf.constant(image), tf.constant(2.0)).numpy()
    assert found.shape == image.shape and found.std() < image.std() / 2


def maps(**given):
    values = {"angle": 0.0, "shear_x": 0.0, "shear_y": 0.0, "scale": 1.0, "x": 0.0, "y": 0.0, **given}
    return affine_maps(**{name: tf.constant([value], tf.float32) for name, value in values.items()})[0]


@pytest.mark.parametrize(
    "given",
    [
        {"x": 5.25, "y": -3.5},
        {"angle": 0.4},
        {"scale": 1.3},
        {"scale": 0.6, "angle": -2.0},
        {"shear_x": 0.3},
        {"shear_y": -0.3, "x": 40.0},
    ],
)
def test_a_warp_is_tensorflows(given):
    image, matrix = picture(side=40)[:, :32], maps(**given)
    about = tf.constant([[1, 0, 15.5], [0, 1, 19.5], [0, 0, 1]], tf.float32)
    flat = tf.reshape(about @ matrix @ tf.linalg.inv(about), (-1,))[:8]
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image[None], tf.float32),
        transforms=flat[None],
        output_shape=image.shape[:2],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=90.0,
    )[0].numpy()
    found = warp(tf.constant(image), matrix, 90).numpy()
    assert found.dtype == np.uint8 and found.shape == image.shape
    assert np.abs(found - expected).max() <= 1.5
    assert (found != image).mean() > 0.5


def test_the_identity_warps_nothing_and_flat_pictures_stay_flat():
    image = picture()
    np.testing.assert_array_equal(warp(tf.constant(image), maps(), 0), image)
    flat = np.full((20, 20, 3), (3, 130, 255), "uint8")
    np.testing.assert_array_equal(warp(tf.constant(flat), maps(angle=0.3, scale=0.5), 0)[5:15, 5:15], flat[5:15, 5:15])


def test_maps_turn_shear_and_shift_as_they_say():
    point = np.array([1.0, 2.0, 1.0])
    np.testing.assert_allclose(maps(x=3.0, y=-1.0) @ point[:, None], [[4], [1], [1]], atol=1e-6)
    np.testing.assert_allclose(maps(angle=math.pi / 2) @ point[:, None], [[-2], [1], [1]], atol=1e-6)
    np.testing.assert_allclose(maps(shear_x=0.5) @ point[:, None], [[2], [2], [1]], atol=1e-6)
    np.testing.assert_allclose(maps(shear_y=0.5) @ point[:, None], [[1], [2.5], [1]], atol=1e-6)
    np.testing.assert_allclose(maps(scale=2.0) @ point[:, None], [[2], [4], [1]], atol=1e-6)


def test_erasing_paints_boxes_and_nothing_else():
    images = np.stack([picture(0), picture(1)])
    boxes = tf.constant([[10, 20, 5, 48], [7, 7, 0, 48]])
    colours = tf.constant([[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]])
    expected = images.copy()
    expected[0, 10:20, 5:48] = (1, 2, 3)
    np.testing.assert_array_equal(erase(images, boxes, colours), expected)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_mixing_weighs_and_cuts(dtype):
    images = np.stack([picture(i) for i in range(3)]).astype(dtype)
    none = tf.constant([0, 0, 0, 0])
    found = mix(images, tf.constant(0.25), none).numpy()
    assert found.dtype == dtype
    np.testing.assert_allclose(found, 0.25 * images + 0.75 * images[::-1], atol=0.51 if dtype == "uint8" else 1e-3)
    expected = images.copy()
    expected[:, 4:9, 0:30] = images[::-1, 4:9, 0:30]
    np.testing.assert_array_equal(mix(images, tf.constant(1.0), tf.constant([4, 9, 0, 30])), expected)
