"""A run on several devices of TensorFlow: what comes after the training is of one device."""

import json
import subprocess
import sys

import pytest

RUN = """
import functools, json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from vit_keras.pipelines import distribution, fitting, proof, running
from vit_keras.pipelines.config import ExportConfig, FitConfig, RunConfig

distribution.scope = functools.partial(distribution.scope, ["CPU:0", "CPU:1"])
mirrored = {}

def watch(home, name, position):
    original = getattr(home, name)
    def watched(*arguments, **rest):
        kinds = {type(variable.value).__name__ for variable in arguments[position].variables}
        mirrored.setdefault(name, []).append("MirroredVariable" in kinds)
        return original(*arguments, **rest)
    setattr(home, name, watched)

watch(fitting, "fit", 0)
watch(running, "evaluate_model", 0)
watch(running, "export_files", 2)
watch(proof, "evaluate_model", 0)
settings = RunConfig(
    out="run",
    fit=FitConfig(epochs=1, batch_size=128),
    override={"num_layers": 1},
    export=ExportConfig("float32", saved_model=False),
)
trained = running.train(settings)
report = running.run(settings)  # Goes on, with the model from the file.
print(json.dumps([mirrored, trained.accuracy, report["keras"]["accuracy"], report["artefacts"][0]["agreement"]]))
"""


def test_a_mirrored_model_is_neither_evaluated_nor_exported(tmp_path):
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    mirrored, trained, reported, agreement = json.loads(done.stdout.splitlines()[-1])
    assert mirrored.pop("fit") == [True]
    assert mirrored == {"evaluate_model": [False] * 2, "export_files": [False]}
    assert reported == pytest.approx(trained) and agreement == 1
