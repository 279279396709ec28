"""Training: schedule, optimisers, averaged weights, and that an interruption changes nothing."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from harness import randomise_zeros

from vit_keras import adapt, create_model
from vit_keras.pipelines.checkpoint import Checkpoint
from vit_keras.pipelines.config import OPTIMIZERS, AugmentConfig, FitConfig
from vit_keras.pipelines.datasets import Split, load_data
from vit_keras.pipelines.optimizers import Lamb, learning_rate_scales, make_optimizer
from vit_keras.pipelines.preprocessing import batches, training_batches
from vit_keras.pipelines.run_folder import RunFolder
from vit_keras.pipelines.training import FitData, SmoothedCrossentropy, accuracy, fit, load_last, write_metrics

SIZE = (8, 8)
STEPS = 5


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits")
    return data.train.take(np.arange(160)), data.validation.take(np.arange(64))


def data_of(digits, seed=0, augment=None):
    augment = augment or AugmentConfig("none", noise=0.1)
    return FitData(
        lambda epoch, step: training_batches(digits[0], SIZE, 32, augment, seed, epoch, step, num_classes=10),
        STEPS,
        batches(digits[1], SIZE, 64),
    )


class DeathError(Exception):
    pass


def sync(model):
    """On JAX the variables are behind, and assigned in vain, in the middle of an epoch."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def train(digits, folder, config, die=None, augment=None, on_epoch=None, **overrides):
    """Trains a tiny model with dropout; before the step `die` of an epoch it dies, and a new program goes on."""
    config = replace(config, jit=False)  # Compiling takes longer than these trainings.

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if (len(self.checkpoint.rows), self.checkpoint._first_step + batch) == die:
                raise DeathError

    def start(extra):
        keras.utils.set_random_seed(config.seed)
        model = create_model("vit_micro_patch2_8", 10, **{"num_layers": 1, "dropout_rate": 0.1, **overrides})
        original = model.fit

        def with_more(*arguments, callbacks, **rest):
            for callback in extra:
                callback.checkpoint = next(c for c in callbacks if isinstance(c, Checkpoint))
            return original(*arguments, callbacks=[*callbacks, *extra], **rest)

        model.fit = with_more
        return model, fit(model, data_of(digits, config.seed, augment), config, folder, on_epoch=on_epoch)

    if die is not None:
        with pytest.raises(DeathError):
            start([Kill()])
        keras.utils.set_random_seed(99)
    return start([])


RESUMED = {
    "epochs": ({}, (2, 3)),
    "steps": ({"checkpoint_steps": 3, "ema": 0.9, "optimizer": "lion", "learning_rate": 3e-4}, (1, 4)),
    "first_steps": ({"checkpoint_steps": 1, "accumulate": 2}, (0, 2)),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_training_equals_an_uninterrupted_one(digits, tmp_path, monkeypatch, case):
    settings, die = RESUMED[case]
    config = FitConfig(epochs=3, **{"warmup_epochs": 1, "patience": 10, **settings})
    augment = AugmentConfig("none", noise=0.1, mixup=0.8)
    whole, whole_rows = train(digits, tmp_path / "a", config, augment=augment)
    seen = []
    load = Checkpoint._load
    monkeypatch.setattr(Checkpoint, "_load", lambda self, name: (seen.append(name), load(self, name)))
    parts, parts_rows = train(digits, tmp_path / "b", config, die, augment)
    every = settings.get("checkpoint_steps", STEPS)
    assert f"epoch_{die[0]}_step_{die[1] // every * every}.npz" in seen  # Not an older one.
    assert [row["epoch"] for row in parts_rows] == [0, 1, 2]
    for a, b in zip(whole_rows, parts_rows, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=1e-5)
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_early_stopping_counts_over_an_interruption(digits, tmp_path):
    config = FitConfig(epochs=9, warmup_epochs=0, learning_rate=1e-9, patience=3, weight_decay=0.0)
    _, whole = train(digits, tmp_path / "a", config)
    _, parts = train(digits, tmp_path / "b", config, (2, 0))
    assert len(parts) == len(whole)
    state = json.loads((tmp_path / "b" / "state.json").read_text())
    assert state["wait"] == 3 or len(whole) == 9


def test_without_patience_training_goes_to_its_end(digits, tmp_path):
    config = FitConfig(epochs=4, warmup_epochs=0, learning_rate=1e-9, patience=None, weight_decay=0.0)
    assert len(train(digits, tmp_path, config)[1]) == 4


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_best_epoch_is_given_back(digits, tmp_path, ema):
    config = FitConfig(epochs=4, warmup_epochs=0, learning_rate=3e-3, ema=ema)
    model, rows = train(digits, tmp_path, config)
    model.compile(loss=SmoothedCrossentropy(config.label_smoothing))
    loss = model.evaluate(batches(digits[1], SIZE, 64), verbose=0, return_dict=True)["loss"]
    assert abs(loss - min(row["val_loss"] for row in rows)) < 1e-4
    assert len(list(tmp_path.glob("*.npz"))) <= 2


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_the_last_epoch_can_be_had_too(digits, tmp_path, ema):
    """With wrong labels, validation is worse from epoch to epoch: the last is not the best."""
    wrong = Split(digits[1].images, (digits[1].labels + 1) % 10)
    model, rows = train((digits[0], wrong), tmp_path, FitConfig(epochs=4, warmup_epochs=0, learning_rate=5e-3, ema=ema))
    assert rows[-1]["val_loss"] > min(row["val_loss"] for row in rows) + 0.01
    load_last(model, tmp_path)
    model.compile(loss=SmoothedCrossentropy(0.1))
    loss = model.evaluate(batches(wrong, SIZE, 64), verbose=0, return_dict=True)["loss"]
    assert abs(loss - rows[-1]["val_loss"]) < 1e-4
    with pytest.raises(FileNotFoundError, match=f"No state of a training at {tmp_path / 'nothing'}"):
        load_last(model, tmp_path / "nothing")


def test_averaged_weights_are_the_average(digits, tmp_path):
    """Against an average of the weights after every step, made here."""
    config = FitConfig(epochs=1, warmup_epochs=0, ema=0.7, patience=None)
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    seen = []
    original = model.fit

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            sync(model)
            seen.append([keras.ops.convert_to_numpy(v) for v in model.trainable_variables])

    model.fit = lambda *a, callbacks, **k: original(*a, callbacks=[*callbacks, Look()], **k)
    fit(model, data_of(digits), replace(config, jit=False), tmp_path)
    average = seen[0]
    for weights in seen[1:]:
        average = [0.7 * a + 0.3 * w for a, w in zip(average, weights, strict=True)]
    for a, b, last in zip(average, model.trainable_variables, seen[-1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(last - a).max() > 1e-5


def test_finished_training_is_not_repeated(digits, tmp_path, caplog):
    config = FitConfig(epochs=2, warmup_epochs=0)
    first, rows = train(digits, tmp_path, config)
    again, same = train(digits, tmp_path, config)
    assert rows == same and "Going on" not in caplog.text
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("settings", "where"), [({}, "epoch 1"), ({"checkpoint_steps": 3}, "step 3 of epoch 1")])
def test_divergence_is_said_and_keeps_the_last_good_state(digits, tmp_path, settings, where):
    bad = Split(np.full_like(digits[0].images, 255), digits[0].labels)
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    kernel = model.get_layer("head").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(FloatingPointError, match=rf"{where};.*fit\.learning_rate"):
        fit(model, data_of((bad, bad)), FitConfig(epochs=2, jit=False, **settings), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_state_with_weights_that_are_no_numbers_is_not_kept(digits, tmp_path):
    """The loss is computed before the step that spoils the weights, so it says nothing of it."""
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    original = model.fit

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                sync(model)
                kernel = model.get_layer("head").kernel
                kernel.assign(np.full(kernel.shape, np.inf))

        def on_test_begin(self, logs=None):  # Validation does not find out.
            self.kept = model.get_layer("head").kernel.numpy()
            model.get_layer("head").kernel.assign(np.zeros_like(self.kept))

        def on_test_end(self, logs=None):
            model.get_layer("head").kernel.assign(self.kept)

    model.fit = lambda *a, callbacks, **k: original(*a, callbacks=[Spoil(), *callbacks], **k)
    with pytest.raises(FloatingPointError, match="A weight became no number in epoch 1"):
        fit(model, data_of(digits), FitConfig(epochs=2, jit=False, checkpoint_steps=3), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 3
    with np.load(tmp_path / "epoch_0_step_3.npz") as values:
        assert all(np.isfinite(values[name]).all() for name in values.files)


def test_an_optimizer_that_has_gathered_what_is_no_number_is_not_kept(digits, tmp_path):
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    original = model.fit

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                sync(model)
                gathered = model.optimizer._accumulated_gradients[0]
                gathered.assign(np.full(gathered.shape, np.nan))

    model.fit = lambda *a, callbacks, **k: original(*a, callbacks=[Spoil(), *callbacks], **k)
    with pytest.raises(FloatingPointError, match="What the optimiser has gathered became no number in epoch 1"):
        config = FitConfig(epochs=2, jit=False, checkpoint_steps=1, accumulate=2)
        fit(model, data_of(digits), config, tmp_path)
    with np.load(tmp_path / "epoch_0_step_2.npz") as values:
        assert all(np.isfinite(values[name]).all() for name in values.files)


def test_half_precision_with_its_loss_scale_goes_on_too(digits, tmp_path):
    config = FitConfig(epochs=2, warmup_epochs=0, patience=None, ema=0.9, checkpoint_steps=2)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        whole, rows = train(digits, tmp_path / "a", config)
        parts, parts_rows = train(digits, tmp_path / "b", config, (1, 3))
    finally:
        keras.config.set_dtype_policy(before)
    assert type(whole.optimizer).__name__ == "LossScaleOptimizer"
    for a, b in zip(rows, parts_rows, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=1e-3)
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_state_survives_a_death_while_it_is_written(digits, tmp_path):
    config = FitConfig(epochs=2, warmup_epochs=0)
    _, rows = train(digits, tmp_path, config)
    (tmp_path / ".partial.state.json").write_text('{"rows": [')
    (tmp_path / ".partial.epoch_2_step_0.npz").write_bytes(b"half")
    assert train(digits, tmp_path, config)[1] == rows


def test_what_a_killed_program_has_left_is_removed(digits, tmp_path):
    config = FitConfig(epochs=2, warmup_epochs=0)
    with pytest.raises(DeathError):
        train(digits, tmp_path, config, on_epoch=die_now)
    for name in ("epoch_0_step_3.npz", "epoch_2_step_0.npz", "mine.npz"):  # No state names them.
        (tmp_path / name).write_bytes(b"half")
    train(digits, tmp_path, config)
    left = {file.name for file in tmp_path.iterdir()}
    assert "mine.npz" in left and "epoch_0_step_3.npz" not in left
    assert left <= {"mine.npz", "state.json", "epoch_1_step_0.npz", "epoch_2_step_0.npz"}


def die_now(rows):
    raise DeathError


def test_every_epoch_is_told_of_also_after_an_interruption(digits, tmp_path):
    config = FitConfig(epochs=3, warmup_epochs=0)
    told = []
    _, rows = train(digits, tmp_path, config, (1, 2), on_epoch=lambda rows: told.append(list(rows)))
    assert told == [rows[:1], rows[:2], rows]


def test_an_epoch_is_kept_before_it_is_told_of(digits, tmp_path):
    config = FitConfig(epochs=2, warmup_epochs=0)
    with pytest.raises(DeathError):
        train(digits, tmp_path, config, on_epoch=die_now)
    assert len(json.loads((tmp_path / "state.json").read_text())["rows"]) == 1


OTHERS = {
    "settings": (
        {"config": {"learning_rate": 1e-2, "epochs": 9}},
        r"fit\.epochs: 2, now 9; fit\.learning_rate: .*, now 0\.01",
    ),
    "steps": ({"steps": STEPS - 1}, r"steps_per_epoch: 5, now 4\)"),
    "depth": ({"model": {"num_layers": 2}}, r"variables\[\d+\]: .*; and \d+ more"),
    "width": (
        {"model": {"mlp_dim": 64}},
        r"variables\[\d+\]: block/mlp/expand/kernel \(96, 192\), now .* \(96, 64\)",
    ),
    "part": ({"method": "bitfit"}, r"variables\[\d+\]: adamw/patch_embedding_projection_kernel_momentum .*, now "),
}


@pytest.fixture(scope="module")
def interrupted(digits, tmp_path_factory):
    """The folder of a training that died after its first epoch."""
    folder = tmp_path_factory.mktemp("training")
    keras.utils.set_random_seed(0)
    with pytest.raises(DeathError):
        train(digits, folder, FitConfig(epochs=2, warmup_epochs=0), on_epoch=die_now)
    return folder


def fit_another(digits, folder, config=None, model=None, steps=STEPS, method="full"):
    """Fits the model of `interrupted`, or another one, which must not be trained."""
    built = create_model("vit_micro_patch2_8", 10, **{"num_layers": 1, "dropout_rate": 0.1, **(model or {})})
    adapted = adapt(built, method)
    adapted.fit = die_now
    settings = FitConfig(**{"epochs": 2, "warmup_epochs": 0, "jit": False, **(config or {})})
    fit(adapted, replace(data_of(digits), steps_per_epoch=steps), settings, folder)


@pytest.mark.parametrize("case", OTHERS)
def test_the_state_of_another_training_is_refused(digits, interrupted, case):
    changes, said = OTHERS[case]
    before = {file: file.read_bytes() for file in interrupted.iterdir()}
    with pytest.raises(ValueError, match=f"{interrupted} holds the state of another training .*{said}"):
        fit_another(digits, interrupted, **changes)
    assert {file: file.read_bytes() for file in interrupted.iterdir()} == before


@pytest.mark.parametrize("content", ['{"rows": [], "step": 0}', '{"rows": [', "[]"])
def test_a_state_that_cannot_be_read_is_refused(digits, tmp_path, content):
    """One of an older version, too, which does not say what training it is of."""
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json is no state that this version .*; remove .* to start again"):
        fit_another(digits, tmp_path)


def test_how_a_training_runs_may_change(digits, interrupted, tmp_path):
    """In the same program too, where Keras gives layers without a name another number."""
    folder = shutil.copytree(interrupted, tmp_path / "copy")
    config = FitConfig(epochs=2, warmup_epochs=0, checkpoint_steps=2)
    assert [row["epoch"] for row in train(digits, folder, config)[1]] == [0, 1]


def test_a_training_that_makes_no_step_is_refused(digits, tmp_path):
    config = FitConfig(epochs=2, accumulate=11)
    with pytest.raises(
        ValueError, match=r"fit\.accumulate must be at most the 10 batches.*Received: fit\.accumulate=11"
    ):
        train(digits, tmp_path / "run", config)
    with pytest.raises(ValueError, match=r"steps_per_epoch must be >= 1\. Received: steps_per_epoch=0"):
        fit_another(digits, tmp_path / "run", steps=0)
    assert not (tmp_path / "run").exists()


def test_what_fills_no_step_is_carried_into_the_next_epoch(digits, tmp_path):
    """Of 5 batches an epoch 2 make a step: 5 steps in two epochs, not 4."""
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    seen = [model.get_layer("head").get_weights()]
    original = model.fit

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            sync(model)
            seen.append(model.get_layer("head").get_weights())

    model.fit = lambda *a, callbacks, **k: original(*a, callbacks=[*callbacks, Look()], **k)
    fit(model, data_of(digits), FitConfig(epochs=2, warmup_epochs=0, accumulate=2, jit=False), tmp_path)
    steps = [i for i in range(1, 11) if any((a != b).any() for a, b in zip(seen[i - 1], seen[i], strict=True))]
    assert steps == [2, 4, 6, 8, 10]


# Optimisers


def test_schedule_warms_up_and_decays_to_zero():
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    config = FitConfig(epochs=10, learning_rate=1e-2, warmup_epochs=2)
    schedule = make_optimizer(model, config, 10)._learning_rate
    values = [float(schedule(step)) for step in (0, 10, 20, 60, 100)]
    np.testing.assert_allclose(values, [0, 5e-3, 1e-2, 5e-3, 0], atol=1e-8)


def test_a_short_training_is_not_all_warm_up():
    model = create_model("vit_micro_patch2_8", 10, num_layers=1)
    schedule = make_optimizer(model, FitConfig(epochs=2, learning_rate=1e-2, warmup_epochs=3), 10)._learning_rate
    np.testing.assert_allclose([float(schedule(step)) for step in (0, 10, 20)], [0, 1e-2, 0], atol=1e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_kernels_are_decayed(name):
    """With gradients of zero nothing but the decay changes a weight; Lion and LAMB included.

    LAMB's update is the decay alone then, and its trust ratio brings that to the length of the weight.
    """
    model = create_model("vit_micro_patch2_8", 10, num_layers=1, pooling="token", position_embedding="learned")
    randomise_zeros(model)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    config = FitConfig(epochs=1, optimizer=name, learning_rate=0.1, warmup_epochs=0, weight_decay=0.5)
    optimizer = make_optimizer(model, config, 10)
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for variable in model.trainable_variables:
        share = (0.9 if name == "lamb" else 0.95) if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable, share * before[variable.path], rtol=1e-5, err_msg=variable.path)


def test_adamw_is_keras_adamw():
    gradients = None
    results = []
    for ours in (True, False):
        keras.utils.set_random_seed(0)
        model = create_model("vit_micro_patch2_8", 10, num_layers=1)
        config = FitConfig(epochs=1, learning_rate=1e-2, warmup_epochs=0, weight_decay=0.3)
        optimizer = make_optimizer(model, config, 1000)
        if not ours:
            optimizer = keras.optimizers.AdamW(optimizer._learning_rate, weight_decay=0.3, global_clipnorm=1.0)
            optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if v.name != "kernel"])
        rng = np.random.default_rng(0)
        gradients = [[rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables] for _ in range(3)]
        for step in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(g) for g in step], model.trainable_variables)
        results.append([v.numpy() for v in model.trainable_variables])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_is_that_of_its_paper(decay):
    """Against algorithm 2 of arXiv:1904.00962, in NumPy; without decay it is Keras's too."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype("float32")
    steps = rng.normal(size=(4, 5, 3)).astype("float32")
    expected, m, v = start.astype("float64"), 0.0, 0.0
    for t, g in enumerate(steps, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7) + decay * expected
        expected -= 0.05 * np.linalg.norm(expected) / np.linalg.norm(update) * update
    for optimizer in (Lamb(0.05), keras.optimizers.Lamb(0.05)):
        kernel = keras.Variable(start, name="kernel")
        optimizer.build([kernel])
        for g in steps:
            more = {"decay": decay} if isinstance(optimizer, Lamb) else {}
            optimizer.update_step(keras.ops.convert_to_tensor(g), kernel, 0.05, **more)
            optimizer.iterations.assign_add(1)
        if more or not decay:
            np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(digits, tmp_path, name):
    rate = {"lion": 1e-3, "sgd": 0.1, "lamb": 3e-2}.get(name, 5e-3)
    config = FitConfig(epochs=12, optimizer=name, learning_rate=rate, warmup_epochs=1, patience=None)
    _, rows = train(digits, tmp_path, config, augment=AugmentConfig("none"))
    print(name, [round(row["loss"], 2) for row in rows])
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3


def test_layers_learn_at_their_own_rates():
    model = create_model("vit_micro_patch2_8", 10, num_layers=3, pooling="token", position_embedding="learned")
    scales = learning_rate_scales(model, 0.5)
    assert set(scales) == {v.path for v in model.trainable_variables}
    expected = {"patch_embedding": 1 / 16, "class_token": 1 / 16, "position_embedding": 1 / 16}
    expected |= {"block_0": 1 / 8, "block_1": 1 / 4, "block_2": 1 / 2, "norm": 1, "head": 1}
    assert {path.split("/")[0]: scale for path, scale in scales.items()} == expected

    before = [v.numpy() for v in model.trainable_variables]
    config = FitConfig(epochs=1, optimizer="sgd", learning_rate=0.1, warmup_epochs=0, weight_decay=0.0, layer_decay=0.5)
    optimizer = make_optimizer(model, config, 10)
    optimizer.apply([keras.ops.full(v.shape, 1e-4) for v in model.trainable_variables], model.trainable_variables)
    steps = {v.path: np.abs(v.numpy() - b).max() for v, b in zip(model.trainable_variables, before, strict=True)}
    for path, step in steps.items():
        np.testing.assert_allclose(step, steps["head/kernel"] * scales[path], rtol=0.02, err_msg=path)


def test_more_than_ten_blocks_stay_in_their_order():
    variables = [SimpleNamespace(path=f"block_{i}/kernel") for i in range(12)]
    scales = learning_rate_scales(SimpleNamespace(variables=variables, trainable_variables=variables), 0.5)
    assert [scales[f"block_{i}/kernel"] for i in range(12)] == [0.5 ** (12 - i) for i in range(12)]


@pytest.mark.parametrize(("method", "rates"), [("prompt_deep", [1 / 8, 1 / 4, 1 / 2]), ("prompt_shallow", [1 / 8])])
def test_prompts_learn_at_the_rate_of_the_block_behind_them(method, rates):
    """Though the blocks themselves are frozen."""
    model = adapt(create_model("vit_micro_patch2_8", 10, num_layers=3), method)
    expected = {f"prompts_{i}/prompts": rate for i, rate in enumerate(rates)}
    assert learning_rate_scales(model, 0.5) == {**expected, "head/kernel": 1, "head/bias": 1}


def test_accumulated_batches_are_one_large_batch(digits, tmp_path):
    """Two batches of 16 against one of 32: the same pictures, the same step."""
    results = []
    for batch_size, accumulate in ((32, 1), (16, 2)):
        keras.utils.set_random_seed(0)
        model = create_model("vit_micro_patch2_8", 10, num_layers=1)
        images, labels = digits[0].images.astype("float32"), digits[0].labels
        config = FitConfig(epochs=1, optimizer="sgd", learning_rate=0.1, warmup_epochs=0, accumulate=accumulate)
        optimizer = make_optimizer(model, config, 1000000)
        model.compile(optimizer, SmoothedCrossentropy(), jit_compile=False)
        model.fit(images, labels, batch_size=batch_size, shuffle=False, verbose=0)
        results.append([v.numpy() for v in model.trainable_variables])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


# Losses and metrics


def test_smoothed_crossentropy_equals_its_formula():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    labels = np.array([0, 2, 1, 1])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(0.9 * log_p[np.arange(4), labels] + 0.1 * log_p.mean(1)).mean()
    np.testing.assert_allclose(SmoothedCrossentropy(0.1)(labels, logits), expected, rtol=1e-5)
    np.testing.assert_allclose(
        SmoothedCrossentropy(0.1)(np.eye(3, dtype="float32")[labels], logits), expected, rtol=1e-5
    )
    loss = keras.losses.deserialize(keras.losses.serialize(SmoothedCrossentropy(0.2)))
    assert loss.label_smoothing == 0.2


def test_mixed_labels_count_by_their_shares():
    logits = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    shares = np.array([[0.3, 0.7, 0], [0, 0.4, 0.6]], "float32")
    np.testing.assert_allclose(SmoothedCrossentropy()(shares, logits), -(shares * log_p).sum(1).mean(), rtol=1e-5)
    logits = np.array([[0, 1, 0], [0, 1, 0]], "float32")
    for labels in (shares, np.array([1, 2])):
        assert keras.ops.convert_to_numpy(accuracy(labels, logits)).tolist() == [1, 0]


def test_metrics_are_csv(tmp_path):
    write_metrics([{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 0.5}], tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text().split() == ["epoch,loss", "0,1.5", "1,0.5"]


def test_metrics_of_no_epoch_are_an_empty_file(tmp_path):
    folder = RunFolder(tmp_path)
    write_metrics([], folder.metrics_file)
    assert folder.metrics_file.read_bytes() == b"" and folder.read_metrics() == []
