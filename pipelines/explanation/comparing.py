"""Does quantisation change what a model looks at? A file's maps beside the Keras model's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit_keras.export.files import refuse_existing, replacing

from ..correlation import rank_correlations
from ..datasets import load_data, stratified_sample
from ..preprocessing import batches
from ..report import write_figure
from ..run_folder import RunFolder
from . import figures
from .explaining import PAGE
from .maps import Explainer, Maps, Progress, on_grid
from .page import Page
from .subject import load_subject

SHOWN = 12
"""Most different pictures on the page."""


@dataclass(frozen=True)
class ComparedPicture:
    """One test picture; the maps' rank correlation, Spearman's, is 0 where one of the maps was refused."""

    number: int
    truth: str
    keras: str
    file: str
    correlation: float


@dataclass(frozen=True)
class Comparison:
    """Maps of a run's Keras model and of a file.

    Attributes:
        folder: Where page and pictures are.
        method: The method of both.
        pictures: The most different first.
        refused: How many pictures have no map of one of the two.
    """

    folder: Path
    method: str
    pictures: tuple[ComparedPicture, ...]
    refused: int

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE

    @property
    def mean(self) -> float:
        """Mean rank correlation."""
        return float(np.mean([picture.correlation for picture in self.pictures]))

    @property
    def least(self) -> float:
        """Smallest rank correlation."""
        return self.pictures[0].correlation

    @property
    def agreement(self) -> float:
        """Share of the pictures that both give the same class."""
        return float(np.mean([picture.keras == picture.file for picture in self.pictures]))


def compare_maps(
    run: str | Path,
    file: str | Path,
    method: str | None = None,
    pictures: int = 100,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compares what a file looks at with what the Keras model it was made of looks at, on the run's test pictures.

    Args:
        run: A run's folder.
        file: A `.tflite` file with pictures of the same size.
        method: A method that can explain both: the rollout of a file that gives its attention (`--with-attention`), or
            occlusion; the former if possible, if `None`. Of `model.KIND.tflite` the attention is read from
            `model.KIND.attention.tflite` beside it, if that is there.
        pictures: How many, of all classes alike.
        out: The folder to write; `explain.FILE` in the run if `None`.
        overwrite: Whether to replace a folder that is there already.
        progress: Is called with the number of finished pictures and of all.

    Raises:
        FileExistsError: the folder exists and `overwrite` is false.
        FileNotFoundError: a run or a file that is not there.
        ValueError: a method that cannot explain both, or a file for other pictures or classes.
    """
    if pictures < 1:
        raise ValueError(f"pictures must be >= 1. Received: pictures={pictures}")
    file, folder = Path(file), RunFolder(run)
    config = folder.load_config()
    target = Path(out) if out else folder.path / f"explain.{file.stem}"
    refuse_existing(target, overwrite)
    keras_side, file_side = load_subject(folder.path), load_subject(file)
    beside = file.with_name(f"{file.stem}.attention.tflite")
    if method in (None, "rollout") and file_side.grid is None and beside.exists():
        file_side = load_subject(beside)
    if keras_side.image_size != file_side.image_size or len(keras_side.labels) != len(file_side.labels):
        raise ValueError(
            f"{file} must be for the run's pictures and classes, {keras_side.image_size} and {len(keras_side.labels)}. "
            f"Received: {file_side.image_size} and {len(file_side.labels)}"
        )
    method = method or ("rollout" if {"rollout"} <= {*keras_side.methods} & {*file_side.methods} else "occlusion")
    for side in (keras_side, file_side):
        side.require(method)
    data = load_data(config.data, config.input.dir, config.input.split_seed, config.input.skip_bad)
    split = data.framed(config.input.framing).test
    split = split.take(stratified_sample(split.labels, pictures, seed=0))
    pair = _Pair(Explainer(keras_side), Explainer(file_side, cells=keras_side.grid), method)
    for images, labels in batches(split, keras_side.image_size, 16).as_numpy_iterator():
        pair.add(images, labels)
        if progress:
            progress(len(pair.compared), len(split))
    ordered = sorted(pair.compared, key=lambda picture: picture.correlation)
    result = Comparison(target, method, tuple(ordered), pair.refused)
    with replacing(target) as temporary:
        temporary.mkdir(parents=True)
        _write(result, pair, temporary, file.name)
    return result


class _Pair:
    """Compares batch by batch, and keeps the most different pictures."""

    def __init__(self, keras_side: Explainer, file_side: Explainer, method: str) -> None:
        self.sides = keras_side, file_side
        self.method = method
        self.compared: list[ComparedPicture] = []
        self.refused = 0
        self.shown: list[tuple[ComparedPicture, np.ndarray, list[Maps]]] = []

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Compares a batch."""
        names = self.sides[0].subject.labels
        guesses = [side.subject.scores(images).argmax(axis=1) for side in self.sides]
        found = [side.maps(self.method, images, guesses[0]) for side in self.sides]
        for i, label in enumerate(labels):
            one, other = (maps.maps[i] for maps in found)
            likeness = 0.0
            if one is None or other is None:
                self.refused += 1
            else:
                likeness = float(rank_correlations(one[None], on_grid(other[None], one.shape))[0])
            one_class, other_class = (names[int(guess[i])] for guess in guesses)
            picture = ComparedPicture(len(self.compared), names[label], one_class, other_class, likeness)
            self.compared.append(picture)
            maps = [Maps(name, (m.maps[i],), (m.reasons[i],)) for name, m in zip(("Keras", "file"), found, strict=True)]
            self.shown.append((picture, images[i], maps))
        self.shown = sorted(self.shown, key=lambda kept: kept[0].correlation)[:SHOWN]


def _write(result: Comparison, pair: _Pair, folder: Path, file: str) -> None:
    """Writes the page, and a PNG for each of the most different pictures."""
    with Page(folder / PAGE, f"What {file} looks at, beside the Keras model") as page:
        page.table(
            [
                {
                    "method": result.method,
                    "test pictures": f"{len(result.pictures):,}",
                    "mean rank correlation": f"{result.mean:.4f}",
                    "least": f"{result.least:.4f}",
                    "same class": f"{result.agreement:.1%}",
                    "maps refused": f"{result.refused}",
                }
            ]
        )
        page.note(
            "Rank correlation: Spearman's, of the map from the file and from the Keras model over the cells of a "
            "picture, both of the class that the Keras model names. 1 where cells have the same order."
        )
        page.heading("The most different pictures")
        for place, (picture, image, maps) in enumerate(pair.shown):
            path = folder / f"{place:02d}.png"
            text = f"Test picture {picture.number}, {picture.truth}: Keras model {picture.keras}, file {picture.file}"
            write_figure(figures.plot_maps(image, maps, 0, picture.truth), path)
            page.picture(f"{text}, rank correlation {picture.correlation:.4f}", path)
