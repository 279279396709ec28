"""A stand-in for torchvision, so that timm's models can be imported where it has no build for the installed torch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("", ".datasets", ".models.feature_extraction", ".ops.misc", ".transforms", ".transforms.functional")


class Anything(type):
    """A class whose every attribute is another such class."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """While it lasts, `import torchvision` finds the stand-in. Nothing of it may be called for a result."""
    for name in NAMES:
        sys.modules["torchvision" + name] = Anything("torchvision", (), {"__spec__": None, "__path__": []})  # type: ignore
    try:
        yield
    finally:
        for name in NAMES:
            del sys.modules["torchvision" + name]
