"""What an app developer drops into an app: a file, its class names, the code that runs it, and how to.

The code and the README are made of the templates in `bundles/`, one folder per platform. What is written in them comes
from the file itself: `@name` stands for a fact, and `// only: input=uint8,int8` at the end of a line keeps the line for
files of which that is true; alone in a line it does so for all lines up to `// end`.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import vit_keras

from .files import refuse_existing, replacing
from .flatbuffer import FileInfo, TensorInfo
from .framing import Framing
from .inspection import inspect_file
from .metadata import LABELS_FILE, MOST_LABEL_BYTES, check_labels, read_labels
from .platforms import Platform, chosen_platforms

MODEL_FILE = "model.tflite"
README_FILE = "README.md"

_TEMPLATES = Path(__file__).parent / "bundles"
_BYTES = {"float32": 4, "int8": 1, "int16": 2, "uint8": 1}
_LIMITS = {"int8": (-(2**7), 2**7 - 1), "int16": (-(2**15), 2**15 - 1), "uint8": (0, 2**8 - 1)}


@dataclass(frozen=True)
class _Facts:
    """What a bundle says of a file: its two ends, whether it gives probabilities, its classes and who named them."""

    input: TensorInfo
    output: TensorInfo
    probabilities: bool
    labels: tuple[str, ...]
    named: bool
    bytes: int


def write_bundle(
    file: str | Path,
    platform: str,
    folder: str | Path,
    framing: Framing | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a folder for an app: the file, its class names, the code that runs it, and a README.

    Args:
        file: A TensorFlow Lite file with one picture as input, `(1, H, W, 3)`, and class scores as output,
            `(1, num_classes)`.
        platform: A name in `PLATFORMS`.
        folder: Where to.
        framing: How pictures are brought to the file's size; what the proportions demand is cut off if `None`.
        overwrite: Whether to replace a bundle for this platform that is there already.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists and `overwrite` is false, or it is no such bundle.
        FileNotFoundError: there is no such file.
        ValueError: an unknown platform, a file that is damaged or no picture classifier, or one that the platform's
            runtime cannot run.
    """
    (target,) = chosen_platforms([platform])
    folder = refuse_existing(folder, overwrite)
    if folder.exists() and not (folder / target.source).is_file():
        raise FileExistsError(f"{folder} is no bundle for {target.name}: it holds no {target.source}.")
    facts = _read_facts(Path(file), target)
    values = _values(facts, framing or Framing())
    with replacing(folder) as temporary:
        temporary.mkdir()
        shutil.copyfile(file, temporary / MODEL_FILE)
        (temporary / LABELS_FILE).write_bytes("".join(f"{label}\n" for label in facts.labels).encode())
        for template in (target.source, README_FILE):
            text = (_TEMPLATES / target.name / template).read_text(encoding="utf-8")
            (temporary / template).write_bytes(_filled(text, _conditions(facts), values).encode())
    return folder


# Facts


def _read_facts(file: Path, platform: Platform) -> _Facts:
    info = inspect_file(file)
    ends = [info.tensors[number] for number in (*info.inputs, *info.outputs)]
    shapes = [tensor.shape for tensor in ends]
    if (
        (len(info.inputs), len(info.outputs)) != (1, 1)
        or any(tensor.dynamic for tensor in ends)
        or not (len(shapes[0]) == 4 and shapes[0][0] == 1 and shapes[0][3] == 3)
        or not (len(shapes[1]) == 2 and shapes[1][0] == 1 and shapes[1][1] <= MOST_LABEL_BYTES)
    ):
        raise ValueError(
            f"{file} must take one picture, (1, H, W, 3), and give class scores, (1, num_classes), in fixed sizes. "
            f"Received: shapes={shapes}"
        )
    _check_types(file, info, ends, platform)
    named = read_labels(file)
    labels = check_labels(map(str, range(shapes[1][1])) if named is None else named, shapes[1][1])
    return _Facts(ends[0], ends[1], info.ends_in_softmax, labels, named is not None, info.bytes)


def _check_types(file: Path, info: FileInfo, ends: list[TensorInfo], platform: Platform) -> None:
    found = {tensor.dtype for tensor in info.tensors} & set(platform.lacks)
    found |= {tensor.dtype for tensor in ends} - set(platform.ends)
    if found:
        raise ValueError(
            f"{file} must be a file that the runtime for {platform.name} can run: {platform.because} "
            f"Received: tensors of type {', '.join(sorted(found))}"
        )
    for tensor in ends:
        if tensor.dtype != "float32" and not (tensor.scales == 1 and tensor.scale > 0):
            raise ValueError(
                f"{file} must say with one scale what its integers stand for. Received: scale={tensor.scale:g} "
                f"of {tensor.scales} for {tensor.name}"
            )


# Templates


class _Template(Template):
    """Kotlin and Swift have their own use for a dollar sign."""

    delimiter = "@"


def _conditions(facts: _Facts) -> dict[str, str]:
    types = {facts.input.dtype, facts.output.dtype}
    return {
        "input": facts.input.dtype,
        "output": facts.output.dtype,
        "engine": "interpreter" if "int16" in types else "compiled",
        "scores": "probabilities" if facts.probabilities else "logits",
        "mediapipe": "yes" if facts.named and types <= {"float32", "uint8"} else "no",
    }


def _values(facts: _Facts, framing: Framing) -> dict[str, Any]:
    _, height, width, _ = facts.input.shape
    share = f", {framing.crop_fraction:.4g} of the side" if framing.crop_fraction < 1 else ""
    values: dict[str, Any] = {
        "version": vit_keras.__version__,
        "bytes": f"{facts.bytes:,}",
        "height": height,
        "width": width,
        "num_classes": len(facts.labels),
        "crop_fraction": float(framing.crop_fraction),
        "framing": f"its middle is used, in the proportions {width}:{height}" + share,
        "scores": "probabilities" if facts.probabilities else "logits, which softmax turns into probabilities",
        "unnamed": "" if facts.named else "; the file names none, so these are numbers",
    }
    for end, tensor in (("input", facts.input), ("output", facts.output)):
        least, most = _LIMITS.get(tensor.dtype, (0, 0))
        values |= {
            f"{end}_type": tensor.dtype,
            f"{end}_shape": ", ".join(map(str, tensor.shape)),
            f"{end}_bytes": _BYTES[tensor.dtype],
            f"{end}_scale": tensor.scale,
            f"{end}_zero_point": tensor.zero_point,
            f"{end}_least": least,
            f"{end}_most": most,
        }
    return values


def _filled(text: str, conditions: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """Returns a template's text with the lines that hold for a file, and its facts."""
    lines, in_force = [], True
    for line in text.splitlines():
        code, mark, only = line.partition("// only: ")
        pairs = re.findall(r"(\w+)=([\w,]+)", only)
        holds = all(conditions[name] in allowed.split(",") for name, allowed in pairs)
        if line.strip() == "// end":
            in_force = True
        elif mark and not code.strip():
            in_force = holds
        elif in_force and holds:
            lines.append(code.rstrip())
    return _Template("\n".join(lines) + "\n").substitute(values)
