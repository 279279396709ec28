"""Training by `model.fit`, so that an interruption loses an epoch or a few steps. Keras only: no TensorFlow here."""

import csv
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from vit_keras.export.files import replacing

from . import distribution
from .checkpoint import Checkpoint, Row, load_last
from .config import FitConfig
from .distribution import Process
from .optimizers import make_optimizer

__all__ = ["FitData", "Row", "SmoothedCrossentropy", "accuracy", "check_fit", "fit", "load_last", "write_metrics"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitData:
    """What a model is trained on.

    Attributes:
        train: Gives the training batches from an epoch and a step of it on, without end: anything that `model.fit`
            takes, with labels as integers `(B,)` or as shares of the classes `(B, C)`, and perhaps sample weights.
        steps_per_epoch: Batches in an epoch.
        validation: Validation batches, with integer labels.
    """

    train: Callable[[int, int], Any]
    steps_per_epoch: int
    validation: Any


def _class_shares(y_true, num_classes: int, dtype):
    """Labels, integers `(B,)` or shares of the classes `(B, C)`, as shares."""
    if len(y_true.shape) == 2 and y_true.shape[-1] == num_classes:
        return keras.ops.cast(y_true, dtype)
    return keras.ops.one_hot(keras.ops.reshape(y_true, (-1,)), num_classes, dtype=dtype)


@keras.saving.register_keras_serializable("vit_keras")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits and labels with label smoothing, which Keras has for one-hot labels only.

    Args:
        label_smoothing: Share of the target that is spread over all classes, 0 to below 1.

    Call arguments:
        y_true: Labels, integers `(B,)`, or shares of the classes `(B, C)` as MixUp and CutMix make them.
        y_pred: Logits, `(B, C)`.

    Reference:
        Szegedy et al., "Rethinking the Inception Architecture" (arXiv:1512.00567), section 7.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "smoothed_crossentropy", **kwargs) -> None:
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        return keras.losses.categorical_crossentropy(
            _class_shares(y_true, y_pred.shape[-1], y_pred.dtype),
            y_pred,
            from_logits=True,
            label_smoothing=self.label_smoothing,
        )

    def get_config(self) -> dict:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("vit_keras")
def accuracy(y_true, y_pred):
    """Returns whether each picture's largest logit is its class, or of mixed ones the class of the largest share."""
    return keras.metrics.categorical_accuracy(_class_shares(y_true, y_pred.shape[-1], y_pred.dtype), y_pred)


def fit(
    model: keras.Model,
    data: FitData,
    config: FitConfig,
    folder: str | Path,
    verbose: str | int = 0,
    process: Process | None = None,
    on_epoch: Callable[[list[Row]], object] | None = None,
) -> list[Row]:
    """Trains a classifier, and leaves it with the weights of its best epoch, averaged ones where `config.ema` says so.

    With several devices, make the model and call this inside `distribution.scope()`. `load_last` gives the model the
    weights of the last epoch afterwards.

    Args:
        model: From pixels to logits, or a `Distiller` of such a one.
        data: What to train on.
        config: How to train; `epochs` must be given. `batch_size`, `precision` and `seed` are for whoever makes the
            data and the model: nothing is done with them here.
        folder: Where the state is kept. If it holds one, training goes on from there, to the same result.
        verbose: As in `model.fit`.
        process: This process of a training on several hosts; the first one writes the state, all read it.
        on_epoch: Called after every epoch, in the first process, with the rows of all epochs so far; what it raises
            ends the training, which can go on later.

    Returns:
        One row per epoch: `epoch` (from 0), `loss`, `accuracy`, `val_loss`, `val_accuracy`, `learning_rate`.

    Raises:
        FloatingPointError: the loss is no number any more. The last state before is kept.
        OSError: the folder cannot be written to.
        ValueError: `config.epochs` is `None`, `check_fit` refuses the settings, or the folder holds the state of a
            training with other settings, of another model or of other steps per epoch.
    """
    if config.epochs is None:
        raise ValueError("config.epochs must be a number here. Received: config.epochs=None")
    check_fit(config, data.steps_per_epoch)
    process = process or Process()
    metric = keras.metrics.MeanMetricWrapper(accuracy, name="accuracy")
    _compile(model, config, data.steps_per_epoch, metric, process)
    stopping = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=config.patience or config.epochs)
    checkpoint = Checkpoint(folder, model, [metric], stopping, config, data.steps_per_epoch, process)
    if checkpoint.state and not checkpoint.finished:
        where = f"step {checkpoint.step + 1} of epoch" if checkpoint.step else "epoch"
        logger.warning("Going on with %s %d of %d.", where, checkpoint.epoch + 1, config.epochs)
    callbacks = [stopping, checkpoint, *_callbacks(config, checkpoint, on_epoch)]
    while not checkpoint.finished:
        epoch, step = checkpoint.epoch, checkpoint.step
        model.fit(
            data.train(epoch, step),
            validation_data=data.validation,
            initial_epoch=epoch,
            epochs=epoch + 1 if step else config.epochs,  # An epoch that was begun is finished by itself.
            steps_per_epoch=data.steps_per_epoch - step,
            shuffle=False,
            callbacks=callbacks,
            verbose=verbose,
        )
    checkpoint.load_best()
    process.wait("the best weights are loaded")  # Whoever goes on may remove the folder.
    return checkpoint.rows


def _compile(
    model: keras.Model, config: FitConfig, steps_per_epoch: int, metric: keras.Metric, process: Process
) -> None:
    optimizer = make_optimizer(model, config, steps_per_epoch)
    distribution.clip_whole_gradients(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(config.label_smoothing),
        # Of several devices' validation pictures some stand in twice, with a weight of zero.
        **{"metrics" if process.devices == 1 else "weighted_metrics": [metric]},
        jit_compile="auto" if config.jit else False,
    )


def _callbacks(
    config: FitConfig, checkpoint: Checkpoint, on_epoch: Callable[[list[Row]], object] | None
) -> list[keras.callbacks.Callback]:
    """Returns what is asked for beside early stopping and checkpoint."""
    callbacks, process = [], checkpoint.process
    if on_epoch:
        callbacks.append(
            keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: process.first(lambda: on_epoch(checkpoint.rows)))
        )
    if config.ema:
        callbacks.append(keras.callbacks.SwapEMAWeights())  # Validation is of the averaged weights.
    if config.tensorboard and process.index == 0:
        callbacks.append(keras.callbacks.TensorBoard(checkpoint.folder / "tensorboard", update_freq="epoch"))
    return callbacks


def check_fit(config: FitConfig, steps_per_epoch: int) -> None:
    """Refuses what cannot be done on this machine, and what would train nothing.

    Args:
        config: How to train.
        steps_per_epoch: Batches in an epoch.

    Raises:
        ImportError: TensorBoard shall be written and is not installed.
        ValueError: no batches, fewer in the whole training than gradients are accumulated over, or gradients to be
            accumulated on several GPUs of TensorFlow.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ImportError("fit.tensorboard needs TensorBoard: pip install tensorboard")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch must be >= 1. Received: steps_per_epoch={steps_per_epoch}")
    if config.epochs and config.accumulate > steps_per_epoch * config.epochs:
        raise ValueError(
            f"fit.accumulate must be at most the {steps_per_epoch * config.epochs} batches of the training, or not one "
            f"step is made. Received: fit.accumulate={config.accumulate}, fit.epochs={config.epochs}, "
            f"steps_per_epoch={steps_per_epoch}"
        )
    if config.accumulate > 1 and distribution.replicas() > 1:
        raise ValueError(
            "fit.accumulate must be 1 on several devices of TensorFlow: Keras cannot accumulate there. "
            f"Received: fit.accumulate={config.accumulate}, devices={distribution.replicas()}"
        )


def write_metrics(rows: list[Row], path: str | Path) -> None:
    """Writes the rows of `fit` as CSV; an empty file if there are none."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
