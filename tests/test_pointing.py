"""The pointing test: methods against planted cues, their curves, and models with mixed weights."""

import keras
import numpy as np
import pytest

from vit_keras import create_model
from vit_keras.pipelines.explanation.methods import METHODS, evidence
from vit_keras.pipelines.explanation.pointing import (
    CHANCE,
    CLASSES,
    CUES,
    GRID,
    area,
    curves,
    hits,
    planted_model,
    planted_pictures,
    pointing_test,
    randomised,
)


def test_planted_pictures_hold_one_cue_that_tells_the_class():
    data, again = planted_pictures(200, 3), planted_pictures(200, 3)
    np.testing.assert_array_equal(data.images, again.images)
    assert data.images.shape == (200, 32, 32, 3) and data.images.min() >= 0 and data.images.max() <= 255
    assert set(data.labels) == set(range(CLASSES)) and CLASSES == CUES + 1
    assert data.cells.min() == 0 and data.cells.max() == GRID[0] - 1
    cues = {}
    for image, label, (row, column) in zip(data.images, data.labels, data.cells, strict=True):
        cues.setdefault(label, []).append(image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4])
    means = np.stack([np.mean(cues[label], axis=0) for label in range(CUES)])
    for label, found in cues.items():  # Each cue is nearest to its own class's mean; without one it is bare ground.
        if label == CUES:
            assert np.std(found, axis=(1, 2)).mean() < 40
            continue
        distances = np.square(np.stack(found)[:, None] - means).sum(axis=(2, 3, 4))
        assert (distances.argmin(axis=1) == label).all()


def test_hits():
    maps = np.zeros((2, 32, 32))
    maps[0, 5, 30] = maps[1, 0, 0] = 1
    np.testing.assert_array_equal(hits(maps, np.array([[1, 7], [0, 1]])), [True, False])


def test_curves_fall_and_rise_where_the_map_is_right():
    """A classifier that reads one cell: a map of it is the best there can be, its opposite the worst."""
    images = np.full((4, 8, 8, 3), 50, "float32")
    images[:, 2:4, 4:6] = 250

    def scores(x):
        seen = x[:, 2:4, 4:6].mean(axis=(1, 2, 3)) > 200
        return np.stack([np.where(seen, 9.0, -9.0), np.zeros(len(x))], axis=1)

    maps = np.zeros((4, 4, 4))
    maps[:, 1, 2] = 1
    deletion, insertion = curves(scores, images, np.zeros(4, int), maps)
    assert len(deletion) == len(insertion) == 17
    assert deletion[0] > 0.99 > 0.01 > deletion[1] and insertion[0] < 0.01 < 0.99 < insertion[1]
    worst = curves(scores, images, np.zeros(4, int), -maps)
    assert area(deletion) < 0.05 < 0.95 < area(worst[0])
    assert area(insertion) > 0.95 > 0.05 > area(worst[1])


def test_mixed_weights_are_the_same_numbers():
    model = create_model("vit_micro_patch4_32", CLASSES, num_layers=1)
    other = randomised(model, 1)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(np.sort(a, axis=None), np.sort(b, axis=None))
    kernel = "block_0"
    assert (model.get_layer(kernel).get_weights()[2] != other.get_layer(kernel).get_weights()[2]).mean() > 0.9


def test_a_trained_model_points_at_its_cue():
    """One seed, the quickest methods: the whole table is `benchmarks/pointing.py`."""
    accuracy, rows = pointing_test(planted_model(0, epochs=5), ["rollout", "saliency"], 16)
    assert accuracy > 0.9
    rollout, saliency, random = rows
    assert random.method == "random"
    for row in (rollout, saliency):
        assert row.pictures == 16 and row.hits >= 8  # Chance is a quarter of a picture.
        assert row.deletion < random.deletion and row.insertion > random.insertion
        assert row.same_after_randomising < 0.5


def test_the_published_table_is_against_chance():
    assert all(evidence(name).chance == CHANCE for name in METHODS)
    assert all(evidence(name).beats_chance for name in ("rollout", "saliency", "occlusion"))
    assert evidence("rollout", "token").interval[0] > 0.5


@pytest.mark.slow
def test_three_seeds_and_every_method():
    """What is published holds anew: hits of each method within what the seeds may differ."""
    totals = dict.fromkeys(METHODS, 0)
    for seed in range(3):
        accuracy, rows = pointing_test(planted_model(seed), list(METHODS), 10, seed)
        assert accuracy > 0.9
        keras.backend.clear_session()
        for row in rows[:-1]:
            totals[row.method] += row.hits
    for name in METHODS:
        row = evidence(name, "token")
        assert abs(totals[name] / 30 - row.hits / row.pictures) < 0.35, name
