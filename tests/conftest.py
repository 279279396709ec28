"""What the tests share: quiet TensorFlow, and one short run that many of them look at."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import shutil
from pathlib import Path

import keras
import pytest

from vit_keras.pipelines.config import AugmentConfig, FitConfig, RunConfig

SHORT = {
    "fit": FitConfig(epochs=8, warmup_epochs=1, batch_size=64),
    "augment": AugmentConfig(noise=0.0),
    "override": {"num_layers": 2},
}
"""Settings that train a digits model of about 90 % accuracy in a few seconds."""


@pytest.fixture(autouse=True)
def seed():
    """Every test draws the same numbers, alone or among others."""
    keras.utils.set_random_seed(0)


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
