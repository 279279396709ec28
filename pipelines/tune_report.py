"""What a search leaves for people and programs: tables, the front of accuracy against latency, which hyperparameters
mattered, TensorBoard's HParams, and the best trial's configuration."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vit_keras.export.files import replacing

from .report import write_figure
from .search_folder import Record, SearchFolder
from .yaml_text import write_yaml

FEWEST_FOR_IMPORTANCE = 8
"""Trained trials from which on importance is told at all."""
IMPORTANCE_METHOD = "permutation importance of a random forest (200 trees, 20 permutations, share of the R2 lost)"


@dataclass(frozen=True)
class Importance:
    """How much each hyperparameter mattered for the score.

    Attributes:
        method: How it was computed.
        shares: Hyperparameter to its share of all importance, the largest first; they sum to 1, or all are 0.
        fit: R2 of the forest on trials that each tree has not seen: near or below 0 the shares say nothing.
        trials: Trained trials that it was computed on.
    """

    method: str
    shares: dict[str, float]
    fit: float
    trials: int


def pareto_front(records: Sequence[Record]) -> list[Record]:
    """Returns the trained trials that no other one beats in accuracy and in latency, the fastest first."""
    points = [r for r in records if r.status == "trained" and r.measurement.latency is not None]
    front: list[Record] = []
    for record in sorted(points, key=lambda r: (r.measurement.latency, -(r.val_accuracy or 0.0))):
        if not front or (record.val_accuracy or 0.0) > (front[-1].val_accuracy or 0.0):
            front.append(record)
    return front


def importance(records: Sequence[Record], seed: int = 0) -> Importance | None:
    """Returns which hyperparameters mattered; `None` where too few trials were trained, or nothing differs.

    Args:
        records: All trials.
        seed: Of the forest and the permutations.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    trained = [record for record in records if record.status == "trained"]
    names = sorted({name for r in trained for name in r.values if not name.startswith("tuner/")})
    columns = {name: _column([record.values.get(name) for record in trained]) for name in names}
    columns = {name: column for name, column in columns.items() if len(set(column)) > 1}
    scores = np.array([record.score for record in trained], float)
    if len(trained) < FEWEST_FOR_IMPORTANCE or not columns or np.ptp(scores) == 0:
        return None
    table = np.array(list(columns.values())).T  # (trials, hyperparameters)
    forest = RandomForestRegressor(200, oob_score=True, random_state=seed).fit(table, scores)
    found = permutation_importance(forest, table, scores, n_repeats=20, random_state=seed)
    lost = np.maximum(found["importances_mean"], 0.0)
    shares = lost / (lost.sum() or 1.0)
    ranked = sorted(zip(columns, shares.tolist(), strict=True), key=lambda item: -item[1])
    return Importance(IMPORTANCE_METHOD, dict(ranked), float(forest.oob_score_), len(trained))


def _column(values: list[Any]) -> list[float]:
    """Returns values as numbers: texts by their order, what a trial does not have as -1."""
    texts = sorted({str(value) for value in values if isinstance(value, str)})
    return [-1.0 if v is None else float(texts.index(v)) if isinstance(v, str) else float(v) for v in values]


# Files


def write_report(folder: SearchFolder, records: Sequence[Record], best: Record | None, configurable: bool) -> None:
    """Writes the tables, the plot and the best trial's configuration.

    Args:
        folder: The search's.
        records: All trials.
        best: The best trained one.
        configurable: Whether a configuration says all about a model, which it does not of a user's own function.
    """
    front = pareto_front(records)
    _write_table(folder.trials_table, records, folder)
    _write_table(folder.front_table, front, folder)
    plot_front(records, front, folder.front_plot)
    if best and configurable:
        config = folder.trial(best.id).load_config().to_dict()
        head = f"# The best of {len(records)} trials, {best.id}: `vit-keras run --config {folder.best_file}` goes on.\n"
        with replacing(folder.best_file) as temporary:
            temporary.write_text(head + write_yaml(config), encoding="utf-8")


def _write_table(path: Path, records: Sequence[Record], folder: SearchFolder) -> None:
    names = sorted({name for record in records for name in record.values})
    head = ["trial", "status", "score", "val_accuracy", "latency_ms", "bytes", "memory", "epochs"]
    head += ["measuring_s", "training_s", "run", "message", *names]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for r in records:
            m = r.measurement
            run = folder.trial(r.id)
            known = [r.id, r.status, r.score, r.val_accuracy, m.latency, m.bytes, m.memory, r.epochs]
            known += [r.seconds.get("measuring"), r.seconds.get("training")]
            known += [run.path.relative_to(folder.path).as_posix() if run.trained else None, r.message]
            writer.writerow([*known, *(r.values.get(name) for name in names)])


def plot_front(records: Sequence[Record], front: Sequence[Record], path: str | Path | None = None) -> Figure:
    """Draws accuracy against latency: all trained trials, and the front with their numbers.

    Args:
        records: All trials.
        front: Those of `pareto_front`.
        path: The PNG file to write; none if `None`.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points = [r for r in records if r.status == "trained" and r.measurement.latency is not None]
    if points:
        places = [(r.measurement.latency or 0.0, 100 * (r.val_accuracy or 0)) for r in points]
        axes.scatter(*zip(*places, strict=True), s=22, color="0.65", label="trials")
        steps = [(r.measurement.latency, 100 * (r.val_accuracy or 0)) for r in front]
        axes.plot(*zip(*steps, strict=True), "o-", drawstyle="steps-post", color="tab:blue", label="front")
        for record, (x, y) in zip(front, steps, strict=True):
            axes.annotate(record.id, (x, y), xytext=(3, 4), textcoords="offset points", fontsize=8)
        if min(x for x, _ in places) > 0:
            axes.set_xscale("log")
        axes.legend(loc="lower right")
    axes.set(xlabel="latency of the exported file (ms)", ylabel="validation accuracy (%)")
    axes.grid(alpha=0.3, which="both")
    write_figure(figure, path)
    return figure


def write_hparams(folder: SearchFolder, record: Record) -> None:
    """Writes a trained trial for TensorBoard's HParams page."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    values = {name: value for name, value in record.values.items() if isinstance(value, (bool, int, float, str))}
    amounts = {"score": record.score, "val_accuracy": record.val_accuracy, **asdict(record.measurement)}
    scalars = [Summary.Value(tag=name, simple_value=float(v)) for name, v in amounts.items() if v is not None]
    writer = EventFileWriter(str(folder.tensorboard / record.id))
    try:
        writer.add_event(Event(wall_time=0.0, step=0, summary=api.hparams_pb(values, trial_id=record.id)))
        writer.add_event(Event(wall_time=0.0, step=0, summary=Summary(value=scalars)))
    finally:
        writer.close()


def write_summary(folder: SearchFolder, content: dict[str, Any]) -> None:
    """Writes what programs want to know of a search, last of all: a search that has it is finished."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with replacing(folder.summary_file) as temporary:
        text = json.dumps({key: finite(value) for key, value in content.items()}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
