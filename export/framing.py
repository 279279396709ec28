"""What a model expects of pictures before it sees them. Imports no TensorFlow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Framing:
    """How a picture is brought to the size that a model takes. A picture that has it already is left as it is.

    Attributes:
        interpolation: `"bilinear"` or `"bicubic"`, with antialiasing.
        crop_fraction: Share of the middle that is kept, in (0, 1]; 1 cuts only what the proportions demand.
    """

    interpolation: str = "bilinear"
    crop_fraction: float = 1.0
