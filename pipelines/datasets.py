"""Where pictures come from: digits, TensorFlow Datasets, folders, CSV files, arrays, TFRecord files; one interface."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from .arrays import from_arrays, read_npz, rgb
from .folders import read_csv, read_folder, read_record_folder, record_files
from .pictures import BadPicture, in_parallel, picture_fault
from .splits import ImageData, Source, Split, class_weights, median_side, stratified_sample, three_splits

__all__ = [
    "BadPicture",
    "ImageData",
    "Source",
    "Split",
    "class_weights",
    "from_arrays",
    "load_data",
    "median_side",
    "picture_fault",
    "read_source",
    "stratified_sample",
]

logger = logging.getLogger(__name__)


def load_data(data: str, directory: str | None = None, seed: int = 0, skip_bad: bool = False) -> ImageData:
    """Loads a set of pictures by name or path.

    Args:
        data: One of

            - `"digits"`;
            - the path of a folder of class folders, or of a prepared TFDS dataset, or of TFRecord files named
              `train*.tfrecord*`, `val*…`, `test*…`, with a feature `image` or `image/encoded` and a feature `label` or
              `image/class/label`, and perhaps class names in `labels.txt`;
            - the path of a `.csv` file with the columns `path` (as seen from the file), `label` and perhaps `split`;
            - the path of a `.npz` file with `x_train`, `y_train` and the like, as for `from_arrays`;
            - the name of a TFDS dataset.
        directory: Where a TFDS dataset is prepared, or shall be.
        seed: Seed of the splits that the data do not bring along.
        skip_bad: Whether to leave out files that cannot be used as pictures, with a warning, rather than to stop.

    Returns:
        The data. Three splits are used as given; of two, the second is the test split and a stratified tenth of the
        first becomes validation; one is cut 60/20/20, stratified.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: an unknown name (with the nearest one), fewer than two classes, an empty class, a bad file.
    """
    source, skipped = _without_bad(read_source(data, directory), skip_bad)
    return three_splits(source, seed, skipped)


def read_source(data: str, directory: str | None = None) -> Source:
    """Finds a set of pictures by name or path, as `load_data` does, and leaves it uncut and unchecked."""
    if data == "digits":
        return _digits()
    from .tfds_data import is_prepared, read_prepared, read_tfds

    path = Path(data).expanduser()
    if path.is_dir():
        if is_prepared(path):
            return read_prepared(path)
        return read_record_folder(path) if record_files(path) else read_folder(path)
    if path.is_file():
        readers = {".csv": read_csv, ".npz": read_npz}
        if path.suffix.lower() not in readers:
            raise ValueError(
                f"data must be a folder, a .csv or a .npz file, not a file like this. Received: data={data}"
            )
        return readers[path.suffix.lower()](path)
    if path.suffix.lower() in (".csv", ".npz"):
        raise FileNotFoundError(f"No such file of pictures: {data}")
    if path.is_absolute() or data.startswith((".", "~")) or "\\" in data or data.endswith("/"):
        raise FileNotFoundError(f"No such folder of pictures: {data}")
    return read_tfds(data, directory)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype("uint8")  # 0 to 16 becomes 0 to 255.
    return Source("digits", tuple("0123456789"), {"train": Split(rgb(pixels, "digits"), digits.target.astype("int32"))})


def _without_bad(source: Source, skip_bad: bool) -> tuple[Source, tuple[BadPicture, ...]]:
    """Decodes every file once in full: stops with a list of the bad ones, or leaves them out.

    TensorFlow passes truncated files in silence, so that they would not be noticed in training.
    """
    if not source.are_files:
        return source, ()
    bad: list[BadPicture] = []
    splits = {}
    for name, split in source.splits.items():
        faults = in_parallel(lambda i, split=split: _fault(split, i), range(len(split)))
        bad += [BadPicture(split.name_of(i), fault) for i, fault in enumerate(faults) if fault]
        splits[name] = split.take(np.array([i for i, fault in enumerate(faults) if not fault], "int64"))
    if not bad:
        return source, ()
    total = sum(map(len, source.splits.values()))
    shown = "; ".join(f"{picture.picture}: {picture.fault}" for picture in bad[:10])
    more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
    found = f"{len(bad)} of {total} files cannot be used as pictures"
    if not skip_bad:
        raise ValueError(f"{found}: {shown}{more}. --input.skip_bad goes on without them.")
    for name, split in splits.items():
        lost = sorted(set(source.splits[name].labels) - set(split.labels))
        if lost:
            classes = ", ".join(source.classes[label] for label in lost)
            raise ValueError(f"{found}, and without them no picture in {name} is left of: {classes}. {shown}{more}")
    logger.warning("%s and are left out: %s%s", found, shown, more)
    return replace(source, splits=splits), tuple(bad)


def _fault(split: Split, index: int) -> str | None:
    image = split.images[index]
    return None if isinstance(image, np.ndarray) else picture_fault(image)
