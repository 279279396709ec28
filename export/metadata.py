"""What a file says about itself: class names and how pictures go in, as standard TensorFlow Lite metadata.

The metadata is a flatbuffer in a buffer of the model; the class names are a `labels.txt` in a zip archive behind the
model, which readers of the model alone do not see. MediaPipe's image classifier, Android's ML binding and others read
them. The model normalises pixels itself, so the normalisation is the identity: mean 0, standard deviation 1.

Reference:
    The metadata schema, version 1.5.0 (google-ai-edge/mediapipe, mediapipe/tasks/metadata/metadata_schema.fbs).
"""

import io
import struct
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import flatbuffers

from . import attention
from .packing import check_model, with_entry

LABELS_FILE = "labels.txt"
MOST_LABEL_BYTES = 2**22
"""Bytes of class names that are written and read at most; ImageNet's 21,843 have less than a tenth of it."""

_FIELDS = {
    "AssociatedFile": ("name", "description", "type"),
    "Content": ("content_properties_type", "content_properties"),
    "FeatureProperties": (),
    "ImageProperties": ("color_space",),
    "ModelMetadata": (
        *("name", "description", "version", "subgraph_metadata"),
        *("author", "license", "associated_files", "min_parser_version"),
    ),
    "NormalizationOptions": ("mean", "std"),
    "ProcessUnit": ("options_type", "options"),
    "Stats": ("max", "min"),
    "SubGraphMetadata": ("name", "description", "input_tensor_metadata", "output_tensor_metadata"),
    "TensorMetadata": (
        *("name", "description", "dimension_names", "content", "process_units", "stats", "associated_files"),
    ),
}
"""Fields of the schema's tables, by their numbers. A union has two: the type of its content, and the content."""
_FEATURE, _IMAGE = 1, 2  # ContentProperties
_NORMALIZATION = 1  # ProcessUnitOptions
_RGB = 1  # ColorSpaceType
_TENSOR_AXIS_LABELS = 2  # AssociatedFileType
_NO_LETTERS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates, line and paragraph separators."""


OUTPUTS: dict[str, str] = {
    "logits": "One score per class; softmax turns them into probabilities.",
    "probabilities": "The probability of each class.",
}
"""What a classifier's scores are, and how its metadata says so."""


def with_metadata(
    content: bytes,
    labels: Iterable[str] | None = None,
    name: str = "classifier",
    description: str = "",
    grids: Sequence[tuple[int, int]] = (),
    output: str = "logits",
) -> bytes:
    """Adds standard metadata to a classifier's TensorFlow Lite file.

    Buffers that ai-edge-quantizer has left behind the flatbuffer are taken inside (up to 2 GB). What the file computes
    stays the same to the last bit.

    Args:
        content: Content of a file with one input, pictures, and one output, class scores `(B, num_classes)`, or a
            second one behind it, its attention. Of several graphs the first is described.
        labels: Class names in the order of the scores; without them the file gets no `labels.txt`. Two classes may
            have the same name, as in ImageNet.
        name: Name of the model.
        description: What the model does.
        grids: Of a file that gives its attention, height and width in patches for each graph.
        output: What the scores are, a name in `OUTPUTS`.

    Returns:
        The new content.

    Raises:
        ValueError: content that is no such file or has metadata, labels that do not fit (see `check_labels`), or an
            unknown output.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}. Received: output={output!r}")
    model = check_model(content)
    graph = model.Subgraphs(0)
    if graph.InputsLength() != 1 or graph.OutputsLength() != 1 + bool(grids):
        raise ValueError(
            f"content must have one input and {'two outputs' if grids else 'one output'}. Received: "
            f"{graph.InputsLength()} inputs, {graph.OutputsLength()} outputs"
        )
    if grids:
        content = b"".join(with_entry(content, attention.ENTRY, attention.entry_of(grids)))
    if labels is not None:
        scores = graph.Tensors(graph.Outputs(0))
        labels = check_labels(labels, scores.Shape(scores.ShapeLength() - 1))
    parts = with_entry(
        content, "TFLITE_METADATA", _metadata(name, description, output, labels is not None, bool(grids))
    )
    if labels is not None:
        parts.append(_archive("\n".join(labels) + "\n", sum(len(part) for part in parts)))
    return b"".join(parts)


def check_labels(labels: Iterable[str], num_classes: int) -> tuple[str, ...]:
    """Returns class names as a tuple.

    Raises:
        ValueError: not one name per class, or a name that is empty, has a line break or another control character, or
            cannot be written as UTF-8.
    """
    if isinstance(labels, str):
        raise ValueError(f"labels must be a list of names. Received: labels={labels!r}")
    names = tuple(labels)
    if len(names) != num_classes:
        raise ValueError(f"labels must name {num_classes} classes. Received: {len(names)} names")
    for index, label in enumerate(names):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"labels must be names. Received: labels[{index}]={label!r}")
        if any(unicodedata.category(letter) in _NO_LETTERS for letter in label):
            raise ValueError(
                f"labels must hold no line breaks, control characters or halves of letters. "
                f"Received: labels[{index}]={label!r}"
            )
    if sum(len(label.encode()) + 1 for label in names) > MOST_LABEL_BYTES:
        raise ValueError(f"labels must have at most {MOST_LABEL_BYTES} bytes in all. Received: more")
    return names


def read_labels(path: str | Path) -> tuple[str, ...] | None:
    """Reads the class names inside a TensorFlow Lite file.

    Only the end of the file is read, `MOST_LABEL_BYTES` and what an archive needs beside them, and only a `labels.txt`
    that is not compressed, as the standard has it: no file can make this use more memory or time than that.

    Args:
        path: The file.

    Returns:
        One name per line of its `labels.txt`, or `None` where there is none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the archive or the `labels.txt` in it is damaged, or holds what is no name; the message names the
            file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No TensorFlow Lite file at {path}.")
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - MOST_LABEL_BYTES - 2**16))
        tail = io.BytesIO(file.read(MOST_LABEL_BYTES + 2**16))
    try:
        text = _labels_text(tail)
        if text is None:
            return None
        names = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        return check_labels(names, len(names))
    except (zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} holds class names that cannot be read: {error}") from error


def _labels_text(tail: io.BytesIO) -> str | None:
    """Returns the text of the `labels.txt` in an archive whose beginning may be cut off."""
    if not zipfile.is_zipfile(tail):
        return None
    with zipfile.ZipFile(tail) as archive:
        if LABELS_FILE not in archive.namelist():
            return None
        if archive.getinfo(LABELS_FILE).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{LABELS_FILE} is compressed")
        with archive.open(LABELS_FILE) as file:
            return file.read(MOST_LABEL_BYTES + 1).decode("utf-8")


def _archive(labels: str, start: int) -> bytes:
    """Returns a zip archive with the class names; the places in it count from the file's beginning, `start` before."""
    stream = _Tail(start)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), labels.encode("utf-8"))
    return stream.getvalue()


class _Tail(io.BytesIO):
    """The end of a file, from `start` on, that counts places from the file's beginning."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self._start = start

    def tell(self) -> int:
        return super().tell() + self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(offset - self._start if whence == io.SEEK_SET else offset, whence) + self._start


# The metadata's own flatbuffer


def _metadata(name: str, description: str, output: str, has_labels: bool, has_attention: bool) -> bytes:
    normalization = _table("NormalizationOptions", mean=[0.0], std=[1.0])
    images = _table(
        "TensorMetadata",
        name="images",
        description="RGB pixels, 0 to 255. The model normalises them.",
        content=_table(
            "Content",
            content_properties_type=_IMAGE,
            content_properties=_table("ImageProperties", color_space=_RGB),
        ),
        process_units=[_table("ProcessUnit", options_type=_NORMALIZATION, options=normalization)],
        stats=_table("Stats", max=[255.0], min=[0.0]),
    )
    labels = _table("AssociatedFile", name=LABELS_FILE, description="Class names.", type=_TENSOR_AXIS_LABELS)
    scores = _table(
        "TensorMetadata",
        name=output,
        description=OUTPUTS[output],
        content=_table("Content", content_properties_type=_FEATURE, content_properties=_table("FeatureProperties")),
        **({"associated_files": [labels]} if has_labels else {}),
    )
    rows = _table(
        "TensorMetadata",
        name=attention.OUTPUT,
        description="Rows of attention weights: of what is pooled, then of all blocks.",
        content=_table("Content", content_properties_type=_FEATURE, content_properties=_table("FeatureProperties")),
    )
    outputs = [scores, rows] if has_attention else [scores]
    model = _table(
        "ModelMetadata",
        name=name,
        description=description,
        subgraph_metadata=[_table("SubGraphMetadata", input_tensor_metadata=[images], output_tensor_metadata=outputs)],
        min_parser_version="1.0.0",  # No field above is younger.
    )
    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, model), b"M001")
    return bytes(builder.Output())


def _table(kind: str, **fields: Any) -> dict[int, Any]:
    """Returns a table as number of the field to value, in the order of the numbers."""
    return {_FIELDS[kind].index(name): value for name, value in fields.items()}


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a string, a list of floats, a list of tables or a table with all that it holds; returns its offset.

    Numbers in tables are enumerations of one byte: no other ones are used.
    """
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list) and isinstance(value[0], dict):
        offsets = [_write(builder, item) for item in value]
        builder.StartVector(4, len(value), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    if isinstance(value, list):
        builder.StartVector(4, len(value), 4)
        for item in reversed(value):
            builder.PrependFloat32(item)
        return builder.EndVector()
    offsets = {field: _write(builder, item) for field, item in value.items() if not isinstance(item, int)}
    builder.StartObject(max(value, default=-1) + 1)
    for field, item in value.items():
        if field in offsets:
            builder.PrependUOffsetTRelativeSlot(field, offsets[field], 0)
        else:
            builder.PrependUint8Slot(field, item, 0)
    return builder.EndObject()
