"""data check: bad files, duplicates and leaks by name, counts, and exit codes."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vit_keras.pipelines.checking import DataCheck, check_data
from vit_keras.pipelines.cli import main


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype="uint8"))


@pytest.fixture
def pets(tmp_path):
    """A clean folder: three of cat and dog in `train`, two in `test`."""
    for seed, (split, label, i) in enumerate(
        (split, label, i) for split, n in (("train", 3), ("test", 2)) for label in ("cat", "dog") for i in range(n)
    ):
        file = tmp_path / "pets" / split / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(file)
    return tmp_path / "pets"


def names(groups):
    return [[found.picture for found in group] for group in groups]


def test_a_clean_folder(pets):
    check = check_data(str(pets))
    counts = {"train": {"cat": 3, "dog": 3}, "test": {"cat": 2, "dog": 2}}
    assert check == DataCheck("pets", counts, (), (), ()) and check.clean


def test_bad_files_are_named_and_not_counted(pets):
    (pets / "train" / "cat" / "bad.jpg").write_bytes(b"no picture")
    (pets / "test" / "dog" / "1.png").write_bytes((pets / "test" / "dog" / "1.png").read_bytes()[:60])
    check = check_data(str(pets))
    assert [bad.picture for bad in check.bad] == [
        str(pets / "train" / "cat" / "bad.jpg"),
        str(pets / "test" / "dog" / "1.png"),
    ]
    assert check.bad[0].fault == "not a picture" and check.bad[1].fault.startswith("damaged (")
    assert check.counts == {"train": {"cat": 3, "dog": 3}, "test": {"cat": 2, "dog": 1}}
    assert not check.clean and not check.duplicates and not check.leaks


def test_duplicates_and_leaks_by_content_and_by_pixels(pets):
    train, test = pets / "train", pets / "test"
    (train / "cat" / "copy.png").write_bytes((train / "cat" / "0.png").read_bytes())  # The same bytes.
    Image.open(train / "dog" / "0.png").save(train / "cat" / "again.bmp")  # The same pixels, and another class.
    Image.open(train / "dog" / "1.png").save(test / "dog" / "leak.png", compress_level=0)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = Image.open(test / "cat" / "0.png").transpose(Image.Transpose.ROTATE_180)
    turned.save(train / "cat" / "turned.png", exif=exif)  # Shown, it is the same.
    check = check_data(str(pets))
    assert sorted(names(check.duplicates)) == [
        [str(train / "cat" / "0.png"), str(train / "cat" / "copy.png")],
        [str(train / "cat" / "again.bmp"), str(train / "dog" / "0.png")],
    ]
    assert sorted(names(check.leaks)) == [
        [str(train / "cat" / "turned.png"), str(test / "cat" / "0.png")],
        [str(train / "dog" / "1.png"), str(test / "dog" / "leak.png")],
    ]
    assert [(found.split, found.label) for found in check.leaks[1]] == [("train", "dog"), ("test", "dog")]
    assert not check.bad and not check.clean


def test_pictures_of_the_same_bytes_in_another_shape_are_no_duplicates(tmp_path):
    pixels = np.arange(8 * 6 * 3, dtype="uint8")
    for label, shape in (("a", (8, 6, 3)), ("b", (6, 8, 3))):
        (tmp_path / label).mkdir()
        Image.fromarray(pixels.reshape(shape)).save(tmp_path / label / "x.png")
    assert check_data(str(tmp_path)).clean


def test_progress_is_told_of_every_picture(pets):
    told = []
    check_data(str(pets), progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 10) for i in range(1, 11)]


def png(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def test_csv_records_and_arrays_are_checked_too(tmp_path):
    for i in (0, 1, 2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    lines = ["path,label,split", "0.png,a,train", "1.png,b,train", "none.png,b,train", "2.png,a,test", "0.png,a,test"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    check = check_data(str(tmp_path / "list.csv"))
    assert [(bad.picture, bad.fault) for bad in check.bad] == [(str(tmp_path / "none.png"), "there is no such file")]
    assert names(check.leaks) == [[str(tmp_path / "0.png")] * 2]

    (tmp_path / "records").mkdir()
    for split, seeds in (("train", [0, 1, 2, 1]), ("test", [3, 2])):
        with tf.io.TFRecordWriter(str(tmp_path / "records" / f"{split}.tfrecord")) as writer:
            for i, seed in enumerate(seeds):
                image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png(seed)]))
                label = tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 2]))
                features = tf.train.Features(feature={"image": image, "label": label})
                writer.write(tf.train.Example(features=features).SerializeToString())
    check = check_data(str(tmp_path / "records"))
    train, test = (tmp_path / "records" / f"{split}.tfrecord" for split in ("train", "test"))
    assert names(check.duplicates) == [[f"{train}, record 1", f"{train}, record 3"]]
    assert names(check.leaks) == [[f"{train}, record 2", f"{test}, record 1"]]

    x = np.stack([np.asarray(picture(seed)) for seed in (0, 1, 2, 0)])
    np.savez(tmp_path / "arrays.npz", x_train=x, y_train=[0, 1, 0, 1], x_test=x[2:3], y_test=[0])
    check = check_data(str(tmp_path / "arrays.npz"))
    assert names(check.duplicates) == [["picture 0", "picture 3"]]
    assert [(found.picture, found.split) for found in check.leaks[0]] == [("picture 2", "train"), ("picture 0", "test")]


# The command


def test_the_command_is_content_with_clean_pictures(pets, capsys):
    assert main(["data", "check", str(pets)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "0 bad pictures, 0 groups of duplicates, 0 groups in more than one split" in captured.out
    cells = [[cell.strip() for cell in row.split("│")][1:-1] for row in captured.out.splitlines() if "│" in row]
    assert cells == [["cat", "3", "2"], ["dog", "3", "2"], ["all", "6", "4"]]


def test_the_command_names_what_it_finds(pets, capsys):
    train, test = pets / "train", pets / "test"
    (train / "cat" / "bad.jpg").write_bytes(b"")
    (train / "dog" / "copy.png").write_bytes((train / "cat" / "0.png").read_bytes())
    (test / "cat" / "leak.png").write_bytes((train / "cat" / "1.png").read_bytes())
    assert main(["data", "check", str(pets)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [
        f"bad: {train / 'cat' / 'bad.jpg'}: the file is empty",
        f"duplicate: {train / 'cat' / '0.png'} (cat) = {train / 'dog' / 'copy.png'} (dog)",
        f"leak: {train / 'cat' / '1.png'} (train) = {test / 'cat' / 'leak.png'} (test)",
        "1 bad pictures, 1 groups of duplicates, 1 groups in more than one split",
    ]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["data"], ["A command is missing. Commands: check"]),
        (["data", "chek", "x"], ["'chek'", "Did you mean 'check'?"]),
        (["data", "check"], ["data"]),
        (["data", "check", "./none"], ["No such folder of pictures: ./none"]),
        (["data", "check", "digit"], ["Did you mean 'digits'?"]),
        (["data", "check", "x", "--dri", "y"], ["'--dri' of vit-keras data check", "Did you mean '--dir'?"]),
    ],
)
def test_wrong_words_are_one_sentence(capsys, arguments, parts):
    assert main(arguments) == 2
    sentence = capsys.readouterr().err
    assert len(sentence.splitlines()) == 1
    for part in parts:
        assert part in sentence
