"""The same weights say the same on every backend that is installed."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from harness import randomise_zeros

from vit_keras import create_model

PROGRAM = """
import sys
import keras, numpy as np
import vit_keras
assert keras.backend.backend() == sys.argv[1]
model = vit_keras.load_model("model.keras")
logits = keras.ops.convert_to_numpy(model(np.load("pictures.npy")))
np.save(sys.argv[1] + ".npy", logits)
model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
losses = [model.train_on_batch(np.load("pictures.npy"), np.arange(4)) for _ in range(3)]
assert losses[2] < losses[0], losses
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_backend(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; Keras can run on it, vit_keras does not need it")
    model = create_model(
        "vit_micro_patch2_8", 4, num_layers=2, pooling="token", drop_path_rate=0.1, layer_scale_init=1.0
    )
    randomise_zeros(model)
    pictures = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "pictures.npy", pictures)
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", PROGRAM, backend]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / f"{backend}.npy"), model.predict(pictures, verbose=0), atol=1e-5)
