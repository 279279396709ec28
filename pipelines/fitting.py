"""The stage of a run that trains: builds the model as the configuration says, fits it, and gives it back plain."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

import vit_keras
from vit_keras import adapt, count_parameters, create_model, merge_lora
from vit_keras.distillation import Distiller
from vit_keras.precision import precision

from . import distribution
from .config import RunConfig
from .datasets import ImageData, Split
from .distribution import Process
from .preprocessing import batches, load_pixels, training_batches
from .report import plot_history
from .run_folder import RunFolder
from .training import FitData, Row, fit, load_last, write_metrics

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_PLOTS = 30
"""A plot takes a quarter of a second, which would be much beside an epoch of a small set."""


def build_model(config: RunConfig, num_classes: int, weights: str | None) -> keras.Model:
    """Builds the model that a run trains, and freezes or inserts what `config.adapt` says.

    Args:
        config: A resolved configuration.
        num_classes: Number of classes.
        weights: Checkpoint to start from, or `None`.

    Raises:
        ValueError: a model, weights or a way to adapt them that do not fit.
    """
    with precision(config.fit.precision):
        model = create_model(config.model, num_classes, config.input.image_size, weights=weights, **config.override)
        if config.adapt.method == "full":
            return model
        model = adapt(model, seed=config.fit.seed, **config.adapt.arguments())
    logger.warning("%s: %s", config.adapt.method, count_parameters(model))
    return model


@dataclass(frozen=True)
class Fitted:
    """What a training leaves: plain float32 models, compiled with a plain loss, and how it went.

    Attributes:
        rows: Those of `fit`, one per epoch.
        best: The model after the best epoch.
        last: The model after the last epoch; `None` if that is the best one.
    """

    rows: list[Row]
    best: keras.Model
    last: keras.Model | None


def fit_model(
    folder: RunFolder, config: RunConfig, data: ImageData, model: keras.Model, verbose: str | int, process: Process
) -> Fitted:
    """Trains a run's model, by distillation if it has a teacher; goes on where an interrupted training was.

    Raises:
        FloatingPointError: the loss or a weight is no number any more. The model of the last state is kept.
    """
    state = folder.state / "training"
    joined = with_teacher(model, config)
    source = fit_data(data, model.input_shape[1:3], config, folder.state / "pixels", process)
    try:
        rows = fit(joined, source, config.fit, state, verbose, process, _progress(folder))
    except FloatingPointError as error:
        if not (state / "state.json").exists():
            raise
        load_last(joined, state)
        folder.save_model(_plain(model), folder.last_model_file)
        raise FloatingPointError(
            f"{error} {folder.last_model_file} holds the model as it was; --weights starts another run from it."
        ) from error
    best = _plain(model)
    if min(range(len(rows)), key=lambda i: rows[i]["val_loss"]) == len(rows) - 1:
        return Fitted(rows, best, None)
    load_last(joined, state)
    return Fitted(rows, best, _plain(model))


def _progress(folder: RunFolder) -> Callable[[list[Row]], None]:
    """Returns what writes a run's metrics after every epoch, and draws them now and then."""
    drawn = -math.inf

    def write(rows: list[Row]) -> None:
        nonlocal drawn
        write_metrics(rows, folder.metrics_file)
        if time.monotonic() > drawn + SECONDS_BETWEEN_PLOTS:
            plot_history(rows, folder.history_plot)
            drawn = time.monotonic()

    return write


def _plain(model: keras.Model) -> keras.Model:
    """Copies the model as it is now. With a plain loss the copy loads in any program that knows our layers."""
    with distribution.local():
        copy = merge_lora(model, dtype="float32")
        copy.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return copy


def with_teacher(model: keras.Model, config: RunConfig) -> keras.Model:
    """Joins a model with the teacher that the configuration names: a run's folder or a `.keras` file; if it names one.

    Raises:
        FileNotFoundError: there is no such teacher.
        ValueError: a file that holds none, or one of other classes.
    """
    path = config.distill.teacher
    if path is None:
        return model
    teacher = vit_keras.load_model(RunFolder(path).require_model() if Path(path).is_dir() else path)
    return Distiller(model, teacher, **config.distill.arguments())


def fit_data(
    data: ImageData,
    image_size: tuple[int, int],
    config: RunConfig,
    cache: str | Path | None = None,
    process: Process | None = None,
) -> FitData:
    """Returns what a run trains on: batches of its training and validation pictures.

    Args:
        data: The pictures.
        image_size: Height and width that the model takes, in pixels.
        config: `augment`, `fit` and `input` say how.
        cache: Folder for pixels that memory has no room for.
        process: Which of several processes that train together this is; each takes its part of every batch.

    Raises:
        ValueError: a batch size that the processes' devices do not divide.
    """
    process = process or Process()
    batch_size = min(config.fit.batch_size, len(data.train))
    share = process.share(batch_size)
    crops = config.augment.changes(image_size).crop_area < 1
    split = data.train if crops else load_pixels(data.train, image_size, cache, process)

    def train(epoch: int, step: int) -> Any:
        return training_batches(
            split,
            image_size,
            share,
            config.augment,
            config.fit.seed,
            epoch,
            step,
            num_classes=len(data.classes),
            balance=config.input.balance,
            shard=(process.index, process.count),
        )

    validation = _validation(load_pixels(data.validation, image_size, cache, process), image_size, process)
    return FitData(train, len(data.train) // batch_size, validation)


def _validation(split: Split, image_size: tuple[int, int], process: Process) -> Any:
    if process.devices == 1:
        return batches(split, image_size, 256)
    import tensorflow as tf

    size = 256 * process.devices
    rows, weights = process.evaluation_rows(len(split), size)
    dataset = batches(split.take(rows), image_size, process.share(size))
    weighted = tf.data.Dataset.from_tensor_slices(weights).batch(process.share(size))
    return tf.data.Dataset.zip((dataset, weighted)).map(lambda pair, weight: (*pair, weight))
