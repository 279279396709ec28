"""From runs and files to a folder of curves, laid over each other."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vit_keras.explain import feature_names, layer_similarity
from vit_keras.export.files import refuse_existing, replacing

from ..datasets import load_data, stratified_sample
from ..exporting import pixels
from ..report import write_figure
from ..run_folder import RunFolder, run_of
from .embedding import EMBEDDINGS, Embedding, embed, plot_embeddings, pooled_features
from .figures import plot_similarity
from .maps import Progress
from .page import Page
from .probes import PROBES, Curve, check_probes, probe_curves
from .spectra import FourierSpectrum, fourier_spectrum, hessian_max_eigenvalues
from .subject import Subject, load_subject

PAGE = "probe.html"
SPECTRA = {
    "fourier": "frequencies of the feature maps, layer by layer (arXiv:2202.06709, figure 2)",
    "embedding": "pooled features of the test pictures, a colour a class, by PCA and t-SNE (JMLR 9, 2008)",
    "hessian": "largest eigenvalues of the loss's Hessian over small batches (arXiv:2202.06709, figure 4)",
    "similarity": "linear CKA between the layers of two models, or of one (arXiv:2108.08810, figures 1 and 2)",
}
"""Probes of Keras models only."""
_SPECTRUM_PICTURES = 64


@dataclass(frozen=True)
class Similarity:
    """How alike the layers of two models are, or those of one.

    Attributes:
        subject: Name of the first model.
        other: Name of the second one.
        layers: Names of the first one's layers.
        other_layers: Names of the second one's layers.
        cka: Linear CKA, `(layers, other_layers)`.
    """

    subject: str
    other: str
    layers: tuple[str, ...]
    other_layers: tuple[str, ...]
    cka: np.ndarray


@dataclass(frozen=True)
class Probing:
    """What probes found.

    Attributes:
        folder: Where page and plots are.
        curves: One for each classifier and probe.
        classes: Names of the classes.
        fourier: Of each Keras model its spectrum, by name.
        hessian: Of each Keras model the largest eigenvalue of each batch, by name.
        embeddings: Of each Keras model its pooled features by PCA and t-SNE, by name.
        similarities: One for each two Keras models; that of a model with itself where there is only one.
    """

    folder: Path
    curves: tuple[Curve, ...]
    classes: tuple[str, ...]
    fourier: dict[str, FourierSpectrum] = field(default_factory=dict)
    hessian: dict[str, np.ndarray] = field(default_factory=dict)
    embeddings: dict[str, list[Embedding]] = field(default_factory=dict)
    similarities: tuple[Similarity, ...] = ()

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE


def probe(
    paths: Sequence[str | Path],
    probes: Sequence[str] = (),
    data: str | None = None,
    pictures: int = 200,
    out: str | Path = "probes",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Probing:
    """Probes classifiers on test pictures.

    Args:
        paths: Runs' folders, `.keras` files or `.tflite` files that take pictures of one size.
        probes: Names of `PROBES`, `drop` or `corruptions` for several, names of `SPECTRA`; all that change pictures if
            none is given.
        data: Where the test pictures come from, as `--data` of a run; the first run among `paths`, or the run that a
            file lies in, says so if `None`.
        pictures: How many, of all classes alike.
        out: The folder to write.
        overwrite: Whether to replace a folder that is there already.
        progress: Is called with the number of finished levels and of all.

    Raises:
        FileExistsError: the folder exists and `overwrite` is false.
        ValueError: an unknown probe, classifiers that do not fit each other or the data, no data, or one of
            `SPECTRA` without a Keras model.
    """
    folder = refuse_existing(out, overwrite)
    if pictures < 1:
        raise ValueError(f"pictures must be >= 1. Received: pictures={pictures}")
    spectra = [name for name in probes if name in SPECTRA]
    changing = [name for name in probes if name not in SPECTRA]
    chosen = check_probes(changing, SPECTRA) if changing or not spectra else ()
    subjects = [load_subject(path) for path in paths]
    subjects = _apart(subjects)
    models = [subject for subject in subjects if subject.model is not None]
    if spectra and not models:
        raise ValueError(f"{', '.join(spectra)} needs a Keras model. Received: {', '.join(map(str, paths))}")
    images, labels = _pictures(subjects, paths, data, pictures)
    curves = probe_curves(subjects, images, labels, chosen, progress=progress) if chosen else []
    result = Probing(folder, tuple(curves), subjects[0].labels, **_spectra(models, spectra, images, labels))
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        _write(result, temporary)
    return result


def _spectra(
    models: Sequence[Subject], spectra: Sequence[str], images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Returns what is asked for of the models, by the attribute of `Probing` that holds it."""
    few, truth = images[:_SPECTRUM_PICTURES], labels[:_SPECTRUM_PICTURES]
    found: dict[str, Any] = {}
    if "fourier" in spectra:
        found["fourier"] = {subject.name: fourier_spectrum(subject.model, few) for subject in models}
    if "hessian" in spectra:
        found["hessian"] = {subject.name: hessian_max_eigenvalues(subject.model, few, truth) for subject in models}
    if "embedding" in spectra:
        features = {subject.name: pooled_features(subject.model, images) for subject in models}
        found["embeddings"] = {name: [embed(f, labels, m) for m in EMBEDDINGS] for name, f in features.items()}
    if "similarity" in spectra:
        pairs = itertools.combinations(models, 2) if len(models) > 1 else [(models[0], models[0])]
        found["similarities"] = tuple(_similarity(one, other, images) for one, other in pairs)
    return found


def _similarity(one: Subject, other: Subject, images: np.ndarray) -> Similarity:
    names = tuple(feature_names(one.model)), tuple(feature_names(other.model))
    cka = layer_similarity(one.model, images, None if other is one else other.model)
    return Similarity(one.name, other.name, *names, cka)


def _apart(subjects: list[Subject]) -> list[Subject]:
    """Renames classifiers of the same name by their paths."""
    names = [subject.name for subject in subjects]
    return [
        replace(subject, name=str(subject.path)) if names.count(subject.name) > 1 else subject for subject in subjects
    ]


def _pictures(
    subjects: Sequence[Subject], paths: Sequence[str | Path], data: str | None, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns test pictures, float32 `(n, H, W, 3)`, and their labels."""
    runs = [RunFolder(path) for path in map(Path, paths) if path.is_dir()]
    runs += [run_of(path) for path in map(Path, paths) if path.suffix == ".tflite"]
    run = next((run for run in runs if run.config_file.is_file()), None)
    if data:
        found = load_data(data)
    elif run:
        config = run.load_config()
        found = load_data(config.data, config.input.dir, config.input.split_seed, config.input.skip_bad)
        found = found.framed(config.input.framing)
    else:
        raise ValueError("data must be given where no path is a run's. Received: data=None")
    for subject in subjects:
        if len(subject.labels) != len(found.classes):
            raise ValueError(
                f"{subject.name} must give scores of the {len(found.classes)} classes of {found.name}. "
                f"Received: {len(subject.labels)}"
            )
    split = found.test.take(stratified_sample(found.test.labels, count, seed=0))
    return pixels(split, subjects[0].image_size), split.labels


def plot_curves(curves: Sequence[Curve], probe_name: str) -> Figure:
    """Plots the curves of one probe, one for each classifier, with their 95 % intervals."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        (line,) = axes.plot(curve.levels, curve.accuracies, marker="o", markersize=3.5, label=curve.subject)
        axes.fill_between(curve.levels, *curve.intervals.T, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel=PROBES[probe_name].axis, ylabel="accuracy", title=probe_name, ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_fourier(spectra: dict[str, FourierSpectrum]) -> Figure:
    """Plots relative log amplitudes, a line a layer, early ones dark; right of them the highest frequency by depth."""
    figure = Figure(figsize=(5.0 * (1 + len(spectra)), 3.6), layout="constrained")
    *panels, last = figure.subplots(1, 1 + len(spectra))
    for axes, (name, found) in zip(panels, spectra.items(), strict=True):
        for i, line in enumerate(found.amplitudes):
            shade = i / max(1, len(found.amplitudes) - 1)
            axes.plot(found.frequencies, line, color=(0.9 * shade, 0.35, 0.9 - 0.6 * shade))
        axes.set(
            title=f"{name}: first layer blue, last one red",
            xlabel="frequency, pi",
            ylabel="log amplitude less that of 0",
        )
        last.plot(range(len(found.layers)), found.amplitudes[:, -1], marker="o", markersize=3.5, label=name)
    last.set(title="highest frequency", xlabel="layer", ylabel="log amplitude less that of 0")
    last.legend(frameon=False, fontsize=8)
    return figure


def plot_hessian(found: dict[str, np.ndarray]) -> Figure:
    """Plots the largest eigenvalues of each model's batches."""
    figure = Figure(figsize=(5.6, 1.2 + 0.5 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(found.values()):
        axes.plot(values, [row] * len(values), "|", markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    axes.set(xlabel="largest eigenvalue of the Hessian, a stroke a batch", ylim=(-0.7, len(found) - 0.3))
    axes.axvline(0, color="#64748b", linewidth=0.8)
    return figure


def _write(result: Probing, folder: Path) -> None:
    """Writes the page and its plots."""
    with Page(folder / PAGE, "How classifiers bear what is done to pictures") as page:
        for name in dict.fromkeys(curve.probe for curve in result.curves):
            curves = [curve for curve in result.curves if curve.probe == name]
            file = folder / f"{name}.png"
            write_figure(plot_curves(curves, name), file)
            page.heading(name)
            kind = PROBES[name]
            page.picture(f"{kind.shows[0].upper()}{kind.shows[1:]} ({kind.source}).", file)
            page.table(curve_rows(curves))
            page.note(f"Accuracy on {curves[0].pictures:,} test pictures; bands are 95 % intervals (Wilson).")
        plots = {
            "fourier": plot_fourier(result.fourier) if result.fourier else None,
            "hessian": plot_hessian(result.hessian) if result.hessian else None,
        }
        for name, figure in plots.items():
            if figure:
                file = folder / f"{name}.png"
                write_figure(figure, file)
                page.heading(name)
                page.picture(f"{SPECTRA[name][0].upper()}{SPECTRA[name][1:]}.", file)
        _write_embeddings(result, folder, page)
        for number, found in enumerate(result.similarities):
            file = folder / (f"similarity.{number}.png" if number else "similarity.png")
            write_figure(plot_similarity(found.cka, found.layers, found.other_layers), file)
            page.heading(f"similarity: {found.subject} (upwards) and {found.other}")
            page.picture(f"{SPECTRA['similarity'][0].upper()}{SPECTRA['similarity'][1:]}.", file)


def _write_embeddings(result: Probing, folder: Path, page: Page) -> None:
    for number, (name, found) in enumerate(result.embeddings.items()):
        file = folder / (f"embedding.{number}.png" if number else "embedding.png")
        write_figure(plot_embeddings(found, result.classes), file)
        page.heading(f"embedding: {name}")
        page.picture(f"{SPECTRA['embedding'][0].upper()}{SPECTRA['embedding'][1:]}.", file)
        page.note(
            f"Of {found[0].neighbours:.1%} of the pictures the nearest other one, in all dimensions, is of the same "
            "class. Distances between groups of t-SNE say nothing."
        )


def curve_rows(curves: Sequence[Curve]) -> list[dict[str, str]]:
    """Returns a row for each classifier, column name to text: accuracy at each level of one probe."""
    return [
        {
            curve.probe: curve.subject,
            **{f"{level:g}": f"{share:.1%}" for level, share in zip(curve.levels, curve.accuracies, strict=True)},
        }
        for curve in curves
    ]
