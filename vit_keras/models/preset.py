"""What is known about a published or ready-made configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

SIZES = {
    # name: hidden_dim, num_layers, num_heads, mlp_dim
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "medium": (512, 12, 8, 2048),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    # Ours, for small pictures and small devices.
    "micro": (96, 4, 6, 192),
    "mini": (192, 6, 3, 384),
}
"""The usual sizes of plain Vision Transformers."""
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Preset:
    """A named configuration of a backbone builder, and the facts that go with it.

    Attributes:
        builder: Function that returns the backbone.
        arguments: Keyword arguments of `builder`, `image_size` included.
        source: Paper, and table or section, or what the configuration is for.
        mean: Mean per RGB channel that the input is normalised with, in pixel values 0 to 255.
        std: Standard deviation per RGB channel, likewise.
        interpolation: How pictures are resized for the published weights: `"bicubic"` or `"bilinear"`.
        crop_fraction: Share of the shorter side that the middle crop keeps, in (0, 1].
        head_arguments: Keyword arguments of the classification head.
        parameters: Published number of parameters with a head of 1000 classes; `None` where nobody published one.
        licence: Licence of the published weights; `None` where there are none.
    """

    builder: Callable[..., keras.Model]
    arguments: Mapping[str, Any]
    source: str
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0
    head_arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    licence: str | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Input size `(height, width)` in pixels."""
        return self.arguments["image_size"]


def size_arguments(size: str, patch_size: int, image_size: int) -> dict[str, Any]:
    """Returns the builder's arguments for one of the usual sizes."""
    hidden_dim, num_layers, num_heads, mlp_dim = SIZES[size]
    return {
        "image_size": (image_size, image_size),
        "patch_size": patch_size,
        "hidden_dim": hidden_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
    }
