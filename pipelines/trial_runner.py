"""One trial of a search: from the values that an oracle gives to the record of what became of them."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .children import Children
from .config import RunConfig
from .measuring import Measurement
from .search_folder import Record, SearchFolder
from .space import apply, plain
from .tune_config import TuneConfig

Tick = Callable[[dict[str, Any]], None]


@dataclass
class TrialRunner:
    """Runs trials, each in a child process and a run folder.

    Attributes:
        base: What all trials share, with a preset's name and epochs.
        tune: The search.
        folder: Where trials and records go.
        children: Who does the work.
        rows: Measurements of the user's device; measured here if `None`.
        build_file: The user's `build_model`, pickled, if there is one.
        worker: Who this is.
        cache: Where measurements are kept; the folder's own place if `None`.
        seconds: Time that was spent `"measuring"` and `"training"`.
    """

    base: RunConfig
    tune: TuneConfig
    folder: SearchFolder
    children: Children
    rows: list[dict[str, Any]] | None = None
    build_file: Path | None = None
    worker: str = ""
    cache: Path | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"measuring": 0.0, "training": 0.0})
    _trained: dict[str, str] = field(default_factory=dict)

    def run(self, trial: Any, tick: Tick, more: bool = True) -> Record:
        """Measures and trains a trial of keras-tuner, and writes down what became of it.

        Args:
            trial: The trial; it gets the hyperparameters that a user's function has asked for.
            tick: Called twice a second; what it raises ends the trial, which can go on later.
            more: Whether another trial is likely to follow.
        """
        before = self.folder.record(trial.trial_id)
        if before:  # A search that was killed had not told the oracle yet.
            return before
        values = {name: plain(value) for name, value in trial.hyperparameters.values.items()}
        try:
            config = apply(values, self.base)
        except ValueError as error:
            return self._keep(Record(trial.trial_id, "rejected", values, message=str(error)))
        twin = self._twin(config, values)
        if twin:
            message = f"trial {twin.id} is the same run"
            return self._keep(dataclasses.replace(twin, id=trial.trial_id, status="repeated", message=message))
        out = str(self.folder.trial(trial.trial_id).path)
        config = dataclasses.replace(config, out=out)
        job = self.job("trial", config, values, trial.hyperparameters.get_config())
        answer = self._do(job, tick, more)
        if answer.get("hp"):
            import keras_tuner

            trial.hyperparameters = keras_tuner.HyperParameters.from_config(answer["hp"])
            values = {name: plain(value) for name, value in trial.hyperparameters.values.items()}
        return self._keep(self._record(trial.trial_id, values, answer))

    def job(self, task: str, config: RunConfig, values: dict[str, Any], hp: dict[str, Any] | None) -> dict[str, Any]:
        """Returns a job for a child process."""
        measuring = {
            "kind": self.tune.kind,
            "threads": self.tune.threads,
            "limits": self.tune.limits,
            "rows": self.rows,
            "cache": str((self.cache or self.folder.measured).absolute()),
        }
        build = str(self.build_file.absolute()) if self.build_file else None
        job = {"task": task, "config": config.to_dict(), "values": values, "measuring": measuring, "build": build}
        return {**job, "hp": hp if build else None}

    def _do(self, job: dict[str, Any], tick: Tick, more: bool) -> dict[str, Any]:
        """Has a job done; of a trial that is broken off the time counts too."""
        start, last = time.monotonic(), {}

        def watch(stage: dict[str, Any]) -> None:
            last.update(stage)
            tick(stage)

        try:
            return self.children.do(job, watch, more)
        except BaseException:
            self.seconds["training" if last else "measuring"] += time.monotonic() - start
            raise

    def measure(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns what a child says of a shape: its measurement, or why it cannot be built or exported."""
        try:
            config = apply(values, self.base)
        except ValueError as error:
            return {"status": "rejected", "message": str(error)}
        answer = self.children.do(self.job("measure", config, values, None))
        self.seconds["measuring"] += answer.get("measuring", 0.0)
        return answer

    def _record(self, trial_id: str, values: dict[str, Any], answer: dict[str, Any]) -> Record:
        seconds = {name: answer[name] for name in ("measuring", "training") if name in answer}
        for name, spent in seconds.items():
            self.seconds[name] += spent
        measurement = Measurement(**answer.get("measurement") or {})
        accuracy = answer.get("val_accuracy")
        score = None if accuracy is None else self.tune.score(accuracy, dataclasses.asdict(measurement))
        return Record(
            trial_id,
            answer["status"],
            values,
            score,
            accuracy,
            answer.get("epochs", 0),
            measurement,
            seconds,
            answer.get("message"),
            self.worker,
        )

    def _keep(self, record: Record) -> Record:
        self.folder.keep(record)
        return record

    def _twin(self, config: RunConfig, values: dict[str, Any]) -> Record | None:
        """Returns the trained trial that is the same run, if there is one."""
        for record in self.folder.records():
            if record.status == "trained" and record.id not in self._trained.values():
                self._trained[self._signature(apply(record.values, self.base), record.values)] = record.id
        twin = self._trained.get(self._signature(config, values))
        return self.folder.record(twin) if twin else None

    def _signature(self, config: RunConfig, values: dict[str, Any]) -> str:
        """Returns a text that is the same for runs that are the same."""
        own = {n: v for n, v in values.items() if not n.startswith("tuner/")} if self.build_file else {}
        return json.dumps([dataclasses.replace(config, out=None).to_dict(), own], sort_keys=True)
