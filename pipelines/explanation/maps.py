"""Maps of what speaks for a decision, by any method, and which of them are refused."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vit_keras.explain import rollout_model
from vit_keras.explain.attention import class_attention_model
from vit_keras.explain.gradients import GradientRollout
from vit_keras.explain.layout import TokenLayout
from vit_keras.export.attention import rollout as file_rollout

from .cams import ClassMaps
from .methods import METHODS, logger, warning_of
from .subject import Subject

OCCLUSION_CELLS = 8
"""Squares along the shorter side of a picture that are covered in turn, where the model has no patches."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Maps:
    """A method's maps of some pictures.

    Attributes:
        method: Its name.
        maps: Of every picture `(h, w)`, in cells of the method's own size; `None` where it was refused.
        reasons: Of every picture why its map was refused; empty where it was not.
        warning: Why the method is not to be trusted, if so.
    """

    method: str
    maps: tuple[np.ndarray | None, ...]
    reasons: tuple[str, ...]
    warning: str | None = None

    def array(self) -> np.ndarray:
        """Returns all maps, `(n, h, w)`.

        Raises:
            ValueError: one was refused; the message says why.
        """
        for number, reason in enumerate(self.reasons):
            if reason:
                raise ValueError(f"{self.method} of picture {number}: {reason}")
        return np.stack([found for found in self.maps if found is not None])


def fault_of(found: np.ndarray) -> str:
    """Says why a map, `(h, w)`, cannot be used; an empty text if it can."""
    if np.ndim(found) != 2 or min(np.shape(found)) < 1:
        return f"the map must have height and width, and has the shape {np.shape(found)}"
    if not np.isfinite(found).all():
        return "the map holds numbers that are not finite"
    if not np.any(found):
        return "the map is zero everywhere: nothing in the picture speaks for this class by this method"
    if np.size(found) > 1 and not np.ptp(found):
        return "the map is the same everywhere"
    return ""


class Explainer:
    """Explains decisions of one classifier by any method that can.

    Args:
        subject: The classifier.
        batch_size: Pictures at a time; memory grows with it, not with their number.
        cells: Height and width in squares that occlusion covers; the classifier's own patches if `None`.
    """

    def __init__(self, subject: Subject, batch_size: int = 16, cells: tuple[int, int] | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1. Received: batch_size={batch_size}")
        self.subject = subject
        self.batch_size = batch_size
        self.cells = cells or subject.grid
        self._cams: ClassMaps | None = None
        self._functions: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {}

    def cams(self) -> ClassMaps:
        """tf-keras-vis on a copy of the model."""
        if self._cams is None:
            self.subject.require("saliency")
            self._cams = ClassMaps(self.subject.model)
        return self._cams

    def maps(
        self,
        method: str,
        images: np.ndarray,
        classes: np.ndarray | Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Maps:
        """Makes one method's maps.

        Args:
            method: A name of `METHODS`.
            images: Pixels 0 to 255, `(n, H, W, 3)`.
            classes: The class of each picture to explain, `(n,)`; the predicted ones if `None`.
            progress: Is called with the number of finished pictures and of all.

        Raises:
            ValueError: an unknown method, or one that the classifier has not what it takes for (the message says which
                remain), pictures of another size, a class index out of range.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}. Received: method={method!r}")
        self.subject.require(method)
        images = self.subject.check(images)
        chosen = self._classes(images, classes)
        warning = warning_of(method, self.subject.pooling)
        if warning:
            logger.warning("%s", warning)
        function = self._function(method)
        found: list[np.ndarray] = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            found += list(function(images[part], chosen[part]))
            if progress:
                progress(len(found), len(images))
        reasons = tuple(fault_of(one) for one in found)
        kept = tuple(None if reason else one for one, reason in zip(found, reasons, strict=True))
        return Maps(method, kept, reasons, warning)

    def _classes(self, images: np.ndarray, classes: np.ndarray | Sequence[int] | None) -> np.ndarray:
        if classes is None:
            parts = range(0, len(images), 64)
            return np.concatenate([self.subject.scores(images[i : i + 64]).argmax(axis=1) for i in parts])
        chosen, count = np.asarray(classes), len(self.subject.labels)
        if chosen.shape != (len(images),) or chosen.dtype.kind not in "iu":
            raise ValueError(f"classes must be an index for each of {len(images)} pictures. Received: {classes=}")
        if chosen.min() < 0 or chosen.max() >= count:
            raise ValueError(f"classes must be 0 to {count - 1}. Received: {classes=}")
        return chosen

    def _function(self, method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Returns what makes a method's maps of a batch and its classes; models for it are built once."""
        if method not in self._functions:
            self._functions[method] = self._build(method)
        return self._functions[method]

    def _build(self, method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        subject = self.subject
        if method == "occlusion":
            return lambda images, classes: occlusion_maps(subject.scores, images, classes, self.cells)
        file, model, grid = subject.file, subject.model, subject.grid
        if file is not None and grid is not None:
            return lambda images, _: file_rollout(file.logits_and_attention(images)[1], grid)
        if method == "attention":
            layout, rows = TokenLayout.of(model), class_attention_model(model)
            return lambda images, _: layout.on_grid(rows.predict_on_batch(images)[:, -1].mean(axis=1))
        if method == "rollout":
            rollout = rollout_model(model)
            return lambda images, _: np.asarray(rollout.predict_on_batch(images))
        if method == "gradient_rollout":
            return GradientRollout(model, min(8, self.batch_size))
        return functools.partial(self.cams(), method)


def occlusion_maps(
    scores: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    classes: np.ndarray,
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """Covers one square after another with the picture's mean colour, and says what the class's score loses.

    Args:
        scores: Gives `(n, num_classes)` of pictures.
        images: `(n, H, W, 3)`.
        classes: `(n,)`.
        grid: Height and width in squares; the patches' where the model has some and at most 16 a side, else about
            `OCCLUSION_CELLS` along the shorter side.

    Returns:
        Float32 `(n, height, width)`; below 0 where covering helps the class.

    Reference:
        Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks" (arXiv:1311.2901), section 4.2.
    """
    height, width = images.shape[1:3]
    if grid is None or max(grid) > 16:
        cell = max(1, min(height, width) // OCCLUSION_CELLS)
        grid = (-(-height // cell), -(-width // cell))
    tops = np.linspace(0, height, grid[0] + 1).round().astype(int)
    lefts = np.linspace(0, width, grid[1] + 1).round().astype(int)
    maps = np.zeros((len(images), *grid), "float32")
    for picture, (image, chosen) in enumerate(zip(images, classes, strict=True)):
        covered = np.repeat(image[None], grid[0] * grid[1], axis=0)
        colour = image.mean(axis=(0, 1))
        for i, (row, column) in enumerate(np.ndindex(*grid)):
            covered[i, tops[row] : tops[row + 1], lefts[column] : lefts[column + 1]] = colour
        lost = scores(image[None])[0, chosen] - scores(covered)[:, chosen]
        maps[picture] = lost.reshape(grid)
    return maps


def on_grid(found: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Brings maps, `(n, h, w)`, to a grid: sums over the parts of a finer one, or resizes by the nearest place."""
    height, width = found.shape[1:]
    if height % grid[0] == 0 and width % grid[1] == 0:
        return found.reshape(len(found), grid[0], height // grid[0], grid[1], width // grid[1]).sum(axis=(2, 4))
    rows = ((np.arange(grid[0]) + 0.5) * height / grid[0]).astype(int)
    columns = ((np.arange(grid[1]) + 0.5) * width / grid[1]).astype(int)
    return found[:, rows][:, :, columns]
