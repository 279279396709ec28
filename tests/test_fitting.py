"""The stage that trains: precision, ways to adapt, teachers, data of several processes; and what it leaves behind."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import SHORT
from harness import randomise_zeros

import vit_keras
from vit_keras import create_model, merge_lora
from vit_keras.pipelines import running
from vit_keras.pipelines.checkpoint import Checkpoint
from vit_keras.pipelines.config import AdaptConfig, AugmentConfig, DistillConfig, FitConfig, InputConfig, RunConfig
from vit_keras.pipelines.datasets import Split, load_data
from vit_keras.pipelines.distribution import Process
from vit_keras.pipelines.fitting import build_model, fit_data
from vit_keras.pipelines.preprocessing import batches
from vit_keras.pipelines.run_folder import RunFolder
from vit_keras.pipelines.training import SmoothedCrossentropy

QUICK = FitConfig(epochs=1, warmup_epochs=0, batch_size=64, jit=False)


def config(folder=None, **settings):
    values = {"model": "vit_micro_patch2_8", "fit": QUICK, "override": {"num_layers": 2}, **settings}
    return RunConfig(out=str(folder) if folder else None, **{"augment": AugmentConfig("none"), **values})


METHODS = ("head", "bitfit", "lora", "prompt_shallow", "prompt_deep")


@pytest.mark.parametrize("method", METHODS)
def test_an_adapted_run_trains_its_part_and_leaves_a_plain_model(tmp_path, method):
    start = create_model("vit_micro_patch2_8", 10, num_layers=2)
    randomise_zeros(start)
    start.save(tmp_path / "start.keras")
    adapted = config(tmp_path / "run", weights=str(tmp_path / "start.keras"), adapt=AdaptConfig(method, prompts=3))
    running.train(adapted)
    model = vit_keras.load_model(tmp_path / "run" / "model.keras")
    assert all(layer.trainable for layer in model.layers)
    assert not [v.path for v in model.variables if "lora" in v.path]

    def values(of):
        return {v.path: v.numpy() for v in of.weights}

    before, after = values(start), values(model)
    changed = {path for path in before if np.abs(before[path] - after[path]).max() > 1e-7}
    heads = {"head/kernel", "head/bias"}
    expected = {
        "head": heads,
        "bitfit": heads | {path for path in before if path.rpartition("/")[2] in ("bias", "beta")},
        "lora": heads | {path for path in before if path.endswith(("qkv/kernel", "out/kernel"))},
        "prompt_shallow": heads,
        "prompt_deep": heads,
    }[method]
    assert changed <= expected and len(changed) >= len(expected) - 2  # Keys' biases have no gradient.
    prompts = {path for path in after if path not in before}
    assert len(prompts) == {"prompt_shallow": 1, "prompt_deep": 2}.get(method, 0)


def test_parameters_that_train_are_counted(caplog):
    build_model(config(adapt=AdaptConfig("head"), input=InputConfig(image_size=8)), 10, None)
    assert "head: 970 of" in caplog.text


def test_mixed_precision_leaves_a_model_of_full_precision(tmp_path):
    before = keras.config.dtype_policy()
    running.train(config(tmp_path / "run", fit=replace(QUICK, precision="mixed_bfloat16")))
    assert keras.config.dtype_policy() == before
    model = vit_keras.load_model(tmp_path / "run" / "model.keras")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


def test_the_model_that_trains_is_of_the_precision_asked_for():
    mixed = replace(config(input=InputConfig(image_size=8)), fit=replace(QUICK, precision="mixed_bfloat16"))
    model = build_model(mixed, 10, None)
    assert model.get_layer("block_0").compute_dtype == "bfloat16" and model.get_layer("block_0").dtype == "float32"
    pictures = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    randomise_zeros(model)
    plain = merge_lora(model, dtype="float32")
    assert plain.get_layer("block_0").compute_dtype == "float32"
    np.testing.assert_allclose(plain(pictures), model(pictures), atol=0.1)
    assert np.abs(plain(pictures)).max() > 0.3


def test_a_run_is_a_teacher(finished_run, tmp_path):
    """With nothing but the teacher in the loss, a student agrees with it on pictures rather than with their labels."""
    data = load_data("digits")
    teacher = vit_keras.load_model(finished_run / "model.keras")
    distill = DistillConfig(str(finished_run), kind="hard", alpha=1.0)
    fit = FitConfig(epochs=12, warmup_epochs=1, batch_size=64, label_smoothing=0.0)
    wrong = replace(data, train=Split(data.train.images, (data.train.labels + 1) % 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "load_data", lambda *arguments: wrong)
        running.train(config(tmp_path / "run", fit=fit, distill=distill))
    student = vit_keras.load_model(tmp_path / "run" / "model.keras")
    pictures = data.test.images.astype("float32")
    says, taught = (model.predict(pictures, verbose=0).argmax(axis=1) for model in (student, teacher))
    assert (says == taught).mean() > 0.6
    assert (says == (data.test.labels + 1) % 10).mean() < 0.2


def test_a_run_keeps_its_last_epoch_beside_the_best(tmp_path, monkeypatch):
    """With wrong labels validation is worse from epoch to epoch; with the right ones the last epoch is the best."""
    data = load_data("digits")
    wrong = replace(data, validation=Split(data.validation.images, (data.validation.labels + 1) % 10))
    settings = config(tmp_path / "run", fit=replace(QUICK, epochs=3, patience=None), adapt=AdaptConfig("lora"))
    with monkeypatch.context() as patch:
        patch.setattr(running, "load_data", lambda *arguments: wrong)
        running.train(settings)
    losses = [row["val_loss"] for row in RunFolder(tmp_path / "run").read_metrics()]
    for name, loss in (("model", min(losses)), ("last", losses[-1])):
        model = vit_keras.load_model(tmp_path / "run" / f"{name}.keras")
        model.compile(loss=SmoothedCrossentropy(settings.fit.label_smoothing))
        found = model.evaluate(batches(wrong.validation, (8, 8), 256), verbose=0)
        assert abs(found - loss) < 1e-4 and not [v.path for v in model.variables if "lora" in v.path]
    assert losses[-1] > min(losses) + 0.01
    running.train(settings, overwrite=True)
    losses = [row["val_loss"] for row in RunFolder(tmp_path / "run").read_metrics()]
    assert losses[-1] == min(losses) and not (tmp_path / "run" / "last.keras").exists()


def test_metrics_can_be_read_while_a_run_trains(tmp_path, monkeypatch):
    """And they are the same after an interruption."""
    settings = [config(tmp_path / name, fit=replace(QUICK, epochs=3)) for name in ("whole", "parts")]
    running.train(settings[0])
    folder, seen = RunFolder(tmp_path / "parts"), []
    begin = Checkpoint.on_epoch_begin

    def look(self, epoch, logs=None):
        begin(self, epoch, logs)
        seen.append(folder.read_metrics() if folder.metrics_file.exists() else None)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "on_epoch_begin", look)
        with pytest.raises(KeyboardInterrupt):
            running.train(settings[1])
    assert not folder.trained and not folder.finished and folder.history_plot.exists()
    running.train(settings[1])
    rows = folder.read_metrics()
    assert seen == [None, rows[:1], rows[:2]]
    for a, b in zip(rows, RunFolder(tmp_path / "whole").read_metrics(), strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=1e-5)


def test_a_run_that_makes_no_step_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"fit\.accumulate must be at most the 16 batches"):
        running.train(config(tmp_path / "run", fit=replace(QUICK, accumulate=17)))
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_there_is_said_before_anything_is_written(tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=r"nobody\.keras"):
        running.train(config(tmp_path / "run", distill=DistillConfig(str(tmp_path / "nobody.keras"))))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_balance_reaches_the_batches(balance):
    data = load_data("digits")
    keep = np.concatenate([np.nonzero(data.train.labels == 0)[0], np.nonzero(data.train.labels == 1)[0][:10]])
    skewed = replace(data, train=data.train.take(keep), classes=("0", "1"))
    settings = config(input=InputConfig(balance=balance, image_size=8))
    batch = next(fit_data(skewed, (8, 8), settings).train(0, 0).as_numpy_iterator())
    if balance == "weights":
        assert len(batch) == 3 and batch[2].max() / batch[2].min() == pytest.approx((len(keep) - 10) / 10, rel=1e-3)
    else:
        assert 0.25 < batch[1].mean() < 0.75


def test_processes_share_batches_and_validation():
    data = load_data("digits")
    settings = config()
    whole = fit_data(data, (8, 8), settings)
    parts = [fit_data(data, (8, 8), settings, process=Process(i, 2)) for i in range(2)]
    assert {part.steps_per_epoch for part in parts} == {whole.steps_per_epoch}
    images, labels = next(whole.train(1, 2).as_numpy_iterator())
    shares = [next(part.train(1, 2).as_numpy_iterator()) for part in parts]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in shares]), images)
    np.testing.assert_array_equal(np.concatenate([y for _, y in shares]), labels)
    seen = [list(part.validation.as_numpy_iterator()) for part in parts]
    weights = np.concatenate([w for part in seen for _, _, w in part])
    found = np.concatenate([y for part in seen for _, y, _ in part])[weights > 0]
    np.testing.assert_array_equal(np.bincount(found), np.bincount(data.validation.labels))


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch_size must be a multiple of 3 devices"):
        fit_data(load_data("digits"), (8, 8), config(), process=Process(0, 3))


def test_several_devices_of_one_process_have_whole_validation_batches():
    data = load_data("digits")
    found = list(fit_data(data, (8, 8), config(), process=Process(0, 1, 16)).validation.as_numpy_iterator())
    assert all(len(labels) % 16 == 0 for _, labels, _ in found)
    weights = np.concatenate([w for _, _, w in found])
    assert (weights > 0).sum() == len(data.validation)


def test_a_teacher_of_other_classes_is_said_before_anything_is_written(tmp_path):
    create_model("vit_micro_patch2_8", 7, num_layers=1).save(tmp_path / "seven.keras")
    with pytest.raises(ValueError, match="teacher must tell the student's 10 classes apart"):
        running.train(config(tmp_path / "run", distill=DistillConfig(str(tmp_path / "seven.keras"))))
    assert not (tmp_path / "run").exists()


def test_half_precision_of_an_adapted_model_scales_its_loss():
    half = replace(
        config(adapt=AdaptConfig("lora"), input=InputConfig(image_size=8)),
        fit=replace(QUICK, precision="mixed_float16"),
    )
    model = build_model(half, 10, None)
    model.compile(keras.optimizers.SGD(), "mse")
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"


def test_several_processes_do_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(running.distribution, "initialize", lambda: Process(0, 2))
    with pytest.raises(ValueError, match="Several processes can train together, not run"):
        running.run(RunConfig(out=str(tmp_path / "run"), **SHORT))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        (AdaptConfig, {"method": "adapters"}),
        (AdaptConfig, {"rank": 0}),
        (AdaptConfig, {"alpha": 0.0}),
        (AdaptConfig, {"targets": "query"}),
        (AdaptConfig, {"prompts": 0}),
        (AdaptConfig, {"prompt_dropout": 1.0}),
        (DistillConfig, {"kind": "warm"}),
        (DistillConfig, {"alpha": 1.1}),
        (DistillConfig, {"temperature": 0.0}),
        (FitConfig, {"optimizer": "adagrad"}),
        (FitConfig, {"layer_decay": 0.0}),
        (FitConfig, {"ema": 1.0}),
        (FitConfig, {"accumulate": 0}),
        (FitConfig, {"precision": "float8"}),
        (FitConfig, {"checkpoint_steps": 0}),
    ],
)
def test_wrong_settings_are_named(section, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"\w+\.{name} must be .*Received: \w+\.{name}={value}"):
        section(**wrong)
