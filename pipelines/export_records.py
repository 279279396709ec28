"""What an export has written down of its files, read with care: the files may have been damaged or edited."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vit_keras.export import Agreement, LayerError, OperatorCensus, Relaxation

from .run_folder import RunFolder

logger = logging.getLogger(__name__)

T = TypeVar("T")


def read_made(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Returns of each file, by name, what it was made of and with."""
    return {name: made for name, made in folder.read_json(folder.made).items() if isinstance(made, dict)}


def read_relaxations(folder: RunFolder) -> dict[str, Relaxation]:
    """Returns how files were brought within a budget, by kind."""

    def read(value: Any) -> Relaxation:
        drops = float(value["drop"]), float(value["first_drop"])
        return Relaxation(*drops, tuple(map(str, value["layers"])), bool(value["within"]))

    return _each(folder, folder.relaxations, read)


def read_sensitivity(folder: RunFolder) -> dict[str, list[LayerError]]:
    """Returns what quantising does to each layer, by kind."""

    def read(value: Any) -> list[LayerError]:
        return [LayerError(str(e["layer"]), float(e["own"]), float(e["alone"])) for e in value]

    return {kind: errors for kind, errors in _each(folder, folder.sensitivity, read).items() if errors}


def _each(folder: RunFolder, file: Path, read: Callable[[Any], T]) -> dict[str, T]:
    """Reads what a file says of each kind; what cannot be read counts as not there."""
    found: dict[str, T] = {}
    for kind, value in folder.read_json(file).items():
        try:
            found[kind] = read(value)
        except (AttributeError, KeyError, TypeError, ValueError):
            logger.warning("%s is damaged: what it says of %s is left out.", file, kind)
    return found


def read_agreement(folder: RunFolder, file: Path, stamp: int) -> Agreement | None:
    """Returns the comparison that an interrupted run has left of a file; `None` if there is none, or of another file.

    Args:
        folder: The run.
        file: Where the comparison is.
        stamp: When the file that was compared was written.
    """
    try:
        saved = folder.read_json(file)
        if saved.pop("stamp", None) != stamp:
            return None
        intervals = {name: tuple(saved.pop(name)) for name in ("accuracy_interval", "points_lost_interval")}
        return Agreement(operators=OperatorCensus(**saved.pop("operators")), **intervals, **saved)
    except (KeyError, TypeError, ValueError):
        return None
