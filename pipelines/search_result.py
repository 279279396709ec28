"""What a search says while it runs, and what it returns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .search_folder import Record
from .tune_report import Importance


@dataclass(frozen=True)
class Progress:
    """How a search stands.

    Attributes:
        wanted: Trials that shall be trained.
        records: Trials that have ended.
        running: Number of the trial that is being worked on here, if any.
        values: Its hyperparameters.
        stage: What is done with it.
    """

    wanted: int
    records: list[Record]
    running: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    stage: str = ""


@dataclass(frozen=True)
class SeedCheck:
    """The best trial trained again with other seeds: how much of its result was luck.

    Attributes:
        seeds: The seeds.
        val_accuracy: Of each training.
        test_accuracy: Of each training, on pictures that the search has not seen.
    """

    seeds: tuple[int, ...]
    val_accuracy: tuple[float, ...]
    test_accuracy: tuple[float, ...]

    def mean_and_spread(self, what: str = "val_accuracy") -> tuple[float, float]:
        """Returns the mean and the standard deviation (of a sample; 0 of a single one) of an attribute."""
        values = getattr(self, what)
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        folder: Where everything lies.
        records: All trials that have ended, in keras-tuner's order.
        best: The trained trial with the best score.
        front: Trained trials that no other one beats in accuracy and latency, the fastest first.
        seeds: The best trial with other seeds, if that was asked for.
        importance: Which hyperparameters mattered; `None` with too few trials.
        ended: Why no more trials were made.
        seconds: Time of this call's search (`"total"`, without the other seeds) and of its `"measuring"` and
            `"training"`; the rest is overhead.
    """

    folder: Path
    records: tuple[Record, ...]
    best: Record | None
    front: tuple[Record, ...]
    seeds: SeedCheck | None
    importance: Importance | None
    ended: str
    seconds: dict[str, float]
