"""Search for hyperparameters that knows the device: keras-tuner says what to try, our exporter measures it.

Parents only ask, wait and write; children measure and train. What the search knows is on disk after every step, so that
the same call goes on after a kill.
"""

import dataclasses
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vit_keras.export.files import alone

from .children import Children
from .config import RunConfig
from .measuring import Measurement, check_rows, read_measurements
from .search_folder import Record, SearchFolder, best_of
from .search_result import Progress, SearchResult, SeedCheck
from .space import Space, apply, read_space
from .trial_runner import TrialRunner
from .tune_config import TuneConfig, split_address
from .tune_report import importance, pareto_front, write_hparams, write_report, write_summary

ROLES = ("alone", "chief", "worker")
BUDGET_USED = "the time budget is used up"


class _TimeIsUpError(Exception):
    """The time budget is used up in the middle of a trial."""


def search(
    config: RunConfig | None = None,
    tune: TuneConfig | None = None,
    overwrite: bool = False,
    build_model: Callable[[Any], Any] | None = None,
    role: str = "alone",
    oracle: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> SearchResult | None:
    """Searches for hyperparameters; the same call goes on with a search that was interrupted.

    Args:
        config: What all trials share; its `out` is the search's folder, `runs/tune` if not given.
        tune: The search.
        overwrite: Whether to replace a search that is in the folder.
        build_model: A user's function from keras-tuner's `HyperParameters` to a Keras model, from pixels to logits. It
            is trained as the configuration says, whatever it was compiled with; hyperparameters named as settings,
            such as `fit.learning_rate`, are those settings.
        role: `"alone"`, or `"chief"` or `"worker"` of a search on several machines that share the folder.
        oracle: HOST:PORT of the chief.
        on_progress: Called about twice a second.

    Returns:
        What was found; `None` in a worker.

    Raises:
        FileExistsError: the folder holds a finished search, another one, or something else.
        ValueError: a space, a constraint or settings that nothing can meet, or that no trial could be trained with.
        ConnectionError: a worker's chief is gone.
    """
    config, tune = config or RunConfig(), tune or TuneConfig()
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}. Received: role={role!r}")
    if role != "alone":
        split_address(oracle)
    space = _space(tune, build_model is not None)
    needed = {*tune.limits, *tune.weights} - {"val_accuracy"}
    rows = read_measurements(tune.measurements, needed) if tune.measurements else None
    folder = SearchFolder(config.out or Path("runs") / "tune")
    call = _Call(config, tune, folder, space, rows, build_model, on_progress or _nobody_looks)
    with nullcontext() if role == "worker" else alone(folder.path, "search"):
        try:
            return call.work(str(oracle)) if role == "worker" else call.search(overwrite, oracle)
        finally:
            call.children.close()


def _nobody_looks(progress: Progress) -> None:
    """Where a search shows nothing."""


def _space(tune: TuneConfig, own: bool) -> Space:
    """Reads the space, and refuses one that contradicts the search; beside a user's function it may be empty."""
    space = Space("build_model", ()) if own and tune.space is None else read_space(tune.space or "small")
    names = [p.name for p in space.parameters]
    if tune.tuner == "hyperband" and "fit.epochs" in names:
        raise ValueError("A space must not hold fit.epochs with tuner=hyperband, which sets it itself.")
    return space


def _refuse_finished(folder: SearchFolder, tune: TuneConfig) -> None:
    if not folder.finished:
        return
    before = json.loads(folder.summary_file.read_text(encoding="utf-8"))
    if before["ended"] != BUDGET_USED and before["trials"] >= tune.trials:
        raise FileExistsError(
            f"{folder.path} holds a finished search ({before['ended']}); more trials go on with it, and --overwrite "
            "replaces it."
        )


class _Call:
    """One call of `search`."""

    def __init__(
        self,
        config: RunConfig,
        tune: TuneConfig,
        folder: SearchFolder,
        space: Space,
        rows: list[dict[str, Any]] | None,
        build_model: Callable[[Any], Any] | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.config, self.tune, self.folder, self.space, self.rows = config, tune, folder, space, rows
        self.build_model, self.on_progress = build_model, on_progress
        self.children = Children()
        self.start = time.monotonic()
        self.worker = f"{socket.gethostname()}-{os.getpid()}"

    # The parts of a call

    def search(self, overwrite: bool, address: str | None) -> SearchResult:
        """Goes the whole way, alone or as the chief."""
        self.folder.refuse(self._identity(), overwrite)
        if not overwrite:
            _refuse_finished(self.folder, self.tune)
        self.children.warm_up()
        from . import tune_roles
        from .oracles import make_oracle

        with tempfile.TemporaryDirectory() as scratch:
            runner = self._runner(Path(scratch))
            hyperparameters = self._hyperparameters(runner)
            if self.build_model is None and (overwrite or not self.folder.oracle_file.exists()):
                self._check_limits(runner)
            self.folder.begin(self._identity(), overwrite)
            if (Path(scratch) / "measured").exists():
                shutil.copytree(Path(scratch) / "measured", self.folder.measured, dirs_exist_ok=True)
            runner.cache = None
            oracle = make_oracle(self.tune, hyperparameters, runner.base.fit.epochs or 1, self.build_model is not None)
            oracle.attach(self.folder, self.tune.trials)
            if address:
                self.children.close()  # Workers do the work; other seeds start a child anew.
                tune_roles.serve(oracle, address, lambda: self._tick_chief(oracle))
            else:
                self._run_alone(oracle, runner)
            seconds = {name: runner.seconds[name] for name in ("measuring", "training")}
            seconds = {"total": time.monotonic() - self.start, **seconds}
            return self._finish(runner, oracle.stopped() or "interrupted", seconds)

    def work(self, address: str) -> None:
        """Takes trials from a chief until it has no more."""
        self.children.warm_up()
        from . import tune_roles
        from .oracles import make_oracle

        hyperparameters = self.space.hyperparameters()
        client = tune_roles.Client(make_oracle(self.tune, hyperparameters, 1, True), address, self.worker)
        client.wait()
        if not self.folder.search_file.is_file():
            raise FileNotFoundError(f"The chief's folder must be shared: there is no {self.folder.search_file}.")
        self.folder.check(self._identity())
        with tempfile.TemporaryDirectory() as scratch:
            runner = self._runner(Path(scratch))
            runner.cache = None

            def tick(trial: Any, stage: dict[str, Any]) -> None:
                self._show(trial, stage)

            tune_roles.work(client, self.worker, runner.run, tick)

    def _runner(self, scratch: Path) -> TrialRunner:
        """Returns what runs trials; asks a child what the data decide, before a file is written."""
        build_file = None
        if self.build_model is not None:
            import cloudpickle

            build_file = scratch / "build_model.pickle"  # Of this call alone: one in the folder could be anybody's.
            build_file.write_bytes(cloudpickle.dumps(self.build_model))
        cache = self.folder.measured if self.folder.search_file.exists() else scratch / "measured"
        runner = TrialRunner(
            self.config, self.tune, self.folder, self.children, self.rows, build_file, self.worker, cache
        )
        found = self.children.do(runner.job("resolve", self.config, {}, None))
        if found["status"] != "done":
            raise ValueError(str(found["message"]).removeprefix("ValueError: "))
        fit = dataclasses.replace(self.config.fit, epochs=found["epochs"])
        searched = [p.name for p in self.space.parameters]
        model = self.config.model if "model" in searched else found["model"]
        runner.base = dataclasses.replace(self.config, model=model, fit=fit)
        return runner

    def _hyperparameters(self, runner: TrialRunner) -> Any:
        """Returns the space as keras-tuner has it, with what a user's function asks for."""
        hyperparameters = self.space.hyperparameters()
        if self.build_model is None:
            return hyperparameters
        import keras_tuner

        found = self.children.do(runner.job("discover", runner.base, {}, hyperparameters.get_config()))
        if found["status"] != "done":
            raise ValueError(f"build_model cannot be called: {found['message']}")
        hyperparameters = keras_tuner.HyperParameters.from_config(found["hp"])
        if not hyperparameters.space:
            raise ValueError(f"build_model must ask for hyperparameters. Received: none ({found['message']})")
        hyperparameters.values = {}
        return hyperparameters

    def _check_limits(self, runner: TrialRunner) -> None:
        """Refuses a space without a shape that can be built, and constraints that its smallest one does not meet."""
        if self.rows is not None:
            check_rows(self.rows, self.tune.limits, str(self.tune.measurements))
        for what in ["bytes", "latency"] if self.tune.limits else ["latency"]:
            found: dict[str, Any] = {"message": "no combination divides as it must"}
            for values in self.space.smallest(runner.base, what):
                found = runner.measure(values)
                if found["status"] == "done":
                    break
                if self.rows is not None and "measurement file" in str(found["message"]):
                    return  # Which shapes the file holds is seen trial by trial.
            if found.get("status") != "done":
                raise ValueError(
                    f"space must hold a shape that can be built and exported. Received: space={self.space.name!r}, "
                    f"whose smallest shapes cannot be: {found['message']}"
                )
            limits = {n: v for n, v in self.tune.limits.items() if (n == "bytes") == (what == "bytes")}
            over = Measurement(**found["measurement"]).excess(limits) if self.rows is None else None
            if over:
                raise ValueError(f"No shape of the space meets the constraints: the smallest one has {over}.")

    def _identity(self) -> dict[str, Any]:
        """Returns what tells this search from others."""
        lines = [[p.name, repr(dataclasses.astuple(p)[1:])] for p in self.space.parameters]
        own = getattr(self.build_model, "__qualname__", None) if self.build_model else None
        run = {name: value for name, value in self.config.to_dict().items() if name != "out"}
        return {"run": run, "tune": self.tune.identity(), "space": lines, "build_model": own}

    def _run_alone(self, oracle: Any, runner: TrialRunner) -> None:
        from .oracles import next_trial, report

        while True:
            if self._time_is_up():
                oracle.closed = BUDGET_USED
            self.on_progress(Progress(self.tune.trials, self.folder.records()))
            trial = next_trial(oracle, "alone")
            if trial is None:
                return

            def tick(stage: dict[str, Any], held: Any = trial) -> None:
                if self._time_is_up():
                    raise _TimeIsUpError
                self._show(held, stage)

            try:
                record = runner.run(trial, tick)
            except _TimeIsUpError:
                oracle.closed = BUDGET_USED
                return
            if record.status == "trained":
                write_hparams(self.folder, record)
            report(oracle, trial, record)

    def _tick_chief(self, oracle: Any) -> None:
        if self._time_is_up():
            oracle.closed = BUDGET_USED
        self.on_progress(Progress(self.tune.trials, self.folder.records()))

    def _time_is_up(self) -> bool:
        budget = self.tune.time_budget
        return budget is not None and time.monotonic() - self.start > float(budget)

    def _show(self, trial: Any, stage: dict[str, Any]) -> None:
        text = "measuring"
        if stage:
            run = self.folder.trial(trial.trial_id)
            rows = run.read_metrics() if run.metrics_file.exists() else []
            text = f"epoch {len(rows) + 1}" + (f", {rows[-1]['val_accuracy']:.2%}" if rows else "")
        values = trial.hyperparameters.values
        self.on_progress(Progress(self.tune.trials, self.folder.records(), trial.trial_id, values, text))

    def _finish(self, runner: TrialRunner, ended: str, seconds: dict[str, float]) -> SearchResult:
        """Writes the reports, and trains the best trial again with other seeds."""
        records = self.folder.records()
        best = best_of(records)
        for record in records:
            if record.status == "trained" and not (self.folder.tensorboard / record.id).exists():
                write_hparams(self.folder, record)  # A worker trained it.
        write_report(self.folder, records, best, self.build_model is None)
        if best is None and ended != BUDGET_USED:
            last = next((r.message for r in reversed(records) if r.message), "there was none")
            raise ValueError(f"No trial could be trained ({ended}). The last one: {last}")
        seeds = self._other_seeds(runner, best) if best and self.tune.seeds and ended != BUDGET_USED else None
        found = importance(records)
        result = SearchResult(
            self.folder.path, tuple(records), best, tuple(pareto_front(records)), seeds, found, ended, seconds
        )
        content = {"trials": self.tune.trials, "ended": ended, "best": best.id if best else None, "seconds": seconds}
        content |= {"counts": dict(self.folder.counts()), "front": [r.id for r in result.front]}
        content |= {name: dataclasses.asdict(v) if v else None for name, v in (("seeds", seeds), ("importance", found))}
        write_summary(self.folder, content)
        return result

    def _other_seeds(self, runner: TrialRunner, best: Record) -> SeedCheck:
        import keras_tuner

        hp = keras_tuner.HyperParameters()
        for name, value in best.values.items():
            hp.Fixed(name, value)
        answers = []
        seeds = [self.config.fit.seed + 1 + i for i in range(self.tune.seeds)]
        for i, seed in enumerate(seeds):
            config = apply(best.values, runner.base)
            out = str(self.folder.seeds / f"{best.id}-seed{seed}")
            config = dataclasses.replace(config, out=out, fit=dataclasses.replace(config.fit, seed=seed))
            self.on_progress(Progress(self.tune.trials, self.folder.records(), best.id, {}, f"again with seed {seed}"))
            job = runner.job("seed", config, best.values, hp.get_config())
            answer = self.children.do(job, more=i + 1 < len(seeds))
            if answer["status"] != "trained":
                raise ValueError(f"The best trial, {best.id}, failed with seed {seed}: {answer['message']}")
            answers.append(answer)
        return SeedCheck(
            tuple(seeds),
            tuple(answer["val_accuracy"] for answer in answers),
            tuple(answer["test_accuracy"] for answer in answers),
        )
