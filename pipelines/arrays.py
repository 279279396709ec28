"""Pictures in NumPy arrays, and in `.npz` files in the layout of Keras's datasets."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .folders import check_labels_of
from .pictures import SMALLEST_SIDE
from .splits import ImageData, Source, Split, three_splits

_KEYS = {"train": ("x_train", "y_train"), "validation": ("x_val", "y_val"), "test": ("x_test", "y_test")}


def from_arrays(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray | None = None,
    y_test: np.ndarray | None = None,
    x_val: np.ndarray | None = None,
    y_val: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    seed: int = 0,
) -> ImageData:
    """Makes data of arrays, named as Keras's datasets name theirs.

    Args:
        x_train: Pictures, `(n, h, w)`, `(n, h, w, 1)`, `(n, h, w, 3)` or, with alpha, which is dropped, `(n, h, w, 4)`;
            uint8, or uint16, of which the higher byte is kept.
        y_train: Their classes, integers from 0, `(n,)` or `(n, 1)`.
        x_test: Test pictures. What is not given is cut off the training pictures, as in `load_data`.
        y_test: Their classes.
        x_val: Validation pictures.
        y_val: Their classes.
        classes: Names of the classes; their numbers if not given.
        name: What to call the data.
        seed: Seed of the splits that are not given.

    Raises:
        ValueError: arrays of another type or shape, labels out of range, a class without training pictures.
    """
    given = {
        "x_train": x_train,
        "y_train": y_train,
        "x_test": x_test,
        "y_test": y_test,
        "x_val": x_val,
        "y_val": y_val,
    }
    return three_splits(array_source(given, classes, name), seed)


def array_source(arrays: dict[str, np.ndarray | None], classes: Sequence[str] | None, name: str) -> Source:
    """Makes a source of arrays named `x_train`, `y_train` and so on; of a split that is not there both are `None`."""
    splits = {}
    for split, keys in _KEYS.items():
        images, labels = (arrays.get(key) for key in keys)
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            raise ValueError(f"{keys[0]} and {keys[1]} must be given together. Received: one of them")
        splits[split] = Split(rgb(images, keys[0]), _integers(labels, keys[1], len(images)))
    if "train" not in splits:
        raise ValueError(f"{name} must hold x_train and y_train. Received: {sorted(arrays)}")
    return Source(name, check_labels_of(splits, classes, name), splits)


def rgb(pixels: np.ndarray, name: str) -> np.ndarray:
    """Makes pictures uint8 RGB, `(n, h, w, 3)`: gray is repeated, alpha dropped, of 16 bits the higher 8 are kept.

    Raises:
        ValueError: another type or shape; the message calls the array by `name`.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype not in (np.uint8, np.uint16):
        hint = "; (255 * x).round().astype('uint8') makes them of 0 to 1" if pixels.dtype.kind == "f" else ""
        raise ValueError(f"{name} must be uint8 (0 to 255) or uint16{hint}. Received: {name}.dtype={pixels.dtype}")
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels  # (n, h, w, channels)
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4) or min(pixels.shape[1:3]) < SMALLEST_SIDE:
        raise ValueError(
            f"{name} must be (n, h, w), or (n, h, w, channels) with 1, 3 or 4 channels, and at least {SMALLEST_SIDE} "
            f"pixels high and wide. Received: {name}.shape={pixels.shape}"
        )
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype("uint8")
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels[..., :3]


def _integers(labels: np.ndarray, name: str, count: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"{name} must be {count} integers, a class per picture. "
            f"Received: {name}.shape={labels.shape}, {name}.dtype={labels.dtype}"
        )
    return labels.reshape(count).astype("int32")


def read_npz(path: Path) -> Source:
    """Reads a `.npz` file with `x_train`, `y_train` and the like, and perhaps the names of the `classes`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from error
    classes = arrays.pop("classes", None)
    unknown = sorted(set(arrays) - {key for keys in _KEYS.values() for key in keys})
    if unknown:
        known = "x_train, y_train, x_val, y_val, x_test, y_test and classes"
        raise ValueError(f"{path} may hold {known}. Received: {', '.join(unknown)}")
    try:
        return array_source(dict(arrays), None if classes is None else [str(c) for c in classes.tolist()], path.stem)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
