"""The sheet of pictures that a model is fed."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vit_keras.pipelines import running
from vit_keras.pipelines.config import AugmentConfig, InputConfig, RunConfig
from vit_keras.pipelines.datasets import class_weights, load_data
from vit_keras.pipelines.preprocessing import training_batches
from vit_keras.pipelines.sheet import picture_sheet


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_a_sheet_shows_pictures_as_they_are_fed(digits, tmp_path):
    figure = picture_sheet(digits, (8, 8), AugmentConfig("none"), tmp_path / "a.png", rows=2, columns=5)
    assert Image.open(tmp_path / "a.png").size[0] > 500
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert len(shown) == 10
    names = [digits.classes[label] for label in digits.train.labels]
    known = dict(zip((picture.tobytes() for picture in digits.train.images), names, strict=True))
    for axes, picture in zip(figure.axes, shown, strict=True):
        assert known[np.asarray(picture).tobytes()] == axes.get_title()
    assert sorted(axes.get_title() for axes in figure.axes) == list("0123456789")


def test_mixed_pictures_have_the_shares_of_their_classes(digits, tmp_path):
    config = AugmentConfig("none", mixup=1.0)
    figure = picture_sheet(digits, (8, 8), config, tmp_path / "a.png", rows=2, columns=4)
    titles = [axes.get_title() for axes in figure.axes]
    assert all("%" in title and "\n" in title for title in titles)
    shares = [sum(int(line.split("%")[0]) for line in title.split("\n")) for title in titles]
    assert all(99 <= share <= 101 for share in shares)


@pytest.fixture
def skewed(digits, monkeypatch):
    """All zeros and ten ones, as what any name loads."""
    keep = np.concatenate([np.nonzero(digits.train.labels == 0)[0], np.nonzero(digits.train.labels == 1)[0][:10]])
    data = replace(digits, train=digits.train.take(keep), classes=("zero", "one"))
    monkeypatch.setattr(running, "load_data", lambda *arguments: data)
    return data


@pytest.mark.parametrize("policy", ["none", "rand_augment"])
@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_a_sheet_is_balanced_as_a_run_is(skewed, tmp_path, balance, policy):
    augment = AugmentConfig(policy)
    config = RunConfig(input=InputConfig(balance=balance), augment=augment)
    figure = running.show_data(config, tmp_path / "a.png", rows=8, columns=8)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 64
    batches = training_batches(skewed.train, (8, 8), 64, augment, 0, num_classes=2, balance=balance)
    fed = next(batches.as_numpy_iterator())
    if policy == "none":
        shown = [axes.images[0].get_array() for axes in figure.axes]
        np.testing.assert_array_equal(shown, fed[0])
        names = [skewed.classes[label] for label in fed[1]]
        weights = class_weights(skewed.train.labels, 2)[fed[1]]
        lines = [f"{name}\nweight {weight:.2f}" for name, weight in zip(names, weights, strict=True)]
        assert titles == (lines if balance == "weights" else names)
        assert (16 < names.count("one") < 48) == (balance == "sampling")
    else:
        assert all(("weight" in title) == (balance == "weights") for title in titles)


def test_a_sheet_without_rows_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match="rows and columns must be >= 1"):
        picture_sheet(digits, (8, 8), AugmentConfig(), tmp_path / "a.png", rows=0)
