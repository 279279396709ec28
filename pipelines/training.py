"""Training by `model.fit`, so that an interruption loses an epoch or a few steps. Keras only: no TensorFlow here."""

import csv
import dataclasses
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vit_keras.export.files import disk_full, free_bytes, remove, replacing

from . import distribution
from .config import FitConfig
from .distribution import Process
from .optimizers import make_optimizer

logger = logging.getLogger(__name__)

Row = dict[str, float]
_STEPS_BETWEEN_LOOKS = 50
"""The loss is looked at this often: a training that has gone astray need not go on to the end of its epoch."""


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


def _shares(y_true, num_classes: int, dtype):
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
            _shares(y_true, y_pred.shape[-1], y_pred.dtype),
            y_pred,
            from_logits=True,
            label_smoothing=self.label_smoothing,
        )

    def get_config(self) -> dict:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("vit_keras")
def accuracy(y_true, y_pred):
    """Returns whether each picture's largest logit is its class, or of mixed ones the class of the largest share."""
    return keras.metrics.categorical_accuracy(_shares(y_true, y_pred.shape[-1], y_pred.dtype), y_pred)


def fit(
    model: keras.Model,
    data: FitData,
    config: FitConfig,
    folder: str | Path,
    verbose: str | int = 0,
    process: Process | None = None,
) -> list[Row]:
    """Trains a classifier, and leaves it with the weights of its best epoch, averaged ones where `config.ema` says so.

    With several devices, make the model and call this inside `distribution.scope()`.

    Args:
        model: From pixels to logits, or a `Distiller` of such a one.
        data: What to train on.
        config: How to train; `epochs` must be given.
        folder: Where the state is kept. If it holds one, training goes on from there, to the same result.
        verbose: As in `model.fit`.
        process: This process of a training on several hosts; the first one writes the state, all read it.

    Returns:
        One row per epoch: `epoch` (from 0), `loss`, `accuracy`, `val_loss`, `val_accuracy`, `learning_rate`.

    Raises:
        FloatingPointError: the loss is no number any more. The last state before is kept.
        OSError: the folder cannot be written to.
        ValueError: `config.epochs` is `None`, or gradients shall be accumulated on several GPUs of TensorFlow.
    """
    if config.epochs is None:
        raise ValueError("config.epochs must be a number here. Received: config.epochs=None")
    check_fit(config)
    process = process or Process()
    optimizer = make_optimizer(model, config, data.steps_per_epoch)
    distribution.clip_whole_gradients(optimizer)
    hits = keras.metrics.MeanMetricWrapper(accuracy, name="accuracy")
    model.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(config.label_smoothing),
        # Of several devices' validation pictures some stand in twice, with a weight of zero.
        **{"metrics" if process.devices == 1 else "weighted_metrics": [hits]},
        jit_compile="auto" if config.jit else False,
    )
    stopping = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=config.patience or config.epochs)
    writes = process.index == 0
    checkpoint = Checkpoint(folder, stopping, [hits], data.steps_per_epoch, config.checkpoint_steps, writes)
    if checkpoint.state:
        where = f"step {checkpoint.step + 1} of epoch" if checkpoint.step else "epoch"
        logger.warning("Going on with %s %d of %d.", where, checkpoint.epoch + 1, config.epochs)
    callbacks = [stopping, checkpoint]
    if config.ema:
        callbacks.append(keras.callbacks.SwapEMAWeights())  # Validation is of the averaged weights.
    if config.tensorboard and writes:
        callbacks.append(keras.callbacks.TensorBoard(Path(folder) / "tensorboard", update_freq="epoch"))
    while checkpoint.epoch < config.epochs and not checkpoint.stopped:
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
    checkpoint.load_best(model)
    return checkpoint.rows


def check_fit(config: FitConfig) -> None:
    """Refuses what cannot be done on this machine.

    Raises:
        ImportError: TensorBoard shall be written and is not installed.
        ValueError: gradients shall be accumulated on several GPUs of TensorFlow.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ImportError('fit.tensorboard needs TensorBoard: pip install "vit-keras-edge[tensorboard]"')
    if config.accumulate > 1 and distribution.replicas() > 1:
        raise ValueError(
            "fit.accumulate must be 1 on several devices of TensorFlow: Keras cannot accumulate there. "
            f"Received: fit.accumulate={config.accumulate}, devices={distribution.replicas()}"
        )


def write_metrics(rows: list[Row], path: str | Path) -> None:
    """Writes the rows of `fit` as CSV."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class State:
    """What a training goes on from.

    Attributes:
        rows: One per finished epoch.
        step: Finished steps of the epoch after them.
        wait: Epochs since the best one, as the early stopping counts them.
        best: The best validation loss.
        last_file: Every variable as it is now.
        best_file: The same after the best epoch, if one is finished.
    """

    rows: list[Row]
    step: int
    wait: int
    best: float
    last_file: str
    best_file: str | None


class Checkpoint(keras.callbacks.Callback):
    """Keeps the `State` of a training, early stopping included, which Keras's `BackupAndRestore` forgets.

    `state.json` names the files that belong together and is replaced last, in one step: whenever the program dies, it
    names a whole set.

    Args:
        folder: Where to keep it.
        stopping: The early stopping of the same `fit`, listed before this callback.
        metrics: The metrics that the model was compiled with.
        steps_per_epoch: Batches in an epoch.
        every: Steps between two states; only at the ends of epochs if `None`.
        writes: Whether this process writes the files; of several one does.
    """

    def __init__(
        self,
        folder: str | Path,
        stopping: keras.callbacks.EarlyStopping,
        metrics: Sequence[keras.Metric],
        steps_per_epoch: int,
        every: int | None = None,
        writes: bool = True,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if writes:  # Says now that the folder cannot be written to.
            with replacing(self.folder / "probe") as temporary:
                temporary.touch()
            remove(self.folder / "probe")
        self.stopping = stopping
        self.metrics = metrics
        self.steps_per_epoch = steps_per_epoch
        self.every = every
        self.writes = writes
        file = self.folder / "state.json"
        self.state = State(**json.loads(file.read_text())) if file.exists() else None
        self._first_step = 0

    @property
    def rows(self) -> list[Row]:
        """One row per finished epoch."""
        return self.state.rows if self.state else []

    @property
    def epoch(self) -> int:
        """The epoch to go on with, from 0."""
        return len(self.rows)

    @property
    def step(self) -> int:
        """The step of that epoch to go on with, from 0."""
        return self.state.step if self.state else 0

    @property
    def stopped(self) -> bool:
        """Whether early stopping has ended the training."""
        return self.state is not None and self.step == 0 and self.state.wait >= self.stopping.patience

    def load_best(self, model: keras.Model) -> None:
        """Gives the model the weights of the best epoch."""
        if self.state and self.state.best_file:
            self._load(model, self.state.best_file)
            model.optimizer.finalize_variable_values(model.trainable_variables)  # Averaged ones, if it has them.

    def on_train_begin(self, logs=None) -> None:
        self._first_step = self.step
        if self.state:
            self._load(self.model, self.state.last_file)
            for metric in self.metrics:  # Keras does so at the beginning of an epoch, but for those not seen yet.
                metric.reset_state()
            self.stopping.wait, self.stopping.best = self.state.wait, self.state.best

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        if self._first_step and self.state:  # Keras has just reset what the metrics had gathered.
            self._load(self.model, self.state.last_file)

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        step = self._first_step + batch + 1
        if step % _STEPS_BETWEEN_LOOKS == 0:
            self._check(logs or {}, f"step {step} of epoch {self.epoch + 1}")
        if self.every and step % self.every == 0 and step < self.steps_per_epoch:
            self._check(logs or {}, f"step {step} of epoch {self.epoch + 1}")
            best_file = self.state.best_file if self.state else None
            self._save(State(self.rows, step, self.stopping.wait, _number(self.stopping.best), "", best_file))

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        self._first_step = 0
        for name in ("loss", "val_loss"):
            self._check(logs or {}, f"epoch {epoch + 1}", name)
        learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {"epoch": epoch, **{key: float(value) for key, value in (logs or {}).items()}}
        rows = [*self.rows, {**row, "learning_rate": learning_rate}]
        best_file = self.state.best_file if self.state and self.stopping.wait else ""
        self._save(State(rows, 0, self.stopping.wait, _number(self.stopping.best), "", best_file))

    def _check(self, logs: dict, where: str, name: str = "loss") -> None:
        if not math.isfinite(logs.get(name, 0.0)):
            raise _divergence(f"The {name} became {float(logs[name])}", where)

    def _save(self, new: State) -> None:
        """Writes all variables, then the state that names the file; an empty name stands for that file."""
        name = f"epoch_{len(new.rows)}_step_{new.step}.npz"
        new = dataclasses.replace(new, last_file=name, best_file=name if new.best_file == "" else new.best_file)
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        old, self.state = self.state, new
        if not self.writes:
            return
        values = [keras.ops.convert_to_numpy(v) for v in self._variables(self.model)]
        weights = values[: len(getattr(self.model, "student", self.model).variables)]
        if not all(np.isfinite(value).all() for value in weights):
            self.state = old  # The step after which the loss was still a number.
            raise _divergence("A weight became no number", f"epoch {len(new.rows) + (new.step > 0)}")
        if free_bytes(self.folder) < sum(value.nbytes for value in values):
            raise disk_full(self.folder / name)
        with replacing(self.folder / name) as temporary, temporary.open("wb") as file:
            np.savez(file, *values)
        with replacing(self.folder / "state.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(new)))
        for file in {old.last_file, old.best_file} - {new.last_file, new.best_file, None} if old else ():
            remove(self.folder / file)

    def _load(self, model: keras.Model, name: str) -> None:
        if not model.optimizer.built:  # Some of Keras's would make their variables once more.
            model.optimizer.build(model.trainable_variables)
        with np.load(self.folder / name, allow_pickle=False) as values:
            for i, variable in enumerate(self._variables(model)):
                variable.assign(values[f"arr_{i}"])

    def _variables(self, model: keras.Model) -> list[keras.Variable]:
        """Everything that changes in a training: weights, random generators, the optimiser, the mean loss, metrics."""
        gathered = [variable for metric in (model.metrics[0], *self.metrics) for variable in metric.variables]
        trained = getattr(model, "student", model)  # A Distiller's teacher does not change.
        return [*trained.variables, *model.optimizer.variables, *gathered]


def _divergence(what: str, where: str) -> FloatingPointError:
    return FloatingPointError(
        f"{what} in {where}; the state before is kept. Try a lower fit.learning_rate, or more fit.warmup_epochs."
    )


def _number(value: Any) -> float:
    return float(np.asarray(value)) if value is not None else math.inf
