"""Pictures from TensorFlow Datasets, prepared before or now."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vit_keras.messages import nearest

from .arrays import rgb
from .records import index_records
from .splits import VALIDATION_NAMES, Source, Split

logger = logging.getLogger(__name__)

IN_MEMORY_BYTES = 2**30
"""Splits of pictures of one size are read into memory as pixels if they have up to so many bytes."""
_RETRIES = 3


def read_tfds(name: str, directory: str | None) -> Source:
    """Reads a dataset by its name, and downloads it first where it is not prepared."""
    import tensorflow_datasets as tfds

    builders = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0].split(":")[0] not in builders:
        if "/" in name:
            raise FileNotFoundError(f"No such folder of pictures: {name}")
        guess = nearest(name, ["digits", *builders])
        raise ValueError(f"Unknown data {name!r}: neither a folder, nor a dataset of TFDS, nor digits.{guess}")
    return _read(tfds.builder(name, data_dir=directory), name)


def is_prepared(path: Path) -> bool:
    """Whether a folder is the version directory of a prepared dataset."""
    return (path / "dataset_info.json").is_file()


def read_prepared(path: Path) -> Source:
    """Reads a prepared dataset from its version directory, such as `tfds/mnist/3.0.1`."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    return _read(builder, builder.name)


def _read(builder, name: str) -> Source:
    import tensorflow_datasets as tfds

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
    validation = next((s for s in VALIDATION_NAMES if s in available), None)
    wanted = {"train": "train", "validation": validation, "test": "test"}
    wanted = {split: given for split, given in wanted.items() if given in available}
    if "train" not in wanted:
        raise ValueError(f"{name} must have a train split. Received: splits={available}")
    splits = {split: _read_split(builder, given, image_key, label_key) for split, given in wanted.items()}
    for split in [split for split, pictures in splits.items() if (pictures.labels < 0).all()]:
        if split == "train":
            raise ValueError(f"{name} must have labels in its train split. Received: none")
        logger.warning("The split %s of %s has no labels and is not used.", split, name)
        del splits[split]
    return Source(name, tuple(features[label_key].names), splits)


def _prepare(builder, name: str) -> None:
    """Prepares a dataset that is not prepared yet, saying so before a download starts."""
    if is_prepared(Path(builder.data_dir)):
        return
    size = builder.info.download_size
    logger.warning("%s is not prepared in %s: downloading it now (%s).", name, builder.data_dir, size or "size unknown")
    try:
        with _few_retries():
            builder.download_and_prepare()
    except Exception as error:
        raise ValueError(
            f"{name} is not prepared in {builder.data_dir} and could not be downloaded; --input.dir names the folder "
            f"where it is. ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


@contextmanager
def _few_retries() -> Iterator[None]:
    """Lets a download without a network fail within seconds: TFDS's own ten attempts take more than three minutes."""
    from tensorflow_datasets.core.download import downloader

    kept = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = min(kept, _RETRIES)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = kept


def _read_split(builder, split: str, image_key: str, label_key: str) -> Split:
    """Reads small pictures of one size into memory, and notes of others where they lie in the record files."""
    import tensorflow_datasets as tfds

    info = builder.info.splits[split]
    shape = builder.info.features[image_key].shape
    if None not in shape and info.num_examples * math.prod(shape) <= IN_MEMORY_BYTES:
        dataset = builder.as_dataset(split=split, batch_size=-1)
        return Split(rgb(dataset[image_key], image_key), np.asarray(dataset[label_key]).astype("int32"))
    if builder.info.file_format is tfds.core.FileFormat.TFRECORD:
        return Split(*index_records(info.filepaths, (image_key,), (label_key,)))
    dataset = builder.as_dataset(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    examples = [(example[image_key], example[label_key]) for example in tfds.as_numpy(dataset)]
    images, labels = zip(*examples, strict=True)
    return Split(tuple(images), np.array(labels, "int32"))
