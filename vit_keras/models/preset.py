"""What is known about a published or ready-made configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras


@dataclass(frozen=True)
class Preset:
    """A named configuration of a backbone builder, and the facts that go with it.

    Attributes:
        builder: Function that returns the backbone.
        arguments: Keyword arguments of `builder`, `image_size` included.
        mean: Mean per RGB channel that the input is normalised with, in pixel values 0 to 255.
        std: Standard deviation per RGB channel, likewise.
        parameters: Published number of parameters with a head of 1000 classes; `None` where nobody published one.
        source: Paper, and table or section, or what the configuration is for.
        licence: Licence of the published weights; `None` where there are none.
    """

    builder: Callable[..., keras.Model]
    arguments: Mapping[str, Any]
    source: str
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    parameters: int | None = None
    licence: str | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Input size `(height, width)` in pixels."""
        return self.arguments["image_size"]
