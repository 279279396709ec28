"""Probes that tell how a classifier differs from another: its accuracy on pictures that are changed more and more."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vit_keras.export.verification import wilson_interval

from .corruptions import CORRUPTIONS, STRENGTHS, corrupt
from .maps import Explainer, Progress, on_grid
from .subject import Subject

SHARES = tuple(round(0.1 * i, 1) for i in range(10))
"""Shares of the patches that are dropped."""
DROPS = ("drop_random", "drop_salient", "drop_non_salient")
CELLS = 8
"""Cells along the shorter side, where the first classifier has no patches."""


@dataclass(frozen=True)
class Probe:
    """A way to change pictures.

    Attributes:
        name: What it is called on the command line.
        axis: What grows along its curve.
        shows: What it does.
        source: Paper.
    """

    name: str
    axis: str
    shows: str
    source: str


_INTRIGUING = "arXiv:2105.10497, section 3"
PROBES: dict[str, Probe] = {
    probe.name: probe
    for probe in (
        Probe("drop_random", "share of the patches dropped", "patches chosen blindly become black", _INTRIGUING),
        Probe("drop_salient", "share of the patches dropped", "the patches that matter most become black", _INTRIGUING),
        Probe("drop_non_salient", "share of the patches dropped", "those that matter least become black", _INTRIGUING),
        Probe("shuffle", "pieces along a side", "the picture is cut into a grid and shuffled", _INTRIGUING),
        Probe("translation", "pixels", "the picture is moved to the right, its edge repeated", "arXiv:2105.10497"),
        *(Probe(kind, "strength", f"{kind.replace('_', ' ')} is added", "arXiv:1903.12261") for kind in CORRUPTIONS),
    )
}
GROUPS = {"drop": DROPS, "corruptions": tuple(CORRUPTIONS)}
"""Names for several probes."""


@dataclass(frozen=True)
class Curve:
    """One classifier under one probe.

    Attributes:
        subject: Its name.
        probe: The probe's name.
        levels: What grows, `(k,)`.
        accuracies: Share named rightly, `(k,)`.
        intervals: Their 95 % intervals (Wilson), `(k, 2)`.
        pictures: How many pictures.
    """

    subject: str
    probe: str
    levels: np.ndarray
    accuracies: np.ndarray
    intervals: np.ndarray
    pictures: int


def shuffle_grid(images: np.ndarray, pieces: int, seed: int = 0) -> np.ndarray:
    """Cuts pictures, `(n, H, W, 3)`, into `pieces` x `pieces` and shuffles them, each picture in its own way; rows and
    columns that no piece covers are left where they are.

    Raises:
        ValueError: pieces smaller than a pixel, or none.
    """
    height, width = images.shape[1] // max(pieces, 1), images.shape[2] // max(pieces, 1)
    if pieces < 1 or not height or not width:
        raise ValueError(f"pieces must be 1 to the side of the pictures. Received: pieces={pieces}")
    changed = images.copy()
    for number, image in enumerate(images):
        order = np.random.default_rng([seed, number, pieces]).permutation(pieces * pieces)
        for place, piece in enumerate(order):
            (top, left), (row, column) = divmod(place, pieces), divmod(int(piece), pieces)
            changed[number, top * height : (top + 1) * height, left * width : (left + 1) * width] = image[
                row * height : (row + 1) * height, column * width : (column + 1) * width
            ]
    return changed


def translate(images: np.ndarray, pixels: int) -> np.ndarray:
    """Moves pictures, `(n, H, W, 3)`, to the right; their left edge is repeated."""
    if not pixels:
        return images
    return np.concatenate([np.repeat(images[:, :, :1], pixels, axis=2), images[:, :, :-pixels]], axis=2)


def drop_patches(images: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """Makes patches black.

    Args:
        images: `(n, H, W, 3)`.
        order: Of each picture's cells the place in the order of dropping, 0 first, `(n, h, w)`; h and w divide H and W.
        share: Share of the cells that is dropped, 0 to 1.
    """
    height, width = order.shape[1:]
    chosen = order < round(share * height * width)
    tall = np.repeat(chosen, images.shape[1] // height, axis=1)
    return np.where(np.repeat(tall, images.shape[2] // width, axis=2)[..., None], 0, images).astype("float32")


def check_probes(names: Sequence[str], others: Iterable[str] = ()) -> tuple[str, ...]:
    """Returns probes by name or group, all for no name. A refusal tells of `others`, too.

    Raises:
        ValueError: an unknown name (with the nearest one).
    """
    from vit_keras.messages import nearest

    chosen: list[str] = []
    for name in names or PROBES:
        if name not in PROBES and name not in GROUPS:
            known = (*GROUPS, *PROBES, *others)
            raise ValueError(f"probe must be one of {', '.join(known)}.{nearest(name, known)} Received: probe={name!r}")
        chosen += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(chosen))


def probe_curves(
    subjects: Sequence[Subject],
    images: np.ndarray,
    labels: np.ndarray,
    probes: Sequence[str],
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Curve]:
    """Measures classifiers on pictures that are changed more and more: all see the very same pictures.

    Args:
        subjects: The classifiers; they must take pictures of the same size. The first one's patches are dropped and
            shuffled, and salient is what its rollout says, or occlusion where it tells no attention.
        images: Pixels 0 to 255, `(n, H, W, 3)`.
        labels: `(n,)`.
        probes: Names of `PROBES`.
        batch_size: Pictures at a time; what is made of pictures is never held for more.
        seed: Of noise, order and shuffling.
        progress: Is called with the number of finished levels and of all.

    Raises:
        ValueError: classifiers of other picture sizes.
    """
    first = subjects[0]
    for subject in subjects[1:]:
        if subject.image_size != first.image_size:
            raise ValueError(
                f"All must take pictures of the same size, {first.image_size} as {first.name} does. "
                f"Received: {subject.name} of {subject.image_size}"
            )
    images = first.check(images)
    jobs = [(probe, level) for probe in probes for level in levels_of(probe, first)]
    change = _changes(first, images, probes, seed)
    right = np.zeros((len(subjects), len(jobs)), int)
    for number, (probe, level) in enumerate(jobs):
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            changed = change(probe, level, part)
            for i, subject in enumerate(subjects):
                right[i, number] += int((subject.scores(changed).argmax(axis=1) == labels[part]).sum())
        if progress:
            progress(number + 1, len(jobs))
    return list(_curves(subjects, jobs, right, probes, len(images)))


def levels_of(probe: str, subject: Subject) -> tuple[float, ...]:
    """Returns the levels of a probe: 0 to 90 % dropped; 1, 2, 4, … pieces up to the patches; 0 to P pixels, P being the
    side of a patch; 0 to 5 of a corruption."""
    grid = _cells(subject)
    if probe in DROPS:
        return SHARES
    if probe == "translation":
        return tuple(range(max(1, subject.image_size[0] // grid[0]) + 1))
    if probe == "shuffle":
        most = min(grid)
        return tuple(sorted({1, most, *(2**i for i in range(1, 10) if 2**i < most)}))
    return (0, *STRENGTHS)


def _cells(subject: Subject) -> tuple[int, int]:
    """The grid of a classifier's patches, else about `CELLS` along the shorter side, in whole pixels."""
    if subject.grid:
        return subject.grid
    height, width = subject.image_size
    cell = next(n for n in range(max(1, min(height, width) // CELLS), 0, -1) if height % n == 0 and width % n == 0)
    return height // cell, width // cell


def _changes(
    subject: Subject, images: np.ndarray, probes: Sequence[str], seed: int
) -> Callable[[str, float, slice], np.ndarray]:
    """Returns what gives a part of the pictures, changed by a probe at a level."""
    orders = _orders(subject, images, probes, seed)

    def change(probe: str, level: float, part: slice) -> np.ndarray:
        given = images[part]
        if probe in DROPS:
            return drop_patches(given, orders[probe][part], level)
        if probe == "shuffle":
            return shuffle_grid(given, int(level), seed + part.start)
        if probe == "translation":
            return translate(given, int(level))
        return corrupt(given, probe, int(level), seed + part.start)

    return change


def _orders(subject: Subject, images: np.ndarray, probes: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Returns of each way to drop patches the order, `(n, h, w)`, 0 first."""
    grid = _cells(subject)
    values = {}
    if "drop_random" in probes:
        values["drop_random"] = np.random.default_rng(seed).uniform(size=(len(images), *grid))
    if {"drop_salient", "drop_non_salient"} & set(probes):
        method = "rollout" if "rollout" in subject.methods else "occlusion"
        found = Explainer(subject).maps(method, images).maps
        salient = np.stack([np.zeros(grid) if one is None else on_grid(one[None], grid)[0] for one in found])
        values |= {"drop_salient": -salient, "drop_non_salient": salient}
    flat = {name: value.reshape(len(images), -1) for name, value in values.items()}
    ranks = {name: value.argsort(axis=1, kind="stable").argsort(axis=1) for name, value in flat.items()}
    return {name: rank.reshape(len(images), *grid) for name, rank in ranks.items()}


def _curves(
    subjects: Sequence[Subject], jobs: list[tuple[str, float]], right: np.ndarray, probes: Sequence[str], count: int
) -> Iterator[Curve]:
    for probe in probes:
        places = [i for i, (name, _) in enumerate(jobs) if name == probe]
        levels = np.array([jobs[i][1] for i in places], "float64")
        for subject, row in zip(subjects, right, strict=True):
            hits = row[places]
            intervals = np.array([wilson_interval(int(n), count) for n in hits])
            yield Curve(subject.name, probe, levels, hits / count, intervals, count)
