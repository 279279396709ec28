"""keras-tuner's oracles, made to survive a kill, to count what was trained, and to learn from what was not.

What to try is theirs alone. Added are: one state file that is whole or absent (theirs are many, written in place, and
the grid's place in them is missing), an end that counts trained trials instead of all, and a place for trials that a
dead worker held.
"""

import json
import math
import time
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial, TrialStatus

from vit_keras.export.files import replacing

from .search_folder import Record, SearchFolder
from .tune_config import REJECTED_PER_TRIAL, TuneConfig

SCORE = "score"
"""The metric that oracles are told, the more the better."""
MOST_FAILURES = 5
"""Trials that may fail while none was trained, before a search ends."""
MOST_LOSSES = 3
"""Workers that may die over one trial, before it counts as failed."""


class _Durable(keras_tuner.Oracle):
    """What all oracles here share; stands before keras-tuner's own oracle."""

    folder: SearchFolder
    trials_wanted: int

    def attach(self, folder: SearchFolder, trials: int) -> None:
        """Says where the state is kept and how many trials to train, and goes on from a state that is there."""
        self.folder, self.trials_wanted, self.max_trials = folder, trials, None
        self.verbose = 0
        self.closed: str | None = None
        """Why no more trials are given out, once somebody has decided so."""
        self.exhausted = False
        self._lost: dict[str, int] = {}
        if folder.oracle_file.exists():
            self.reload()

    def stopped(self) -> str | None:
        """Returns why no further trial is given out; `None` if one is."""
        counts = self.folder.counts()
        aside = counts["rejected"] + counts["repeated"]
        if self.closed:
            return self.closed
        if counts["trained"] >= self.trials_wanted:
            return "all trials are trained"
        if aside >= REJECTED_PER_TRIAL * self.trials_wanted:
            return f"{aside} shapes were rejected or repeated, {REJECTED_PER_TRIAL} for every trial"
        if counts["failed"] >= max(MOST_FAILURES, self.trials_wanted if counts["trained"] else 0):
            return f"{counts['failed']} trials failed"
        return "the space is exhausted" if self.exhausted else None

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """Gives out the next trial, one that a killed search or a dead worker held first."""
        if tuner_id not in self.ongoing_trials:
            if self.stopped():
                self.tuner_ids.discard(tuner_id)
                return Trial(self.get_space(), "", TrialStatus.STOPPED)
            enough = self.folder.counts()["trained"] + len(self.ongoing_trials) >= self.trials_wanted
            if enough and not self._retry_queue:
                self.tuner_ids.add(tuner_id)
                return Trial(self.get_space(), "", TrialStatus.IDLE)
        trial = super().create_trial(tuner_id)
        self.exhausted = trial.status == TrialStatus.STOPPED
        return trial

    @keras_tuner.synchronized
    def give_back(self, tuner_id: str) -> str | None:
        """Puts the trial of a worker that is gone back, to be given out first; returns its number, if it had one."""
        self.tuner_ids.discard(tuner_id)
        trial = self.ongoing_trials.pop(tuner_id, None)
        if trial is None:
            return None
        self._lost[trial.trial_id] = self._lost.get(trial.trial_id, 0) + 1
        if self._lost[trial.trial_id] < MOST_LOSSES:
            self._retry_queue.append(trial.trial_id)
        else:
            message = f"{MOST_LOSSES} workers died over it"
            self.folder.keep(Record(trial.trial_id, "failed", trial.hyperparameters.values, message=message))
            trial.status = TrialStatus.FAILED
            self.end_trial(trial)
        self.save()
        return trial.trial_id

    def save(self) -> None:
        """Writes the whole state, trials and all, to one file."""
        state = {"state": self.get_state(), "trials": [trial.get_state() for trial in self.trials.values()]}
        with replacing(self.folder.oracle_file) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")

    def _save_trial(self, trial: Trial) -> None:
        """Trials stand in the one file."""

    def reload(self) -> None:
        """Goes on from the state file: trials that were running are given out again."""
        state = json.loads(self.folder.oracle_file.read_text(encoding="utf-8"))
        trials = [Trial.from_state(values) for values in state["trials"]]
        self.trials = {trial.trial_id: trial for trial in trials}
        self.set_state(state["state"])
        # keras-tuner saves the end of a trial before it takes it off this list.
        running = [t.trial_id for t in self.ongoing_trials.values() if t.status == TrialStatus.RUNNING]
        self._retry_queue += [trial_id for trial_id in running if trial_id not in self._retry_queue]
        self.ongoing_trials = {}


class Random(_Durable, keras_tuner.oracles.RandomSearchOracle):
    """Random search."""


class Grid(_Durable, keras_tuner.oracles.GridSearchOracle):
    """All combinations in turn. Its place in the grid is part of the state, which keras-tuner's own leaves out."""

    def get_state(self) -> dict[str, Any]:
        ids, ordered = self._ordered_ids, []
        at = ids._next_index[None]
        while at is not None:
            ordered.append(ids._memory[at])
            at = ids._next_index[at]
        return {**super().get_state(), "ordered": ordered, "populate_next": self._populate_next}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        for trial_id in state["ordered"]:
            self._ordered_ids.insert(trial_id)
        self._populate_next = state["populate_next"]

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        super().end_trial(trial)
        self.save()  # keras-tuner's grid moves on after it has saved.


class Bayesian(_Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian optimisation. What was rejected or failed counts as worse than any model so far: left out, as
    keras-tuner has it, the same point would be the best guess again."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        trials = self.trials.values()
        scores = [t.score for t in trials if t.status == TrialStatus.COMPLETED and t.score is not None]
        worse = min(scores) - max(max(scores) - min(scores), 0.1) if scores else 0.0
        failed = [t for t in trials if t.status == TrialStatus.FAILED]
        for trial in failed:
            trial.status, trial.score = TrialStatus.COMPLETED, worse
        try:
            found = super().populate_space(trial_id)
        finally:
            for trial in failed:
                trial.status, trial.score = TrialStatus.FAILED, None
        # The best guess, brought to the nearest values that there are, may be one that was tried.
        return self._random_populate_space() if found["values"] and self._duplicate(found["values"]) else found

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._random_state = np.random.RandomState(self.seed + len(self.trials))


class Hyperband(_Durable, keras_tuner.oracles.HyperbandOracle):
    """Hyperband. A trial that was rejected or failed leaves its place in the first round to another."""

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        if trial.status == TrialStatus.FAILED:
            for bracket in self._brackets:
                first = bracket["rounds"][0]
                first[:] = [info for info in first if info["id"] != trial.trial_id]
        super().end_trial(trial)


def make_oracle(tune: TuneConfig, hyperparameters: Any, max_epochs: int, open_space: bool) -> _Durable:
    """Returns the oracle that a search asks, without a folder yet.

    Args:
        tune: The search.
        hyperparameters: The space, as keras-tuner has it.
        max_epochs: Epochs of the longest training, for Hyperband.
        open_space: Whether trials may bring hyperparameters that are not in the space.
    """
    common = {
        "objective": keras_tuner.Objective(SCORE, "max"),
        "hyperparameters": hyperparameters,
        "seed": tune.seed + 1,  # keras-tuner takes 0 for no seed.
        "allow_new_entries": open_space,
        "tune_new_entries": True,
        "max_consecutive_failed_trials": 10**9,  # `stopped` counts them.
    }
    if tune.tuner == "hyperband":
        return Hyperband(max_epochs=max_epochs, hyperband_iterations=None, **common)
    if tune.tuner == "bayesian":
        points = min(3 * len(hyperparameters.space), max(3, math.ceil(tune.trials / 3)))
        return Bayesian(num_initial_points=points, **common)
    return {"random": Random, "grid": Grid}[tune.tuner](**common)


def report(oracle: Any, trial: Trial, record: Record) -> None:
    """Tells an oracle, here or on the chief, what became of a trial."""
    if record.status in ("trained", "repeated") and record.score is not None and math.isfinite(record.score):
        oracle.update_trial(trial.trial_id, {SCORE: record.score})
        trial.status = TrialStatus.COMPLETED
    else:
        trial.status, trial.message = TrialStatus.FAILED, record.message
    oracle.end_trial(trial)


def next_trial(oracle: Any, tuner_id: str, wait: float = 0.5) -> Trial | None:
    """Asks an oracle until it gives out a trial; `None` once it gives out no more."""
    while True:
        trial = oracle.create_trial(tuner_id)
        if trial.status != TrialStatus.IDLE:
            return None if trial.status == TrialStatus.STOPPED else trial
        time.sleep(wait)
