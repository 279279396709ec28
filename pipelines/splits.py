"""Labelled pictures, and how a set of them is cut into training, validation and test pictures."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from vit_keras.export.framing import Framing

from .pictures import BadPicture
from .records import Records

SPLITS = ("train", "validation", "test")
VALIDATION_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Split:
    """Pictures and their labels.

    Attributes:
        images: uint8 pixels, `(n, h, w, 3)`, or n picture files: their paths (str), their contents (bytes), or where
            they lie in record files.
        labels: int32 `(n,)`.
        framing: How pictures are brought to the size that a model takes.
    """

    images: np.ndarray | tuple[str, ...] | tuple[bytes, ...] | Records
    labels: np.ndarray
    framing: Framing | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """Returns the pictures at `indices`."""
        if isinstance(self.images, np.ndarray):
            images = self.images[indices]
        elif isinstance(self.images, Records):
            images = self.images.take(indices)
        else:
            images = tuple(self.images[i] for i in indices)
        return Split(images, self.labels[indices], self.framing)

    def name_of(self, index: int) -> str:
        """Returns the name of a picture: its path, the record that it lies in, or its number."""
        if isinstance(self.images, Records):
            return self.images.name_of(index)
        image = self.images[index]
        return image if isinstance(image, str) else f"picture {index}"


@dataclass(frozen=True)
class ImageData:
    """A labelled set of pictures in three splits.

    Attributes:
        name: What the user calls it.
        classes: Class names; a label is an index into them.
        skipped: Pictures that cannot be used and were left out.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    skipped: tuple[BadPicture, ...] = ()

    def framed(self, framing: Framing) -> "ImageData":
        """Returns the same data, its pictures to be brought to size in this way."""
        return replace(self, **{name: replace(getattr(self, name), framing=framing) for name in SPLITS})


@dataclass(frozen=True)
class Source:
    """A labelled set of pictures as it was found, before it is cut.

    Attributes:
        name: What the user calls it.
        classes: Class names; a label is an index into them.
        splits: The splits that it brings along: `"train"`, and perhaps `"validation"` and `"test"`.
        are_files: Whether the pictures are a user's own files, which may be bad.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    are_files: bool = False

    def __post_init__(self) -> None:
        ordered = {name: self.splits[name] for name in SPLITS if name in self.splits}
        object.__setattr__(self, "splits", ordered)


def split_name(name: str) -> str | None:
    """Returns the split that a user's word for it means, whatever its case; `None` if it is none."""
    name = name.lower()
    return "validation" if name in VALIDATION_NAMES else name if name in SPLITS else None


def three_splits(source: Source, seed: int, skipped: tuple[BadPicture, ...] = ()) -> ImageData:
    """Makes three splits of one, two or three.

    Raises:
        ValueError: too few pictures to cut.
    """
    splits = list(source.splits.values())
    if len(splits) == 1:
        rest, test = _cut(splits[0], 0.2, seed, source.name)
        train, validation = _cut(rest, 0.25, seed, source.name)
    elif len(splits) == 2:
        (train, validation), test = _cut(splits[0], 0.1, seed, source.name), splits[1]
    else:
        train, validation, test = splits
    return ImageData(source.name, source.classes, train, validation, test, skipped)


def _cut(split: Split, share: float, seed: int, name: str) -> tuple[Split, Split]:
    from sklearn.model_selection import train_test_split

    counts = np.unique(split.labels, return_counts=True)[1]
    if counts.min() < 2 or round(share * len(split)) < len(counts):
        raise ValueError(
            f"{name} has too few pictures to cut off {share:.0%} with every class in it. "
            f"Received: {len(split)} pictures, {counts.min()} in the smallest of {len(counts)} classes"
        )
    first, second = train_test_split(
        np.arange(len(split)), test_size=share, random_state=seed, stratify=split.labels, shuffle=True
    )
    return split.take(np.sort(first)), split.take(np.sort(second))


def stratified_sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns indices of about `count` examples, as many of each class as there are to be had."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), int)  # How many of the same class come before, in the shuffled order.
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return order[np.argsort(rank[order], kind="stable")][:count]


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns weights that let every class count the same: inversely to how often it occurs.

    Args:
        labels: Integers from 0 to below `num_classes`, `(n,)`.
        num_classes: Number of classes.

    Returns:
        float32 `(num_classes,)`; their mean over the pictures is 1. A class without pictures has the weight 0.

    Raises:
        ValueError: no labels, or one that is out of range.
    """
    labels = np.asarray(labels)
    if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
        found = f"{labels.min()} to {labels.max()}" if len(labels) else "none"
        raise ValueError(f"labels must be 0 to below num_classes={num_classes}. Received: labels={found}")
    counts = np.bincount(labels, minlength=num_classes)
    occurring = counts > 0
    weights = np.zeros(num_classes, "float32")
    weights[occurring] = len(labels) / (occurring.sum() * counts[occurring])
    return weights


def median_side(split: Split) -> float:
    """Returns the median of the shorter sides, in pixels, of up to 200 pictures spread over the split."""
    from PIL import Image

    if isinstance(split.images, np.ndarray):
        return float(min(split.images.shape[1:3]))
    sides = []
    for i in range(0, len(split), -(-len(split) // 200)):
        file = split.images[i]
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            sides.append(min(picture.size))
    return float(np.median(sides))
