"""Decoding, cropping, batches in order, and batches for training: the same for the same seed, epoch and index."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vit_keras.export.framing import Framing
from vit_keras.export.saved_model import decode_picture, fit_picture
from vit_keras.pipelines import preprocessing
from vit_keras.pipelines.config import AugmentConfig
from vit_keras.pipelines.datasets import Split
from vit_keras.pipelines.preprocessing import batches, load_pixels, training_batches

OFF = AugmentConfig(shift=0, rotation=0, zoom=0, noise=0, flip=False)
FULL = AugmentConfig(shift=0.2, rotation=30, zoom=0.2, noise=0.2, flip=True)
COUNT, BATCH = 20, 6
PER_EPOCH = COUNT // BATCH


def smooth(height, width, seed=0):
    """A picture without sharp edges, uint8 `(height, width, 3)`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype="uint8")
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def arrays(count=COUNT, side=8):
    """Pictures that all differ, with their index as the label."""
    return Split(np.stack([smooth(side, side, i) for i in range(count)]), np.arange(count, dtype="int32"))


def as_paths(split, folder):
    folder.mkdir()
    for i, pixels in enumerate(split.images):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return Split(tuple(str(file) for file in sorted(folder.iterdir())), split.labels)


def as_bytes(split):
    return Split(tuple(open(file, "rb").read() for file in split.images), split.labels)


def mixed_files(folder, count=5):
    """Files of many sizes."""
    folder.mkdir()
    files = []
    for i in range(count):
        files.append(str(folder / f"{i}.png"))
        Image.fromarray(smooth(10 + 7 * i, 40 - 5 * i, i)).save(files[-1])
    return Split(tuple(files), np.arange(count, dtype="int32"))


def stream(split, config=OFF, seed=0, epochs=1, first_epoch=0, image_size=(8, 8), batch_size=BATCH):
    """Returns the epochs of a training stream: pixels `(epochs, n, H, W, 3)` and labels `(epochs, n)`."""
    dataset = training_batches(split, image_size, batch_size, config, seed, first_epoch)
    per_epoch = len(split) // batch_size
    taken = list(itertools.islice(dataset.as_numpy_iterator(), epochs * per_epoch))
    images, labels = (np.concatenate(part) for part in zip(*taken, strict=True))
    return images.reshape(epochs, -1, *images.shape[1:]), labels.reshape(epochs, -1)


# One picture


def pil_fit(image, image_size, fraction=1.0, interpolation="bilinear"):
    height, width = image_size
    scale = min(image.height / height, image.width / width) * fraction
    box_height, box_width = max(round(scale * height), 1), max(round(scale * width), 1)
    top, left = (image.height - box_height) // 2, (image.width - box_width) // 2
    box = (left, top, left + box_width, top + box_height)
    return image.crop(box).resize((width, height), Image.Resampling[interpolation.upper()])


@pytest.mark.parametrize("shape", [(64, 64), (48, 100), (101, 37), (9, 200), (7, 5), (30, 40)])
@pytest.mark.parametrize("image_size", [(32, 32), (16, 24), (30, 40), (1, 1)])
def test_centre_crop_and_size_match_pil(tmp_path, shape, image_size):
    Image.fromarray(smooth(*shape)).save(tmp_path / "picture.png")
    found = decode_picture(tf.io.read_file(str(tmp_path / "picture.png")), image_size).numpy()
    expected = np.asarray(pil_fit(Image.open(tmp_path / "picture.png"), image_size))
    assert found.dtype == np.uint8 and found.shape == (*image_size, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(fit_picture(tf.constant(smooth(*shape)), image_size), found)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((10, 20), slice(None), slice(5, 15)),
        ((21, 10), slice(5, 15), slice(None)),
        ((10, 10), slice(None), slice(None)),
    ],
)
def test_a_crop_that_needs_no_resize_keeps_every_pixel(shape, rows, columns):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype="uint8")
    np.testing.assert_array_equal(fit_picture(tf.constant(pixels), (10, 10)), pixels[rows, columns])


def test_shrinking_averages_what_it_drops():
    checkerboard = np.indices((64, 64)).sum(axis=0) % 2 * 255
    pixels = np.repeat(checkerboard[..., None], 3, axis=2).astype("uint8")
    found = fit_picture(tf.constant(pixels), (8, 8)).numpy()[1:-1, 1:-1].astype(int)
    assert np.abs(found - 127.5).max() <= 2


def test_the_size_is_static_inside_a_graph():
    dataset = tf.data.Dataset.from_tensors(tf.constant(b"x")).map(lambda e: decode_picture(e, (6, 9)))
    assert dataset.element_spec == tf.TensorSpec((6, 9, 3), tf.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(100, 80), (60, 90)])
def test_framing_matches_pil(interpolation, shape):
    found = fit_picture(tf.constant(smooth(*shape)), (40, 40), Framing(interpolation, 0.8)).numpy()
    image = Image.fromarray(smooth(*shape))
    expected = np.asarray(pil_fit(image, (40, 40), 0.8, interpolation)).astype(int)
    assert np.abs(found - expected).max() <= 1
    # As published weights expect it: to 40 / 0.8 = 50 pixels, then the middle 40, but for a fraction of a pixel.
    scale = 50 / min(shape)
    large = image.resize((round(shape[1] * scale), round(shape[0] * scale)), Image.Resampling[interpolation.upper()])
    left, top = (large.width - 40) // 2, (large.height - 40) // 2
    published = np.asarray(large.crop((left, top, left + 40, top + 40))).astype(int)
    whole = fit_picture(tf.constant(smooth(*shape)), (40, 40)).numpy()
    assert np.abs(found - published).mean() < 0.3 * np.abs(whole - published).mean()


def test_a_picture_that_has_the_size_is_not_framed():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype="uint8")
    np.testing.assert_array_equal(fit_picture(tf.constant(pixels), (8, 8), Framing("bicubic", 0.5)), pixels)


def test_a_split_is_read_in_its_framing(tmp_path):
    data = replace(mixed_files(tmp_path / "files"), framing=Framing("bicubic", 0.7))
    expected = [decode_picture(tf.io.read_file(f), (12, 10), data.framing).numpy() for f in data.images]
    plain = [decode_picture(tf.io.read_file(f), (12, 10)).numpy() for f in data.images]
    assert any((a != b).any() for a, b in zip(expected, plain, strict=True))
    np.testing.assert_array_equal(load_pixels(data, (12, 10)).images, np.stack(expected))
    found = np.concatenate([images for images, _ in batches(data.take(np.arange(5)), (12, 10), 2).as_numpy_iterator()])
    np.testing.assert_array_equal(found, np.stack(expected))


# In order


def test_batches_keep_the_order(tmp_path):
    split = mixed_files(tmp_path / "files")
    found = list(batches(split, (12, 10), 2).as_numpy_iterator())
    assert [images.shape for images, _ in found] == [(2, 12, 10, 3), (2, 12, 10, 3), (1, 12, 10, 3)]
    assert all(images.dtype == np.float32 and labels.dtype == np.int32 for images, labels in found)
    assert np.concatenate([labels for _, labels in found]).tolist() == [0, 1, 2, 3, 4]
    expected = [decode_picture(tf.io.read_file(file), (12, 10)).numpy() for file in split.images]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in found]), np.stack(expected))


def test_batches_go_round_once_and_again_alike():
    dataset = batches(arrays(), (8, 8), 7)
    first, second = ([labels.tolist() for _, labels in dataset.as_numpy_iterator()] for _ in range(2))
    assert first == [list(range(7)), list(range(7, 14)), list(range(14, 20))]
    assert first == second


def test_load_pixels_equals_batches(tmp_path):
    split = mixed_files(tmp_path / "files", 7)
    loaded = load_pixels(split, (12, 10))
    assert loaded.images.dtype == np.uint8 and loaded.images.shape == (7, 12, 10, 3)
    np.testing.assert_array_equal(loaded.labels, split.labels)
    ((images, _),) = batches(split, (12, 10), 7).as_numpy_iterator()
    np.testing.assert_array_equal(loaded.images, images)
    ((images, _),) = batches(loaded, (12, 10), 7).as_numpy_iterator()
    np.testing.assert_array_equal(loaded.images, images)


def test_load_pixels_leaves_alone_what_is_ready_or_too_large(tmp_path, monkeypatch):
    ready = arrays()
    assert load_pixels(ready, (8, 8)) is ready
    split = mixed_files(tmp_path / "files")
    monkeypatch.setattr(preprocessing, "IN_MEMORY_BYTES", 5 * 12 * 10 * 3)
    assert load_pixels(split, (12, 10)).images.shape == (5, 12, 10, 3)
    monkeypatch.setattr(preprocessing, "IN_MEMORY_BYTES", 5 * 12 * 10 * 3 - 1)
    assert load_pixels(split, (12, 10)) is split


def test_pixels_that_memory_has_no_room_for_are_kept_in_a_file(tmp_path, monkeypatch):
    split = mixed_files(tmp_path / "files", 7)
    expected = load_pixels(split, (12, 10)).images
    monkeypatch.setattr(preprocessing, "IN_MEMORY_BYTES", 0)
    kept = load_pixels(split, (12, 10), tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert isinstance(kept.images, np.memmap)
    np.testing.assert_array_equal(kept.images, expected)
    before = file.stat().st_mtime_ns
    assert isinstance(load_pixels(split, (12, 10), tmp_path / "cache").images, np.memmap)
    assert file.stat().st_mtime_ns == before  # Used, not written again.
    load_pixels(split.take(np.array([1, 0])), (12, 10), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2  # Other pictures are not mistaken for these.
    for value in (0, 255):  # As many pictures, other ones.
        array = Split(np.full((3, 9, 9, 3), value, "uint8"), np.zeros(3, "int32"))
        assert (load_pixels(array, (12, 10), tmp_path / "cache").images == value).all()
    in_memory = replace(split, images=np.array(expected))
    for found, wanted in zip(
        stream(kept, FULL, 3, image_size=(12, 10), batch_size=3),
        stream(in_memory, FULL, 3, image_size=(12, 10), batch_size=3),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def test_a_disk_without_room_is_left_alone(tmp_path, monkeypatch):
    split = mixed_files(tmp_path / "files")
    monkeypatch.setattr(preprocessing, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(preprocessing, "free_bytes", lambda path: 1000)
    assert load_pixels(split, (12, 10), tmp_path / "cache") is split
    monkeypatch.undo()
    monkeypatch.setattr(preprocessing, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(preprocessing, "ON_DISK_BYTES", 100)
    assert load_pixels(split, (12, 10), tmp_path / "cache") is split
    assert not (tmp_path / "cache").exists()


def test_views_of_arrays_are_cached_too(tmp_path, monkeypatch):
    split = arrays(10)
    mirrored = replace(split, images=split.images[..., ::-1])
    monkeypatch.setattr(preprocessing, "IN_MEMORY_BYTES", 0)
    expected = load_pixels(replace(split, images=np.ascontiguousarray(mirrored.images)), (6, 5), tmp_path).images
    np.testing.assert_array_equal(load_pixels(mirrored, (6, 5), tmp_path).images, expected)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("image_size", [(8, 8), (6, 5), (16, 16)])
def test_paths_bytes_and_arrays_give_the_same_batches(tmp_path, image_size):
    pixels = arrays()
    paths = as_paths(pixels, tmp_path / "files")
    for split in (paths, as_bytes(paths)):
        for (images, labels), (expected, expected_labels) in zip(
            batches(split, image_size, 6), batches(pixels, image_size, 6), strict=True
        ):
            np.testing.assert_array_equal(images, expected)
            np.testing.assert_array_equal(labels, expected_labels)
        for found, expected in zip(
            stream(split, FULL, 3, image_size=image_size), stream(pixels, FULL, 3, image_size=image_size), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


# For training


def test_training_batches_have_one_shape_and_type():
    dataset = training_batches(arrays(), (8, 8), BATCH, FULL, seed=0)
    images, labels = next(dataset.as_numpy_iterator())
    assert images.shape == (BATCH, 8, 8, 3) and images.dtype == np.float32  # Noise leads beyond 0 to 255.
    assert labels.shape == (BATCH,) and labels.dtype == np.int32
    assert dataset.element_spec[0].shape == (BATCH, 8, 8, 3)
    assert next(training_batches(arrays(), (8, 8), BATCH, OFF, seed=0).as_numpy_iterator())[0].dtype == np.uint8


@pytest.mark.parametrize("config", [OFF, FULL])
def test_the_same_seed_gives_the_same_stream(config):
    for first, again in zip(stream(arrays(), config, 5, 3), stream(arrays(), config, 5, 3), strict=True):
        np.testing.assert_array_equal(first, again)


def test_epochs_and_seeds_differ():
    _, labels = stream(arrays(), OFF, 5, 4)
    _, other = stream(arrays(), OFF, 6, 4)
    orders = {tuple(epoch) for epoch in (*labels.tolist(), *other.tolist())}
    assert len(orders) == 8


def test_the_same_picture_is_changed_anew_by_epoch_and_seed():
    one = Split(np.repeat(smooth(8, 8)[None], 1, axis=0), np.zeros(1, "int32"))
    seen = [stream(one, FULL, seed, 5, batch_size=1)[0].reshape(5, -1) for seed in range(4)]
    assert len(np.unique(np.concatenate(seen), axis=0)) == 20


@pytest.mark.parametrize("config", [OFF, FULL])
@pytest.mark.parametrize("first_epoch", [1, 2, 4])
def test_a_later_start_goes_on_as_the_uninterrupted_stream_does(config, first_epoch):
    whole_images, whole_labels = stream(arrays(), config, 7, 5)
    images, labels = stream(arrays(), config, 7, 5 - first_epoch, first_epoch)
    np.testing.assert_array_equal(images, whole_images[first_epoch:])
    np.testing.assert_array_equal(labels, whole_labels[first_epoch:])


def test_an_epoch_holds_each_example_at_most_once_and_drops_the_remainder():
    _, labels = stream(arrays(), OFF, 0, 12)
    assert labels.shape == (12, PER_EPOCH * BATCH)
    for epoch in labels:
        assert len(set(epoch.tolist())) == PER_EPOCH * BATCH
    assert set(labels.ravel().tolist()) == set(range(COUNT))


def test_nothing_is_dropped_where_batches_come_out_even():
    _, labels = stream(arrays(18), OFF, 0, 3)
    assert [sorted(epoch) for epoch in labels.tolist()] == [list(range(18))] * 3


def test_without_augmentation_the_pixels_are_unchanged():
    split = arrays()
    images, labels = stream(split, OFF, 1, 3)
    np.testing.assert_array_equal(images, split.images[labels])


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(shift=0.2, rotation=30, zoom=0.2, noise=0, flip=True),
        AugmentConfig(shift=1, rotation=180, zoom=0.9, noise=0),
    ],
)
def test_warped_pictures_stay_in_range(config):
    images, _ = stream(arrays(), config, 2, 3)
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 255


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        AugmentConfig(),
        AugmentConfig(shift=0.2, rotation=0, zoom=0, noise=0),
        AugmentConfig(shift=0, rotation=20, zoom=0, noise=0),
        AugmentConfig(shift=0, rotation=0, zoom=0.2, noise=0),
    ],
)
def test_augmented_pictures_are_all_distinct_even_of_one_picture(config):
    # Noise: of a smooth picture two changes that are almost the same would be rounded to the same pixels.
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype="uint8")
    split = Split(np.repeat(picture[None], COUNT, axis=0), np.arange(COUNT, dtype="int32"))
    images, _ = stream(split, config, 2, 3, image_size=(24, 24))
    images = images.reshape(3 * PER_EPOCH * BATCH, -1)
    assert len(np.unique(images, axis=0)) == len(images)


def test_labels_stay_with_their_pictures_under_augmentation():
    levels = np.arange(COUNT, dtype="uint8") * 12
    split = Split(
        np.broadcast_to(levels[:, None, None, None], (COUNT, 8, 8, 3)).copy(), np.arange(COUNT, dtype="int32")
    )
    images, labels = stream(split, AugmentConfig(shift=0.05, rotation=5, zoom=0.05, noise=0.0), 3, 4)
    np.testing.assert_allclose(images[:, :, 3:5, 3:5].mean(axis=(2, 3, 4)), levels[labels], atol=0.01)


def half_white(count=64):
    images = np.zeros((count, 8, 8, 3), "uint8")
    images[:, :, :4] = 255
    return Split(images, np.arange(count, dtype="int32"))


def test_flip_mirrors_about_half_and_leaves_the_rest():
    split = half_white()
    images, _ = stream(split, AugmentConfig(shift=0, rotation=0, zoom=0, noise=0, flip=True), 0, 2, batch_size=64)
    original = split.images[0].astype("float32")
    same = np.abs(images - original).max(axis=(2, 3, 4)) < 0.01
    mirrored = np.abs(images - original[:, ::-1]).max(axis=(2, 3, 4)) < 0.01
    assert (same ^ mirrored).all()
    assert 40 <= mirrored.sum() <= 88
    assert not np.array_equal(mirrored[0], mirrored[1])


def test_nothing_is_mirrored_unless_asked():
    config = AugmentConfig(shift=0.1, rotation=10, zoom=0.1, noise=0.05, flip=False)
    images, _ = stream(half_white(), config, 0, 2, batch_size=64)
    assert (images[..., 1:3, :].mean(axis=(2, 3, 4)) > images[..., 5:7, :].mean(axis=(2, 3, 4))).all()


def centroid(images):
    """Returns the centre of gravity of the brightness, y and x in pixels, `(n, 2)`."""
    weights = images.mean(axis=-1)
    weights = weights / weights.sum(axis=(1, 2), keepdims=True)
    y, x = np.indices(weights.shape[1:])
    return np.stack([(weights * y).sum(axis=(1, 2)), (weights * x).sum(axis=(1, 2))], axis=1)


def dot(y, x, side=33, count=64):
    images = np.zeros((count, side, side, 3), "uint8")
    images[:, y - 1 : y + 2, x - 1 : x + 2] = 255
    return Split(images, np.arange(count, dtype="int32"))


def test_shift_is_within_its_share_of_the_side_and_goes_all_ways():
    images, _ = stream(
        dot(16, 16), AugmentConfig(shift=0.25, rotation=0, zoom=0, noise=0), 0, image_size=(33, 33), batch_size=64
    )
    moves = centroid(images[0]) - 16
    assert np.abs(moves).max() <= 0.25 * 33 + 0.01
    assert (moves.min(axis=0) < -0.2 * 33).all() and (moves.max(axis=0) > 0.2 * 33).all()
    assert abs(np.corrcoef(moves.T)[0, 1]) < 0.4


def test_rotation_is_within_its_degrees_about_the_centre():
    images, _ = stream(
        dot(16, 28), AugmentConfig(shift=0, rotation=40, zoom=0, noise=0), 0, image_size=(33, 33), batch_size=64
    )
    y, x = (centroid(images[0]) - 16).T
    angles = np.degrees(np.arctan2(y, x))
    np.testing.assert_allclose(np.hypot(y, x), 12, atol=0.2)
    assert np.abs(angles).max() <= 41 and angles.min() < -32 and angles.max() > 32


def test_zoom_is_within_its_share_about_the_centre():
    images, _ = stream(
        dot(16, 26), AugmentConfig(shift=0, rotation=0, zoom=0.3, noise=0), 0, image_size=(33, 33), batch_size=64
    )
    y, x = (centroid(images[0]) - 16).T
    np.testing.assert_allclose(y, 0, atol=0.1)
    assert 0.68 * 10 <= x.min() < 0.76 * 10 and 1.24 * 10 < x.max() <= 1.32 * 10


def test_noise_has_its_deviation_and_is_gray():
    gray = Split(np.full((64, 16, 16, 3), 128, "uint8"), np.arange(64, dtype="int32"))
    images, _ = stream(
        gray, AugmentConfig(shift=0, rotation=0, zoom=0, noise=0.1), 0, image_size=(16, 16), batch_size=64
    )
    noise = images[0] - 128
    np.testing.assert_allclose(noise.std(), 25.5, rtol=0.03)
    assert abs(noise.mean()) < 1
    np.testing.assert_array_equal(noise, np.repeat(noise[..., :1], 3, axis=-1))
    assert np.abs(np.corrcoef(noise[..., 0].reshape(64, -1)) - np.eye(64)).max() < 0.35


# Random crops, order, mixing


def photographs(folder, count=6):
    """JPEGs of several sizes, with all of their colour."""
    folder.mkdir()
    files = []
    for i in range(count):
        files.append(str(folder / f"{i}.jpg"))
        Image.fromarray(smooth(60 + 31 * i, 150 - 13 * i, i)).save(files[-1], quality=95, subsampling=0)
    return Split(tuple(files), np.arange(count, dtype="int32"))


CROP = AugmentConfig("none", crop_area=0.3)


def test_a_crop_out_of_a_jpeg_is_the_crop_of_the_picture(tmp_path):
    files = photographs(tmp_path / "files")
    as_png = tmp_path / "png"
    as_png.mkdir()
    for i, file in enumerate(files.images):
        Image.fromarray(tf.io.decode_jpeg(tf.io.read_file(file)).numpy()).save(as_png / f"{i}.png")
    whole = Split(tuple(str(f) for f in sorted(as_png.iterdir())), files.labels)
    found, labels = stream(files, CROP, 2, 3, image_size=(90, 80), batch_size=3)
    expected, expected_labels = stream(whole, CROP, 2, 3, image_size=(90, 80), batch_size=3)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found.reshape(18, -1), axis=0)) == 18


def test_large_jpegs_are_decoded_smaller(tmp_path):
    file = tmp_path / "large.jpg"
    image = smooth(1024, 1024)
    Image.fromarray(image).save(file, quality=95)
    split = Split((str(file),), np.zeros(1, "int32"))
    found, _ = stream(split, AugmentConfig("none", crop_area=0.9), 0, 4, image_size=(64, 64), batch_size=1)
    array = Split(image[None], np.zeros(1, "int32"))
    expected, _ = stream(array, AugmentConfig("none", crop_area=0.9), 0, 4, image_size=(64, 64), batch_size=1)
    assert np.abs(found.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", [3, 6])
def test_turned_jpegs_are_cropped_upright(tmp_path, orientation):
    file = tmp_path / "turned.jpg"
    image = smooth(60, 90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {3: image[::-1, ::-1], 6: np.rot90(image)}[orientation]
    Image.fromarray(np.ascontiguousarray(stored)).save(file, quality=100, subsampling=0, exif=exif)
    found, _ = stream(Split((str(file),), np.zeros(1, "int32")), CROP, 1, 4, image_size=(40, 40), batch_size=1)
    array = Split(image[None], np.zeros(1, "int32"))
    expected, _ = stream(array, CROP, 1, 4, image_size=(40, 40), batch_size=1)
    assert np.abs(found.astype(int) - expected).mean() < 2


def test_every_picture_of_an_epoch_stands_there_as_often_as_repeated():
    config = AugmentConfig("none", rotation=20.0, repeats=3)
    images, labels = stream(arrays(24, 32), config, 4, 2, image_size=(32, 32), batch_size=6)
    for epoch_images, epoch_labels in zip(images, labels, strict=True):
        values, counts = np.unique(epoch_labels, return_counts=True)
        assert len(values) == 8 and (counts == 3).all()
        assert (epoch_labels.reshape(-1, 3) == epoch_labels[::3, None]).all()
        assert len(np.unique(epoch_images.reshape(24, -1), axis=0)) == 24
    assert set(labels[0]) != set(labels[1])


@pytest.mark.parametrize("config", [OFF, FULL])
def test_a_start_within_an_epoch_goes_on_as_the_uninterrupted_stream_does(config):
    whole = list(itertools.islice(training_batches(arrays(), (8, 8), 6, config, 1).as_numpy_iterator(), 9))
    later = training_batches(arrays(), (8, 8), 6, config, 1, first_epoch=1, first_step=2).as_numpy_iterator()
    for (images, labels), (expected, expected_labels) in zip(itertools.islice(later, 4), whole[5:], strict=True):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, expected_labels)


def test_hosts_share_each_batch_between_them():
    whole = training_batches(arrays(), (8, 8), 6, FULL, 1).as_numpy_iterator()
    parts = [training_batches(arrays(), (8, 8), 2, FULL, 1, shard=(i, 3)).as_numpy_iterator() for i in range(3)]
    for _ in range(7):
        images, labels = next(whole)
        shares = [next(part) for part in parts]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in shares]), images)
        np.testing.assert_array_equal(np.concatenate([y for _, y in shares]), labels)


def skewed():
    split = arrays(100)
    return Split(split.images, np.array([0] * 80 + [1] * 15 + [2] * 5, "int32"))


def test_sampling_draws_all_classes_equally_often():
    dataset = training_batches(skewed(), (8, 8), 50, OFF, 0, balance="sampling")
    labels = np.concatenate([y for _, y in itertools.islice(dataset.as_numpy_iterator(), 20)])
    np.testing.assert_allclose(np.bincount(labels) / len(labels), 1 / 3, atol=0.06)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_picture_that_is_drawn_twice_is_changed_in_two_ways(repeats):
    split = skewed()
    rare = Split(split.images[-20:], np.array([0] * 18 + [1] * 2, "int32"))
    config = AugmentConfig("none", shift=0.2, noise=0.05, repeats=repeats)
    dataset = training_batches(rare, (8, 8), 20, config, 0, balance="sampling")
    images, labels = next(dataset.as_numpy_iterator())
    drawn = [image.tobytes() for image in images[labels == 1]]
    assert len(set(drawn)) == len(drawn) > 4


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_weights_make_all_classes_count_alike(mixup):
    config = AugmentConfig("none", mixup=mixup)
    dataset = training_batches(skewed(), (8, 8), 50, config, 0, num_classes=3, balance="weights")
    _, labels, weights = next(dataset.as_numpy_iterator())
    per_class = np.array([100 / 240, 100 / 45, 100 / 15])
    expected = labels @ per_class if mixup else per_class[labels]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_mixing_needs_the_number_of_classes_and_balance_a_known_name():
    with pytest.raises(ValueError, match="num_classes must be given"):
        training_batches(arrays(), (8, 8), 6, AugmentConfig("none", mixup=0.8), 0)
    with pytest.raises(ValueError, match=r"balance must be one of .*Received: balance='even'"):
        training_batches(arrays(), (8, 8), 6, OFF, 0, balance="even")


@pytest.mark.parametrize(("batch_size", "shard"), [(COUNT + 1, (0, 1)), (COUNT // 2, (1, 3))])
def test_a_batch_that_the_pictures_do_not_fill_is_refused(batch_size, shard):
    """Every epoch would be empty, and the first batch waited for without end."""
    with pytest.raises(ValueError, match=f"batch_size must be at most the 20 pictures.*batch_size={batch_size}"):
        training_batches(arrays(), (8, 8), batch_size, OFF, 0, shard=shard)


def test_the_number_of_threads_changes_nothing():
    config = AugmentConfig("rand_augment")
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    dataset = training_batches(arrays(), (16, 16), 6, config, 1, num_classes=COUNT)
    for (a, b), (c, d) in zip(dataset.take(6), dataset.with_options(options).take(6), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
