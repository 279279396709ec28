"""Data from CSV files, arrays, .npz and TFRecord files; bad files left out; class weights."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from vit_keras.pipelines import tfds_data
from vit_keras.pipelines.datasets import Split, class_weights, from_arrays, load_data, median_side
from vit_keras.pipelines.preprocessing import batches, load_pixels
from vit_keras.pipelines.records import Records, encoded_reader, index_records


def noise(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype="uint8")


def png(pixels):
    return tf.io.encode_png(pixels).numpy()


def counts(split):
    return np.bincount(split.labels).tolist()


# CSV


@pytest.fixture
def listed(tmp_path):
    """Twenty pictures, and a function that writes a CSV file beside them and returns its path."""
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(noise(20, 8, 8, 3)):
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}, ä.png")

    def write(lines, name="pets.csv", encoding="utf-8"):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding=encoding)
        return str(tmp_path / name)

    return write


def line(i, label, *more):
    return ",".join([f'"pictures/{i}, ä.png"', str(label), *more])


def test_csv_is_cut_as_a_folder_is(listed, tmp_path, monkeypatch):
    path = listed(["Label,extra,path", *(f'{"ab"[i % 2]},x,"pictures/{i}, ä.png"' for i in range(20))])
    monkeypatch.chdir("/")  # Paths are as seen from the file.
    data = load_data(path, seed=1)
    assert data.name == "pets" and data.classes == ("a", "b")
    assert [counts(s) for s in (data.train, data.validation, data.test)] == [[6, 6], [2, 2], [2, 2]]
    for split in (data.train, data.validation, data.test):
        for file, label in zip(split.images, split.labels, strict=True):
            assert Path(file).parent == tmp_path / "pictures" and int(Path(file).name.split(",")[0]) % 2 == label
    assert load_data(path, seed=1).test.images == data.test.images
    assert load_data(path, seed=2).test.images != data.test.images


def test_csv_with_splits_and_a_byte_order_mark(listed):
    words = ["test", "VAL", "train", "Train"]
    path = listed(["path,label,split", *(line(i, i % 3, words[i % 4]) for i in range(20)), ""], encoding="utf-8-sig")
    data = load_data(path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [10, 5, 5]
    assert data.classes == ("0", "1", "2")
    assert data.test.labels.tolist() == [i % 3 for i in range(0, 20, 4)]


def test_numbers_as_classes_are_in_their_order(listed):
    assert load_data(listed(["path,label", *(line(i, [10, 9, "x"][i % 3]) for i in range(20))])).classes == (
        "9",
        "10",
        "x",
    )


def test_an_absolute_path_in_a_csv(listed, tmp_path):
    other = tmp_path / "lists"
    other.mkdir()
    rows = [f'"{tmp_path}/pictures/{i}, ä.png",{i % 2}' for i in range(20)]
    (other / "a.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert len(load_data(str(other / "a.csv")).train) == 12


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a.png,x"], "first line must name the columns path and label. Received: file,label"),
        (["path,label", "a.png,x", "b.png"], "line 3: 2 columns expected, 1 found"),
        (["path,label", "a.png,x", "", "b.png,x,y"], "line 4: 2 columns expected, 3 found"),
        (["path,label", "a.png,x", "b.png, "], "line 3: a path and a label are needed"),
        (["path,label,split", "a.png,x,train", "b.png,y,dev"], "line 3: split must be train, val or test, not 'dev'"),
        (["path,label,split", "a.png,x,"], "line 2: split must be train, val or test, not ''"),
        (["path,label", "a.png,x", "b.png,x", "a.png,y"], "line 4: a.png is y here and x above"),
        (["path,label", "a.png,x", 'b.png,"x'], "pets.csv cannot be used"),
        (["path,label", "a.png,x", "b.png,x"], "at least two classes. Received: classes=['x']"),
        (["path,label,split", "a.png,x,test", "b.png,y,test"], "at least two classes. Received: classes=[]"),
        (["path,label,split", "a,x,train", "b,y,train", "c,z,val"], "none of ['z'], in validation"),
        (["path,label"], "at least two classes"),
        ([""], "first line must name"),
    ],
)
def test_a_wrong_csv_is_named_with_the_line(listed, lines, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_data(listed(lines))
    assert "pets.csv" in str(error.value)


def test_all_wrong_lines_of_a_csv_are_counted(listed):
    with pytest.raises(ValueError, match=r"line 2: .*line 11: .*; and 5 more"):
        load_data(listed(["path,label", *[",x"] * 15]))


def test_a_csv_in_another_encoding_or_missing(listed, tmp_path):
    with pytest.raises(ValueError, match=r"pets.csv must be text in UTF-8"):
        load_data(listed(["path,label", line(0, "x")], encoding="latin-1"))
    with pytest.raises(FileNotFoundError, match=r"No such file of pictures: none\.csv"):
        load_data("none.csv")


def test_files_that_a_csv_lists_and_that_are_not_there(listed, tmp_path):
    rows = [line(i, i % 2) for i in range(20)]
    path = listed(["path,label", *rows, "none.png,1"])
    missing = f"{tmp_path / 'none.png'}: there is no such file"
    with pytest.raises(ValueError, match=re.escape(f"1 of 21 files cannot be used as pictures: {missing}")):
        load_data(path)
    data = load_data(path, skip_bad=True)
    assert [f"{bad.picture}: {bad.fault}" for bad in data.skipped] == [missing]
    assert len(data.train) + len(data.validation) + len(data.test) == 20


# Bad files left out


def write_classes(root, count=10):
    for label, name in enumerate(("x", "y")):
        (root / name).mkdir(parents=True)
        for i, pixels in enumerate(noise(count, 8, 8, 3, seed=label)):
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_bad_files_are_left_out_where_asked(tmp_path, caplog):
    root = write_classes(tmp_path / "pets")
    (root / "x" / "bad.png").write_bytes(b"no picture")
    (root / "y" / "empty.jpg").write_bytes(b"")
    data = load_data(str(root), skip_bad=True)
    assert [counts(s) for s in (data.train, data.validation, data.test)] == [[6, 6], [2, 2], [2, 2]]
    used = {*data.train.images, *data.validation.images, *data.test.images}
    assert len(used) == 20 and not {"bad.png", "empty.jpg"} & {Path(file).name for file in used}
    assert [(Path(bad.picture).name, bad.fault) for bad in data.skipped] == [
        ("bad.png", "not a picture"),
        ("empty.jpg", "the file is empty"),
    ]
    assert "2 of 22 files cannot be used as pictures and are left out" in caplog.text
    assert str(root / "x" / "bad.png") in caplog.text


def test_a_class_that_is_left_empty_is_an_error(tmp_path):
    for split in ("train", "test"):
        write_classes(tmp_path / split)
    for file in (tmp_path / "test" / "y").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"10 of 40 files .* no picture in test is left of: y"):
        load_data(str(tmp_path), skip_bad=True)


# Arrays


def test_arrays_as_keras_gives_them():
    x, y, test = noise(60, 9, 8), np.arange(60) % 3, noise(6, 9, 8)
    data = from_arrays(x, y, test, np.arange(6)[:, None] % 3, classes=["a", "b", "c"], seed=4)
    assert data.name == "arrays" and data.classes == ("a", "b", "c")
    assert counts(data.train) == [18] * 3 and counts(data.validation) == [2] * 3
    np.testing.assert_array_equal(data.test.images, np.repeat(test[..., None], 3, axis=3))
    assert data.test.labels.dtype == np.int32 and data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    used = np.concatenate([data.train.images, data.validation.images])[..., 0]
    assert sorted(p.tobytes() for p in used) == sorted(p.tobytes() for p in x)


def test_three_splits_of_arrays_are_used_as_given():
    parts = [noise(4, 8, 8, 3, seed=i) for i in range(3)]
    data = from_arrays(parts[0], [0, 1] * 2, x_val=parts[1], y_val=[1] * 4, x_test=parts[2], y_test=[0] * 4)
    for split, expected in zip((data.train, data.validation, data.test), parts, strict=True):
        np.testing.assert_array_equal(split.images, expected)
    assert data.classes == ("0", "1")


def test_depth_and_channels_of_arrays_are_made_uniform():
    deep = np.random.default_rng(0).integers(0, 65536, (20, 8, 8, 1), dtype="uint16")
    data = from_arrays(deep, np.arange(20) % 2, noise(2, 8, 8, 4), [0, 1])
    assert data.train.images.dtype == np.uint8 and data.train.images.shape == (18, 8, 8, 3)
    assert {p.tobytes() for p in data.train.images[..., 1]} <= {p.tobytes() for p in (deep >> 8).astype("uint8")}
    np.testing.assert_array_equal(data.test.images, noise(2, 8, 8, 4)[..., :3])


GOOD = {"x_train": noise(20, 8, 8), "y_train": np.arange(20) % 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": GOOD["x_train"] / 255}, "x_train must be uint8 (0 to 255) or uint16; (255 * x)"),
        ({"x_train": GOOD["x_train"].astype("int64")}, "Received: x_train.dtype=int64"),
        ({"x_train": noise(20, 64)}, "Received: x_train.shape=(20, 64)"),
        ({"x_train": noise(20, 8, 8, 2)}, "Received: x_train.shape=(20, 8, 8, 2)"),
        ({"x_train": noise(20, 3, 8, 8)}, "x_train.shape=(20, 3, 8, 8)"),
        ({"y_train": np.arange(19) % 2}, "y_train must be 20 integers"),
        ({"y_train": np.eye(2)[np.arange(20) % 2]}, "y_train.dtype=float64"),
        ({"y_train": np.arange(20) % 2 - 1}, "Received: -1 to 0"),
        ({"y_train": np.arange(20) % 2 * 2}, "none of 1"),
        ({"y_train": np.zeros(20, int)}, "at least two classes"),
        ({"x_test": noise(2, 8, 8)}, "x_test and y_test must be given together"),
        ({"x_test": noise(2, 8, 8), "y_test": [0, 2]}, "none of 2"),
        ({"x_test": noise(0, 8, 8), "y_test": np.zeros(0, int)}, "none in test"),
        ({"classes": ["a"]}, "must be 0 to 0. Received: 0 to 1"),
        ({"classes": ["a", "b", "c"]}, "none of c"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_arrays(**{**GOOD, **change})


def test_npz_in_the_layout_of_keras(tmp_path):
    np.savez(tmp_path / "mine.npz", **GOOD, x_test=GOOD["x_train"][:4], y_test=[0, 1, 0, 1], classes=["cat", "dög"])
    data = load_data(str(tmp_path / "mine.npz"))
    assert data.name == "mine" and data.classes == ("cat", "dög")
    assert len(data.train) == 18 and len(data.validation) == 2
    np.testing.assert_array_equal(data.test.images[..., 2], GOOD["x_train"][:4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK no archive", "no .npz file of plain arrays"),
        (b"", "no .npz file of plain arrays"),
        ({"x_train": np.array([{}], object), "y_train": [0]}, "no .npz file of plain arrays"),
        ({"images": GOOD["x_train"]}, "may hold x_train"),
        ({"y_train": [0, 1]}, "x_train and y_train must be given together"),
        ({"x_test": noise(2, 8, 8), "y_test": [0, 1]}, "must hold x_train and y_train"),
    ],
)
def test_an_npz_that_is_none_is_named(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "mine.npz").write_bytes(content)
    else:
        np.savez(tmp_path / "mine.npz", **content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_data(str(tmp_path / "mine.npz"))
    assert "mine.npz" in str(error.value) and "\n" not in str(error.value)


# Records


def example(image, label, image_key="image", label_key="label"):
    features = {
        "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a name"])),
        image_key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        label_key: tf.train.Feature(int64_list=tf.train.Int64List(value=np.atleast_1d(label))),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_records(file, contents, compression=None):
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file), compression) as writer:
        for content in contents:
            writer.write(content)


def pngs(count, seed=0):
    """Pictures of many sizes."""
    return [png(noise(1, 8 + i % 5, 12 - i % 4, 3, seed=seed * 1000 + i)[0]) for i in range(count)]


@pytest.mark.parametrize("keys", [("image", "label"), ("image/encoded", "image/class/label")])
def test_record_files_are_read_from_where_pictures_lie(tmp_path, keys):
    pictures = pngs(40)
    for shard in range(2):
        rows = [example(pictures[i], i % 2, *keys) for i in range(shard * 20, shard * 20 + 20)]
        write_records(tmp_path / f"train-{shard:05}-of-00002.tfrecord", rows)
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", [example(p, 1, *keys) for p in pngs(3, 1)])
    write_records(tmp_path / "test.tfrecords", [example(p, 0, *keys) for p in pngs(2, 2)])
    (tmp_path / "labels.txt").write_text("cat\ndög\n", encoding="utf-8")
    data = load_data(str(tmp_path))
    assert data.classes == ("cat", "dög") and data.name == tmp_path.name
    assert isinstance(data.train.images, Records)
    assert list(data.train.images) == pictures and data.train.labels.tolist() == [0, 1] * 20
    assert list(data.validation.images) == pngs(3, 1) and data.validation.labels.tolist() == [1] * 3
    assert list(data.test.images) == pngs(2, 2)
    some = data.train.take(np.array([39, 3, 20]))
    assert list(some.images) == [pictures[39], pictures[3], pictures[20]] and some.labels.tolist() == [1, 1, 0]
    assert some.name_of(0) == f"{tmp_path / 'train-00001-of-00002.tfrecord'}, record 19"
    assert median_side(data.train) == np.median([min(tf.io.decode_png(p).shape[:2]) for p in pictures])


def test_pictures_in_records_are_those_in_memory(tmp_path):
    pictures = pngs(12)
    write_records(tmp_path / "train.tfrecord", [example(p, i % 2) for i, p in enumerate(pictures)])
    records = Split(*index_records([tmp_path / "train.tfrecord"]))
    memory = Split(tuple(pictures), records.labels)
    for split in (records, load_pixels(records, (8, 8))):
        for (found, _), (expected, _) in zip(batches(split, (8, 8), 5), batches(memory, (8, 8), 5), strict=True):
            np.testing.assert_array_equal(found, expected)
    files = []
    for i, content in enumerate(pictures):
        files.append(str(tmp_path / f"{i}.png"))
        Path(files[-1]).write_bytes(content)
    order = tf.data.Dataset.from_tensor_slices(np.array([5, 0, 11, 5]))
    for images in (records.images, memory.images, tuple(files)):
        found = list(order.map(encoded_reader(images), tf.data.AUTOTUNE).as_numpy_iterator())
        assert found == [pictures[i] for i in (5, 0, 11, 5)]


def test_records_without_names_of_classes_are_cut(tmp_path):
    write_records(tmp_path / "train.tfrecord", [example(p, i % 3) for i, p in enumerate(pngs(30))])
    write_records(tmp_path / "extra.tfrecord", [])
    data = load_data(str(tmp_path), seed=2)
    assert data.classes == ("0", "1", "2")
    assert [counts(s) for s in (data.train, data.validation, data.test)] == [[6] * 3, [2] * 3, [2] * 3]
    assert list(load_data(str(tmp_path), seed=2).test.images) == list(data.test.images)
    assert list(load_data(str(tmp_path), seed=3).test.images) != list(data.test.images)


def test_bad_pictures_in_records_are_named_or_left_out(tmp_path):
    pictures = pngs(40)
    pictures[7], pictures[21] = b"", pictures[21][:-20]
    write_records(tmp_path / "train.tfrecord", [example(p, i % 2) for i, p in enumerate(pictures)])
    file = tmp_path / "train.tfrecord"
    with pytest.raises(ValueError, match="2 of 40 files") as error:
        load_data(str(tmp_path))
    assert f"{file}, record 7: the file is empty; {file}, record 21: damaged (" in str(error.value)
    data = load_data(str(tmp_path), skip_bad=True)
    left = [*data.train.images, *data.validation.images, *data.test.images]
    assert sorted(left) == sorted(p for i, p in enumerate(pictures) if i not in (7, 21))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [example(b"x", 0), example(b"x", 0, "picture")],
            "record 1 must have one value of bytes named image or image/",
        ),
        ([example(b"x", 0, label_key="class")], "label or image/class/label. Received: features=['class'"),
        ([example(b"x", [0, 1])], "record 0 must have one value of int64"),
        ([b"\xff\xff no example"], "record 0 is damaged, or no tf.train.Example"),
        ([example(b"x", i) for i in (0, -1)], "Received: -1 to 0"),
        ([example(b"x", i) for i in (0, 2)], "none of 1"),
        ([], "none in train"),
    ],
)
def test_records_that_do_not_fit_are_named(tmp_path, rows, message):
    write_records(tmp_path / "train.tfrecord", rows)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_data(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_record_files_that_are_damaged_compressed_or_without_a_training_file(tmp_path):
    file = tmp_path / "train.tfrecord"
    write_records(file, [example(p, i % 2) for i, p in enumerate(pngs(4))])
    content = file.read_bytes()
    for cut in (content[:-1], content[:-30], content[: len(content) // 2], content + b"x" * 11, b"text " * 9):
        file.write_bytes(cut)
        with pytest.raises(ValueError, match=r"train.tfrecord, record \d is cut off or damaged, or the file is no"):
            load_data(str(tmp_path))
    file.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"train.tfrecord is compressed"):
        load_data(str(tmp_path))
    file.rename(tmp_path / "other.tfrecord")
    with pytest.raises(ValueError, match=r"must hold files named train\*.tfrecord\*. Received: other.tfrecord"):
        load_data(str(tmp_path))


# TFDS


def write_tfds(name, directory, splits, unlabelled=()):
    builder = tfds.builder(name, data_dir=directory)
    classes = builder.info.features["label"].num_classes
    Path(builder.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(builder.info, max_examples_per_shard=7)
    writer.initialize_splits(list(splits))
    for split, pictures in splits.items():
        labels = [-1 if split in unlabelled else i % classes for i in range(len(pictures))]
        examples = [{"image": p, "label": label} for p, label in zip(pictures, labels, strict=True)]
        writer.add_examples({split: examples})
    writer.close_all()
    return Path(builder.data_dir)


def test_tfds_of_many_sizes_or_too_large_stays_on_disk(tmp_path, monkeypatch):
    pictures = [noise(1, 8 + i % 3, 9, 3, seed=i)[0] for i in range(50)]
    write_tfds("tf_flowers", tmp_path, {"train": pictures})
    data = load_data("tf_flowers", str(tmp_path))
    assert all(isinstance(split.images, Records) for split in (data.train, data.validation, data.test))
    assert len(data.train.images.files) == 8

    pixels = noise(100, 28, 28, 1)
    folder = write_tfds("mnist", tmp_path, {"train": pixels, "test": pixels[:10]})
    in_memory = load_data("mnist", str(tmp_path))
    monkeypatch.setattr(tfds_data, "IN_MEMORY_BYTES", 50 * 28 * 28)
    on_disk = load_data(str(folder))  # The folder by its path is as good as name and directory.
    assert on_disk.name == "mnist" and on_disk.classes == in_memory.classes
    assert isinstance(on_disk.train.images, Records) and isinstance(on_disk.test.images, np.ndarray)
    np.testing.assert_array_equal(load_pixels(on_disk.train, (28, 28)).images, in_memory.train.images)
    np.testing.assert_array_equal(on_disk.train.labels, in_memory.train.labels)


def test_a_split_without_labels_is_left_out(tmp_path, caplog):
    pixels = noise(100, 28, 28, 1)
    write_tfds("mnist", tmp_path, {"train": pixels, "test": pixels[:10]}, unlabelled=("test",))
    data = load_data("mnist", str(tmp_path))
    assert "The split test of mnist has no labels" in caplog.text
    assert data.test.labels.min() >= 0 and len(data.train) + len(data.validation) + len(data.test) == 100


def test_a_download_without_a_network_is_announced_and_fails_soon(tmp_path, monkeypatch, caplog):
    from tensorflow_datasets.core.download import downloader

    attempts, kept = [], downloader.MAX_RETRIES

    def unreachable(builder, *args, **kwargs):
        attempts.append(downloader.MAX_RETRIES)
        assert "mnist is not prepared in" in caplog.text and "downloading it now (11.06 MiB)" in caplog.text
        raise ConnectionError("no route")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", unreachable)
    with pytest.raises(ValueError, match="could not be downloaded"):
        load_data("mnist", str(tmp_path))
    assert attempts == [3] and downloader.MAX_RETRIES == kept > 3  # Ten, with doubling pauses, take 204 s.


# Skewed classes


def test_class_weights_are_inverse_to_the_counts_with_mean_one():
    labels = np.array([0] * 6 + [2] * 3 + [3])
    weights = class_weights(labels, 4)
    assert weights.dtype == np.float32 and weights[1] == 0
    np.testing.assert_allclose(weights[[0, 2, 3]] * [6, 3, 1], 10 / 3, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
    np.testing.assert_allclose(class_weights(np.arange(9) % 3, 3), 1)


@pytest.mark.parametrize("labels", [[], [0, 3], [-1, 0]])
def test_class_weights_of_labels_out_of_range(labels):
    with pytest.raises(ValueError, match=r"num_classes=3. Received: labels="):
        class_weights(np.array(labels, int), 3)
