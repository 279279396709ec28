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
        _require(self.interpolation in known, "input.interpolation", "bilinear or bicubic", self.interpolation)
        fraction = self.crop_fraction
        _require(fraction is None or 0 < fraction <= 1, "input.crop_fraction", "above 0 to 1", fraction)
        _require(0 <= self.split_seed < 2**32, "input.split_seed", "0 to 2**32 - 1", self.split_seed)
        _require(self.balance in BALANCES, "input.balance", ", ".join(BALANCES), self.balance)
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
        _require(self.policy in POLICIES, "augment.policy", f"one of {', '.join(POLICIES)}", self.policy)

        def check(name: str, low: float, high: float, expected: str) -> None:
            value = getattr(self, name)
            _require(value is None or low <= value <= high, f"augment.{name}", expected, value)

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


OPTIMIZERS = ("adamw", "muon", "lion", "lamb", "sgd")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class FitConfig:
    """How the model is trained: linear warm-up, cosine decay, early stopping.

    Attributes:
        epochs: Most passes over the training pictures, >= 1; if not given, enough for 2000 steps, within 20 to 120.
        batch_size: Pictures per step, >= 1.
        optimizer: "adamw", "muon" (for the blocks' matrices, AdamW for the rest), "lion", "lamb" or "sgd".
        learning_rate: Peak of the schedule, > 0.
        warmup_epochs: Epochs until the peak is reached, >= 0; at most half of them.
        layer_decay: Factor of the learning rate from one block to the one before, above 0 to 1; for fine-tuning.
        weight_decay: Decoupled decay of the weights of dense layers and convolutions, >= 0: not of biases, norms,
            tokens, positions.
        label_smoothing: Share of the target spread over all classes, 0 to below 1.
        clip_norm: Largest global norm of the gradient, > 0.
        ema: Momentum of an exponential moving average of the weights, which is validated and kept, 0 (none) to below 1.
        accumulate: Batches whose gradients make one step, >= 1.
        precision: "float32", "mixed_bfloat16" or "mixed_float16"; files are exported in full precision all the same.
        jit: Whether XLA compiles the step, where it can.
        patience: Epochs without a lower validation loss after which training stops, >= 1; never if null.
        checkpoint_steps: Steps between two states to go on from, >= 1; only at the ends of epochs if not given.
        tensorboard: Whether to write logs for TensorBoard.
        seed: Seed of weights, order, augmentation and dropout.
    """

    epochs: int | None = None
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    warmup_epochs: int = 3
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    ema: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    jit: bool = True
    patience: int | None = 30
    checkpoint_steps: int | None = None
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs is None or self.epochs >= 1, "fit.epochs", "a number >= 1", self.epochs)
        _require(self.batch_size >= 1, "fit.batch_size", "a number >= 1", self.batch_size)
        _require(self.optimizer in OPTIMIZERS, "fit.optimizer", f"one of {', '.join(OPTIMIZERS)}", self.optimizer)
        _require(0 < self.learning_rate < math.inf, "fit.learning_rate", "a number > 0", self.learning_rate)
        _require(self.warmup_epochs >= 0, "fit.warmup_epochs", "a number >= 0", self.warmup_epochs)
        _require(0 < self.layer_decay <= 1, "fit.layer_decay", "above 0 to 1", self.layer_decay)
        _require(0 <= self.weight_decay < math.inf, "fit.weight_decay", "a number >= 0", self.weight_decay)
        _require(0 <= self.label_smoothing < 1, "fit.label_smoothing", "0 to below 1", self.label_smoothing)
        _require(0 < self.clip_norm < math.inf, "fit.clip_norm", "a number > 0", self.clip_norm)
        _require(0 <= self.ema < 1, "fit.ema", "0 to below 1", self.ema)
        _require(self.accumulate >= 1, "fit.accumulate", "a number >= 1", self.accumulate)
        _require(self.precision in PRECISIONS, "fit.precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        _require(self.patience is None or self.patience >= 1, "fit.patience", "a number >= 1", self.patience)
        steps = self.checkpoint_steps
        _require(steps is None or steps >= 1, "fit.checkpoint_steps", "a number >= 1", steps)
        _require(0 <= self.seed < 2**32, "fit.seed", "0 to 2**32 - 1", self.seed)


ADAPT_METHODS = ("full", "head", "bitfit", "lora", "prompt_shallow", "prompt_deep")


@dataclass(frozen=True)
class AdaptConfig:
    """What of a pretrained model trains.

    Attributes:
        method: "full"; "head", a linear probe; "bitfit", biases and the head; "lora", low-rank updates and the head;
            "prompt_shallow" and "prompt_deep", visual prompt tuning.
        rank: Rank of LoRA's updates, >= 1.
        alpha: LoRA's updates are multiplied by alpha / rank; the rank if not given.
        targets: Products that LoRA adapts, as qkv,out or qkv,out,expand,contract.
        prompts: Number of prompts before the first block, or with prompt_deep before each, >= 1.
        prompt_dropout: Dropout on the prompts, 0 to below 1.
    """

    method: str = "full"
    rank: int = 8
    alpha: float | None = None
    targets: str | tuple[str, ...] = "qkv,out"
    prompts: int = 10
    prompt_dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(self.method in ADAPT_METHODS, "adapt.method", f"one of {', '.join(ADAPT_METHODS)}", self.method)
        _require(self.rank >= 1, "adapt.rank", "a number >= 1", self.rank)
        _require(self.alpha is None or self.alpha > 0, "adapt.alpha", "a number > 0", self.alpha)
        object.__setattr__(self, "targets", tuple(_names(self.targets)))
        known = ("qkv", "out", "expand", "contract")
        fits = bool(self.targets) and set(self.targets) <= set(known)
        _require(fits, "adapt.targets", f"some of {', '.join(known)}", ",".join(self.targets))
        _require(self.prompts >= 1, "adapt.prompts", "a number >= 1", self.prompts)
        _require(0 <= self.prompt_dropout < 1, "adapt.prompt_dropout", "0 to below 1", self.prompt_dropout)

    def arguments(self) -> dict[str, Any]:
        """Returns them as `vit_keras.adapt` calls them."""
        return {
            "method": self.method,
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": self.targets,
            "num_prompts": self.prompts,
            "prompt_dropout_rate": self.prompt_dropout,
        }


@dataclass(frozen=True)
class DistillConfig:
    """A teacher that the model learns from beside the labels, as in DeiT.

    Attributes:
        teacher: Folder of a run, or a .keras file; none if not given.
        kind: "hard" (the teacher's class) or "soft" (its probabilities).
        alpha: Share of the teacher in the loss, 0 to 1.
        temperature: Of soft distillation, above 0.
        teacher_from_logits: Whether the teacher gives logits; otherwise it gives probabilities.
    """

    teacher: str | None = None
    kind: str = "hard"
    alpha: float = 0.5
    temperature: float = 1.0
    teacher_from_logits: bool = True

    def __post_init__(self) -> None:
        _require(self.kind in ("hard", "soft"), "distill.kind", "hard or soft", self.kind)
        _require(0 <= self.alpha <= 1, "distill.alpha", "0 to 1", self.alpha)
        _require(0 < self.temperature < math.inf, "distill.temperature", "a number > 0", self.temperature)

    def arguments(self) -> dict[str, Any]:
        """Returns them as `Distiller` calls them, without the teacher."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "teacher"}


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
            expected = getattr(known[name], "__name__", known[name])
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
