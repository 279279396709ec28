"""From pictures to a folder of explanations: a PNG for each, and one page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vit_keras.explain import (
    TokenLayout,
    attention_statistics,
    class_attention,
    convolution_filters,
    feature_maps,
    feature_names,
    layer_similarity,
    position_similarity,
    principal_components,
    token_norms,
)
from vit_keras.export.files import refuse_existing, replacing

from ..prediction import check_pictures
from ..report import write_figure
from . import figures
from .maps import Explainer, Maps, Progress
from .methods import FIGURES, METHODS, check_methods, warning_of
from .page import Page
from .subject import Subject, load_subject

PAGE = "explain.html"
_AT_A_TIME = 16
_FEW = 16
"""Pictures that figures about the model as a whole look at."""


@dataclass(frozen=True)
class Explained:
    """What was explained of one picture.

    Attributes:
        picture: The file.
        label: The predicted class.
        probability: Its probability, 0 to 1.
        explained: The class that the maps are of.
        refused: Of methods whose map was refused, why.
    """

    picture: str
    label: str
    probability: float
    explained: str
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """A folder of explanations.

    Attributes:
        folder: Where it is.
        methods: The methods and figures in it.
        pictures: What was explained, picture by picture.
        warnings: Of methods that are not to be trusted, why.
    """

    folder: Path
    methods: tuple[str, ...]
    pictures: tuple[Explained, ...]
    warnings: tuple[str, ...]

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE


def explain(
    path: str | Path,
    pictures: Sequence[str | Path],
    methods: Sequence[str] = (),
    label: str | int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Explanation:
    """Explains what a classifier sees in pictures; memory is bounded by a batch, whatever their number.

    Args:
        path: A run's folder, a `.keras` file or a `.tflite` file.
        pictures: JPEG, PNG, BMP or GIF files of any size and mode.
        methods: Names of `METHODS` and `FIGURES`, or `"all"`; the usual ones that the classifier can be explained by
            if none is given.
        label: Name or number of the class to explain; of each picture the predicted one if `None`.
        out: The folder to write; `explain` in the run, or beside a file, if `None`.
        overwrite: Whether to replace a folder that is there already.
        progress: Is called with the number of finished pictures and of all.

    Raises:
        FileExistsError: the folder exists and `overwrite` is false.
        FileNotFoundError: a model or a picture that is not there.
        ValueError: an unknown method or class, a method that the classifier has not what it takes for, a bad picture.
    """
    if not pictures:
        raise ValueError("pictures must name at least one picture. Received: none")
    path = Path(path)
    folder = Path(out) if out else default_folder(path)
    refuse_existing(folder, overwrite)
    check_pictures(pictures)
    subject = load_subject(path)
    chosen = check_methods(methods, subject.methods)
    for name in chosen:
        subject.require(name)
    index = None if label is None else subject.class_index(label)
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        return _write(subject, pictures, chosen, index, folder, temporary, progress)


def default_folder(path: Path) -> Path:
    """Returns where explanations of a run or a file go if nobody says."""
    return path.with_suffix(".explain") if path.suffix in (".tflite", ".keras") else path / "explain"


def _write(
    subject: Subject,
    pictures: Sequence[str | Path],
    chosen: tuple[str, ...],
    index: int | None,
    folder: Path,
    temporary: Path,
    progress: Progress | None,
) -> Explanation:
    """Writes everything into a temporary folder, batch by batch."""
    explainer = Explainer(subject, _AT_A_TIME)
    methods = [name for name in chosen if name in METHODS]
    warnings = tuple(text for name in methods if (text := warning_of(name, subject.pooling)))
    kinds = [FIGURES[name] for name in chosen if name in FIGURES]
    done: list[Explained] = []
    with Page(temporary / PAGE, f"What {subject.name} sees") as page:
        page.methods(methods, warnings, subject.pooling)
        for start in range(0, len(pictures), _AT_A_TIME):
            part = pictures[start : start + _AT_A_TIME]
            images = subject.read(part)
            logits = subject.scores(images)
            classes = logits.argmax(axis=1) if index is None else np.full(len(part), index)
            found = [explainer.maps(name, images, classes) for name in methods]
            inside = {kind: picture_figures(kind.name, explainer, images) for kind in kinds if kind.per_picture}
            for i, picture in enumerate(part):
                row = _explained(subject, str(picture), logits[i], int(classes[i]), found, i)
                done.append(row)
                title = f"{row.label} ({row.probability:.0%})"
                title += f"\nexplained: {row.explained}" if row.explained != row.label else ""
                file = temporary / f"{len(done):04d}.{Path(picture).stem}.png"
                write_figure(figures.plot_maps(images[i], found, i, title), file)
                page.picture(f"{Path(picture).name}: {row.label} ({row.probability:.0%})", file)
                for method, reason in row.refused.items():
                    page.note(f"{method}: {reason}")
                for kind, drawn in inside.items():
                    file = temporary / f"{len(done):04d}.{Path(picture).stem}.{kind.name}.png"
                    write_figure(next(drawn), file)
                    page.picture(f"{kind.name}: {kind.shows} ({kind.source}).", file)
            if progress:
                progress(len(done), len(pictures))
        sample = subject.read(pictures[:_FEW])
        for kind in (kind for kind in kinds if not kind.per_picture):
            page.heading(kind.name)
            try:
                figure = figure_of(kind.name, explainer, sample)
            except ValueError as error:
                page.note(f"Not shown: {error}")
                continue
            file = temporary / f"{kind.name}.png"
            write_figure(figure, file)
            page.picture(f"{kind.shows[0].upper()}{kind.shows[1:]} ({kind.source}).", file)
    return Explanation(folder, chosen, tuple(done), warnings)


def _explained(
    subject: Subject, picture: str, logits: np.ndarray, index: int, found: Sequence[Maps], number: int
) -> Explained:
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    refused = {maps.method: maps.reasons[number] for maps in found if maps.reasons[number]}
    labels = subject.labels
    return Explained(picture, labels[chances.argmax()], float(chances.max()), labels[index], refused)


def picture_figures(name: str, explainer: Explainer, images: np.ndarray) -> Iterator[Figure]:
    """Makes a figure of each picture, one after another.

    Args:
        name: A name of `FIGURES` whose `per_picture` holds.
        explainer: Of the classifier.
        images: Pictures to look at, `(n, H, W, 3)`.
    """
    model = explainer.subject.model
    if name == "heads":
        yield from map(figures.plot_heads, class_attention(model, images))
    elif name == "norms":
        grid = TokenLayout.of(model).grid
        yield from (figures.plot_norms(norms, grid) for norms in token_norms(model, images))
    else:
        found = feature_maps(model, images)
        for i in range(len(images)):
            yield figures.plot_features({layer: maps[i] for layer, maps in found.items()})


def figure_of(name: str, explainer: Explainer, images: np.ndarray) -> Figure:
    """Makes a figure of what is inside a model.

    Args:
        name: A name of `FIGURES`.
        explainer: Of the classifier.
        images: Pictures to look at, `(n, H, W, 3)`; only the first where a figure is of one picture.

    Raises:
        ValueError: an unknown name, or the classifier has not what it takes.
    """
    subject = explainer.subject
    if name not in FIGURES:
        raise ValueError(f"figure must be one of {', '.join(FIGURES)}. Received: figure={name!r}")
    subject.require(name)
    images = subject.check(images)
    model = subject.model
    if FIGURES[name].per_picture:
        return next(picture_figures(name, explainer, images[:1]))
    if name == "distance":
        return figures.plot_distance(attention_statistics(model, images, batch_size=4))
    if name == "filters":
        filters = next((f for f in convolution_filters(model).values() if f.shape[-1] == 3), None)
        if filters is None:
            raise ValueError(f"{subject.name} has no filters over red, green and blue")
        return figures.plot_filters(filters, principal_components(filters))
    if name == "positions":
        return figures.plot_positions(position_similarity(model))
    if name == "similarity":
        names = feature_names(model)
        return figures.plot_similarity(layer_similarity(model, images), names, names)
    classes = np.arange(min(10, len(subject.labels)))
    painted = explainer.cams().maximised(classes)
    return figures.plot_pictures(painted, [subject.labels[c] for c in classes])
