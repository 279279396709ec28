"""What the dataclasses of settings share."""

from collections.abc import Sequence
from typing import Any


def require(holds: bool, name: str, expected: str, value: Any) -> None:
    """Refuses the value of a setting that does not hold, with a `ValueError` that names the setting."""
    if not holds:
        raise ValueError(f"{name} must be {expected}. Received: {name}={value}")


def names(value: str | Sequence[str]) -> list[str]:
    """Returns the names in `a,b`, `[a, b]` or a sequence."""
    found = value.strip("[]").split(",") if isinstance(value, str) else value
    return [name.strip() for name in found]
