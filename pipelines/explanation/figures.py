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
    """Plots attention over a picture, `(L, H, h, w)`, a row a block and a column a head."""
    blocks = np.unique(np.linspace(0, len(rows) - 1, min(_MOST_BLOCKS, len(rows))).round().astype(int))
    heads = rows.shape[1] if rows.shape[1] <= _MOST_HEADS else _MOST_HEADS
    figure = Figure(figsize=(1.0 * heads + 1, 1.05 * len(blocks) + 0.3), layout="constrained")
    grid = figure.subplots(len(blocks), heads, squeeze=False)
    _quiet(grid)
    for line, block in zip(grid, blocks, strict=True):
        for head, axes in enumerate(line):
            axes.imshow(rows[block, head], cmap="inferno")
            if block == blocks[0]:
                axes.set_title(f"head {head}", fontsize=7)
        line[0].text(-0.08, 0.5, f"block {block}", fontsize=7, ha="right", va="center", transform=line[0].transAxes)
    return figure


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
    """Plots of every layer the feature maps of one picture, `(h, w, C)`, that vary most, a row a layer."""
    names = list(maps)
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(13, len(names))).round().astype(int))]
    figure = Figure(figsize=(1.05 * channels + 1.6, 1.1 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), channels, squeeze=False)
    _quiet(grid)
    for line, name in zip(grid, chosen, strict=True):
        found = maps[name]
        for axes, channel in zip(line, np.argsort(-found.std(axis=(0, 1))), strict=False):
            axes.imshow(found[..., channel], cmap="viridis")
        line[0].text(-0.08, 0.5, name, fontsize=7, ha="right", va="center", transform=line[0].transAxes)
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
