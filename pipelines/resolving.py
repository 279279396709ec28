"""What a configuration leaves open, and its data and its preset decide."""

import dataclasses
import math
from pathlib import Path

from vit_keras import get_preset

from .config import RunConfig
from .datasets import ImageData, median_side


def folder_of(config: RunConfig) -> Path:
    """Returns the folder that a run of this configuration goes into."""
    if config.out:
        return Path(config.out)
    data = Path(config.data).expanduser().resolve()
    return Path("runs") / (data.stem if data.suffix in (".csv", ".npz") else data.name).replace(":", "_")


def resolve(config: RunConfig, data: ImageData) -> RunConfig:
    """Returns the configuration with the model, the size of the pictures, the epochs and all else given."""
    name = config.model if config.model != "auto" else _fitting_model(data)
    epochs = config.fit.epochs
    if epochs is None:
        steps_per_epoch = max(1, len(data.train) // config.fit.batch_size)
        epochs = max(20, min(120, math.ceil(2000 / steps_per_epoch)))
    fit = dataclasses.replace(config.fit, epochs=epochs)
    config = dataclasses.replace(config, model=name, out=str(folder_of(config)), fit=fit)
    directory = config.input.dir and str(Path(config.input.dir).expanduser().resolve())
    places = dataclasses.replace(config.input, dir=directory)
    return resolve_sizes(dataclasses.replace(config, data=_from_anywhere(config.data), input=places))


def resolve_sizes(config: RunConfig) -> RunConfig:
    """Returns the configuration with all given that its preset decides: how pictures are cut, and changed in size."""
    preset = get_preset(config.model)
    image_size = config.input.image_size or preset.image_size
    image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
    interpolation = config.input.interpolation or preset.interpolation
    crop_fraction = config.input.crop_fraction or preset.crop_fraction
    return dataclasses.replace(
        config,
        input=dataclasses.replace(
            config.input, image_size=image_size, interpolation=interpolation, crop_fraction=crop_fraction
        ),
        augment=config.augment.resolved(image_size),
    )


def _from_anywhere(data: str) -> str:
    """Names data so that they are found from another folder than this one too."""
    path = Path(data).expanduser()
    return str(path.resolve()) if data != "digits" and path.exists() else data


def _fitting_model(data: ImageData) -> str:
    """Chooses the small preset whose input size is next to the pictures' own."""
    presets = ("vit_micro_patch2_8", "vit_mini_patch4_28", "vit_mini_patch4_32", "vit_mini_patch8_64")
    side = median_side(data.train)
    return min(presets, key=lambda name: abs(math.log(get_preset(name).image_size[0] / side)))
