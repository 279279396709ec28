"""From a Keras model to TensorFlow Lite files: static batch, static shapes, builtin operators only."""

import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from .calibrate import sample
from .files import disk_full, refuse_existing
from .quantize import KINDS, check_kinds
from .saved_model import quiet_tensorflow

logger = logging.getLogger(__name__)


def to_tflite(
    model: keras.Model,
    path: str | Path,
    kind: str = "float32",
    calibration: Iterable[np.ndarray] | None = None,
    batch_size: int = 1,
    overwrite: bool = False,
) -> Path:
    """Exports a classifier as one TensorFlow Lite file.

    Args:
        model: A Keras model from pictures, float32 `(B, H, W, 3)` with pixels 0 to 255, to logits, `(B, num_classes)`.
        path: The file to write.
        kind: A name in `vit_keras.export.KINDS`.
        calibration: Batches of pictures, `(B, H, W, 3)`, 0 to 255; needed by the kinds that are calibrated.
        batch_size: Pictures per call of the file, >= 1. It is fixed: delegates reject a dynamic one.
        overwrite: Whether to replace a file that is there already.

    Returns:
        The path. The file has one signature, `serving_default`, from `images` to `logits`.

    Raises:
        ValueError: an unknown kind, a calibrated kind without pictures, or pictures that do not fit the model.
        FileExistsError: the file exists and `overwrite` is false.
        RuntimeError: the conversion failed; the message holds the end of the converter's output.
    """
    return to_tflite_files(model, {kind: path}, calibration, batch_size, overwrite)[kind]


def to_tflite_files(
    model: keras.Model,
    paths: Mapping[str, str | Path],
    calibration: Iterable[np.ndarray] | None = None,
    batch_size: int = 1,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Exports a classifier as several kinds at once: as `to_tflite`, with one child process for all.

    Args:
        paths: Kind to the file to write. A file appears under its name as soon as it is whole.

    Returns:
        Kind to path.
    """
    kinds = check_kinds(paths)
    targets = {kind: refuse_existing(paths[kind], overwrite) for kind in kinds}
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1. Received: batch_size={batch_size}")
    calibrated = [kind for kind in kinds if KINDS[kind].calibrated]
    if calibrated and calibration is None:
        raise ValueError(f"calibration must be given for {', '.join(calibrated)}. Received: calibration=None")
    with tempfile.TemporaryDirectory(prefix="vit_keras_") as job:
        if calibrated and calibration is not None:
            np.save(f"{job}/calibration.npy", sample(calibration, model.input_shape[1:3]))
        description = {"batch_size": batch_size, "targets": {k: str(p.absolute()) for k, p in targets.items()}}
        Path(job, "job.json").write_text(json.dumps(description))
        _save_frozen(model, f"{job}/saved_model", batch_size)
        _run_child(job)
    return targets


def _save_frozen(model: keras.Model, folder: str, batch_size: int) -> None:
    """Saves a SavedModel with constants for weights and one signature of a fixed batch.

    A dynamic batch fills the converted graph with shape operators, and variables with READ_VARIABLE.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = [tf.TensorSpec((batch_size, *model.input_shape[1:]), tf.float32, name="images")]
    function = tf.function(lambda images: model(images, training=False), input_signature=signature)
    frozen = convert_variables_to_constants_v2(function.get_concrete_function())
    serve = tf.function(lambda images: {"logits": frozen(images)[0]}, input_signature=signature)
    with quiet_tensorflow():
        tf.saved_model.save(tf.Module(), folder, signatures={"serving_default": serve})


def _run_child(job: str) -> None:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "vit_keras.export.conversion", job]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    logger.debug("%s", result.stderr)
    if result.returncode:
        if os.strerror(errno.ENOSPC) in result.stderr:
            raise disk_full(next(iter(json.loads(Path(job, "job.json").read_text())["targets"].values())))
        raise RuntimeError(f"Conversion ended with code {result.returncode}:\n{result.stderr[-2000:]}")
