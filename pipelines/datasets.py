"""Where pictures come from: the bundled digits, TensorFlow Datasets, folders of class folders."""

import io
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vit_keras.export.framing import Framing
from vit_keras.messages import nearest

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF")  # MPO: a camera's JPEG with a preview.
SMALLEST_SIDE = 4
"""Pictures with a shorter side, in pixels, are refused: they are broken thumbnails or tracking pixels."""

_VALIDATION_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Split:
    """Pictures and their labels.

    Attributes:
        images: uint8 pixels, `(n, h, w, 3)`, or n picture files: their paths (str) or their contents (bytes).
        labels: int32 `(n,)`.
        framing: How pictures are brought to the size that a model takes.
    """

    images: np.ndarray | tuple[str, ...] | tuple[bytes, ...]
    labels: np.ndarray
    framing: Framing | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """Returns the pictures at `indices`."""
        if isinstance(self.images, np.ndarray):
            return Split(self.images[indices], self.labels[indices], self.framing)
        return Split(tuple(self.images[i] for i in indices), self.labels[indices], self.framing)


@dataclass(frozen=True)
class ImageData:
    """A labelled set of pictures in three splits.

    Attributes:
        name: What the user calls it.
        classes: Class names; a label is an index into them.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def framed(self, framing: Framing) -> "ImageData":
        """Returns the same data, its pictures to be brought to size in this way."""
        splits = {name: replace(getattr(self, name), framing=framing) for name in ("train", "validation", "test")}
        return replace(self, **splits)


def load_data(data: str, directory: str | None = None, seed: int = 0) -> ImageData:
    """Loads a set of pictures by name or path.

    Args:
        data: `"digits"`, the path of a folder of class folders, or the name of a TFDS dataset.
        directory: Where a TFDS dataset is prepared, or shall be.
        seed: Seed of the splits that the data do not bring along.

    Returns:
        The data. Three splits are used as given; of two, the second is the test split and a stratified tenth of the
        first becomes validation; one is cut 60/20/20, stratified.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: an unknown name (with the nearest one), fewer than two classes, an empty class, a bad file.
    """
    if data == "digits":
        return _digits(seed)
    path = Path(data).expanduser()
    if path.is_dir():
        return _folder(path, seed)
    if path.is_file():
        raise ValueError(f"data must be a folder of class folders, not a file. Received: data={data}")
    if path.is_absolute() or data.startswith((".", "~")) or "\\" in data or data.endswith("/"):
        raise FileNotFoundError(f"No such folder of pictures: {data}")
    return _tfds(data, directory, seed)


def _digits(seed: int) -> ImageData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype("uint8")  # 0 to 16 becomes 0 to 255.
    return _three_splits("digits", tuple("0123456789"), [Split(_rgb(pixels), digits.target.astype("int32"))], seed)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """Repeats gray pixels, `(n, h, w)` or `(n, h, w, 1)`, to three channels."""
    pixels = pixels if pixels.ndim == 4 else pixels[..., None]
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels


def _three_splits(name: str, classes: Sequence[str], splits: list[Split], seed: int) -> ImageData:
    """Makes three splits of one, two or three."""
    if len(splits) == 1:
        rest, test = _cut(splits[0], 0.2, seed, name)
        train, validation = _cut(rest, 0.25, seed, name)
    elif len(splits) == 2:
        (train, validation), test = _cut(splits[0], 0.1, seed, name), splits[1]
    else:
        train, validation, test = splits
    return ImageData(name, tuple(classes), train, validation, test)


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


# Folders


def _folder(path: Path, seed: int) -> ImageData:
    children = {p.name.lower(): p for p in _folders(path)}
    validation = next((children[n] for n in _VALIDATION_NAMES if n in children), None)
    given = [children.get("train"), validation, children.get("test")]
    if children.get("train") is not None and (validation or children.get("test")):
        roots = [p for p in given if p is not None]
        unused = sorted(set(children.values()) - set(roots))
        if unused:
            logger.warning("Not used, for it is no split: %s", ", ".join(str(p) for p in unused))
    elif children.get("train") is not None and len(children) == 1:
        roots = [children["train"]]
    else:
        roots = [path]
    names = [[p.name for p in _folders(root)] for root in roots]
    classes = names[0]
    if len(classes) < 2:
        raise ValueError(f"{roots[0]} must hold at least two class folders. Received: {', '.join(classes) or 'none'}")
    for root, found in zip(roots[1:], names[1:], strict=True):
        if found != classes:
            odd = sorted(set(found) ^ set(classes))
            raise ValueError(f"{root} must hold the class folders of {roots[0]}. Received: they differ in {odd}")
    splits = [_read_split(root, classes) for root in roots]
    _check_pictures([str(file) for split in splits for file in split.images])
    return _three_splits(path.resolve().name, classes, splits, seed)


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _read_split(root: Path, classes: Sequence[str]) -> Split:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (root / name).rglob("*") if _is_picture(p.relative_to(root)) and p.is_file())
        if not found:
            raise ValueError(f"{root / name} holds no picture; files ending in {', '.join(SUFFIXES)} count.")
        files += [str(p) for p in found]
        labels += [label] * len(found)
    return Split(tuple(files), np.array(labels, "int32"))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _check_pictures(files: Sequence[str]) -> None:
    """Decodes every file once in full, and names the bad ones: TensorFlow passes truncated files in silence."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [(file, fault) for file, fault in zip(files, pool.map(picture_fault, files), strict=True) if fault]
    if faults:
        shown = "; ".join(f"{file}: {fault}" for file, fault in faults[:10])
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"{len(faults)} of {len(files)} files cannot be used as pictures: {shown}{more}")


def picture_fault(file: str | Path) -> str | None:
    """Says what is wrong with a picture file, in a few words; `None` if nothing is.

    Pillow finds what is cut off, which TensorFlow passes; TensorFlow must read the file too, for it will in training.
    """
    import tensorflow as tf
    from PIL import Image, UnidentifiedImageError

    try:
        if Path(file).stat().st_size == 0:
            return "the file is empty"
        with Image.open(file) as picture:
            if picture.format not in FORMATS:
                return f"{picture.format} inside, not one of {', '.join(FORMATS)}"
            if min(picture.size) < SMALLEST_SIDE:
                return f"{picture.width}x{picture.height} pixels, at least {SMALLEST_SIDE}x{SMALLEST_SIDE} expected"
            if picture.format == "BMP" and picture.mode in ("1", "P"):
                return "a BMP with a palette, which TensorFlow cannot read; save it as PNG"
            picture.load()
        tf.io.decode_image(Path(file).read_bytes(), channels=3, expand_animations=False)
    except UnidentifiedImageError:
        return "not a picture"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, tf.errors.InvalidArgumentError) as error:
        return f"damaged ({str(error).splitlines()[0]})"
    return None


def median_side(split: Split) -> float:
    """Returns the median of the shorter sides, in pixels, of up to 200 pictures spread over the split."""
    from PIL import Image

    if isinstance(split.images, np.ndarray):
        return float(min(split.images.shape[1:3]))
    sides = []
    for file in split.images[:: -(-len(split) // 200)]:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            sides.append(min(picture.size))
    return float(np.median(sides))


# TensorFlow Datasets


def _tfds(name: str, directory: str | None, seed: int) -> ImageData:
    import tensorflow_datasets as tfds

    builders = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0].split(":")[0] not in builders:
        if "/" in name:
            raise FileNotFoundError(f"No such folder of pictures: {name}")
        guess = nearest(name, ["digits", *builders])
        raise ValueError(f"Unknown data {name!r}: neither a folder, nor a dataset of TFDS, nor digits.{guess}")
    builder = tfds.builder(name, data_dir=directory)
    features = builder.info.features
    keys = builder.info.supervised_keys
    image_key, label_key = (keys[0], keys[1]) if keys and len(keys) == 2 else ("image", "label")
    known = features if hasattr(features, "keys") else {}
    if not {image_key, label_key} <= set(known) or not isinstance(known[image_key], tfds.features.Image):
        raise ValueError(f"{name} has no single picture and label. Received: features={list(known)}")
    if not isinstance(features[label_key], tfds.features.ClassLabel):
        raise ValueError(f"{name} must have one class per picture. Received: label={features[label_key]}")
    _prepare(builder, name)
    available = list(builder.info.splits)
    validation = next((s for s in _VALIDATION_NAMES if s in available), None)
    wanted = [s for s in ("train", validation, "test") if s is not None and s in available]
    if "train" not in wanted:
        raise ValueError(f"{name} must have a train split. Received: splits={available}")
    splits = [_read_tfds(builder, split, image_key, label_key) for split in wanted]
    return _three_splits(name, features[label_key].names, splits, seed)


def _prepare(builder, name: str) -> None:
    """Prepares a dataset that is not prepared yet, saying so before a download starts."""
    if (Path(builder.data_dir) / "dataset_info.json").is_file():
        return
    size = builder.info.download_size
    logger.warning("%s is not prepared in %s: downloading it now (%s).", name, builder.data_dir, size or "size unknown")
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise ValueError(
            f"{name} is not prepared in {builder.data_dir} and could not be downloaded; --input.dir names the folder "
            f"where it is. ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


def _read_tfds(builder, split: str, image_key: str, label_key: str) -> Split:
    """Reads a split into memory: pixels where all pictures have one size, encoded pictures where they differ."""
    import tensorflow_datasets as tfds

    if None not in builder.info.features[image_key].shape:
        dataset = builder.as_dataset(split=split, batch_size=-1)
        return Split(_rgb(np.asarray(dataset[image_key])), np.asarray(dataset[label_key]).astype("int32"))
    dataset = builder.as_dataset(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    examples = [(example[image_key], example[label_key]) for example in tfds.as_numpy(dataset)]
    images, labels = zip(*examples, strict=True)
    return Split(tuple(images), np.array(labels, "int32"))


def stratified_sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns indices of about `count` examples, as many of each class as there are to be had."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), int)  # How many of the same class come before, in the shuffled order.
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return order[np.argsort(rank[order], kind="stable")][:count]
