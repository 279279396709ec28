"""What the tests share: quiet TensorFlow, and one short run that many of them look at."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import randomise_zeros

from vit_keras import create_model
from vit_keras.pipelines.config import AugmentConfig, FitConfig, RunConfig

SHORT = {
    "fit": FitConfig(epochs=10, warmup_epochs=1, batch_size=64),
    "augment": AugmentConfig(noise=0.0),
    "override": {"num_layers": 2},
}
"""Settings that train a digits model of about 90 % accuracy in a few seconds."""


@pytest.fixture(autouse=True)
def seed():
    """Every test draws the same numbers, alone or among others."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def model():
    """A small classifier of 8x8 pictures, four classes and random weights: look, do not touch."""
    keras.utils.set_random_seed(0)
    model = create_model("vit_micro_patch2_8", 4, num_layers=2)
    randomise_zeros(model)
    return model


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Pictures of noise for it."""
    return np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="session")
def float32(model, tmp_path_factory) -> bytes:
    """The content of its float32 file."""
    from vit_keras.export import to_tflite

    return to_tflite(model, tmp_path_factory.mktemp("float32") / "m.tflite").read_bytes()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A short run on digits, gone all the way: look, do not touch."""
    from vit_keras.pipelines.running import run

    folder = tmp_path_factory.mktemp("runs") / "digits"
    run(RunConfig(out=str(folder), **SHORT))
    return folder


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    """A copy of the short run that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
