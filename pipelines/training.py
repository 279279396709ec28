"""Training by `model.fit`, so that an interruption loses one epoch at most. Keras only: no TensorFlow here."""

import csv
import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from vit_keras.export.files import disk_full, free_bytes, remove, replacing

from .config import FitConfig

logger = logging.getLogger(__name__)

Row = dict[str, float]


@keras.saving.register_keras_serializable("vit_keras")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits and integer labels with label smoothing, which Keras has for one-hot labels only.

    Args:
        label_smoothing: Share of the target that is spread over all classes, 0 to below 1.

    Reference:
        Szegedy et al., "Rethinking the Inception Architecture" (arXiv:1512.00567), section 7.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "smoothed_crossentropy", **kwargs) -> None:
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        targets = keras.ops.one_hot(keras.ops.reshape(y_true, (-1,)), y_pred.shape[-1], dtype=y_pred.dtype)
        return keras.losses.categorical_crossentropy(
            targets, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )

    def get_config(self) -> dict:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


def fit(
    model: keras.Model,
    train: Callable[[int], Any],
    validation: Any,
    config: FitConfig,
    steps_per_epoch: int,
    folder: str | Path,
    verbose: str | int = 0,
) -> list[Row]:
    """Trains a classifier, and leaves it with the weights of its best epoch.

    Args:
        model: From pixels to logits.
        train: Gives the training batches from an epoch on: anything that `model.fit` takes, with integer labels.
        validation: Validation batches.
        config: How to train; `epochs` must be given.
        steps_per_epoch: Batches in an epoch.
        folder: Where the state is kept. If it holds one, training goes on after its last epoch.
        verbose: As in `model.fit`.

    Returns:
        One row per epoch: `epoch` (from 0), `loss`, `accuracy`, `val_loss`, `val_accuracy`, `learning_rate`.

    Raises:
        FloatingPointError: the loss is no number any more. The state of the last good epoch is kept.
        OSError: the folder cannot be written to.
    """
    if config.epochs is None:
        raise ValueError("config.epochs must be a number here. Received: config.epochs=None")
    model.compile(
        optimizer=make_optimizer(model, config, config.epochs * steps_per_epoch, steps_per_epoch),
        loss=SmoothedCrossentropy(config.label_smoothing),
        metrics=["accuracy"],
    )
    stopping = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=config.patience)
    checkpoint = Checkpoint(folder, stopping)
    first_epoch = len(checkpoint.rows)
    if first_epoch:
        logger.warning("Going on with epoch %d of %d.", first_epoch + 1, config.epochs)
    if first_epoch < config.epochs and not checkpoint.stopped:
        model.fit(
            train(first_epoch),
            validation_data=validation,
            initial_epoch=first_epoch,
            epochs=config.epochs,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,
            callbacks=[stopping, checkpoint],
            verbose=verbose,
        )
    checkpoint.load_best(model)
    return checkpoint.rows


def make_optimizer(
    model: keras.Model, config: FitConfig, steps: int, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """Returns AdamW with linear warm-up and cosine decay to zero within `steps`; only kernels are decayed."""
    warmup = config.warmup_epochs * steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else config.learning_rate,
        decay_steps=max(1, steps - warmup),
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm)
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if v.name != "kernel"])
    return optimizer


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
        wait: Epochs since the best one, as the early stopping counts them.
        best: The best validation loss.
        last_file: Weights and optimiser after the last epoch.
        best_file: The same after the best epoch.
        random: State of every random generator of the model, which Keras's weight files leave out.
    """

    rows: list[Row]
    wait: int
    best: float
    last_file: str
    best_file: str
    random: list[list[int]]


class Checkpoint(keras.callbacks.Callback):
    """Keeps the `State` of a training, early stopping included, which Keras's `BackupAndRestore` forgets.

    `state.json` names the files that belong together and is replaced last, in one step: whenever the program dies, it
    names a whole set.

    Args:
        folder: Where to keep it.
        stopping: The early stopping of the same `fit`, listed before this callback.
    """

    def __init__(self, folder: str | Path, stopping: keras.callbacks.EarlyStopping) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stopping = stopping
        file = self.folder / "state.json"
        self.state = State(**json.loads(file.read_text())) if file.exists() else None

    @property
    def rows(self) -> list[Row]:
        """One row per finished epoch."""
        return self.state.rows if self.state else []

    @property
    def stopped(self) -> bool:
        """Whether early stopping has ended the training."""
        return self.state is not None and self.state.wait >= self.stopping.patience

    def load_best(self, model: keras.Model) -> None:
        """Gives the model the weights of the best epoch."""
        if self.state:
            model.load_weights(self.folder / self.state.best_file)

    def on_train_begin(self, logs=None) -> None:
        if self.state:
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(self.folder / self.state.last_file)
            for generator, value in zip(_random_generators(self.model), self.state.random, strict=True):
                generator.assign(value)
            self.stopping.wait, self.stopping.best = self.state.wait, self.state.best

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        logs = {key: float(value) for key, value in (logs or {}).items()}
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"The loss became {logs['loss']} in epoch {epoch + 1}; the state of epoch {epoch} is kept. "
                "Try a lower fit.learning_rate, or more fit.warmup_epochs."
            )
        learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        last = f"epoch_{epoch}.weights.h5"
        variables = [*self.model.variables, *self.model.optimizer.variables]
        if free_bytes(self.folder) < sum(4 * math.prod(v.shape) for v in variables):
            raise disk_full(self.folder / last)  # Before HDF5 finds out: it cannot close a file then.
        with replacing(self.folder / last) as temporary:
            self.model.save_weights(temporary)
        old, new = (
            self.state,
            State(
                rows=[*self.rows, {"epoch": epoch, **logs, "learning_rate": learning_rate}],
                wait=self.stopping.wait,
                best=float(self.stopping.best),
                last_file=last,
                best_file=self.state.best_file if self.state and self.stopping.wait else last,
                random=[keras.ops.convert_to_numpy(v).tolist() for v in _random_generators(self.model)],
            ),
        )
        with replacing(self.folder / "state.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(new)))
        self.state = new
        for name in {old.last_file, old.best_file} - {new.last_file, new.best_file} if old else ():
            remove(self.folder / name)


def _random_generators(model: keras.Model) -> list[keras.Variable]:
    return [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
