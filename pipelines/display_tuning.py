"""What `vit-keras tune` prints: a live table of trials, or a line for each, and what was found."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .search_folder import Record, best_of

if TYPE_CHECKING:
    from .search_result import Progress, SearchResult

_SHOWN = 12
"""Trials in the live table."""
_MARKS = {"trained": "green", "rejected": "yellow", "repeated": "yellow", "failed": "red"}


@contextmanager
def trials() -> "Iterator[Callable[[Progress], None]]":
    """Shows how a search stands: a live table on a terminal, else a line for every trial that has ended."""
    console = Console()
    if not console.is_terminal:
        yield _lines()
        return
    start = time.monotonic()
    with Live(console=console, refresh_per_second=2) as live:
        yield lambda progress: live.update(table(progress, time.monotonic() - start))


def _lines() -> "Callable[[Progress], None]":
    told: set[str] = set()
    first = True

    def tell(progress: "Progress") -> None:
        nonlocal first
        for record in progress.records:
            if record.id not in told and not first:
                print(line(record), flush=True)
            told.add(record.id)
        if first and told:
            print(f"Going on after {len(told)} trials.", flush=True)
        first = False

    return tell


def line(record: Record) -> str:
    """Returns a sentence about a trial that has ended."""
    facts = ", ".join(f"{name}={value}" for name, value in record.values.items() if not name.startswith("tuner/"))
    return f"trial {record.id} {record.status}: {_outcome(record)} ({facts})"


def _outcome(record: Record) -> str:
    if record.val_accuracy is None:
        return record.message or ""
    return ", ".join([f"{record.val_accuracy:.2%} of the validation pictures", *_device(record).values()])


def _device(record: Record) -> dict[str, str]:
    m = record.measurement
    texts = {
        "latency": "" if m.latency is None else f"{m.latency:.3g} ms",
        "bytes": "" if m.bytes is None else f"{m.bytes:,} bytes",
        "memory": "" if m.memory is None else f"{m.memory / 1e6:.1f} MB of memory",
    }
    return {name: text for name, text in texts.items() if text}


def table(progress: "Progress", seconds: float) -> Group:
    """Returns the live table: the last trials, the one that is running, and how many ended in which way."""
    grid = Table()
    for name in ("trial", "state", "accuracy", "latency", "bytes", "hyperparameters"):
        grid.add_column(name, overflow="fold")
    for record in progress.records[-_SHOWN:]:
        device = _device(record)
        accuracy = f"{record.val_accuracy:.2%}" if record.val_accuracy is not None else ""
        said = record.message if record.status in ("rejected", "failed") else _facts(record.values)
        cells = [record.id, record.status, accuracy, device.get("latency", ""), device.get("bytes", ""), said or ""]
        grid.add_row(*map(Text, cells), style=_MARKS[record.status] if record.status != "trained" else None)
    if progress.running:
        cells = [progress.running, progress.stage, "", "", "", _facts(progress.values)]
        grid.add_row(*map(Text, cells), style="bold")
    counts = {status: sum(r.status == status for r in progress.records) for status in _MARKS}
    best = best_of(progress.records)
    text = f"{counts['trained']} of {progress.wanted} trained, {counts['rejected']} rejected, "
    text += f"{counts['repeated']} repeated, {counts['failed']} failed, {seconds:.0f} s"
    return Group(grid, Text(text + (f"; best: {best.id}, {best.val_accuracy:.2%}" if best else "")))


def _facts(values: dict) -> str:
    return " ".join(f"{name.split('.')[-1]}={value}" for name, value in values.items() if not name.startswith("tuner/"))


def found(result: "SearchResult") -> None:
    """Prints what a search has found: the front, the best trial and its luck, what mattered, where it lies."""
    from .display import _print_table

    counts = {status: sum(r.status == status for r in result.records) for status in _MARKS}
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f"; {result.ended}.")
    rows = [
        {
            "trial": record.id,
            "accuracy": f"{record.val_accuracy or 0:.2%}",
            "latency ms": f"{record.measurement.latency:.3g}",
            "bytes": f"{record.measurement.bytes:,}" if record.measurement.bytes else "",
            "hyperparameters": _facts(record.values),
        }
        for record in result.front
    ]
    _print_table("Front of validation accuracy and latency", rows, wide=("hyperparameters",))
    if result.best is None:
        return
    print(f"Best: {line(result.best).removeprefix('trial ')}")
    if result.seeds:
        (mean, spread), (test, test_spread) = map(result.seeds.mean_and_spread, ("val_accuracy", "test_accuracy"))
        count = len(result.seeds.seeds)
        print(
            f"With {count} other seed{'s' if count > 1 else ''}: {mean:.2%} (standard deviation {100 * spread:.2f} "
            f"points) of the validation pictures, {test:.2%} ({100 * test_spread:.2f}) of the test pictures."
        )
    if result.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importance.shares.items())
        print(f"What mattered ({result.importance.method}; R2 {result.importance.fit:.2f}): {shares}")
    seconds = result.seconds
    work = seconds["measuring"] + seconds["training"]
    if work and work < seconds["total"]:
        print(
            f"{seconds['total']:.0f} s: {seconds['training']:.0f} training, {seconds['measuring']:.0f} measuring, "
            f"{1 - work / seconds['total']:.1%} besides."
        )
    print(f"Tables, plot, best.yaml: {result.folder}", file=sys.stdout)
