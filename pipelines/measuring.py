"""What the exported file of a shape takes: measured here with random weights before any training, or looked up in a
file of measurements of the user's device."""

import csv
import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vit_keras.export.files import replacing

from .config import RunConfig

COLUMNS = {"latency_ms": "latency", "bytes": "bytes", "memory": "memory"}
"""Columns of a measurement file, and what they hold."""
_REPEATS = 3
_UNITS = {"latency": "ms", "bytes": "bytes", "memory": "bytes"}
_NOT_OF_THE_FILE = ("dropout_rate", "attention_dropout_rate", "drop_path_rate", "remat")
"""Arguments of builders that change the training only."""


@dataclass(frozen=True)
class Measurement:
    """What a file takes.

    Attributes:
        latency: Median time for a picture, in milliseconds.
        bytes: Its size.
        memory: Peak of memory in bytes that it takes beyond an idle process.
    """

    latency: float | None = None
    bytes: int | None = None
    memory: int | None = None

    def excess(self, limits: Mapping[str, float]) -> str | None:
        """Returns what is above its limit, as a sentence; `None` if nothing is."""
        values = dataclasses.asdict(self)
        over = [
            f"{name} {values[name]:,.6g} {_UNITS[name]} > {limit:,.6g}"
            for name, limit in limits.items()
            if values[name] is not None and values[name] > limit
        ]
        return ", ".join(over) or None


def measure_model(model: Any, kind: str, threads: int, labels: tuple[str, ...]) -> Measurement:
    """Exports a model whose weights are of no value any more, and measures the file.

    Args:
        model: A Keras model from pixels to logits; what starts as a constant in it becomes random, so that the file is
            that of a trained one.
        kind: Kind of TensorFlow Lite file.
        threads: Threads of the interpreter.
        labels: Class names, which stand in the file.
    """
    import numpy as np

    from vit_keras.export import to_tflite

    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "float" in str(variable.dtype) and len(variable.shape) and np.ptp(np.asarray(variable)) == 0:
            variable.assign(np.asarray(variable) + rng.normal(0, 0.02, variable.shape))
    noise = rng.integers(0, 256, (16, *model.input_shape[1:])).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.tflite")  # Neither way of choosing can learn from noise and random weights.
        to_tflite(model, file, kind, [noise], labels=labels, rounding="nearest", ranges="minmax")
        return measure_file(file, threads)


def measure_file(file: Path, threads: int = 1) -> Measurement:
    """Measures a file here: the best of three medians, since whatever else the machine does only makes it slower."""
    from vit_keras.export import measure_latency, try_file

    medians = [measure_latency({"file": file}, threads=threads, rounds=5)["file"].p50 for _ in range(_REPEATS)]
    return Measurement(min(medians), file.stat().st_size, try_file(file, threads).memory)


def shape_key(config: RunConfig, num_classes: int, kind: str, threads: int) -> dict[str, Any]:
    """Returns what the file of a run depends on, weights apart.

    Args:
        config: A resolved configuration.
        num_classes: Number of classes.
        kind: Kind of file.
        threads: Threads of the interpreter.
    """
    override = {name: value for name, value in sorted(config.override.items()) if name not in _NOT_OF_THE_FILE}
    prompts = [config.adapt.method, config.adapt.prompts] if config.adapt.method.startswith("prompt") else None
    size = list(config.input.image_size) if isinstance(config.input.image_size, tuple) else config.input.image_size
    shape = {"model": config.model, "override": override, "image_size": size, "prompts": prompts}
    return {**shape, "num_classes": num_classes, "kind": kind, "threads": threads}


def cached(folder: Path, key: Mapping[str, Any], measure: Callable[[], Measurement]) -> tuple[Measurement, float]:
    """Returns the measurement of a shape and the seconds that it took, none if it was measured before.

    Args:
        folder: Where measurements are kept, one file each; workers share it.
        key: What the shape is.
        measure: Measures it.
    """
    text = json.dumps(key, sort_keys=True)
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if file.exists():
        return Measurement(**json.loads(file.read_text(encoding="utf-8"))["measurement"]), 0.0
    start = time.monotonic()
    found = measure()
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({"shape": key, "measurement": dataclasses.asdict(found)}, indent=2) + "\n")
    return found, time.monotonic() - start


# Measurements of another device


def read_measurements(path: str | Path, needed: set[str]) -> list[dict[str, Any]]:
    """Reads what a device was measured to take: a row per shape, settings and `latency_ms`, `bytes` or `memory`.

    Args:
        path: A CSV file, or a JSON file with a list of objects.
        needed: Quantities that every row must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file without rows, or a row without a number that is needed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"No measurements at {path}.")
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} holds no measurements: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a row for every shape. Received: {len(rows)} rows")
    found = [{name: _value(value) for name, value in row.items() if value not in (None, "")} for row in rows]
    columns = {quantity: column for column, quantity in COLUMNS.items()}
    for number, row in enumerate(found, 1):
        for column in [columns[name] for name in sorted(needed)]:
            if not isinstance(row.get(column), (int, float)):
                raise ValueError(f"{path}: row {number} must hold a number as {column}. Received: {row}")
    return found


def check_rows(rows: list[dict[str, Any]], limits: Mapping[str, float], name: str) -> None:
    """Refuses limits that no row of a measurement file meets: a `ValueError` says what the nearest one has."""
    columns = {quantity: column for column, quantity in COLUMNS.items()}

    def distance(row: dict[str, Any]) -> float:
        return max(row[columns[quantity]] / limit for quantity, limit in limits.items())

    if limits and min(map(distance, rows)) > 1:
        over = _measurement(min(rows, key=distance)).excess(limits)
        raise ValueError(f"No shape in {name} meets the constraints: the nearest one has {over}.")


def _measurement(row: Mapping[str, Any]) -> Measurement:
    return Measurement(**{quantity: row.get(column) for column, quantity in COLUMNS.items()})


def look_up(rows: list[dict[str, Any]], values: Mapping[str, Any], config: RunConfig) -> Measurement | None:
    """Returns the measurement of the first row whose settings are those of a trial; `None` if there is none.

    Args:
        rows: Those of `read_measurements`.
        values: The trial's hyperparameter values.
        config: Its run, for settings that are not searched.
    """
    known = {**_flat(config.to_dict()), **values}
    for row in rows:
        settings = {name: value for name, value in row.items() if name not in COLUMNS}
        if settings and all(name in known and known[name] == value for name, value in settings.items()):
            return _measurement(row)
    return None


def _value(value: Any) -> Any:
    return yaml.safe_load(value) if isinstance(value, str) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
