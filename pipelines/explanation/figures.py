"""Figures of explanations: maps over pictures, heads, filters, positions, layers."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_keras.explain import AttentionStatistics

from .maps import Maps

_MOST_BLOCKS, _MOST_HEADS = 12, 16
_MOST_FILTERS = 64


def plot_maps(image: np.ndarray, found: Sequence[Maps], number: int, title: str) -> Figure:
    """Plots a picture, `(H, W, 3)`, beside its map by each method; in place of a refused one stands why."""
    columns = min(6, 1 + len(found))
    rows = -(-(1 + len(found)) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.35 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    _quiet(grid)
    grid.flat[0].imshow(image.astype("uint8"))
    grid.flat[0].set_title(title, fontsize=8, loc="left")
    for axes, maps in zip(grid.flat[1:], found, strict=False):
        axes.set_title(maps.method, fontsize=8, loc="left")
        one = maps.maps[number]
        if one is None:
            axes.text(0.5, 0.5, _wrapped(maps.reasons[number]), ha="center", va="center", fontsize=6)
            axes.set(xlim=(0, 1), ylim=(0, 1))
        else:
            overlay(axes, image, one)
    return figure


def overlay(axes, image: np.ndarray, found: np.ndarray) -> None:
    """Draws a map, `(h, w)`, over a picture in gray; what speaks against the class is left dark."""
    height, width = image.shape[:2]
    axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    shown = np.maximum(found, 0) if found.max() > 0 else found
    top = np.percentile(shown, 99) if shown.size > 400 else shown.max()  # A few pixels would leave the others black.
    axes.imshow(
        shown, cmap="inferno", alpha=0.65, extent=(-0.5, width - 0.5, height - 0.5, -0.5), vmin=shown.min(), vmax=top
    )


def plot_heads(rows: np.ndarray) -> Figure:
    """Plots attention over a picture, `(L, H, h, w)`, a row a block and a column a head, each in its own range."""
    blocks = np.unique(np.linspace(0, len(rows) - 1, min(_MOST_BLOCKS, len(rows))).round().astype(int))
    heads = range(min(rows.shape[1], _MOST_HEADS))
    figure = Figure(figsize=(1.0 * len(heads) + 1, 1.05 * len(blocks) + 0.3), layout="constrained")
    shown = [[rows[block, head] for head in heads] for block in blocks]
    _plot_table(figure, shown, [f"block {block}" for block in blocks], [f"head {head}" for head in heads], "inferno")
    return figure


def _plot_table(
    figure: Figure, maps: Sequence[Sequence[np.ndarray]], rows: Sequence[str], columns: Sequence[str], colours: str
) -> None:
    """Draws rows and columns of maps, `(h, w)`, each brought to 0 to 1: one picture is drawn faster than many."""
    side = max(max(one.shape) for line in maps for one in line)
    step = side + max(1, side // 16)
    width = max(map(len, maps))
    table = np.full((len(maps) * step, width * step), np.nan, "float32")
    for row, line in enumerate(maps):
        for column, one in enumerate(line):
            index = np.arange(side) * max(one.shape) // side
            found = one[np.ix_(index[index < one.shape[0]], index[index < one.shape[1]])]
            found = (found - one.min()) / max(float(np.ptp(one)), 1e-12)
            table[row * step :, column * step :][: len(found), : found.shape[1]] = found
    axes = figure.subplots()
    axes.imshow(table, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    middles = np.arange(max(len(maps), width)) * step + side / 2 - 0.5
    axes.set_xticks(middles[: len(columns)], columns, fontsize=7)
    axes.set_yticks(middles[: len(rows)], rows, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def plot_distance(found: AttentionStatistics) -> Figure:
    """Plots mean attention distance and entropy, a dot a head."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    blocks = np.arange(len(found.distance))
    for axes, values, label in (
        (left, found.distance, "mean attention distance, pixels"),
        (right, found.entropy, "entropy of attention, nats"),
    ):
        for head in range(values.shape[1]):
            axes.plot(blocks, values[:, head], "o", alpha=0.75, markersize=5)
        axes.plot(blocks, values.mean(axis=1), color="#64748b", label="mean of the heads")
        axes.set(xlabel="block", ylabel=label, xticks=blocks)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.axhline(found.most, color="#64748b", linestyle=":", label="of even attention")
    right.legend(frameon=False, loc="best")
    return figure


def plot_filters(filters: np.ndarray, components: np.ndarray) -> Figure:
    """Plots filters, `(count, h, w, 3)`, and their principal components, each stretched to its own range."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2)
    strongest = np.argsort(-np.square(filters).sum(axis=(1, 2, 3)))[:_MOST_FILTERS]
    for part, shown, title, columns in (
        (left, filters[strongest], f"the {len(strongest)} strongest of {len(filters)} filters", 8),
        (right, components, f"their first {len(components)} principal components", 7),
    ):
        part.suptitle(title, fontsize=9)
        grid = part.subplots(-(-len(shown) // columns), columns, squeeze=False)
        _quiet(grid)
        for axes, one in zip(grid.flat, shown, strict=False):
            low, high = one.min(), one.max()
            axes.imshow((one - low) / max(high - low, 1e-12), interpolation="nearest")
    return figure


def plot_positions(similarity: np.ndarray) -> Figure:
    """Plots the similarity of positions, `(h, w, h, w)`: a tile a patch, in it all patches; at most 14 tiles a side."""
    height, width = similarity.shape[:2]
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, 14)).round().astype(int)) for n in (height, width))
    side = 0.55
    figure = Figure(figsize=(side * len(columns) + 1.2, side * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    _quiet(grid)
    shown = None
    for line, row in zip(grid, rows, strict=True):
        for axes, column in zip(line, columns, strict=True):
            shown = axes.imshow(similarity[row, column], vmin=similarity.min(), vmax=1, cmap="viridis")
    figure.colorbar(shown, ax=list(grid.flat), label="cosine similarity", shrink=0.8)
    return figure


def plot_features(maps: Mapping[str, np.ndarray], channels: int = 8) -> Figure:
    """Plots of every layer the feature maps of one picture, `(h, w, C)`, that vary most, a row a layer, each in its own
    range."""
    names = list(maps)
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(13, len(names))).round().astype(int))]
    figure = Figure(figsize=(1.05 * channels + 1.6, 1.1 * len(chosen)), layout="constrained")
    lines = []
    for name in chosen:
        found = maps[name]
        strongest = np.argsort(-found.std(axis=(0, 1)))[:channels]
        lines.append([found[..., channel] for channel in strongest])
    _plot_table(figure, lines, chosen, [], "viridis")
    return figure


def plot_norms(norms: np.ndarray, grid_size: tuple[int, int]) -> Figure:
    """Plots the length of the tokens of one picture, `(L, P + N)`: patches as a map, prefix tokens as numbers."""
    blocks = np.unique(np.linspace(0, len(norms) - 1, min(12, len(norms))).round().astype(int))
    columns = min(6, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = Figure(figsize=(2.0 * columns, 2.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    _quiet(grid)
    count = grid_size[0] * grid_size[1]
    for axes, block in zip(grid.flat, blocks, strict=False):
        prefix, patches = np.split(norms[block], [len(norms[block]) - count])
        shown = axes.imshow(patches.reshape(grid_size), cmap="viridis")
        figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
        text = "" if not len(prefix) else "\nprefix " + ", ".join(f"{value:.0f}" for value in prefix[:4])
        axes.set_title(f"block {block}{text}", fontsize=7)
    return figure


def plot_similarity(similarity: np.ndarray, names: Sequence[str], others: Sequence[str]) -> Figure:
    """Plots the linear CKA of layers, `(layers, layers of the other model)`."""
    side = 2.4 + 0.26 * max(similarity.shape)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(similarity, vmin=0, vmax=1, cmap="magma", origin="lower")
    axes.set_xticks(range(len(others)), others, rotation=90, fontsize=6)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(shown, ax=axes, label="linear CKA")
    return figure


def plot_pictures(images: np.ndarray, titles: Sequence[str], columns: int = 5) -> Figure:
    """Plots pictures, `(n, H, W, 3)`, with a title each."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    _quiet(grid)
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(np.clip(image, 0, 255).astype("uint8"))
        axes.set_title(title, fontsize=8)
    return figure


def _quiet(grid: np.ndarray) -> None:
    for axes in grid.flat:
        axes.set_axis_off()


def _wrapped(text: str, width: int = 24) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line])
