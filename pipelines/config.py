"""Everything that a run can be told, as frozen dataclasses. Imports no TensorFlow, so that `--help` is quick."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from vit_keras.export.framing import Framing, check_image_sizes
from vit_keras.export.quantize import DEFAULT_KINDS, KINDS, check_kinds
from vit_keras.export.targets import kinds_for
from vit_keras.messages import nearest


def _require(holds: bool, name: str, expected: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}. Received: {name}={value}")


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
    """

    dir: str | None = None
    image_size: int | tuple[int, int] | None = None
    interpolation: str | None = None
    crop_fraction: float | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        known = (None, "bilinear", "bicubic")
        _require(self.interpolation in known, "input.interpolation", "bilinear or bicubic", self.interpolation)
        fraction = self.crop_fraction
        _require(fraction is None or 0 < fraction <= 1, "input.crop_fraction", "above 0 to 1", fraction)
        _require(0 <= self.split_seed < 2**32, "input.split_seed", "0 to 2**32 - 1", self.split_seed)
        if self.image_size is not None:
            size = (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)
            object.__setattr__(self, "image_size", size)
            _require(len(size) == 2 and min(size) >= 1, "input.image_size", "one or two numbers >= 1", self.image_size)

    @property
    def framing(self) -> Framing:
        """How pictures are brought to the model's size; what is not given is the framing's own default."""
        given = {"interpolation": self.interpolation, "crop_fraction": self.crop_fraction}
        return Framing(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training pictures, drawn anew in every epoch.

    Attributes:
        shift: Largest shift, as a share of the picture's side, 0 to 1.
        rotation: Largest rotation in degrees, 0 to 180.
        zoom: Largest zoom in or out, as a share of the size, 0 to below 1.
        noise: Standard deviation of Gaussian noise, as a share of the range from black to white, 0 to 1; if not given,
            0.15 for a model that takes up to 16 pixels, and 0 for larger ones.
        flip: Whether to mirror half of the pictures left to right; right for photographs, wrong for digits.
    """

    shift: float = 0.0625
    rotation: float = 6.0
    zoom: float = 0.05
    noise: float | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.shift <= 1, "augment.shift", "0 to 1", self.shift)
        _require(0 <= self.rotation <= 180, "augment.rotation", "0 to 180 degrees", self.rotation)
        _require(0 <= self.zoom < 1, "augment.zoom", "0 to below 1", self.zoom)
        _require(self.noise is None or 0 <= self.noise <= 1, "augment.noise", "0 to 1", self.noise)


@dataclass(frozen=True)
class FitConfig:
    """How the model is trained: AdamW, linear warm-up, cosine decay, early stopping.

    Attributes:
        epochs: Most passes over the training pictures, >= 1; if not given, enough for 2000 steps, within 20 to 120.
        batch_size: Pictures per step, >= 1.
        learning_rate: Peak of the schedule, > 0.
        warmup_epochs: Epochs until the peak is reached, >= 0.
        weight_decay: Decoupled decay of the weights of dense layers and convolutions, >= 0.
        label_smoothing: Share of the target spread over all classes, 0 to below 1.
        clip_norm: Largest global norm of the gradient, > 0.
        patience: Epochs without a lower validation loss after which training stops, >= 1.
        seed: Seed of weights, order, augmentation and dropout.
    """

    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_epochs: int = 3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    patience: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs is None or self.epochs >= 1, "fit.epochs", "a number >= 1", self.epochs)
        _require(self.batch_size >= 1, "fit.batch_size", "a number >= 1", self.batch_size)
        _require(0 < self.learning_rate < math.inf, "fit.learning_rate", "a number > 0", self.learning_rate)
        _require(self.warmup_epochs >= 0, "fit.warmup_epochs", "a number >= 0", self.warmup_epochs)
        _require(0 <= self.weight_decay < math.inf, "fit.weight_decay", "a number >= 0", self.weight_decay)
        _require(0 <= self.label_smoothing < 1, "fit.label_smoothing", "0 to below 1", self.label_smoothing)
        _require(0 < self.clip_norm < math.inf, "fit.clip_norm", "a number > 0", self.clip_norm)
        _require(self.patience >= 1, "fit.patience", "a number >= 1", self.patience)
        _require(0 <= self.seed < 2**32, "fit.seed", "0 to 2**32 - 1", self.seed)


@dataclass(frozen=True)
class ExportConfig:
    """Which files are made of the trained model.

    Attributes:
        kinds: Kinds of TensorFlow Lite file, as float32,static_int8; all but int4 where targets are not given either.
        targets: Places where the files shall run, as cpu,gpu, or all: the kind that suits each is made.
        max_drop: Points of accuracy that a file may lose on the validation pictures, >= 0: layers are computed more
            finely until it does not. No limit if not given.
        integer_only: Whether only kinds without any float operator are made.
        sensitivity: Whether the report shows what quantising does to each layer; takes a conversion per layer.
        image_sizes: Further picture sizes that every file takes, as [160, [192, 256]]: a signature for each.
        saved_model: Whether a SavedModel is written too.
        calibration_pictures: Training pictures that the ranges of integer tensors are measured on, >= 1.
        validation_pictures: Most validation pictures that a file is held to max_drop on, >= 1.
        threads: Threads of the interpreter while latency is measured, >= 1.
    """

    kinds: str | tuple[str, ...] = ()
    targets: str | tuple[str, ...] = ()
    max_drop: float | None = None
    integer_only: bool = False
    sensitivity: bool = False
    image_sizes: tuple[int | tuple[int, int], ...] = ()
    saved_model: bool = True
    calibration_pictures: int = 200
    validation_pictures: int = 2000
    threads: int = 1

    def __post_init__(self) -> None:
        targets = _names(self.targets)
        kinds = _names(self.kinds) or ([] if targets else DEFAULT_KINDS)
        kinds = check_kinds([*kinds, *kinds_for(targets)])
        if self.integer_only:
            kinds = tuple(kind for kind in kinds if KINDS[kind].integer_only)
            _require(bool(kinds), "export.kinds", "integer-only with export.integer_only", self.kinds)
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "targets", tuple(targets))
        object.__setattr__(self, "image_sizes", check_image_sizes(self.image_sizes))
        drop = self.max_drop
        _require(drop is None or 0 <= drop <= 100, "export.max_drop", "0 to 100 points", drop)
        _require(self.validation_pictures >= 1, "export.validation_pictures", ">= 1", self.validation_pictures)
        _require(self.calibration_pictures >= 1, "export.calibration_pictures", ">= 1", self.calibration_pictures)
        _require(self.threads >= 1, "export.threads", "a number >= 1", self.threads)


def _names(value: str | tuple[str, ...]) -> list[str]:
    """The names in `a,b`, `[a, b]` or a sequence."""
    names = value.strip("[]").split(",") if isinstance(value, str) else value
    return [name.strip() for name in names]


@dataclass(frozen=True)
class RunConfig:
    """A whole run: from pictures to proven files.

    Attributes:
        data: "digits" (ships with scikit-learn), the name of a TFDS dataset, or the path of a folder of class folders.
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
    export: ExportConfig = field(default_factory=ExportConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as plain dictionaries and lists, as it is written to `config.yaml`."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        """Returns the configuration that `to_dict` gave, checked; unknown names are refused."""
        sections = {"input": InputConfig, "augment": AugmentConfig, "fit": FitConfig, "export": ExportConfig}
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
            raise ValueError(f"{prefix}{name} must be of type {known[name]}. Received: {prefix}{name}={value!r}")


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
