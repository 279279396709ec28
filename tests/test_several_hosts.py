"""Several devices and several processes train as one does."""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from vit_keras.pipelines import distribution
from vit_keras.pipelines.distribution import Process

COMMON = """
import json, sys
import keras, numpy as np
from vit_keras import create_model, load_model
from vit_keras.pipelines import distribution

rng = np.random.default_rng(0)
pictures, labels = rng.uniform(0, 255, (70, 8, 8, 3)).astype("float32"), rng.integers(0, 4, 70)
BATCH, VALIDATION = 16, 23

def make(clip=lambda optimizer: None):
    keras.utils.set_random_seed(3)
    model = create_model("vit_micro_patch2_8", 4, num_layers=1, dropout_rate=DROPOUT)
    optimizer = keras.optimizers.AdamW(1e-3, global_clipnorm=0.5)  # Less than the norms that come: it matters.
    clip(optimizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, weighted_metrics=["accuracy"])
    return model

def curves(history):
    return {key: [float(value) for value in values] for key, values in history.history.items()}
"""

HOST = (
    """
DROPOUT = 0.1
"""
    + COMMON
    + """
keras.utils.set_random_seed(3)
process = distribution.initialize()
rows, (val_rows, weights) = process.training_rows(70, BATCH), process.evaluation_rows(VALIDATION, BATCH)

class Save(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if process.index == 0:
            with distribution.local():
                self.model.save(sys.argv[1] + ".keras")

with distribution.scope():
    model = make()
    history = model.fit(
        pictures[rows], labels[rows], batch_size=BATCH // process.count, epochs=3, shuffle=False, verbose=0,
        validation_data=(pictures[val_rows], labels[val_rows], weights), validation_batch_size=BATCH // process.count,
        callbacks=[Save()],
    )
if process.index == 0:  # Whoever predicts does so with a model of its own.
    model = load_model(sys.argv[1] + ".keras")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    again = float(loss(labels[:VALIDATION], model.predict(pictures[:VALIDATION], verbose=0)))
    report = {**curves(history), "again": again, "devices": len(keras.distribution.list_devices())}
    open(sys.argv[1] + ".json", "w").write(json.dumps(report))
"""
)

TRAIN = """
import json, sys, time
from dataclasses import replace
import keras, numpy as np
from vit_keras.pipelines import distribution, preprocessing, running
from vit_keras.pipelines.checkpoint import Checkpoint
from vit_keras.pipelines.config import AugmentConfig, FitConfig, InputConfig, RunConfig
from vit_keras.pipelines.run_folder import RunFolder

process = distribution.initialize()
distribution.initialize = lambda: process  # For all trainings of this program.
preprocessing.IN_MEMORY_BYTES = 0  # Pixels go into a file, which all read.
config = RunConfig(
    data="pictures.npz",
    model="vit_micro_patch2_8",
    out=sys.argv[1],
    override={"num_layers": 1, "dropout_rate": 0.1},
    fit=FitConfig(epochs=2, warmup_epochs=0, batch_size=16, checkpoint_steps=2),
    augment=AugmentConfig("none"),
)

def slow(function):
    def slowly(*arguments, **keywords):
        time.sleep(0.3)
        return function(*arguments, **keywords)
    return slowly

def fails(error, config):
    try:
        running.train(config)
    except error:
        return
    raise AssertionError(f"no {error}")

class DeathError(Exception):
    pass

end = Checkpoint.on_train_batch_end

def die(self, batch, logs=None):
    end(self, batch, logs)
    if (len(self.rows), self._first_step + batch + 1) == (1, 2):
        raise DeathError

if process.count > 1:
    if process.index == 0:  # Who does not wait for it is ahead of it.
        np.savez, preprocessing._fill = slow(np.savez), slow(preprocessing._fill)
        RunFolder.begin, RunFolder.save_model = slow(RunFolder.begin), slow(RunFolder.save_model)
    Checkpoint.on_train_batch_end = die
    fails(DeathError, config)
    Checkpoint.on_train_batch_end = end
    # What the first process refuses the others do not wait for.
    fails(FileExistsError if process.index == 0 else RuntimeError, replace(config, fit=replace(config.fit, epochs=3)))
running.train(config)
rows = [RunFolder(config.out).read_metrics()]
if process.count > 1:
    running.train(config, overwrite=True)
    assert RunFolder(config.out).trained
    rows.append(RunFolder(config.out).read_metrics())
open(f"{config.out}.{process.index}.json", "w").write(json.dumps(rows))
"""

MIRRORED = (
    """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
DROPOUT = 0.0
"""
    + COMMON
    + """
data = tf.data.Dataset.from_tensor_slices((pictures, labels)).batch(BATCH, drop_remainder=True)
validation = tf.data.Dataset.from_tensor_slices((pictures, labels)).take(VALIDATION).batch(BATCH)

def train(clip):
    model = make(clip)
    return curves(model.fit(data, validation_data=validation, epochs=3, verbose=0))

reports = [train(lambda optimizer: None)]
for clip in (distribution.clip_whole_gradients, lambda optimizer: None):
    with distribution.scope(["CPU:0", "CPU:1"]):
        assert tf.distribute.get_strategy().num_replicas_in_sync == 2
        reports.append(train(clip))
open("mirrored.json", "w").write(json.dumps(reports))
"""
)


def start(program, folder, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    """Waits for all of them; none is left behind."""
    try:
        said = [process.communicate(timeout=480)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(said)


needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="several hosts need JAX, which is not installed"
)


def start_two_and_one(program, folder):
    """Runs a program in two processes of two devices, and in one of one; its argument is "two" or "one"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    two = {
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        distribution.ADDRESS: address,
        distribution.COUNT: "2",
    }
    finish(
        start(program, folder, "two", **two, **{distribution.INDEX: "0"}),
        start(program, folder, "two", **two, **{distribution.INDEX: "1"}),
        start(program, folder, "one", KERAS_BACKEND="jax"),
    )


@needs_jax
def test_two_processes_train_as_one(tmp_path):
    """Dropout, clipping, validation that fills no batch: the same curves as one process with the same global batch."""
    start_two_and_one(HOST, tmp_path)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one.pop("devices"), two.pop("devices")) == (1, 4)
    assert set(one) == set(two) == {"loss", "accuracy", "val_loss", "val_accuracy", "again"}
    for key in one:
        np.testing.assert_allclose(two[key], one[key], atol=1e-4)
    np.testing.assert_allclose(one["again"], one["val_loss"][-1], atol=1e-5)  # The weights of the rows are right.
    assert one["loss"][-1] < one["loss"][0]


@needs_jax
def test_two_processes_share_a_run(tmp_path):
    """However slowly the first one writes: an interrupted run goes on, and one that is replaced begins anew."""
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(0, 256, (140, 10, 10, 3), dtype="uint8"), np.arange(140) % 4
    np.savez(tmp_path / "pictures.npz", x_train=pictures, y_train=labels)
    start_two_and_one(TRAIN, tmp_path)
    ((one,), first, second) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one.0", "two.0", "two.1")
    )
    assert first == second and len(one) == 2
    for rows in first:
        for a, b in zip(rows, one, strict=True):
            np.testing.assert_allclose([a[key] for key in b], list(b.values()), atol=1e-4)


def test_two_devices_of_a_host_train_as_one(tmp_path):
    """With a `MirroredStrategy`; only where whole gradients are clipped do the curves agree."""
    finish(start(MIRRORED, tmp_path, KERAS_BACKEND="tensorflow"))
    one, two, as_keras_clips = json.loads((tmp_path / "mirrored.json").read_text())
    for key in one:
        np.testing.assert_allclose(two[key], one[key], atol=1e-4)
    assert np.abs(np.subtract(as_keras_clips["loss"], one["loss"])).max() > 1e-4, "Keras clips whole gradients by now"


@pytest.mark.parametrize("examples", [32, 35, 47])
def test_processes_share_every_batch(examples):
    order = np.random.default_rng(0).permutation(examples)
    processes = [Process(i, 4) for i in range(4)]
    parts = [order[process.training_rows(examples, 8)].reshape(-1, 2) for process in processes]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).ravel(), order[: examples - examples % 8])

    values = np.random.default_rng(1).normal(size=examples)
    rows, weights = zip(*[process.evaluation_rows(examples, 8) for process in processes], strict=True)
    assert len({len(part) for part in rows}) == 1
    np.testing.assert_allclose((values[np.concatenate(rows)] * np.concatenate(weights)).mean(), values.mean())


def test_one_process_is_the_rule_and_half_an_answer_is_refused(monkeypatch):
    for name in (distribution.ADDRESS, distribution.COUNT, distribution.INDEX):
        monkeypatch.delenv(name, raising=False)
    assert distribution.initialize() == Process()
    with distribution.scope():
        pass
    monkeypatch.setenv(distribution.COUNT, "2")
    with pytest.raises(ValueError, match=r"given together.*Received: address=None, count=2, index=None"):
        distribution.initialize()
    with pytest.raises(ValueError, match=r"index must be in \[0, count\)\. Received: index=2, count=2"):
        distribution.initialize("127.0.0.1:1", index=2)
    with pytest.raises(ValueError, match=r"KERAS_BACKEND=jax\. Received: backend='tensorflow'"):
        distribution.initialize("127.0.0.1:1", index=0)
    monkeypatch.setenv(distribution.INDEX, "first")
    with pytest.raises(ValueError, match="must be a whole number"):
        distribution.initialize("127.0.0.1:1")
    with pytest.raises(ValueError, match=r"multiple of 6 devices\. Received: batch_size=16"):
        Process(0, 2, 3).training_rows(64, 16)
    with pytest.raises(ValueError, match=r"multiple of 6 devices\. Received: batch_size=16"):
        Process(0, 2, 3).share(16)


def test_a_process_alone_waits_for_nobody():
    done = []
    Process().first(lambda: done.append("first"))
    Process(local_devices=4).wait("here")
    assert done == ["first"] and Process(1, 2, 3).share(12) == 6
    with pytest.raises(OSError, match="full"):
        Process().first(fill_the_disk)


def fill_the_disk():
    raise OSError("full")
