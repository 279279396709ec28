"""Training: the schedule, what is decayed, and that an interruption changes nothing."""

import json

import keras
import numpy as np
import pytest

from vit_keras import create_model
from vit_keras.pipelines.config import AugmentConfig, FitConfig
from vit_keras.pipelines.datasets import Split, load_data
from vit_keras.pipelines.preprocessing import batches, training_batches
from vit_keras.pipelines.training import Checkpoint, SmoothedCrossentropy, fit, make_optimizer, write_metrics

SIZE = (8, 8)


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits")
    return data.train.take(np.arange(160)), data.validation.take(np.arange(64))


def train(digits, folder, config, stop_before=None):
    """Trains a tiny model with dropout; `stop_before` an epoch it dies, and a new program goes on."""

    class DeathError(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == stop_before:
                raise DeathError

    def start(callbacks):
        keras.utils.set_random_seed(config.seed)
        model = create_model("vit_micro_patch2_8", 10, num_layers=1, dropout_rate=0.1)
        original = model.fit
        model.fit = lambda *a, callbacks, **k: original(*a, callbacks=[*callbacks, *extra], **k)
        extra = callbacks
        rows = fit(
            model,
            lambda epoch: training_batches(digits[0], SIZE, 32, AugmentConfig(), config.seed, epoch),
            batches(digits[1], SIZE, 64),
            config,
            5,
            folder,
        )
        return model, rows

    if stop_before is not None:
        with pytest.raises(DeathError):
            start([Kill()])
        keras.utils.set_random_seed(99)
    return start([])


def test_resumed_training_equals_an_uninterrupted_one(digits, tmp_path):
    config = FitConfig(epochs=5, warmup_epochs=1, patience=10)
    whole, whole_rows = train(digits, tmp_path / "a", config)
    parts, parts_rows = train(digits, tmp_path / "b", config, stop_before=3)
    assert [row["epoch"] for row in parts_rows] == [0, 1, 2, 3, 4]
    for a, b in zip(whole_rows, parts_rows, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=1e-5)
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_early_stopping_counts_over_an_interruption(digits, tmp_path):
    config = FitConfig(epochs=9, warmup_epochs=0, learning_rate=1e-9, patience=3, weight_decay=0.0)
    _, whole = train(digits, tmp_path / "a", config)
    _, parts = train(digits, tmp_path / "b", config, stop_before=2)
    assert len(parts) == len(whole)
    state = json.loads((tmp_path / "b" / "state.json").read_text())
    assert state["wait"] == 3 or len(whole) == 9


def test_best_epoch_is_given_back(digits, tmp_path):
    config = FitConfig(epochs=4, warmup_epochs=0, learning_rate=3e-3)
    model, rows = train(digits, tmp_path, config)
    model.compile(loss=SmoothedCrossentropy(config.label_smoothing))
    loss = model.evaluate(batches(digits[1], SIZE, 64), verbose=0, return_dict=True)["loss"]
    assert abs(loss - min(row["val_loss"] for row in rows)) < 1e-4
    assert len(list(tmp_path.glob("*.h5"))) <= 2


def test_finished_training_is_not_repeated(digits, tmp_path):
    config = FitConfig(epochs=2, warmup_epochs=0)
    first, rows = train(digits, tmp_path, config)
    again, same = train(digits, tmp_path, config)
    assert rows == same
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_divergence_is_said_and_keeps_the_last_good_state(digits, tmp_path):
    bad = Split(np.full_like(digits[0].images, 255), digits[0].labels)
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    kernel = model.get_layer("head").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(FloatingPointError, match=r"epoch 1.*fit\.learning_rate"):
        fit(
            model,
            lambda epoch: training_batches(bad, SIZE, 32, AugmentConfig(), 0, epoch),
            batches(bad, SIZE, 64),
            FitConfig(epochs=2),
            5,
            tmp_path,
        )
    assert not list(tmp_path.iterdir())


def test_state_survives_a_death_while_it_is_written(digits, tmp_path):
    config = FitConfig(epochs=2, warmup_epochs=0)
    _, rows = train(digits, tmp_path, config)
    (tmp_path / ".partial.state.json").write_text('{"rows": [')
    (tmp_path / ".partial.epoch_2.weights.h5").write_bytes(b"half")
    assert Checkpoint(tmp_path, keras.callbacks.EarlyStopping()).rows == rows


def test_schedule_warms_up_and_decays_to_zero():
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    schedule = make_optimizer(model, FitConfig(learning_rate=1e-2, warmup_epochs=2), 100, 10)._learning_rate
    values = [float(schedule(step)) for step in (0, 10, 20, 60, 100)]
    np.testing.assert_allclose(values, [0, 5e-3, 1e-2, 5e-3, 0], atol=1e-8)


def test_only_kernels_are_decayed():
    model = create_model("vit_micro_patch2_8", 10, num_layers=1, pooling="token", position_embedding="learned")
    optimizer = make_optimizer(model, FitConfig(), 10, 1)
    optimizer.build(model.trainable_variables)
    decayed = {v.path.split("/")[-1] for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    spared = {v.path.split("/")[-1] for v in model.trainable_variables if not optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}
    assert spared == {"bias", "gamma", "beta", "prefix", "position"}


def test_smoothed_crossentropy_equals_its_formula():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    labels = np.array([0, 2, 1, 1])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(0.9 * log_p[np.arange(4), labels] + 0.1 * log_p.mean(1)).mean()
    np.testing.assert_allclose(SmoothedCrossentropy(0.1)(labels, logits), expected, rtol=1e-5)
    loss = keras.losses.deserialize(keras.losses.serialize(SmoothedCrossentropy(0.2)))
    assert loss.label_smoothing == 0.2


def test_metrics_are_csv(tmp_path):
    write_metrics([{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 0.5}], tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text().split() == ["epoch,loss", "0,1.5", "1,0.5"]
