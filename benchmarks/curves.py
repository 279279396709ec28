"""Draws how runs learned, side by side, from their `metrics.csv`.

    python benchmarks/curves.py --panel "Fine-tuning" "pretrained=runs/a" "from scratch=runs/b" --out curves.png

Each `--panel` has a title and runs with their names; a line shows the share of the validation pictures named rightly
after each epoch, and its end is written beside it.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from vit_keras.export.files import replacing
from vit_keras.pipelines.run_folder import RunFolder


def draw(axes: Axes, title: str, runs: list[str]) -> None:
    """Draws the runs of one panel, each given as NAME=FOLDER."""
    for run in runs:
        name, _, folder = run.partition("=")
        rows = RunFolder(folder).read_metrics()
        epochs, shares = [row["epoch"] + 1 for row in rows], [100 * row["val_accuracy"] for row in rows]
        axes.plot(epochs, shares, label=f"{name}: {shares[-1]:.1f} %")
    axes.set(title=title, xlabel="epoch", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panel", nargs="+", action="append", required=True, metavar=("TITLE", "NAME=RUN"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    columns = min(2, len(options.panel))
    rows = -(-len(options.panel) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5.5 * columns, 3.8 * rows), squeeze=False, layout="constrained")
    for axes, (title, *runs) in zip(grid.flat, options.panel, strict=False):
        draw(axes, title, runs)
    for axes in grid.flat[len(options.panel) :]:
        axes.remove()
    with replacing(options.out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


if __name__ == "__main__":
    main()
