"""Data sources: digits, folders, TFDS; what is accepted, and what is refused with which words."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from vit_keras.export.saved_model import decode_picture
from vit_keras.pipelines.datasets import Split, load_data, median_side
from vit_keras.pipelines.preprocessing import load_pixels

COUNTS = {"a": 10, "b": 20, "c": 30}


def picture(side=8, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype="uint8"))


def write_classes(root, counts=COUNTS):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(seed=i).save(root / name / f"{i:02}.png")
    return root


def class_counts(split):
    return np.bincount(split.labels).tolist()


def files(root, *names):
    return [str(file) for name in names for file in sorted((root / name).iterdir())]


# Digits


def test_digits_are_all_there_once_as_rgb():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    assert data.name == "digits" and data.classes == tuple("0123456789")
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [1077, 360, 360]
    for split in splits:
        assert split.images.dtype == np.uint8 and split.images.shape == (len(split), 8, 8, 3)
        assert split.labels.dtype == np.int32 and split.labels.shape == (len(split),)
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    assert images.min() == 0 and images.max() == 255
    assert (images == images[..., :1]).all()
    digits = load_digits()
    expected = np.rint(digits.images.reshape(1797, 64) / 16 * 255)
    found = np.column_stack([labels, images[..., 0].reshape(1797, 64)])
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, np.column_stack([digits.target, expected]).tolist()))


def test_digits_are_stratified():
    data = load_data("digits")
    splits = [(0.6, data.train), (0.2, data.validation), (0.2, data.test)]
    total = np.sum([class_counts(split) for _, split in splits], axis=0)
    for share, split in splits:
        assert np.abs(np.array(class_counts(split)) - share * total).max() <= 1.2


def test_digits_depend_on_the_seed_alone():
    first, again, other = load_data("digits", seed=3), load_data("digits", seed=3), load_data("digits", seed=4)
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, name).images, getattr(again, name).images)
        np.testing.assert_array_equal(getattr(first, name).labels, getattr(again, name).labels)
        assert not np.array_equal(getattr(first, name).images, getattr(other, name).images)


# Folders: splits


@pytest.mark.parametrize("inside", [".", "train"])
def test_one_split_is_cut_60_20_20_stratified(tmp_path, inside):
    write_classes(tmp_path / "pets" / inside)
    data = load_data(str(tmp_path / "pets"), seed=1)
    assert data.name == "pets" and data.classes == ("a", "b", "c")
    assert class_counts(data.train) == [6, 12, 18]
    assert class_counts(data.validation) == [2, 4, 6]
    assert class_counts(data.test) == [2, 4, 6]
    everything = [*data.train.images, *data.validation.images, *data.test.images]
    assert sorted(everything) == files(tmp_path / "pets" / inside, "a", "b", "c")
    for split in (data.train, data.validation, data.test):
        assert [Path(file).parent.name for file in split.images] == ["abc"[label] for label in split.labels]
    again, other = load_data(str(tmp_path / "pets"), seed=1), load_data(str(tmp_path / "pets"), seed=2)
    assert again.test.images == data.test.images
    assert other.test.images != data.test.images


@pytest.mark.parametrize("second", ["val", "valid", "validation", "test"])
def test_of_two_splits_the_second_is_the_test_split(tmp_path, second):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / second, {"a": 1, "b": 2, "c": 3})
    data = load_data(str(tmp_path))
    assert class_counts(data.train) == [9, 18, 27]
    assert class_counts(data.validation) == [1, 2, 3]
    assert sorted([*data.train.images, *data.validation.images]) == files(tmp_path / "train", "a", "b", "c")
    assert list(data.test.images) == files(tmp_path / second, "a", "b", "c")
    assert data.test.labels.tolist() == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "Validation", "TEST")])
def test_three_splits_are_used_as_given(tmp_path, names):
    for count, name in enumerate(names, 1):
        write_classes(tmp_path / name, {"x": count, "y": 1})
    data = load_data(str(tmp_path))
    assert data.classes == ("x", "y")
    for name, split in zip(names, (data.train, data.validation, data.test), strict=True):
        assert list(split.images) == files(tmp_path / name, "x", "y")
    assert data.test.labels.tolist() == [0, 0, 0, 1]


def test_a_folder_beside_splits_is_named_as_unused(tmp_path, caplog):
    for name in ("train", "test", "extra"):
        write_classes(tmp_path / name, {"x": 10, "y": 10})
    data = load_data(str(tmp_path))
    assert not any("extra" in file for file in (*data.train.images, *data.validation.images, *data.test.images))
    assert str(tmp_path / "extra") in caplog.text


def test_classes_that_differ_between_splits_are_named(tmp_path):
    write_classes(tmp_path / "train", {"cat": 10, "dog": 10})
    write_classes(tmp_path / "test", {"cat": 1, "fox": 1})
    with pytest.raises(ValueError, match=r"\['dog', 'fox'\]") as error:
        load_data(str(tmp_path))
    assert str(tmp_path / "test") in str(error.value)


@pytest.mark.parametrize("counts", [{"a": 1, "b": 20}, {"a": 2, "b": 2}])
def test_too_few_pictures_to_split(tmp_path, counts):
    write_classes(tmp_path / "tiny", counts)
    with pytest.raises(ValueError, match="tiny has too few pictures"):
        load_data(str(tmp_path / "tiny"))


# Folders: names


def test_names_with_spaces_and_other_letters(tmp_path):
    root = tmp_path / "Meine Früchte 果物"
    for name in ("rote Äpfel", "青い 梨"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            picture(seed=i).save(root / name / f"Bild {i} ü.png")
    data = load_data(str(root))
    assert data.name == "Meine Früchte 果物" and data.classes == ("rote Äpfel", "青い 梨")
    assert class_counts(data.train) == [6, 6]
    pixels = load_pixels(data.train, (8, 8)).images
    for file, found in zip(data.train.images, pixels, strict=True):
        np.testing.assert_array_equal(found, np.asarray(Image.open(file)))


def test_strays_and_hidden_folders_are_ignored(tmp_path):
    write_classes(tmp_path)
    expected = files(tmp_path, "a", "b", "c")
    for file in (".DS_Store", "a/.DS_Store", "a/._00.png", "a/Thumbs.db", "b/notes.txt", "README.md"):
        (tmp_path / file).write_bytes(b"no picture")
    for folder in (".git", ".ipynb_checkpoints", "__MACOSX", "__pycache__"):
        (tmp_path / folder).mkdir()
        picture().save(tmp_path / folder / "hidden.png")
    data = load_data(str(tmp_path))
    assert data.classes == ("a", "b", "c")
    assert sorted([*data.train.images, *data.validation.images, *data.test.images]) == expected


def test_classes_may_be_called_what_they_like(tmp_path):
    for i, name in enumerate(("__other__", "_", "a b")):
        (tmp_path / name).mkdir()
        for j in range(6):
            picture(seed=10 * i + j).save(tmp_path / name / f"{j}.png")
    assert load_data(str(tmp_path)).classes == ("_", "__other__", "a b")


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", ".thumbnails/large"])
def test_hidden_folders_inside_a_class_are_ignored(tmp_path, folder):
    write_classes(tmp_path)
    expected = files(tmp_path, "a", "b", "c")
    (tmp_path / "a" / folder).mkdir(parents=True)
    picture().save(tmp_path / "a" / folder / "00-checkpoint.png")
    data = load_data(str(tmp_path))
    assert sorted([*data.train.images, *data.validation.images, *data.test.images]) == expected


def test_upper_case_suffixes_and_folders_in_class_folders_count(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i, suffix in enumerate(["JPG", "Jpeg", "PNG", "BMP", "GIF"]):
            picture(seed=i).save(tmp_path / name / "deeper" / f"{i}.{suffix}")
            picture(seed=i).save(tmp_path / name / f"{i}.{suffix}")
    data = load_data(str(tmp_path))
    everything = [*data.train.images, *data.validation.images, *data.test.images]
    assert len(everything) == 20 and len(set(everything)) == 20
    assert class_counts(data.train) == [6, 6]


# Folders: formats


def smooth_picture():
    y, x = np.mgrid[:24, :32]
    return Image.fromarray(np.stack([x * 8, y * 10, (x + y) * 4], axis=-1).astype("uint8"))


def with_alpha(image):
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 32).astype("uint8"), (24, 1)))
    image = image.copy()
    image.putalpha(alpha)
    return image


LOSSLESS = {
    "rgb.png": lambda image: (image, {}),
    "gray.png": lambda image: (image.convert("L"), {}),
    "gray_alpha.png": lambda image: (with_alpha(image.convert("L")), {}),
    "palette.png": lambda image: (image.quantize(16), {}),
    "palette_transparent.png": lambda image: (image.quantize(16), {"transparency": 0}),
    "one_bit.png": lambda image: (image.convert("1"), {}),
    "rgba.png": lambda image: (with_alpha(image), {}),
    "png_named.jpg": lambda image: (image, {"format": "PNG"}),
    "palette.gif": lambda image: (image.quantize(16), {}),
    "gray.gif": lambda image: (image.convert("L"), {}),
    "animated.gif": lambda image: (
        image.quantize(16),
        {"save_all": True, "append_images": [image.quantize(16).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]},
    ),
    "rgb.bmp": lambda image: (image, {}),
    "gray.bmp": lambda image: (image.convert("L"), {}),
    "rgba.bmp": lambda image: (with_alpha(image), {}),
}
LOSSY = {
    "rgb.jpg": lambda image: (image, {"quality": 95}),
    "progressive.jpg": lambda image: (image, {"quality": 95, "progressive": True}),
    "gray.jpg": lambda image: (image.convert("L"), {"quality": 95}),
    "cmyk.jpg": lambda image: (image.convert("CMYK"), {"quality": 95}),
}


def folder_with(tmp_path, name, image, **options):
    """Two classes of ten good pictures, and one more in the first class."""
    root = write_classes(tmp_path / "pictures", {"x": 10, "y": 10})
    file = root / "x" / name
    image.save(file, **options)
    return root, file


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_formats_decode_as_pil_converts_them(tmp_path, name):
    image, options = {**LOSSLESS, **LOSSY}[name](smooth_picture())
    root, file = folder_with(tmp_path, name, image, **options)
    data = load_data(str(root))
    assert str(file) in {*data.train.images, *data.validation.images, *data.test.images}
    with Image.open(file) as opened:
        expected = np.asarray(opened.convert("RGB"))
    found = load_pixels(Split((str(file),), np.zeros(1, "int32")), (24, 32)).images[0]
    assert found.dtype == np.uint8 and found.shape == (24, 32, 3)
    difference = np.abs(found.astype(int) - expected)
    # TensorFlow's fast cosine transform of JPEGs is a few levels off PIL's exact one.
    assert difference.max() <= (0 if name in LOSSLESS else 8)
    assert difference.mean() <= (0 if name in LOSSLESS else 2)


def test_16_bit_png_keeps_the_high_byte(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (24, 32), dtype="uint16")
    root, file = folder_with(tmp_path, "deep.png", Image.fromarray(values))
    load_data(str(root))
    found = decode_picture(tf.io.read_file(str(file)), (24, 32)).numpy()
    assert np.abs(found.astype(int) - (values >> 8)[..., None].astype(int)).max() <= 1


def test_a_camera_jpeg_with_a_preview_is_accepted(tmp_path):
    root, file = folder_with(
        tmp_path, "camera.jpg", smooth_picture(), format="MPO", save_all=True, append_images=[smooth_picture()]
    )
    data = load_data(str(root))
    assert str(file) in {*data.train.images, *data.validation.images, *data.test.images}


# Folders: bad files


def jpeg_bytes(tmp_path):
    picture(64).save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


def write_bad(file, kind, tmp_path):
    if kind == "text":
        file.write_text("this is no picture\n" * 20)
    elif kind == "truncated":
        data = jpeg_bytes(tmp_path)
        file.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "small":
        picture(1).save(file)
    elif kind == "palette.bmp":
        picture().quantize(16).save(file, format="BMP")
    else:
        picture().save(file, format="WEBP")
    return file


REASONS = {
    "text": "not a picture",
    "truncated": "damaged (",
    "empty": "the file is empty",
    "small": "1x1 pixels, at least 4x4 expected",
    "palette.bmp": "a BMP with a palette",
    "webp": "WEBP inside, not one of JPEG, MPO, PNG, BMP, GIF",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_file_is_named_with_the_reason(tmp_path, kind):
    root = write_classes(tmp_path / "pictures", {"x": 10, "y": 10})
    file = write_bad(root / "x" / f"{kind}.jpg", kind, tmp_path)
    with pytest.raises(ValueError) as error:
        load_data(str(root))
    assert f"1 of 21 files cannot be used as pictures: {file}: {REASONS[kind]}" in str(error.value)


def test_all_bad_files_are_named_at_once(tmp_path):
    root = write_classes(tmp_path / "pictures", {"x": 10, "y": 10})
    bad = {kind: write_bad(root / "y" / f"{kind}.jpg", kind, tmp_path) for kind in REASONS}
    with pytest.raises(ValueError, match="6 of 26 files") as error:
        load_data(str(root))
    for kind, file in bad.items():
        assert f"{file}: {REASONS[kind]}" in str(error.value)


def test_of_many_bad_files_ten_are_named(tmp_path):
    root = write_classes(tmp_path / "pictures", {"x": 10, "y": 10})
    for i in range(13):
        (root / "x" / f"bad{i:02}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="13 of 33 files") as error:
        load_data(str(root))
    assert str(error.value).count("the file is empty") == 10
    assert str(error.value).endswith("; and 3 more. --input.skip_bad goes on without them.")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp"])
def test_what_passes_the_check_can_be_decoded(tmp_path, suffix):
    """However much of its end is missing, a file is either refused by name or decodes."""
    smooth_picture().save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    root = write_classes(tmp_path / "pictures", {"x": 10, "y": 10})
    cut = {}
    for missing in (1, 2, 4, 8, 12, 13, 16, 20, 40, len(data) // 2):
        cut[missing] = root / "x" / f"minus{missing:04}.{suffix}"
        cut[missing].write_bytes(data[:-missing])
    with pytest.raises(ValueError, match="cannot be used as pictures") as error:
        load_data(str(root))
    undecodable = []
    for missing, file in cut.items():
        if str(file) not in str(error.value):
            try:
                decode_picture(tf.constant(file.read_bytes()), (24, 32))
            except tf.errors.InvalidArgumentError:
                undecodable.append(missing)
    assert undecodable == []


# Folders: no data


def test_one_class_is_refused(tmp_path):
    write_classes(tmp_path / "pets", {"cat": 10})
    with pytest.raises(ValueError, match="at least two class folders") as error:
        load_data(str(tmp_path / "pets"))
    assert str(tmp_path / "pets") in str(error.value) and "Received: cat" in str(error.value)


@pytest.mark.parametrize("with_file", [False, True])
def test_no_class_folder_is_refused(tmp_path, with_file):
    if with_file:
        picture().save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="at least two class folders") as error:
        load_data(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "Received: none" in str(error.value)


@pytest.mark.parametrize("stray", [None, "notes.txt", "photo.webp"])
def test_an_empty_class_is_named(tmp_path, stray):
    write_classes(tmp_path, {"cat": 10})
    (tmp_path / "dog").mkdir()
    if stray:
        (tmp_path / "dog" / stray).write_bytes(b"x")
    with pytest.raises(ValueError, match="holds no picture") as error:
        load_data(str(tmp_path))
    assert str(tmp_path / "dog") in str(error.value)


@pytest.mark.parametrize("path", ["{tmp}/none", "./none", "some/none"])
def test_a_missing_folder_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    path = path.format(tmp=tmp_path)
    with pytest.raises(FileNotFoundError, match="No such folder of pictures") as error:
        load_data(path)
    assert path in str(error.value)


def test_a_file_is_no_folder(tmp_path):
    picture().save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="not a file") as error:
        load_data(str(tmp_path / "one.png"))
    assert str(tmp_path / "one.png") in str(error.value)


@pytest.mark.parametrize(
    ("name", "guess"), [("cifar1", "cifar10"), ("digit", "digits"), ("mnits", "mnist"), ("beens", "beans")]
)
def test_an_unknown_name_gives_the_nearest_one(tmp_path, monkeypatch, name, guess):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"Unknown data '{name}'.* Did you mean '{guess}'"):
        load_data(name)


# TFDS


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def write_tfds(name, directory, splits):
    """Prepares a real TFDS dataset of our own examples: `splits` maps a split to its pictures; labels go round."""
    builder = tfds.builder(name, data_dir=directory)
    classes = builder.info.features["label"].num_classes
    Path(builder.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(builder.info, max_examples_per_shard=1000)
    writer.initialize_splits(list(splits))
    for split, pictures in splits.items():
        writer.add_examples({split: [{"image": p, "label": i % classes} for i, p in enumerate(pictures)]})
    writer.close_all()


def noise(count, *shape):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype="uint8")


def test_tfds_gray_pictures_of_one_size(tmp_path, offline):
    train, test = noise(100, 28, 28, 1), noise(20, 28, 28, 1)
    write_tfds("mnist", tmp_path, {"train": train, "test": test})
    data = load_data("mnist", directory=str(tmp_path), seed=5)
    assert data.name == "mnist" and data.classes == tuple("0123456789")
    assert class_counts(data.train) == [9] * 10 and class_counts(data.validation) == [1] * 10
    np.testing.assert_array_equal(data.test.images, np.repeat(test, 3, axis=3))
    assert data.test.labels.dtype == np.int32 and data.test.labels.tolist() == [i % 10 for i in range(20)]
    found = np.concatenate([data.train.images, data.validation.images])
    assert found.dtype == np.uint8 and found.shape == (100, 28, 28, 3)
    assert sorted(p.tobytes() for p in found) == sorted(p.tobytes() for p in np.repeat(train, 3, axis=3))
    again, other = (load_data("mnist", directory=str(tmp_path), seed=seed) for seed in (5, 6))
    np.testing.assert_array_equal(again.train.images, data.train.images)
    assert not np.array_equal(other.train.images, data.train.images)
    assert median_side(data.train) == 28


def test_tfds_three_splits_are_used_as_given(tmp_path, offline):
    write_tfds("beans", tmp_path, {s: noise(n, 500, 500, 3) for s, n in (("train", 6), ("validation", 3), ("test", 3))})
    data = load_data("beans", directory=str(tmp_path))
    assert data.classes == ("angular_leaf_spot", "bean_rust", "healthy")
    assert [split.images.shape for split in (data.train, data.validation, data.test)] == [
        (6, 500, 500, 3),
        (3, 500, 500, 3),
        (3, 500, 500, 3),
    ]
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_tfds_one_split_of_pictures_of_many_sizes(tmp_path, offline):
    y, x = np.mgrid[:80, :80]
    whole = np.stack([x * 3, y * 3, x + y], axis=-1).astype("uint8")
    pictures = [whole[: 20 + i, : 40 - i // 2] for i in range(50)]
    write_tfds("tf_flowers", tmp_path, {"train": pictures})
    data = load_data("tf_flowers", directory=str(tmp_path))
    assert data.classes == ("dandelion", "daisy", "tulips", "sunflowers", "roses")
    assert class_counts(data.train) == [6] * 5
    assert class_counts(data.validation) == [2] * 5 and class_counts(data.test) == [2] * 5
    sizes = []
    for split in (data.train, data.validation, data.test):
        for encoded, label in zip(split.images, split.labels, strict=True):
            assert isinstance(encoded, bytes)
            decoded = tf.io.decode_image(encoded, channels=3).numpy()
            sizes.append(decoded.shape)
            assert label == (decoded.shape[0] - 20) % 5
            assert np.abs(decoded.astype(int) - whole[: decoded.shape[0], : decoded.shape[1]]).max() <= 8
    assert sorted(sizes) == sorted(p.shape for p in pictures)
    assert load_pixels(data.train, (16, 16)).images.shape == (30, 16, 16, 3)
    sides = [min(tf.io.decode_image(encoded).shape[:2]) for encoded in data.train.images]
    assert median_side(data.train) == np.median(sides)


def test_tfds_train_and_validation(tmp_path, offline):
    write_tfds("imagenette", tmp_path, {"train": list(noise(100, 8, 9, 3)), "validation": list(noise(20, 9, 8, 3))})
    data = load_data("imagenette", directory=str(tmp_path))
    assert class_counts(data.train) == [9] * 10 and class_counts(data.validation) == [1] * 10
    assert [tf.io.decode_image(encoded).shape for encoded in data.test.images] == [(9, 8, 3)] * 20
    assert data.test.labels.tolist() == [i % 10 for i in range(20)]


def test_tfds_name_with_a_configuration(tmp_path, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = str(tmp_path / "tfds")
    write_tfds("imagenette/160px-v2", directory, {s: list(noise(100, 8, 8, 3)) for s in ("train", "validation")})
    data = load_data("imagenette/160px-v2", directory=directory)
    assert len(data.train) == 90 and len(data.test) == 100


def test_tfds_that_is_not_prepared_and_cannot_be_downloaded(tmp_path, offline):
    with pytest.raises(ValueError, match="mnist is not prepared in ") as error:
        load_data("mnist", directory=str(tmp_path))
    assert str(tmp_path) in str(error.value) and "--input.dir" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("coco", "has no single picture and label"), ("imdb_reviews", "has no single picture and label")],
)
def test_tfds_without_one_class_per_picture_is_refused_before_a_download(tmp_path, monkeypatch, name, reason):
    downloads = []
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda self, **kwargs: downloads.append(self))
    with pytest.raises(ValueError) as error:
        load_data(name, directory=str(tmp_path))
    assert f"{name} {reason}" in str(error.value)
    assert downloads == []
