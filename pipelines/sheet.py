"""A sheet of pictures that shows what a model is fed."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .config import AugmentConfig
from .datasets import ImageData, stratified_sample
from .preprocessing import training_batches
from .report import write_figure


def picture_sheet(
    data: ImageData,
    image_size: tuple[int, int],
    config: AugmentConfig,
    path: str | Path,
    rows: int = 5,
    columns: int = 8,
    seed: int = 0,
    balance: str = "none",
) -> Figure:
    """Plots training pictures as `model.fit` gets them, a row a batch; mixed ones with the share of each class.

    Args:
        data: The pictures; about as many of each class are taken, but with a balance those that a training begins with.
        image_size: Height and width that the model takes, in pixels.
        config: Augmentation.
        path: The PNG file to write.
        rows: Rows of pictures, >= 1.
        columns: Columns of pictures, >= 1.
        seed: Seed of the choice of pictures, and of their changes.
        balance: As of `training_batches`; with `"weights"` the weight of each picture is shown.

    Returns:
        The figure.

    Raises:
        ValueError: fewer than one row or column.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns must be >= 1. Received: rows={rows}, columns={columns}")
    chosen = data.train
    if balance == "none":
        chosen = chosen.take(stratified_sample(chosen.labels, rows * columns, seed))
    in_a_row = min(columns, len(chosen))
    batches = training_batches(
        chosen, image_size, in_a_row, config, seed, num_classes=len(data.classes), balance=balance
    )
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, batch in zip(grid, batches.take(rows).as_numpy_iterator(), strict=True):
        for axes, image, label, *weight in zip(row, *batch, strict=False):
            axes.imshow(np.clip(image, 0, 255).astype("uint8"), interpolation="nearest")
            lines = [_title(label, data.classes), *(f"weight {value:.2f}" for value in weight)]
            axes.set_title("\n".join(lines), fontsize=7)
    for axes in grid.ravel():
        axes.axis("off")
    write_figure(figure, path)
    return figure


def _title(label: np.ndarray, classes: tuple[str, ...]) -> str:
    """Returns the name of a class, or of a mixed picture those of its classes with their shares."""
    if label.ndim == 0:
        return classes[label]
    most = [i for i in np.argsort(-label)[:2] if label[i] > 0.005]
    return "\n".join(f"{label[i]:.0%} {classes[i]}" if label[i] < 0.995 else classes[i] for i in most)
