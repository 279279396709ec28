"""Looking through a set of pictures before it is used: bad files, duplicates, pictures in two splits."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .datasets import read_source
from .pictures import BadPicture, in_parallel, read_picture
from .splits import Split


@dataclass(frozen=True)
class FoundPicture:
    """A picture, the split that it is in, and the class that it is filed under."""

    picture: str
    split: str
    label: str


@dataclass(frozen=True)
class DataCheck:
    """What was found in a set of pictures.

    Attributes:
        name: What the user calls the set.
        counts: Pictures that can be used, per split and class.
        bad: Pictures that cannot be used, and why.
        duplicates: Groups of pictures in one split that show the same: their content, or the pixels in it, are equal.
        leaks: Groups of such pictures in more than one split.
    """

    name: str
    counts: dict[str, dict[str, int]]
    bad: tuple[BadPicture, ...]
    duplicates: tuple[tuple[FoundPicture, ...], ...]
    leaks: tuple[tuple[FoundPicture, ...], ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.bad or self.duplicates or self.leaks)


def check_data(
    data: str, directory: str | None = None, progress: Callable[[int, int], None] | None = None
) -> DataCheck:
    """Decodes every picture of a set once in full, in parallel, and compares them.

    Splits are those that the data bring along: where there are none, a duplicate may come to lie in two splits when
    the set is cut, but nothing is cut here.

    Args:
        data: A name or path, as for `load_data`.
        directory: Where a TFDS dataset is prepared, or shall be.
        progress: Is called with the number of pictures that were read and of all, after each.

    Returns:
        Counts, and what is wrong, by name.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: no data at all: an unknown name, fewer than two classes, a class folder without pictures.
    """
    source = read_source(data, directory)
    places = [(name, i) for name, split in source.splits.items() for i in range(len(split))]
    results = in_parallel(lambda place: _examine(source.splits[place[0]], place[1]), places, progress)
    counts = {name: dict.fromkeys(source.classes, 0) for name in source.splits}
    bad: list[BadPicture] = []
    groups: dict[bytes, list[FoundPicture]] = {}
    for (name, i), result in zip(places, results, strict=True):
        split = source.splits[name]
        label = source.classes[split.labels[i]]
        if isinstance(result, str):
            bad.append(BadPicture(split.name_of(i), result))
        else:
            counts[name][label] += 1
            groups.setdefault(result, []).append(FoundPicture(split.name_of(i), name, label))
    same = [tuple(group) for group in groups.values() if len(group) > 1]
    duplicates = tuple(group for group in same if len({picture.split for picture in group}) == 1)
    leaks = tuple(group for group in same if len({picture.split for picture in group}) > 1)
    return DataCheck(source.name, counts, tuple(bad), duplicates, leaks)


def _examine(split: Split, index: int) -> bytes | str:
    """Returns a digest of a picture's upright pixels, or what is wrong with it."""
    try:
        image = split.images[index]
        pixels = image if isinstance(image, np.ndarray) else read_picture(image)
    except ValueError as error:
        return str(error)
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
