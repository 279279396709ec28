"""The sheet of pictures that a model is fed."""

import numpy as np
import pytest
from PIL import Image

from vit_keras.pipelines.config import AugmentConfig
from vit_keras.pipelines.datasets import load_data
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


def test_a_sheet_without_rows_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match="rows and columns must be >= 1"):
        picture_sheet(digits, (8, 8), AugmentConfig(), tmp_path / "a.png", rows=0)
