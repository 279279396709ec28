"""Pictures in files: folders of class folders, lists in CSV files, folders of TFRecord files."""

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .pictures import SUFFIXES
from .records import index_records
from .splits import Source, Split, split_name

logger = logging.getLogger(__name__)


def read_folder(path: Path) -> Source:
    """Reads a folder of class folders, or of splits with class folders in them."""
    children = {split: p for p in _folders(path) if (split := split_name(p.name))}
    roots = {"train": path}
    if "train" in children and (len(children) > 1 or len(_folders(path)) == 1):
        roots = children
        _warn_of_unused(set(_folders(path)) - set(roots.values()))
    train = roots["train"]
    classes = [p.name for p in _folders(train)]
    if len(classes) < 2:
        raise ValueError(f"{train} must hold at least two class folders. Received: {', '.join(classes) or 'none'}")
    for root in roots.values():
        odd = sorted({p.name for p in _folders(root)} ^ set(classes))
        if odd:
            raise ValueError(f"{root} must hold the class folders of {train}. Received: they differ in {odd}")
    splits = {name: _read_split(root, classes) for name, root in roots.items()}
    return Source(path.resolve().name, tuple(classes), splits, are_files=True)


_NO_CLASSES = ("__MACOSX", "__pycache__")


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in _NO_CLASSES)


def _warn_of_unused(paths: Iterable[Path]) -> None:
    unused = sorted(str(path) for path in paths)
    if unused:
        logger.warning("Not used, for it is no split: %s", ", ".join(unused))


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


def read_csv(path: Path) -> Source:
    """Reads a CSV file with a picture a line: `path`, `label` and perhaps `split`, as its first line names them."""
    listed: dict[str, list[tuple[str, str]]] = {}
    wrong: list[str] = []
    labels: dict[str, str] = {}
    for line, row in _csv_rows(path):
        file, label = str(path.parent / row["path"]), row["label"]
        split = split_name(row["split"]) if "split" in row else "train"
        if not row["path"] or not label:
            wrong.append(f"line {line}: a path and a label are needed")
        elif split is None:
            wrong.append(f"line {line}: split must be train, val or test, not {row['split']!r}")
        elif labels.setdefault(file, label) != label:
            wrong.append(f"line {line}: {row['path']} is {label} here and {labels[file]} above")
        else:
            listed.setdefault(split, []).append((file, label))
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(f"{path} cannot be used: {'; '.join(wrong[:10])}{more}")
    classes = sorted({label for _, label in listed.get("train", ())}, key=_number_or_name)
    if len(classes) < 2:
        raise ValueError(f"{path} must list training pictures of at least two classes. Received: classes={classes}")
    splits = {name: _listed_split(path, name, rows, classes) for name, rows in listed.items()}
    return Source(path.stem, tuple(classes), splits, are_files=True)


def _number_or_name(label: str) -> tuple[bool, int, str]:
    """Sorts numbers by their value, and before names."""
    return (False, int(label), label) if label.isdecimal() else (True, 0, label)


def _listed_split(path: Path, name: str, rows: Sequence[tuple[str, str]], classes: Sequence[str]) -> Split:
    number = {label: i for i, label in enumerate(classes)}
    unknown = sorted({label for _, label in rows} - set(classes))
    if unknown:
        raise ValueError(f"{path} must list training pictures of every class. Received: none of {unknown}, in {name}")
    return Split(tuple(file for file, _ in rows), np.array([number[label] for _, label in rows], "int32"))


def _csv_rows(path: Path) -> list[tuple[int, Mapping[str, str]]]:
    """Returns the lines that are not blank, as their number and what stands in each column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            if not {"path", "label"} <= set(header):
                raise ValueError(f"the first line must name the columns path and label. Received: {','.join(header)}")
            rows = []
            for values in reader:
                if len(values) not in (0, len(header)):
                    raise ValueError(f"line {reader.line_num}: {len(header)} columns expected, {len(values)} found")
                if values:
                    rows.append((reader.line_num, dict(zip(header, map(str.strip, values), strict=True))))
            return rows
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be text in UTF-8") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def record_files(path: Path) -> list[Path]:
    """Returns the TFRecord files in a folder."""
    return sorted(p for p in path.glob("*.tfrecord*") if p.is_file() and not p.name.startswith("."))


def read_record_folder(path: Path) -> Source:
    """Reads a folder of TFRecord files; class names are in its `labels.txt`, a line each, or the labels' numbers."""
    groups: dict[str, list[Path]] = {}
    unused = []
    for file in record_files(path):
        prefix = next((p for p in ("train", "val", "test") if file.name.lower().startswith(p)), None)
        if prefix:
            groups.setdefault("validation" if prefix == "val" else prefix, []).append(file)
        else:
            unused.append(file)
    _warn_of_unused(unused)
    if "train" not in groups:
        raise ValueError(
            f"{path} must hold files named train*.tfrecord*. Received: {', '.join(p.name for p in unused)}"
        )
    splits = {name: Split(*index_records(files)) for name, files in groups.items()}
    names_file = path / "labels.txt"
    classes = names_file.read_text(encoding="utf-8").splitlines() if names_file.is_file() else None
    classes = check_labels_of(splits, classes, str(path))
    return Source(path.resolve().name, classes, splits, are_files=True)


def check_labels_of(splits: Mapping[str, Split], classes: Sequence[str] | None, name: str) -> tuple[str, ...]:
    """Checks labels that are numbers against the classes' names; returns these, or the numbers where there are none.

    Raises:
        ValueError: labels out of range, classes without a training picture, or fewer than two classes.
    """
    for split, pictures in splits.items():
        if not len(pictures):
            raise ValueError(f"{name} must have pictures in every split. Received: none in {split}")
    highest = max(int(split.labels.max()) for split in splits.values())
    lowest = min(int(split.labels.min()) for split in splits.values())
    classes = tuple(str(i) for i in range(highest + 1)) if classes is None else tuple(classes)
    if lowest < 0 or highest >= len(classes):
        raise ValueError(f"Labels of {name} must be 0 to {len(classes) - 1}. Received: {lowest} to {highest}")
    if len(classes) < 2:
        raise ValueError(f"{name} must have at least two classes. Received: classes={list(classes)}")
    without = sorted(set(range(len(classes))) - set(splits["train"].labels.tolist()))
    if without:
        missing = ", ".join(classes[i] for i in without)
        raise ValueError(f"{name} must have training pictures of every class. Received: none of {missing}")
    return classes
