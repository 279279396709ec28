"""What the commands print."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from .report import proof_cells

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .prediction import Prediction


def progress() -> int:
    """Returns the `verbose` of `model.fit` that suits the output: a bar on a terminal, else a line per epoch."""
    return 1 if sys.stdout.isatty() else 2


def proof(report: dict[str, Any], folder: str | Path) -> None:
    """Prints the proof table of a report."""
    keras_model, data = report["keras"], report["data"]
    rows = [proof_cells(artefact) for artefact in report["artefacts"]]
    title = f"Keras model: {keras_model['accuracy']:.2%} on {data['test']:,} test pictures of {data['name']}"
    _print_table(title, rows)
    print(f"Report: {Path(folder) / 'report.html'}")


def evaluation(result: "Evaluation") -> None:
    """Prints accuracy with its interval, and loss."""
    low, high = result.accuracy_interval
    print(
        f"accuracy {result.accuracy:.2%} (95 % interval {100 * low:.1f}-{100 * high:.1f} %), "
        f"loss {result.loss:.4f}, {len(result.labels):,} test pictures"
    )


def predictions(results: Sequence["Prediction"]) -> None:
    """Prints a line per picture: class, probability, file."""
    for result in results:
        print(f"{result.label}\t{result.probability:.4f}\t{result.picture}")


def presets(pattern: str) -> None:
    """Prints the presets whose names match a shell-style pattern.

    Raises:
        ValueError: no preset matches.
    """
    from vit_keras import get_preset, list_models

    names = list_models(pattern)
    if not names:
        raise ValueError(f"pattern must match a preset; `vit-keras list` shows all. Received: pattern={pattern}")
    _print_table(None, [{"model": name, **_facts(get_preset(name))} for name in names])


def _facts(preset: Any) -> dict[str, str]:
    arguments = preset.arguments
    return {
        "input": "x".join(str(n) for n in preset.image_size),
        "patch": str(arguments["patch_size"]),
        "width": str(arguments["hidden_dim"]),
        "blocks": str(arguments["num_layers"]),
        "heads": str(arguments["num_heads"]),
        "parameters (1000 classes)": f"{preset.parameters:,}" if preset.parameters else "",
        "source": preset.source,
    }


def _print_table(title: str | None, rows: Sequence[dict[str, str]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i == 0 or name == "source" else "right", no_wrap=name != "source")
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.print(table) if console.is_terminal else Console(width=140).print(table)
