"""The folder of a search: what lies where, what became of each trial, and which search it is. Imports no TensorFlow."""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_keras.export.files import is_whole, remove, replacing

from .measuring import Measurement
from .run_folder import RunFolder
from .yaml_text import read_yaml, write_yaml

STATUSES = ("trained", "rejected", "repeated", "failed")
"""What becomes of a trial: "rejected" before training, "repeated" where the same run was trained before."""


@dataclass(frozen=True)
class Record:
    """What became of one trial.

    Attributes:
        id: The trial's number, as keras-tuner gives it.
        status: One of `STATUSES`.
        values: Its hyperparameters.
        score: The objective, the more the better; `None` of a trial that was not trained.
        val_accuracy: Share of the validation pictures that the model names right.
        epochs: Epochs that were trained.
        measurement: What the exported file takes.
        seconds: Time for `"measuring"` and for `"training"`.
        message: Why it was rejected or failed, or which trial it repeats.
        worker: Who ran it.
    """

    id: str
    status: str
    values: dict[str, Any]
    score: float | None = None
    val_accuracy: float | None = None
    epochs: int = 0
    measurement: Measurement = field(default_factory=Measurement)
    seconds: dict[str, float] = field(default_factory=dict)
    message: str | None = None
    worker: str = ""

    def to_json(self) -> str:
        """Returns it as a JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Returns the record that `to_json` gave."""
        values = json.loads(text)
        return cls(**{**values, "measurement": Measurement(**values["measurement"])})


class SearchFolder:
    """Names the files of a search, and reads and writes the small ones. Every file is whole or absent.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.search_file = self.path / "search.yaml"
        """Which search it is: the runs' common settings, and those of the search."""
        self.oracle_file = self.path / "oracle.json"
        """State of keras-tuner's oracle, which a search goes on from."""
        self.trials = self.path / "trials"
        self.measured = self.path / "measured"
        self.seeds = self.path / "seeds"
        self.tensorboard = self.path / "tensorboard"
        self.trials_table = self.path / "trials.csv"
        self.front_table = self.path / "pareto.csv"
        self.front_plot = self.path / "pareto.png"
        self.best_file = self.path / "best.yaml"
        self.summary_file = self.path / "summary.json"
        self._known: dict[str, Record] = {}

    def trial(self, trial_id: str) -> RunFolder:
        """The run of a trial."""
        return RunFolder(self.trials / trial_id)

    @property
    def finished(self) -> bool:
        """Whether a search has gone all the way here."""
        return self.summary_file.exists()

    def refuse(self, identity: dict[str, Any], overwrite: bool) -> None:
        """Refuses a folder that a search may not write to, before anything is done.

        Args:
            identity: What makes it this search.
            overwrite: Whether to replace another search.

        Raises:
            FileExistsError: the folder holds something that is no search, or another search.
        """
        if self.search_file.exists():
            if not overwrite:
                self.check(identity)
        elif self.path.is_file() or (self.path.exists() and any(map(is_whole, self.path.iterdir()))):
            raise FileExistsError(f"{self.path} exists and is no search; choose another folder with --out.")

    def begin(self, identity: dict[str, Any], overwrite: bool) -> None:
        """Makes the folder ready: a new search starts, the same one goes on.

        Args:
            identity: What makes it this search.
            overwrite: Whether to clear a search that is there.
        """
        self.refuse(identity, overwrite)
        if overwrite:
            self.clear()
        self.trials.mkdir(parents=True, exist_ok=True)
        if not self.search_file.exists():
            with replacing(self.search_file) as temporary:
                temporary.write_text(write_yaml(identity), encoding="utf-8")

    def check(self, identity: dict[str, Any]) -> None:
        """Refuses the folder of another search with a `FileExistsError` that says what differs."""
        before, now = (_flat(read_yaml(text)) for text in (self.search_file.read_text("utf-8"), write_yaml(identity)))
        differences = [
            f"{key}: {before.get(key)}, now {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if differences:
            raise FileExistsError(
                f"{self.path} holds another search ({'; '.join(differences[:4])}); call it with the same settings to "
                "go on, with another --out, or with --overwrite to start again."
            )

    def clear(self) -> None:
        """Removes what a search has written, what it is last, and nothing else."""
        for file in (self.summary_file, self.best_file, self.front_plot, self.front_table, self.trials_table):
            remove(file)
        for file in (self.trials, self.seeds, self.measured, self.tensorboard, self.oracle_file):
            remove(file)
        self._known.clear()
        remove(self.search_file)

    def keep(self, record: Record) -> None:
        """Writes down what became of a trial."""
        with replacing(self.trials / f"{record.id}.json") as temporary:
            temporary.write_text(record.to_json(), encoding="utf-8")
        self._known[record.id] = record

    def records(self) -> list[Record]:
        """Returns what became of all trials that have ended, by their numbers."""
        for file in sorted(self.trials.glob("*.json")):
            if file.stem not in self._known:
                self._known[file.stem] = Record.from_json(file.read_text(encoding="utf-8"))
        return [self._known[key] for key in sorted(self._known)]

    def record(self, trial_id: str) -> Record | None:
        """Returns what became of a trial; `None` if it has not ended."""
        return next((record for record in self.records() if record.id == trial_id), None)

    def counts(self) -> Counter[str]:
        """Returns how many trials have ended in which way."""
        return Counter(record.status for record in self.records())


def best_of(records: list[Record]) -> Record | None:
    """Returns the trained trial with the best score; of equal ones the fastest."""
    trained = [record for record in records if record.status == "trained"]

    def rank(record: Record) -> tuple[float, float, float]:
        return record.score or 0.0, record.val_accuracy or 0.0, -(record.measurement.latency or 0.0)

    return max(trained, key=rank, default=None)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + str(name): value}
    return found
