"""What the dataclasses of settings share."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin


def require(holds: bool, name: str, expected: str, value: Any) -> None:
    """Refuses the value of a setting that does not hold, with a `ValueError` that names the setting."""
    if not holds:
        raise ValueError(f"{name} must be {expected}. Received: {name}={value}")


def names(value: str | Sequence[str]) -> list[str]:
    """Returns the names in `a,b`, `[a, b]` or a sequence."""
    found = value.strip("[]").split(",") if isinstance(value, str) else value
    return [name.strip() for name in found]


def type_name(annotation: Any) -> str:
    """Returns a type as a user writes its values: `int | null` rather than `typing.Optional[int]`."""
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(type_name(part) for part in get_args(annotation))
    if annotation is NoneType:
        return "null"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
