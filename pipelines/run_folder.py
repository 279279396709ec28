"""The folder of a run: what lies where, and whether it is new, unfinished or finished. Imports no TensorFlow."""

import csv
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from vit_keras.export.files import LOCKS, alone, bring_back, has_set_aside, is_whole, remove, replacing
from vit_keras.export.framing import Framing

from .config import RunConfig
from .fit_config import IMMATERIAL
from .yaml_text import read_yaml, write_yaml

logger = logging.getLogger(__name__)


_MAY_CHANGE = {"out", *(f"fit.{name}" for name in IMMATERIAL)}


class RunFolder:
    """Names the files of a run, and reads and writes the small ones. Every file is whole or absent.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.model_file = self.path / "model.keras"
        self.last_model_file = self.path / "last.keras"
        """The model after the last epoch, if that is not the best one."""
        self.metrics_file = self.path / "metrics.csv"
        self.environment_file = self.path / "environment.json"
        self.labels_file = self.path / "labels.txt"
        self.history_plot = self.path / "history.png"
        self.confusion_plot = self.path / "confusion.png"
        self.tensorboard = self.path / "tensorboard"
        self.export = self.path / "export"
        self.saved_model = self.export / "saved_model"
        self.golden = self.export / "golden"
        """Test pictures with the answers of every file."""
        self.made = self.export / "made.json"
        """Of each file, what it was made of and with."""
        self.relaxations = self.export / "relaxations.json"
        self.sensitivity = self.export / "sensitivity.json"
        self.sensitivity_plot = self.export / "sensitivity.png"
        self.report_json = self.path / "report.json"
        self.report_html = self.path / "report.html"
        self.state = self.path / ".state"
        """What an interrupted run goes on from; removed when the run is finished."""

    def tflite_file(self, kind: str) -> Path:
        """The TensorFlow Lite file of a kind."""
        return self.export / f"model.{kind}.tflite"

    def attention_file(self, kind: str) -> Path:
        """The same file with its attention as a second output."""
        return self.export / f"model.{kind}.attention.tflite"

    def bundle(self, platform: str) -> Path:
        """The folder for an app on a platform."""
        return self.export / platform

    @property
    def finished(self) -> bool:
        """Whether the run has gone all the way to its report."""
        return self.report_json.exists() and not self.state.exists()

    @property
    def trained(self) -> bool:
        """Whether the run has its model."""
        return self.model_file.exists()

    def begin(self, config: RunConfig, overwrite: bool) -> None:
        """Makes the folder ready: a new run starts, an unfinished one with the same configuration goes on.

        Args:
            config: The resolved configuration.
            overwrite: Whether to clear a run that is there.

        Raises:
            FileExistsError: the folder holds something that is no run, or a run of another configuration.
        """
        if self.config_file.exists() and overwrite:
            self.clear()
        elif self.config_file.exists():
            old = self.load_config().to_dict()
            differences = _differences(old, config.to_dict())
            if differences:
                export = self.trained and all(line.startswith("export.") for line in differences)
                other = "export it with other ones" if export else "with --overwrite to start again"
                raise FileExistsError(
                    f"{self.path} holds an unfinished run with other settings ({'; '.join(differences)}); "
                    f"call it with the same settings to go on, or {other}."
                )
            if self.trained or old["fit"] == config.to_dict()["fit"]:
                return
        elif self.path.exists() and (not self.path.is_dir() or any(map(is_whole, self.path.iterdir()))):
            raise FileExistsError(f"{self.path} exists and is no run; choose another folder with --out.")
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_text(self.config_file, write_yaml(config.to_dict()))

    def recover(self) -> None:
        """Brings back the files that a killed export has set aside, where no other can be at work on them."""
        if LOCKS and has_set_aside(self.export):
            with suppress(OSError), alone(self.path, "export"):
                bring_back(self.export)

    def clear(self) -> None:
        """Removes what a run has written but its configuration, which says that the folder is one, and nothing else."""
        for file in (self.report_json, self.report_html, self.model_file, self.metrics_file, self.environment_file):
            remove(file)
        for file in (
            self.last_model_file,
            self.labels_file,
            self.history_plot,
            self.confusion_plot,
            self.tensorboard,
            self.export,
            self.state,
        ):
            remove(file)

    def load_config(self) -> RunConfig:
        """Reads the run's configuration.

        Raises:
            FileNotFoundError: the folder is not there, or is no run.
            ValueError: the file is no configuration.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(f"No run at {self.path}: there is no such folder.")
        if not self.config_file.is_file():
            raise FileNotFoundError(f"No run at {self.path}: it holds no {self.config_file.name}.")
        return read_config(self.config_file)

    def require_model(self) -> Path:
        """Returns the model's file, or raises `FileNotFoundError` where the run has none."""
        self.load_config()
        if not self.trained:
            raise FileNotFoundError(
                f"The run at {self.path} has no {self.model_file.name}: it was not trained to the end."
            )
        return self.model_file

    def read_metrics(self) -> list[dict[str, float]]:
        """Returns one row per epoch of the training."""
        with self.metrics_file.open(newline="") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    def save_model(self, model, file: Path) -> None:
        """Saves a Keras model whole."""
        with replacing(file) as temporary:
            model.save(temporary)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Says in the log that a stage of the run begins, and how long it took."""
        logger.info("%s: %s", self.path, stage)
        start = time.monotonic()
        yield
        logger.info("%s: %s took %.1f s", self.path, stage, time.monotonic() - start)

    def write_text(self, file: Path, text: str) -> None:
        """Writes a file whole."""
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def read_json(self, file: Path) -> dict[str, Any]:
        """Reads a JSON file of the run; nothing where there is none.

        Raises:
            ValueError: the file holds something else than a mapping.
        """
        if not file.exists():
            return {}
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} must hold JSON; without it, it is made anew: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(
                f"{file} must hold a mapping; without it, it is made anew. Received: a {type(values).__name__}"
            )
        return values

    def write_json(self, file: Path, values: dict[str, Any]) -> None:
        """Writes a JSON file whole."""
        self.write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_config(file: str | Path) -> RunConfig:
    """Reads a configuration from a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no configuration; the message names it.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"No configuration at {file}.")
    try:
        return RunConfig.from_dict(read_yaml(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file} is no configuration of a run: {error}") from error


def read_labels(file: str | Path, num_classes: int) -> tuple[str, ...]:
    """Reads class names, one a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not name `num_classes` classes.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"No class names at {file}.")
    names = tuple(file.read_text(encoding="utf-8").splitlines())
    if len(names) != num_classes:
        raise ValueError(f"{file} must name {num_classes} classes. Received: {len(names)}")
    return names


def labels_of(file: Path, num_classes: int) -> tuple[str, ...]:
    """Returns the class names inside a TensorFlow Lite file, else of the `labels.txt` beside it or one folder up, else
    numbers.

    Raises:
        ValueError: what is there does not name `num_classes` classes.
    """
    from vit_keras.export import metadata

    inside = metadata.read_labels(file)
    if inside is not None:
        if len(inside) != num_classes:
            raise ValueError(f"{file} must name {num_classes} classes. Received: {len(inside)}")
        return inside
    for folder in (folder for place in (file.absolute(), file.resolve()) for folder in place.parents[:2]):
        if (folder / "labels.txt").is_file():
            return read_labels(folder / "labels.txt", num_classes)
    return tuple(str(i) for i in range(num_classes))


def framing_of(file: Path) -> Framing | None:
    """Returns how the run that a TensorFlow Lite file lies in brings pictures to size; `None` if it lies in none."""
    run = run_of(file)
    return run.load_config().input.framing if run.config_file.is_file() else None


def run_of(file: Path) -> RunFolder:
    """Returns the run that a file in its `export/` is of: where the file is said to be, or where links lead to."""
    said, led = (RunFolder(place.parent.parent) for place in (file.absolute(), file.resolve()))
    return said if said.config_file.is_file() else led


def recover_file(file: str | Path) -> None:
    """Brings a file back that a killed export of its run has taken out of the way; see `RunFolder.recover`."""
    file = Path(file)
    if not file.exists() and has_set_aside(file.parent):
        run = run_of(file)
        if run.export.resolve() == file.parent.resolve():
            run.recover()


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lists what differs between two configurations and must not, as "fit.epochs: 20, now 30"."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{prefix}{key}.")
        elif before != now and prefix + key not in _MAY_CHANGE:
            found.append(f"{prefix}{key}: {before}, now {now}")
    return found
