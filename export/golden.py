"""The golden set: test pictures with the answers that each file gave, to replay the files where they are used.

A folder with `00.png` and so on, at the model's size, and `golden.json`:

    {"format": 1, "image_size": [H, W], "classes": [name, ...],
     "pictures": [{"file": "00.png", "label": index}, ...],
     "answers": {"keras": {"file": null, "sha256": null, "top": [[[index, logit], ... up to 5], ... one per picture]},
                 "float32": {"file": "model.float32.tflite", "sha256": "...", "top": ...}, ...}}

Neither this module nor what it needs imports TensorFlow: it runs on a board that has LiteRT alone.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .files import replacing
from .inspection import try_file
from .interpreter import Classifier

GOLDEN_FORMAT = 1
NUM_PICTURES = 50
TOP = 5
INDEX = "golden.json"
MOST_INDEX_BYTES = 2**26
KERAS = "keras"
_PICTURE_NAME = re.compile(r"\d{1,6}\.png")


def write_golden(
    folder: str | Path,
    pictures: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    files: Mapping[str, str | Path],
    reference: np.ndarray,
) -> None:
    """Writes pictures and what the Keras model and each file make of them, in place of a set that is there.

    Args:
        folder: The folder to write; whole or not at all.
        pictures: `(n, H, W, 3)`, whole numbers 0 to 255.
        labels: Their classes, integers `(n,)`.
        classes: Class names.
        files: Kind to TensorFlow Lite file.
        reference: The Keras model's logits, `(n, num_classes)`.
    """
    size = pictures.shape[1:3]
    names = [f"{i:02d}.png" for i in range(len(pictures))]
    answers = {KERAS: {"file": None, "sha256": None, "top": _top(reference)}}
    for kind, file in files.items():
        logits = Classifier(file, image_size=size).logits(pictures)
        answers[kind] = {"file": Path(file).name, "sha256": _digest(Path(file)), "top": _top(logits)}
    index = {
        "format": GOLDEN_FORMAT,
        "image_size": list(size),
        "classes": list(classes),
        "pictures": [{"file": n, "label": int(label)} for n, label in zip(names, labels, strict=True)],
        "answers": answers,
    }
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, picture in zip(names, pictures, strict=True):
            Image.fromarray(np.asarray(picture).astype("uint8")).save(temporary / name)
        (temporary / INDEX).write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class GoldenCheck:
    """A file, replayed on the pictures of a golden set.

    Attributes:
        file: The file.
        against: Whose answers it is held against: the kind of the set's file that it is, or is called like, else
            "keras".
        same_file: Whether it is that file, byte by byte.
        pictures: Number of pictures.
        top1: Share of them with the same first class, 0 to 1.
        top5: Share of the expected five best classes that are among the file's five best, 0 to 1.
        max_abs_logit_error: Largest difference of a logit from the expected one, of the five best.
        different: Names of the pictures with another first class.
    """

    file: Path
    against: str
    same_file: bool
    pictures: int
    top1: float
    top5: float
    max_abs_logit_error: float
    different: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the file does here what it did where the set was written: all first classes of a `float32` file, or
        98 % of another one's, whose integers or half precision other hardware may round otherwise."""
        return self.top1 >= (1.0 if self.against.startswith("float32") else 0.98)


def verify_golden(file: str | Path, folder: str | Path | None = None) -> GoldenCheck:
    """Replays a golden set on a TensorFlow Lite file, on this machine.

    Args:
        file: The file; it is tried in a child process first.
        folder: The golden set; `golden` beside the file if `None`.

    Raises:
        FileNotFoundError: there is no such file, set, or picture.
        ValueError: a file that cannot be run or does not fit the set, or a damaged set.
    """
    file = Path(file)
    try_file(file)
    golden = _read(Path(folder) if folder is not None else file.resolve().parent / "golden")
    classifier = Classifier(file, image_size=golden.pictures.shape[1:3])
    if classifier.num_classes != golden.num_classes:
        raise ValueError(
            f"{file} must give {golden.num_classes} scores, as the golden set has classes. "
            f"Received: num_classes={classifier.num_classes}"
        )
    against, same_file = golden.kind_of(file)
    logits, top = classifier.logits(golden.pictures), golden.answers[against]["top"]
    found = [[index for index, _ in best] for best in _top(logits)]
    expected = [[index for index, _ in best] for best in top]
    same = [set(a) & set(b) for a, b in zip(found, expected, strict=True)]
    return GoldenCheck(
        file=file,
        against=against,
        same_file=same_file,
        pictures=len(top),
        top1=float(np.mean([a[0] == b[0] for a, b in zip(found, expected, strict=True)])),
        top5=sum(map(len, same)) / sum(map(len, expected)),
        max_abs_logit_error=max(abs(float(logits[i, j]) - z) for i, best in enumerate(top) for j, z in best),
        different=tuple(n for n, a, b in zip(golden.names, found, expected, strict=True) if a[0] != b[0]),
    )


@dataclass(frozen=True)
class _Golden:
    """A golden set that was read and found whole; `pictures` are uint8 `(n, H, W, 3)`."""

    names: list[str]
    pictures: np.ndarray
    num_classes: int
    answers: dict[str, Any]

    def kind_of(self, file: Path) -> tuple[str, bool]:
        """Returns whose answers a file is held against, and whether it is that very file."""
        digest = _digest(file)
        for kind, answer in self.answers.items():
            if answer["sha256"] == digest:
                return kind, True
        return next((k for k, answer in self.answers.items() if answer["file"] == file.name), KERAS), False


def _read(folder: Path) -> _Golden:
    index = folder / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"No golden set at {folder}: it holds no {INDEX}.")
    if index.stat().st_size > MOST_INDEX_BYTES:
        raise ValueError(f"{index} must have at most {MOST_INDEX_BYTES} bytes. Received: {index.stat().st_size}")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        if content["format"] != GOLDEN_FORMAT:
            raise ValueError(f"format {content['format']!r} instead of {GOLDEN_FORMAT}")
        height, width = content["image_size"]
        names = [picture["file"] for picture in content["pictures"]]
        answers, num_classes = content["answers"], len(content["classes"])
        _check_answers(answers, len(names), num_classes)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no golden set: {type(error).__name__}: {error}") from error
    pictures = np.stack([_picture(folder, name, (height, width)) for name in names])
    return _Golden(names, pictures, num_classes, answers)


def _check_answers(answers: dict[str, Any], num_pictures: int, num_classes: int) -> None:
    """Refuses answers that are not one list of classes and logits for every picture."""
    if not num_pictures or KERAS not in answers:
        raise ValueError(f"no pictures, or no answers of {KERAS}")
    for kind, answer in answers.items():
        fits = len(answer["top"]) == num_pictures and {"file", "sha256"} <= set(answer)
        for best in answer["top"]:
            fits = fits and 1 <= len(best) <= TOP
            fits = fits and all(isinstance(i, int) and 0 <= i < num_classes and np.isfinite(z) for i, z in best)
        if not fits:
            raise ValueError(f"answers of {kind!r} that do not fit {num_pictures} pictures of {num_classes} classes")


def _picture(folder: Path, name: Any, size: tuple[int, int]) -> np.ndarray:
    """Reads one picture of the set, uint8 `(H, W, 3)`."""
    if not isinstance(name, str) or not _PICTURE_NAME.fullmatch(name):
        raise ValueError(f"{folder / INDEX} must name pictures as 00.png. Received: {name!r}")
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"No picture at {file}, which {INDEX} names.")
    try:
        with Image.open(file, formats=["PNG"]) as image:
            if image.size != (size[1], size[0]) or image.mode != "RGB":
                raise ValueError(f"must be RGB, {size[1]}x{size[0]}. Received: {image.mode}, {image.size}")
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error


def _top(logits: np.ndarray) -> list[list[list[Any]]]:
    """Returns for every picture its best classes with their logits, best first; of equal ones the first class."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    return [[[int(i), float(row[i])] for i in best] for row, best in zip(logits, order, strict=True)]


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
