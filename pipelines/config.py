"""Everything that a run can be told, as frozen dataclasses. Imports no TensorFlow, so that `--help` is quick."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vit_keras.export.framing import Framing, check_image_sizes
from vit_keras.export.inspection import check_threads
from vit_keras.export.platforms import check_bundles, chosen_platforms
from vit_keras.export.quantize import DEFAULT_KINDS, KINDS, check_kinds, check_merging
from vit_keras.export.targets import kinds_for
from vit_keras.messages import nearest

from .augment_config import POLICIES, AugmentConfig
from .fit_config import OPTIMIZERS, AdaptConfig, DistillConfig, FitConfig
from .settings import names, require, type_name

__all__ = [
    "BALANCES",
    "OPTIMIZERS",
    "POLICIES",
    "AdaptConfig",
    "AugmentConfig",
    "DistillConfig",
    "ExportConfig",
    "FitConfig",
    "InputConfig",
    "RunConfig",
]

BALANCES = ("none", "weights", "sampling")


@dataclass(frozen=True)
class InputConfig:
    """Where pictures come from and how they are cut.

    Attributes:
        dir: Folder in which a TFDS dataset is prepared, or shall be; TFDS's own default if not given.
        image_size: Side of the pictures that the model takes, in pixels, or [height, width]; the preset's if not given.
        interpolation: How pictures are resized, "bilinear" or "bicubic"; as the preset's weights expect if not given.
        crop_fraction: Share of the middle that is kept, above 0 to 1; as the preset's weights expect if not given.
            Pictures that have the model's size already are left as they are.
        split_seed: Seed of the splits that the data do not bring along.
        skip_bad: Whether to leave out files that cannot be used as pictures, with a warning, rather than to stop.
        balance: What is done where classes differ in size, "none", "weights" (a picture counts the more in the loss,
            the rarer its class) or "sampling" (every class is drawn equally often).
    """

    dir: str | None = None
    image_size: int | tuple[int, int] | None = None
    interpolation: str | None = None
    crop_fraction: float | None = None
    split_seed: int = 0
    skip_bad: bool = False
    balance: str = "none"

    def __post_init__(self) -> None:
        known = (None, "bilinear", "bicubic")
        require(self.interpolation in known, "input.interpolation", "bilinear or bicubic", self.interpolation)
        fraction = self.crop_fraction
        require(fraction is None or 0 < fraction <= 1, "input.crop_fraction", "above 0 to 1", fraction)
        require(0 <= self.split_seed < 2**32, "input.split_seed", "0 to 2**32 - 1", self.split_seed)
        require(self.balance in BALANCES, "input.balance", ", ".join(BALANCES), self.balance)
        if self.image_size is not None:
            size = (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)
            object.__setattr__(self, "image_size", size)
            require(len(size) == 2 and min(size) >= 1, "input.image_size", "one or two numbers >= 1", self.image_size)

    @property
    def framing(self) -> Framing:
        """How pictures are brought to the model's size; what is not given is the framing's own default."""
        given = {"interpolation": self.interpolation, "crop_fraction": self.crop_fraction}
        return Framing(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class ExportConfig:
    """Which files are made of the trained model.

    Attributes:
        kinds: Kinds of TensorFlow Lite file, as float32,static_int8; where targets are not given either, all but int4,
            with merge_tokens but those that are integer throughout.
        targets: Places where the files shall run, as cpu,gpu, or all: the kind that suits each is made.
        max_drop: Points of accuracy that a file may lose on the validation pictures, >= 0: layers are computed more
            finely until it does not. What merged patches lose counts too. No limit if not given.
        integer_only: Whether only kinds without any float operator are made; a file that has one all the same, for want
            of an integer kernel, is refused.
        sensitivity: Whether the report shows what quantising does to each layer; takes a conversion per layer.
        image_sizes: Further picture sizes that every file takes, as [160, [192, 256]]: a signature for each.
        bundles: Phones to write a folder for an app for, as android,ios: static_int8 if that is made, else the first
            kind, with its class names, the code that runs it, and a README.
        with_attention: Whether each file is also written with its attention as a second output, which pages and apps
            can draw over the picture; the report says what that costs.
        merge_tokens: Share of the patches that are merged into others that are like them, 0 to 0.5: files compute less,
            and may lose a little accuracy, which counts for max_drop, and for the half a point that int4 may lose.
        saved_model: Whether a SavedModel is written too.
        calibration_pictures: Training pictures that the ranges of integer tensors are measured on, >= 1.
        validation_pictures: Most validation pictures that a file is held to max_drop on, >= 1.
        threads: Threads of the interpreter while latency is measured, 1 to 64.
    """

    kinds: str | tuple[str, ...] = ()
    targets: str | tuple[str, ...] = ()
    max_drop: float | None = None
    integer_only: bool = False
    sensitivity: bool = False
    image_sizes: tuple[int | tuple[int, int], ...] = ()
    bundles: str | tuple[str, ...] = ()
    with_attention: bool = False
    merge_tokens: float = 0.0
    saved_model: bool = True
    calibration_pictures: int = 200
    validation_pictures: int = 2000
    threads: int = 1

    def __post_init__(self) -> None:
        targets = names(self.targets)
        default = [kind for kind in DEFAULT_KINDS if not (self.merge_tokens and KINDS[kind].integer_only)]
        kinds = names(self.kinds) or ([] if targets else default)
        kinds = check_kinds([*kinds, *kinds_for(targets)])
        check_merging(self.merge_tokens, kinds, self.with_attention)
        if self.integer_only:
            floats, kinds = kinds, tuple(kind for kind in kinds if KINDS[kind].integer_only)
            integers = " or ".join(kind.name for kind in KINDS.values() if kind.integer_only)
            require(bool(kinds), "export.kinds", f"{integers} with export.integer_only", ",".join(floats))
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "targets", tuple(targets))
        object.__setattr__(self, "image_sizes", check_image_sizes(self.image_sizes))
        check_bundles(names(self.bundles), kinds)
        object.__setattr__(self, "bundles", tuple(platform.name for platform in chosen_platforms(names(self.bundles))))
        drop = self.max_drop
        require(drop is None or 0 <= drop <= 100, "export.max_drop", "0 to 100 points", drop)
        require(self.validation_pictures >= 1, "export.validation_pictures", ">= 1", self.validation_pictures)
        require(self.calibration_pictures >= 1, "export.calibration_pictures", ">= 1", self.calibration_pictures)
        check_threads(self.threads, "export.threads")


@dataclass(frozen=True)
class RunConfig:
    """A whole run: from pictures to proven files.

    Attributes:
        data: "digits" (ships with scikit-learn), the name of a TFDS dataset, or the path of a folder of class folders
            or of TFRecord files, or of a .csv or .npz file.
        model: Name of a preset (`vit-keras list`), or "auto" for one that fits the size of the pictures.
        weights: Checkpoint to start from: a .npz, .safetensors, .weights.h5 or .keras file, https://... or
            hf://owner/name[@revision]; fresh weights if not given.
        out: The run's folder; "runs/" and the name of the data if not given.
        override: Arguments of the model's builder to replace, such as num_layers.
    """

    data: str = "digits"
    model: str = "auto"
    weights: str | None = None
    out: str | None = None
    override: dict[str, Any] = field(default_factory=dict)
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as plain dictionaries and lists, as it is written to `config.yaml`."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        """Returns the configuration that `to_dict` gave, checked; unknown names are refused."""
        sections: dict[str, type] = {"input": InputConfig, "augment": AugmentConfig, "fit": FitConfig}
        sections |= {"adapt": AdaptConfig, "distill": DistillConfig, "export": ExportConfig}
        _check_names(values, cls, "")
        for name, section in sections.items():
            if name in values:
                _check_names(values[name], section, f"{name}.")
        try:
            return cls(**{k: sections[k](**v) if k in sections else v for k, v in values.items()})
        except TypeError as error:
            raise ValueError(f"A setting is of the wrong type: {error}") from error


def _check_names(values: Any, section: type, prefix: str) -> None:
    """Refuses what is no mapping, and names that the section does not have."""
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'A configuration'} must be a mapping. Received: {values!r}")
    known = {f.name: f.type for f in dataclasses.fields(section)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"Unknown setting {prefix}{name}.{nearest(str(name), known)}")
        if not dataclasses.is_dataclass(known[name]) and not _is_of(value, known[name]):
            expected = type_name(known[name])
            raise ValueError(f"{prefix}{name} must be of type {expected}. Received: {prefix}{name}={value!r}")


def _is_of(value: Any, annotation: Any) -> bool:
    """Whether a value is of a plain type; a whole number is a fraction too. Others are checked where they are used."""
    try:
        return isinstance(value, annotation) or (isinstance(value, int) and isinstance(float(value), annotation))
    except TypeError:
        return True


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
