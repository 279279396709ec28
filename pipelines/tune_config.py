"""What a search can be told, as a frozen dataclass. Imports no TensorFlow, so that `--help` is quick."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from vit_keras.export.inspection import check_threads
from vit_keras.export.quantize import check_kinds
from vit_keras.messages import nearest

from .settings import require

TUNERS = ("random", "bayesian", "hyperband", "grid")
QUANTITIES = {"val_accuracy": "share", "latency": "ms", "bytes": "MB", "memory": "MB"}
"""What a model can be judged by, and the unit that a weight counts."""
REJECTED_PER_TRIAL = 10
"""Shapes that may be rejected before training, for every trial that is to be trained."""
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class TuneConfig:
    """A search for hyperparameters.

    Attributes:
        space: Name of a ready space, or a YAML file with one; if not given `small`, and none beside a user's
            `build_model`.
        tuner: "random", "bayesian", "hyperband" or "grid": keras-tuner's own oracles.
        trials: Trials to train, >= 1. Shapes that are rejected before training, and trials that fail, are counted
            apart: ten times, and once, as many end the search.
        objective: What is looked for: a name (`val_accuracy`, `latency`, `bytes`, `memory`), or weights as in
            `val_accuracy=1,latency=0.02`: what a whole of accuracy, a millisecond, a million bytes count. Accuracy
            counts for a model, the others against it.
        max_latency_ms: Most milliseconds that the exported file may take for a picture, > 0.
        max_bytes: Most bytes that the exported file may have, as 2M or 500k.
        max_memory: Most bytes of memory that it may take while it runs, likewise.
        kind: Kind of TensorFlow Lite file that is measured.
        measurements: CSV or JSON file with what the user's device takes for each shape; measured here if not given.
        threads: Threads of the interpreter while latency is measured, 1 to 64.
        time_budget: Time for all trials of this call, as 90s, 30m or 2h; seconds without a unit; no end if `None`.
        seeds: Further trainings of the best trial, with other seeds, >= 0.
        seed: Seed of what is tried.
    """

    space: str | None = None
    tuner: str = "random"
    trials: int = 20
    objective: str = "val_accuracy"
    max_latency_ms: float | None = None
    max_bytes: int | str | None = None
    max_memory: int | str | None = None
    kind: str = "static_int8"
    measurements: str | None = None
    threads: int = 1
    time_budget: float | str | None = None
    seeds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tuner not in TUNERS:
            known = ", ".join(TUNERS)
            raise ValueError(f"tuner must be one of {known}.{nearest(self.tuner, TUNERS)} Received: {self.tuner!r}")
        require(self.trials >= 1, "trials", "a number >= 1", self.trials)
        check_threads(self.threads)
        require(self.seeds >= 0, "seeds", "a number >= 0", self.seeds)
        require(0 <= self.seed < 2**31, "seed", "0 to 2**31 - 1", self.seed)
        check_kinds([self.kind])
        latency = self.max_latency_ms
        require(latency is None or 0 < latency < math.inf, "max_latency_ms", "a number > 0", latency)
        for name in ("max_bytes", "max_memory"):
            object.__setattr__(self, name, _amount(name, getattr(self, name), _BYTES, "bytes, as 500k or 2M"))
        seconds = _amount("time_budget", self.time_budget, _SECONDS, "a time, as 90s, 30m or 2h")
        object.__setattr__(self, "time_budget", seconds)
        read_weights(self.objective)

    @property
    def weights(self) -> dict[str, float]:
        """What each quantity counts in the score."""
        return read_weights(self.objective)

    @property
    def limits(self) -> dict[str, float]:
        """The constraints that were given, by quantity: milliseconds, bytes, bytes."""
        given = {"latency": self.max_latency_ms, "bytes": self.max_bytes, "memory": self.max_memory}
        return {name: float(limit) for name, limit in given.items() if limit is not None}

    def score(self, val_accuracy: float, device: dict[str, float | None]) -> float:
        """Returns how good a model is, the more the better.

        Args:
            val_accuracy: Share of the validation pictures that are named right.
            device: Latency in milliseconds, bytes and memory in bytes.
        """
        million = {"bytes": 1e-6, "memory": 1e-6}
        against = {name: -(value or 0.0) * million.get(name, 1.0) for name, value in device.items()}
        amounts = {"val_accuracy": val_accuracy, **against}
        return sum(weight * amounts[name] for name, weight in self.weights.items())

    def identity(self) -> dict[str, Any]:
        """Returns what makes it this search: a call with another number of trials, say, goes on with it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("trials", "time_budget", "seeds")}


def read_weights(objective: str) -> dict[str, float]:
    """Returns the weights in `val_accuracy` or `val_accuracy=1,latency=0.02`.

    Raises:
        ValueError: an unknown quantity, one that is named twice, or a weight that is no number above 0.
    """
    found: dict[str, float] = {}
    for part in objective.split(","):
        name, equals, text = (word.strip() for word in part.partition("="))
        if name not in QUANTITIES or name in found:
            known = ", ".join(QUANTITIES)
            raise ValueError(
                f"objective must name some of {known}, each once.{nearest(name, QUANTITIES)} "
                f"Received: objective={objective!r}"
            )
        try:
            found[name] = float(text) if equals else 1.0
        except ValueError:
            found[name] = math.nan
        require(0 < found[name] < math.inf, "objective", "weights above 0, as val_accuracy=1,latency=0.02", objective)
    return found


def split_address(address: str | None) -> tuple[str, int]:
    """Returns host and port.

    Raises:
        ValueError: an address that is not HOST:PORT.
    """
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"oracle must be HOST:PORT with --role chief or worker. Received: oracle={address!r}")
    return host, int(port)


def _amount(name: str, value: float | str | None, units: dict[str, int], expected: str) -> float | int | None:
    """Returns a number with a unit as a number, whole where it is whole."""
    if value is None:
        return None
    parts = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*([A-Za-z]*?)B?\s*", str(value))
    unit = next((factor for key, factor in units.items() if parts and key.lower() == parts[2].lower()), None)
    if not parts or unit is None or not 0 < float(parts[1]) * unit < math.inf:
        raise ValueError(f"{name} must be {expected}. Received: {name}={value!r}")
    amount = float(parts[1]) * unit
    return int(amount) if amount.is_integer() else amount
