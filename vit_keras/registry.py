"""The table of presets, and the one call that makes a ready classifier from it."""

import fnmatch
import inspect
from pathlib import Path
from typing import Any

import keras

from . import weights as checkpoints
from .heads import classifier
from .messages import nearest
from .models.deit import PRESETS as DEIT_PRESETS
from .models.preset import Preset
from .models.vit import PRESETS as VIT_PRESETS

PRESETS: dict[str, Preset] = {**VIT_PRESETS, **DEIT_PRESETS}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the presets that match a shell-style `pattern`, sorted."""
    return sorted(fnmatch.filter(PRESETS, pattern))


def get_preset(name: str) -> Preset:
    """Returns the facts of a preset: input size, normalisation, published parameter count, source.

    Raises:
        ValueError: no preset of that name; the message holds the nearest one.
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown model {name!r}.{nearest(name, PRESETS)} Known models: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def create_model(
    name: str,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    include_preprocessing: bool = True,
    head_dropout_rate: float = 0.0,
    weights: str | Path | None = None,
    **overrides: Any,
) -> keras.Model:
    """Builds a classifier from a preset, with fresh weights or those of a checkpoint.

    Args:
        name: Name of a preset; `list_models()` lists them.
        num_classes: Number of classes, >= 2.
        image_size: Height and width in pixels, or one number for both; the preset's if `None`.
        include_preprocessing: Whether the model's first layer normalises pixels 0 to 255 with the preset's mean and
            standard deviation. Without it the model takes normalised pixels.
        head_dropout_rate: Dropout before the head, in [0, 1).
        weights: Checkpoint to load, as `vit_keras.weights.load` takes it: a path, `https://…` or
            `hf://owner/name[@revision]`. Positions are interpolated to `image_size`, and a head with another number of
            classes is left fresh. `None` for fresh weights.
        **overrides: Arguments of the preset's builder to replace, such as `num_layers=2` or `drop_path_rate=0.1`.

    Returns:
        A functional model from float32 RGB pictures, `(B, H, W, 3)`, to float32 logits, `(B, num_classes)`.

    Raises:
        ValueError: an unknown name or override (the message holds the nearest one), a value that does not fit, or
            weights that do not fit.
        FileNotFoundError: there are no such weights.
    """
    preset = get_preset(name)
    known = inspect.signature(preset.builder).parameters
    for key in overrides:
        if key not in known:
            raise ValueError(f"Unknown argument {key!r} of {name}.{nearest(key, known)} Known: {', '.join(known)}")
    arguments = {"name": name, **preset.arguments, **overrides}
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size or preset.image_size
    arguments["image_size"] = (height, width)
    if include_preprocessing:
        arguments["input_tensor"] = _normalise((height, width), preset)
    try:
        backbone = preset.builder(**arguments)
    except TypeError as error:
        raise ValueError(f"Arguments of {name} must be of the right type. Received: {overrides} ({error})") from error
    model = classifier(backbone, num_classes, head_dropout_rate, **preset.head_arguments)
    if weights is not None:
        checkpoints.load(model, weights)
    return model


def _normalise(image_size: tuple[int, int], preset: Preset) -> keras.KerasTensor:
    """Returns `(pixels - mean) / std` of a new input of pixels, `(B, H, W, 3)`."""
    pixels = keras.Input((*image_size, 3), name="images")
    scale = [1 / std for std in preset.std]
    offset = [-mean / std for mean, std in zip(preset.mean, preset.std, strict=True)]
    return keras.layers.Rescaling(scale, offset, name="normalization")(pixels)
