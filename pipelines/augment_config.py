"""How training pictures are changed, as it is told: policies, and what is given over them."""

import dataclasses
import math
from dataclasses import dataclass

from .settings import require


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training pictures, drawn anew in every epoch. What is not given is as in the policy.

    Attributes:
        policy: "none"; "light" for small sets: shift, rotation, zoom; "crop_flip"; "rand_augment" as DeiT was trained:
            crop, flip, RandAugment, erasing, MixUp, CutMix; "three_augment" as DeiT III: crop, flip, 3-Augment, jitter,
            MixUp, CutMix.
        crop_area: Smallest share of the area that a random resized crop keeps, above 0 to 1; 1 for no random crop.
        shift: Largest shift, as a share of the picture's side, 0 to 1.
        rotation: Largest rotation in degrees, 0 to 180.
        zoom: Largest zoom in or out, as a share of the size, 0 to below 1.
        fill: What lies outside a warped picture, 0 (black) to 255 (white).
        noise: Standard deviation of Gaussian noise, as a share of the range from black to white, 0 to 1; "light" has
            0.15 for a model that takes up to 16 pixels.
        flip: Whether to mirror half of the pictures left to right; right for photographs, wrong for digits.
        rand_augment: RandAugment's magnitude, 0 (off) to 10.
        rand_augment_ops: Operations that it draws for a picture, >= 1.
        three_augment: Whether each picture is made gray, solarized or blurred.
        color_jitter: Largest change of brightness, contrast and saturation, as a share, 0 to 1.
        erasing: Share of the pictures of which a rectangle is painted over, 0 to 1.
        mixup: Alpha of MixUp's Beta distribution, >= 0; 0 for none.
        cutmix: Alpha of CutMix's; where both are on, every batch takes one of them.
        repeats: Times that a drawn picture stands in a batch, each time changed otherwise, >= 1.
    """

    policy: str = "light"
    crop_area: float | None = None
    shift: float | None = None
    rotation: float | None = None
    zoom: float | None = None
    fill: int | None = None
    noise: float | None = None
    flip: bool | None = None
    rand_augment: float | None = None
    rand_augment_ops: int | None = None
    three_augment: bool | None = None
    color_jitter: float | None = None
    erasing: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        require(self.policy in POLICIES, "augment.policy", f"one of {', '.join(POLICIES)}", self.policy)

        def check(name: str, low: float, high: float, expected: str) -> None:
            value = getattr(self, name)
            require(value is None or low <= value <= high, f"augment.{name}", expected, value)

        check("crop_area", math.ulp(0.0), 1, "above 0 to 1")
        check("rotation", 0, 180, "0 to 180 degrees")
        check("zoom", 0, math.nextafter(1, 0), "0 to below 1")
        check("fill", 0, 255, "0 to 255")
        check("rand_augment", 0, 10, "0 to 10")
        check("rand_augment_ops", 1, 16, "1 to 16")
        for name in ("shift", "noise", "color_jitter", "erasing"):
            check(name, 0, 1, "0 to 1")
        for name in ("mixup", "cutmix"):
            check(name, 0, 100, "0 to 100")
        check("repeats", 1, 64, "1 to 64")

    def changes(self, image_size: tuple[int, int]) -> "Changes":
        """Returns what is done to pictures of a height and width in pixels: the policy, and what is given over it."""
        policy = POLICIES[self.policy]
        if self.policy == "light" and max(image_size) <= 16:
            policy = dataclasses.replace(policy, noise=0.15)
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        given.pop("policy")
        return dataclasses.replace(policy, **given)

    def resolved(self, image_size: tuple[int, int]) -> "AugmentConfig":
        """Returns the configuration with every setting given, for pictures of a height and width in pixels."""
        return AugmentConfig(self.policy, **dataclasses.asdict(self.changes(image_size)))


@dataclass(frozen=True)
class Changes:
    """Random changes of pictures; the attributes are those of `AugmentConfig`, all of them given."""

    crop_area: float = 1.0
    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    fill: int = 0
    noise: float = 0.0
    flip: bool = False
    rand_augment: float = 0.0
    rand_augment_ops: int = 2
    three_augment: bool = False
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1

    @property
    def warps(self) -> bool:
        """Whether pictures are resampled beside the random crop."""
        return bool(self.shift or self.rotation or self.zoom or self.rand_augment)

    @property
    def recolours(self) -> bool:
        """Whether the saturation is changed."""
        return bool(self.rand_augment or self.three_augment or self.color_jitter)

    @property
    def mixes(self) -> bool:
        """Whether pictures of a batch are mixed, and labels become shares of classes."""
        return bool(self.mixup or self.cutmix)


_CROP_FLIP = Changes(crop_area=0.08, flip=True, fill=128)
POLICIES: dict[str, Changes] = {
    "none": Changes(),
    "light": Changes(shift=0.0625, rotation=6.0, zoom=0.05),  # And noise on small pictures.
    "crop_flip": _CROP_FLIP,
    "rand_augment": dataclasses.replace(_CROP_FLIP, rand_augment=9.0, erasing=0.25, mixup=0.8, cutmix=1.0),
    "three_augment": dataclasses.replace(_CROP_FLIP, three_augment=True, color_jitter=0.3, mixup=0.8, cutmix=1.0),
}
"""What the policies of `AugmentConfig` stand for. DeiT: arXiv:2012.12877, table 9; DeiT III: arXiv:2204.07118, 3."""
