"""TFRecord files: where each picture lies in them, and reading it from there, so that any order costs the same."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .pictures import in_parallel

if TYPE_CHECKING:
    import tensorflow as tf

IMAGE_KEYS = ("image", "image/encoded")
LABEL_KEYS = ("label", "image/class/label")

_HEADER = struct.Struct("<QI")  # The record's length, and a checksum of it; another checksum follows the record.
_GZIP = b"\x1f\x8b\x08"


@dataclass(frozen=True)
class Records:
    """Encoded pictures inside record files; only where they lie is kept in memory.

    Attributes:
        files: Paths of the record files.
        file: Which of them holds a picture, int32 `(n,)`.
        offset: Where in the file its content begins, in bytes, int64 `(n,)`.
        length: How many bytes long it is, int64 `(n,)`.
        number: Which of the file's records it is from, counted from 0, int64 `(n,)`.
    """

    files: tuple[str, ...]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> bytes:
        with open(self.files[self.file[index]], "rb", buffering=0) as file:
            file.seek(self.offset[index])
            return file.read(self.length[index])

    def take(self, indices: np.ndarray) -> "Records":
        """Returns the pictures at `indices`."""
        columns = {name: getattr(self, name)[indices] for name in ("file", "offset", "length", "number")}
        return replace(self, **columns)

    def name_of(self, index: int) -> str:
        """Returns the file of a picture and the number of its record."""
        return f"{self.files[self.file[index]]}, record {self.number[index]}"

    def read(self, index: "tf.Tensor") -> "tf.Tensor":
        """Reads a picture inside a graph: from an int64 scalar to a scalar string, the picture's encoded content."""
        import tensorflow as tf

        encoded = tf.numpy_function(self.__getitem__, [index], tf.string, stateful=False)
        return tf.ensure_shape(encoded, ())


def index_records(
    files: Sequence[str | Path], image_keys: Sequence[str] = IMAGE_KEYS, label_keys: Sequence[str] = LABEL_KEYS
) -> tuple[Records, np.ndarray]:
    """Reads record files once, and notes where their pictures lie.

    Args:
        files: TFRecord files of `tf.train.Example`s, not compressed.
        image_keys: Names that the feature with the encoded picture may have.
        label_keys: Names that the feature with the class, an integer, may have.

    Returns:
        The pictures, in the order of the files and of the records in them, and their labels, int32 `(n,)`.

    Raises:
        ValueError: a file that is damaged or compressed, or a record without a picture and one class.
    """
    names = tuple(str(file) for file in files)
    found = in_parallel(lambda file: _index_file(file, image_keys, label_keys), names)
    rows = np.array([(i, *row) for i, rows in enumerate(found) for row in rows], "int64").reshape(-1, 5)
    file, offset, length, number, labels = rows.T  # (n,) each
    return Records(names, file.astype("int32"), offset, length, number), labels.astype("int32")


def _index_file(path: str, image_keys: Sequence[str], label_keys: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """Returns offset, length, number and label of each picture in a file."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    rows = []
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = 0
        while start < size:
            file.seek(start)
            header = file.read(_HEADER.size)
            length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else size
            start += _HEADER.size
            where = f"{path}, record {len(rows)}"
            if start + length + 4 > size:
                if header.startswith(_GZIP):
                    raise ValueError(f"{path} is compressed, so that its records cannot be found: unpack it first")
                raise ValueError(f"{where} is cut off or damaged, or the file is no TFRecord file")
            content = file.read(length)
            try:
                features = tf.train.Example.FromString(content).features.feature
            except DecodeError:
                raise ValueError(f"{where} is damaged, or no tf.train.Example") from None
            image = _only(features, image_keys, "bytes_list", where)
            label = _only(features, label_keys, "int64_list", where)
            rows.append((start + content.index(image), len(image), len(rows), label))
            start += length + 4
    return rows


def _only(features: Any, keys: Sequence[str], kind: str, where: str) -> Any:
    """Returns the one value of the feature that has one of these names."""
    key = next((key for key in keys if key in features), None)
    values = getattr(features[key], kind).value if key else ()
    if len(values) != 1:
        raise ValueError(
            f"{where} must have one value of {kind.removesuffix('_list')} named {' or '.join(keys)}. "
            f"Received: features={sorted(features)}"
        )
    return values[0]


def encoded_reader(images: Sequence[str] | Sequence[bytes] | Records) -> Callable[["tf.Tensor"], "tf.Tensor"]:
    """Returns a function from an index, an int64 scalar, to the content of that picture file, a scalar string.

    Args:
        images: Picture files: paths, contents, or where they lie in record files.
    """
    import tensorflow as tf

    if isinstance(images, Records):
        return images.read
    values = tf.constant(images)
    if isinstance(images[0], bytes):
        return lambda index: values[index]
    return lambda index: tf.io.read_file(values[index])
