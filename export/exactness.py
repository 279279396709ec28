"""What a model gives is looked at before files are made of it: by its copy the same, and whether as probabilities."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np

from vit_keras.graph import in_float32

INEXACT = 1e-3
"""Relative difference of logits from which on a rewritten float32 model is not the one that was given, ..."""
INEXACT_MIXED = 0.02
"""... and of a model that may compute in half precision in spite of the policy that it is given here."""
_BATCH = 32
"""Pictures that a model of any batch is shown at a time."""


def check_copy(model: keras.Model, copy: keras.Model, pictures: np.ndarray | None = None) -> np.ndarray:
    """Holds a rewritten model against the given one on two pictures: what does not agree was misunderstood.

    Args:
        model: The model.
        copy: Its copy; logits are its first output.
        pictures: Sample pictures, `(n, H, W, 3)`, 0 to 255; noise if `None`.

    Returns:
        What the copy gives of them: see `scores_of`.

    Raises:
        ValueError: the two do not agree.
    """
    expected, found = (scores_of(m, pictures) for m in (model, copy))
    mixed = any(part.compute_dtype != "float32" for part in model._flatten_layers())
    error = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6)
    if not error <= (INEXACT_MIXED if mixed else INEXACT):
        raise ValueError(
            f"model cannot be exported: its copy without what is for training gives other logits, by {error:.2g} of "
            "the largest. A layer of its own may draw random numbers outside training, or keep more than its weights "
            f"and its configuration say. Received: model={model.name!r}"
        )
    return found


def scores_of(model: keras.Model, pictures: np.ndarray | None = None) -> np.ndarray:
    """Returns what a model gives of two pictures in float32, `(2, num_classes)`; of as many as its batch is, if fixed.

    Args:
        model: The model.
        pictures: Sample pictures, `(n, H, W, 3)`, 0 to 255; noise if `None`.
    """
    count = model.input_shape[0] or 2
    noise = np.random.default_rng(0).integers(0, 256, (count, *model.input_shape[1:]))
    shown = np.resize(noise if pictures is None else pictures[:count], noise.shape)
    return _scores(model, np.rint(shown))  # Whole numbers, which an input of integers does not cut.


def accuracy_of(model: keras.Model, pictures: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of pictures, `(n, H, W, 3)`, that a model classifies rightly in float32, in percent.

    Args:
        model: The model; scores are its first output.
        pictures: Pixels 0 to 255.
        labels: Integers, `(n,)`.
    """
    step = model.input_shape[0] or _BATCH
    found = []
    for i in range(0, len(pictures), step):
        batch = pictures[i : i + step]
        shown = np.resize(batch, (step, *batch.shape[1:])) if model.input_shape[0] else batch
        found.append(_scores(model, shown)[: len(batch)].argmax(axis=1))
    return 100 * float((np.concatenate(found) == labels).mean())


def _scores(model: keras.Model, pictures: np.ndarray) -> np.ndarray:
    with in_float32(model), _all_digits():
        scores = keras.tree.flatten(model(pictures.astype("float32"), training=False))[0]
    return keras.ops.convert_to_numpy(keras.ops.cast(scores, "float32"))


@contextmanager
def _all_digits() -> Iterator[None]:
    """Lets GPUs multiply float32 numbers as such: of their own they leave out 13 of 23 bits."""
    from tensorflow import config

    before = config.experimental.tensor_float_32_execution_enabled()
    config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.experimental.enable_tensor_float_32_execution(before)


def gives_chances(scores: np.ndarray) -> bool:
    """Whether scores, `(n, num_classes)`, are probabilities: none is negative, and those of a picture sum to one."""
    return bool((scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() < 1e-3)
