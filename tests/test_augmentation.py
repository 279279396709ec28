"""What is drawn for a picture: within bounds, as often as it should be, and the same for the same index."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from vit_keras.pipelines import augmentation
from vit_keras.pipelines.augmentation import RAND_AUGMENT_OPS, change_batch, change_picture, crop_box, plan
from vit_keras.pipelines.config import POLICIES, AugmentConfig
from vit_keras.pipelines.transforms import TABLE_OPS

COUNT = 2000
SIZE = (32, 48)


def drawn(count=COUNT, epoch=0, image_size=SIZE, **settings):
    config = AugmentConfig(**settings).changes(image_size)
    key = tf.constant([3, epoch], tf.int64)
    graph = tf.function(lambda indices: plan(key, indices, image_size, config), autograph=False)
    return graph(tf.range(count, dtype=tf.int64)), config


def test_an_index_draws_the_same_in_any_company():
    config = AugmentConfig("rand_augment").changes(SIZE)
    key = tf.constant([3, 1], tf.int64)
    all_of_them = plan(key, tf.range(20, dtype=tf.int64), SIZE, config)
    some = plan(key, tf.constant([7, 2], tf.int64), SIZE, config)
    for name, together, alone in zip(all_of_them._fields, all_of_them, some, strict=True):
        np.testing.assert_array_equal(tf.gather(together, [7, 2]), alone, err_msg=name)


def test_one_setting_leaves_the_draws_of_others_alone():
    one, _ = drawn(50, policy="rand_augment")
    other, _ = drawn(50, policy="rand_augment", erasing=0.9, mixup=0.0, rotation=20.0)
    for name in ("crop", "flip", "ops", "strengths", "saturation", "mix"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert (one.warp.numpy() != other.warp.numpy()).any() and (one.erase.numpy() != other.erase.numpy()).any()


def test_every_operation_is_drawn_equally_often_and_applied_half_of_the_time():
    own, _ = drawn(policy="none", rand_augment=9.0)
    ops = own.ops.numpy().ravel()
    expected = len(ops) * 0.5 / len(RAND_AUGMENT_OPS)
    counts = np.array([(ops == index).sum() for index in range(len(RAND_AUGMENT_OPS))])
    assert (ops == -1).mean() == pytest.approx(0.5, abs=0.03)
    assert stats.chisquare(counts, np.full(len(counts), counts.mean())).pvalue > 1e-3
    assert counts.mean() == pytest.approx(expected, rel=0.05)


def test_strengths_follow_the_magnitude():
    index = {name: TABLE_OPS.index(name) for name in TABLE_OPS}
    for magnitude in (2.0, 9.0):
        own, _ = drawn(policy="none", rand_augment=magnitude)
        ops, strengths = own.ops.numpy(), own.strengths.numpy()
        levels = strengths[ops == index["posterize"]]
        assert levels.mean() == pytest.approx(magnitude / 10, abs=0.02) and levels.max() <= 1 and levels.std() < 0.07
        factors = strengths[ops == index["brightness"]]
        np.testing.assert_allclose(np.abs(factors - 1).mean(), 0.09 * magnitude, rtol=0.1)
        assert 0.3 < (factors > 1).mean() < 0.7 and factors.min() >= 0.1 - 1e-6


def test_rand_augment_turns_shears_and_shifts_as_far_as_timm():
    own, _ = drawn(policy="none", rand_augment=10.0, rand_augment_ops=1)
    maps, warped = own.warp.numpy(), own.warped.numpy()
    assert warped.mean() == pytest.approx(0.5 * 5 / 15, abs=0.03)
    angles = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
    rotated = np.abs(maps[:, 0, 1] + maps[:, 1, 0]) < 1e-6
    assert np.abs(angles[rotated]).max() == pytest.approx(30, abs=0.5)
    assert np.abs(maps[~rotated][:, :2, :2] - np.eye(2)).max() == pytest.approx(0.3, abs=0.01)
    assert np.abs(maps[:, 0, 2]).max() == pytest.approx(0.45 * 48, rel=0.01)
    assert np.abs(maps[:, 1, 2]).max() == pytest.approx(0.45 * 32, rel=0.01)


def test_three_augment_does_one_thing_to_every_picture():
    own, _ = drawn(policy="none", three_augment=True)
    gray, blurred = own.saturation.numpy() == 0, own.blur.numpy() > 0
    solarized = own.ops.numpy()[:, 0] == TABLE_OPS.index("solarize")
    assert (gray.astype(int) + blurred + solarized == 1).all()
    for share in (gray, blurred, solarized):
        assert share.mean() == pytest.approx(1 / 3, abs=0.04)
    deviations = own.blur.numpy()[blurred]
    assert deviations.min() >= 0.1 and deviations.max() <= 2.0 and deviations.max() > 1.9


def test_jitter_stays_within_its_share():
    own, _ = drawn(policy="none", color_jitter=0.3)
    names = [TABLE_OPS[index] for index in own.ops.numpy()[0]]
    assert names == ["brightness", "contrast"]
    for factors in (*own.strengths.numpy().T, own.saturation.numpy()):
        assert 0.7 <= factors.min() < 0.72 and 1.28 < factors.max() <= 1.3


def test_erased_boxes_have_their_share_and_size():
    own, _ = drawn(policy="none", erasing=0.25)
    top, bottom, left, right = own.erase.numpy().T
    assert top.min() >= 0 and left.min() >= 0 and bottom.max() <= SIZE[0] and right.max() <= SIZE[1]
    area = (bottom - top) * (right - left) / (SIZE[0] * SIZE[1])
    assert (area > 0).mean() == pytest.approx(0.25, abs=0.03)
    assert area[area > 0].min() > 0.01 and area.max() < 0.36
    assert own.colour.numpy().min() >= 0 and 250 < own.colour.numpy().max() <= 255


def test_crops_have_inceptions_area_and_proportions():
    own, _ = drawn(policy="crop_flip")
    shape = tf.constant([375, 500])
    top, left, height, width = np.array([crop_box(crop, shape) for crop in own.crop[:600]]).T
    assert min(top.min(), left.min()) >= 0 and (top + height).max() <= 375 and (left + width).max() <= 500
    area = height * width / (375 * 500)
    assert 0.075 < area.min() < 0.1 and 0.8 < area.max() <= 1
    assert area.mean() == pytest.approx(0.54, abs=0.05)
    ratio = (width / height)[area < 0.5]
    assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    assert abs(np.corrcoef(top / (376 - height), left / (501 - width))[0, 1]) < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (4, 900), (900, 4)])
def test_crops_of_odd_pictures_lie_inside(shape):
    own, _ = drawn(50, policy="crop_flip")
    for crop in own.crop:
        top, left, height, width = crop_box(crop, tf.constant(shape)).numpy()
        assert 0 <= top < top + height <= shape[0] and 0 <= left < left + width <= shape[1]


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_follow_their_distribution(alpha):
    uniform = tf.constant((np.arange(1000) + 0.5) / 1000, tf.float32)
    shares = augmentation._beta(uniform, alpha).numpy()
    np.testing.assert_allclose(shares, stats.beta(alpha, alpha).ppf(uniform), atol=2e-4)


def batch_of(config, epoch, num_classes=4):
    """Flat pictures, one gray value a class, as change_batch leaves them."""
    own = plan(tf.constant([0, epoch], tf.int64), tf.range(4, dtype=tf.int64), SIZE, config)
    values = np.array([0, 80, 160, 240])
    pictures = np.broadcast_to(values[:, None, None, None], (4, *SIZE, 3)).astype("uint8")
    images, labels = change_batch(tf.constant(pictures), tf.range(4), own, config, num_classes)
    return values, images.numpy().astype(float), labels.numpy()


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_labels_are_mixed_as_the_pixels_are(settings):
    config = AugmentConfig("none", **settings).changes(SIZE)
    cut = []
    for epoch in range(12):
        values, images, labels = batch_of(config, epoch)
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), labels @ values, atol=0.6)
        cut.append(images[0].std() > 0)
    assert {"mixup": not any(cut), "cutmix": sum(cut) > 6}.get("".join(settings), 0 < sum(cut) < 12)


def test_labels_stay_whole_numbers_where_nothing_is_mixed():
    config = AugmentConfig("rand_augment", mixup=0.0, cutmix=0.0).changes(SIZE)
    _, _, labels = batch_of(config, 0)
    assert labels.tolist() == [0, 1, 2, 3] and labels.dtype == np.int32


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_give_pictures(policy):
    config = AugmentConfig(policy).changes(SIZE)
    own = plan(tf.constant([0, 0], tf.int64), tf.range(8, dtype=tf.int64), SIZE, config)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (8, *SIZE, 3), dtype="uint8")
    changed = [
        change_picture(tf.constant(p), augmentation.Plan(*(x[i] for x in own)), config) for i, p in enumerate(pictures)
    ]
    images, _ = change_batch(tf.stack(changed), tf.zeros(8, tf.int32), own, config, 10)
    assert images.shape == pictures.shape and images.dtype == (tf.float32 if config.noise else tf.uint8)
    assert (images.numpy() == pictures).all() == (policy == "none")


def test_settings_replace_those_of_the_policy():
    resolved = AugmentConfig("rand_augment", erasing=0.0, rand_augment=5).resolved((8, 8))
    assert resolved.erasing == 0.0 and resolved.rand_augment == 5 and resolved.mixup == 0.8 and resolved.flip is True
    assert None not in dataclasses.asdict(resolved).values()
    assert resolved.resolved((224, 224)) == resolved
    assert AugmentConfig().resolved((16, 16)).noise == 0.15 and AugmentConfig().resolved((17, 17)).noise == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "heavy"},
        {"crop_area": 0},
        {"crop_area": 1.1},
        {"fill": 256},
        {"rand_augment": 11},
        {"rand_augment_ops": 0},
        {"color_jitter": -0.1},
        {"erasing": 1.5},
        {"mixup": -1},
        {"repeats": 0},
    ],
)
def test_wrong_settings_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"augment\.{name} must be .*Received: augment\.{name}={value}"):
        AugmentConfig(**wrong)
