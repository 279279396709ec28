"""The state of a training, to go on from whenever it was interrupted. Keras only: no TensorFlow here."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vit_keras.export.files import disk_full, free_bytes, remove, replacing

from .config import FitConfig
from .distribution import Process
from .fit_config import IMMATERIAL

Row = dict[str, float]
_STEPS_BETWEEN_LOOKS = 50
"""The loss is looked at this often: a training that has gone astray need not go on to the end of its epoch."""


@dataclass(frozen=True)
class State:
    """What a training goes on from.

    Attributes:
        training: What training it is: settings, steps per epoch and every variable, by name.
        rows: One per finished epoch.
        step: Finished steps of the epoch after them.
        wait: Epochs since the best one, as the early stopping counts them.
        best: The best validation loss.
        last_file: Every variable as it is now.
        best_file: The same after the best epoch, if one is finished.
    """

    training: dict[str, Any]
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
        model: The model, compiled.
        metrics: The metrics that it was compiled with.
        stopping: The early stopping of the same `fit`, listed before this callback.
        config: How the model is trained.
        steps_per_epoch: Batches in an epoch.
        process: This process; of several the first one writes, and all read.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: the folder holds the state of another training.
    """

    def __init__(
        self,
        folder: str | Path,
        model: keras.Model,
        metrics: Sequence[keras.Metric],
        stopping: keras.callbacks.EarlyStopping,
        config: FitConfig,
        steps_per_epoch: int,
        process: Process,
    ) -> None:
        super().__init__()
        self.set_model(model)
        self.folder = Path(folder)
        self.stopping = stopping
        self.epochs = config.epochs or 0
        self.steps_per_epoch = steps_per_epoch
        self.every = config.checkpoint_steps
        self.process = process
        self._metrics = metrics
        self._first_step = 0
        if not model.optimizer.built:  # Some of Keras's would make their variables once more.
            model.optimizer.build(model.trainable_variables)
        self._training = _description(self._variables(), config, steps_per_epoch)
        self.state = _read_state(self.folder)
        if self.state:
            _refuse_another(self.folder, self.state.training, self._training)
        process.first(self._make_ready)

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
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping has ended the training."""
        stopped = self.state is not None and self.step == 0 and self.state.wait >= self.stopping.patience
        return stopped or self.epoch >= self.epochs

    def load_best(self) -> None:
        """Gives the model the weights of the best epoch."""
        if self.state and self.state.best_file:
            _load_epoch(self.model, self.folder / self.state.best_file)

    def on_train_begin(self, logs=None) -> None:
        self._first_step = self.step
        if self.state:
            self._load(self.state.last_file)
            for metric in self._metrics:  # Keras does so at the beginning of an epoch, but for those not seen yet.
                metric.reset_state()
            self.stopping.wait, self.stopping.best = self.state.wait, self.state.best

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        if self._first_step and self.state:  # Keras has just reset what the metrics had gathered.
            self._load(self.state.last_file)

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        step = self._first_step + batch + 1
        if step % _STEPS_BETWEEN_LOOKS == 0:
            _check(logs or {}, f"step {step} of epoch {self.epoch + 1}")
        if self.every and step % self.every == 0 and step < self.steps_per_epoch:
            _check(logs or {}, f"step {step} of epoch {self.epoch + 1}")
            self._save(self.rows, step, is_best=False)

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        self._first_step = 0
        for name in ("loss", "val_loss"):
            _check(logs or {}, f"epoch {epoch + 1}", name)
        learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {"epoch": epoch, **{key: float(value) for key, value in (logs or {}).items()}}
        self._save([*self.rows, {**row, "learning_rate": learning_rate}], 0, is_best=self.stopping.wait == 0)

    def _save(self, rows: list[Row], step: int, is_best: bool) -> None:
        """Lets the first process write the present state; no process goes on before it is written."""
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        weights = [keras.ops.convert_to_numpy(v) for v in _weights(self.model)]
        if not all(np.isfinite(value).all() for value in weights):
            raise _divergence("A weight became no number", f"epoch {len(rows) + (step > 0)}")
        name = f"epoch_{len(rows)}_step_{step}.npz"
        best_file = name if is_best else self.state.best_file if self.state else None
        best = math.inf if self.stopping.best is None else float(np.asarray(self.stopping.best))
        new = State(self._training, rows, step, self.stopping.wait, best, name, best_file)
        self.process.first(lambda: self._write(new, weights))
        self.state = new

    def _write(self, new: State, weights: list[np.ndarray]) -> None:
        """Writes all variables, then the state that names the file."""
        others = [keras.ops.convert_to_numpy(v) for v in self._variables()[len(weights) :]]
        gathered = others[: len(self.model.optimizer.variables)]
        if not all(np.isfinite(value).all() for value in gathered):
            where = f"epoch {len(new.rows) + (new.step > 0)}"
            raise _divergence("What the optimiser has gathered became no number", where)
        if free_bytes(self.folder) < sum(value.nbytes for value in (*weights, *others)):
            raise disk_full(self.folder / new.last_file)
        with replacing(self.folder / new.last_file) as temporary, temporary.open("wb") as file:
            np.savez(file, *weights, *others)
        with replacing(self.folder / "state.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(new)))
        self._clean({new.last_file, new.best_file})

    def _make_ready(self) -> None:
        """Says now that the folder cannot be written to, and removes what a program that was killed has left."""
        with replacing(self.folder / "probe") as temporary:
            temporary.touch()
        remove(self.folder / "probe")
        self._clean({self.state.last_file, self.state.best_file} if self.state else set())

    def _clean(self, kept: set[str | None]) -> None:
        for file in self.folder.glob("epoch_*_step_*.npz"):
            if file.name not in kept:
                remove(file)

    def _load(self, name: str) -> None:
        _load(self.folder / name, self._variables())

    def _variables(self) -> list[keras.Variable]:
        """Everything that changes in a training: weights, the optimiser, the mean loss, metrics."""
        metrics = (self.model.metrics[0], *self._metrics)
        gathered = [variable for metric in metrics for variable in metric.variables]
        return [*_weights(self.model), *self.model.optimizer.variables, *gathered]


def load_last(model: keras.Model, folder: str | Path) -> None:
    """Gives a model the weights of the last epoch, where `fit` leaves it with those of the best.

    Averaged weights if it was trained with `config.ema`: those that were validated.

    Args:
        model: The model that `fit` has trained, compiled as `fit` left it.
        folder: Where `fit` kept the state.

    Raises:
        FileNotFoundError: the folder holds no state.
        ValueError: the folder's state is of another version of this package.
    """
    state = _read_state(Path(folder))
    if state is None:
        raise FileNotFoundError(f"No state of a training at {folder}.")
    _load_epoch(model, Path(folder) / state.last_file)


def _read_state(folder: Path) -> State | None:
    file = folder / "state.json"
    if not file.exists():
        return None
    try:
        return State(**json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is no state that this version of vit_keras can go on from; remove {folder} to start again."
        ) from error


def _description(variables: Sequence[keras.Variable], config: FitConfig, steps_per_epoch: int) -> dict[str, Any]:
    """Says what a training is: of another one no state is taken up.

    Without numbers in the names of variables, which Keras gives out anew to layers that have none of their own.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in IMMATERIAL}
    names = [re.sub(r"_\d+", "", variable.path) for variable in variables]
    return {
        **{f"fit.{name}": value for name, value in settings.items()},
        "steps_per_epoch": steps_per_epoch,
        **{f"variables[{i}]": f"{name} {tuple(variables[i].shape)}" for i, name in enumerate(names)},
    }


def _refuse_another(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    differences = [f"{key}: {old.get(key)}, now {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"{folder} holds the state of another training ({'; '.join(differences[:3])}{more}); train as before to go "
            "on, in another folder or after removing this one to start again."
        )


def _weights(model: keras.Model) -> list[keras.Variable]:
    """The model's weights and random generators; a Distiller's teacher does not change."""
    return getattr(model, "student", model).variables


def _load(file: Path, variables: Sequence[keras.Variable]) -> None:
    with np.load(file, allow_pickle=False) as values:
        for i, variable in enumerate(variables):
            variable.assign(values[f"arr_{i}"])


def _load_epoch(model: keras.Model, file: Path) -> None:
    _load(file, [*_weights(model), *model.optimizer.variables])
    model.optimizer.finalize_variable_values(model.trainable_variables)  # Averaged ones, if it has them.


def _check(logs: dict, where: str, name: str = "loss") -> None:
    if not math.isfinite(logs.get(name, 0.0)):
        raise _divergence(f"The {name} became {float(logs[name])}", where)


def _divergence(what: str, where: str) -> FloatingPointError:
    return FloatingPointError(
        f"{what} in {where}; the state before is kept. Try a lower fit.learning_rate, or more fit.warmup_epochs."
    )
