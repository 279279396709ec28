"""How a model is trained, as it is told: steps, what of a pretrained model trains, and a teacher."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .settings import names, require

OPTIMIZERS = ("adamw", "muon", "lion", "lamb", "sgd")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


IMMATERIAL = ("checkpoint_steps", "jit", "tensorboard")
"""Settings that do not change where a training arrives: they may change in one that was interrupted."""


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
        clip_norm: Largest global norm of the gradient, > 0; not clipped if null.
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
    clip_norm: float | None = 1.0
    ema: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    jit: bool = True
    patience: int | None = 30
    checkpoint_steps: int | None = None
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs is None or self.epochs >= 1, "fit.epochs", "a number >= 1", self.epochs)
        require(self.batch_size >= 1, "fit.batch_size", "a number >= 1", self.batch_size)
        require(self.optimizer in OPTIMIZERS, "fit.optimizer", f"one of {', '.join(OPTIMIZERS)}", self.optimizer)
        require(0 < self.learning_rate < math.inf, "fit.learning_rate", "a number > 0", self.learning_rate)
        require(self.warmup_epochs >= 0, "fit.warmup_epochs", "a number >= 0", self.warmup_epochs)
        require(0 < self.layer_decay <= 1, "fit.layer_decay", "above 0 to 1", self.layer_decay)
        require(0 <= self.weight_decay < math.inf, "fit.weight_decay", "a number >= 0", self.weight_decay)
        require(0 <= self.label_smoothing < 1, "fit.label_smoothing", "0 to below 1", self.label_smoothing)
        clip = self.clip_norm
        require(clip is None or 0 < clip < math.inf, "fit.clip_norm", "a number > 0, or null", clip)
        require(0 <= self.ema < 1, "fit.ema", "0 to below 1", self.ema)
        require(self.accumulate >= 1, "fit.accumulate", "a number >= 1", self.accumulate)
        require(self.precision in PRECISIONS, "fit.precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        require(self.patience is None or self.patience >= 1, "fit.patience", "a number >= 1", self.patience)
        steps = self.checkpoint_steps
        require(steps is None or steps >= 1, "fit.checkpoint_steps", "a number >= 1", steps)
        require(0 <= self.seed < 2**32, "fit.seed", "0 to 2**32 - 1", self.seed)


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
        require(self.method in ADAPT_METHODS, "adapt.method", f"one of {', '.join(ADAPT_METHODS)}", self.method)
        require(self.rank >= 1, "adapt.rank", "a number >= 1", self.rank)
        require(self.alpha is None or self.alpha > 0, "adapt.alpha", "a number > 0", self.alpha)
        object.__setattr__(self, "targets", tuple(names(self.targets)))
        known = ("qkv", "out", "expand", "contract")
        fits = bool(self.targets) and set(self.targets) <= set(known)
        require(fits, "adapt.targets", f"some of {', '.join(known)}", ",".join(self.targets))
        require(self.prompts >= 1, "adapt.prompts", "a number >= 1", self.prompts)
        require(0 <= self.prompt_dropout < 1, "adapt.prompt_dropout", "0 to below 1", self.prompt_dropout)

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
        require(self.kind in ("hard", "soft"), "distill.kind", "hard or soft", self.kind)
        require(0 <= self.alpha <= 1, "distill.alpha", "0 to 1", self.alpha)
        require(0 < self.temperature < math.inf, "distill.temperature", "a number > 0", self.temperature)

    def arguments(self) -> dict[str, Any]:
        """Returns them as `Distiller` calls them, without the teacher."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "teacher"}
