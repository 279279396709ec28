"""Our weights in timm's names, so that nobody is locked in."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from ..layers import PatchEmbedding, Sincos1DPositionEmbedding, Sincos2DPositionEmbedding
from ..layers.dense import LORA_WEIGHTS, merged_weights
from .formats import POSITION, TIMM


def save_timm(model: keras.Model, path: str | Path, overwrite: bool = False) -> Path:
    """Writes a model's weights as safetensors with the names and shapes of timm's `VisionTransformer`.

    timm opens the file with `timm.create_model(name, checkpoint_path=path)`, given the same sizes. Fixed positions
    are written as the `pos_embed` that they amount to; LoRA is merged. Normalisation is not in the file: tell timm's
    transforms the preset's mean and std.

    Args:
        model: A functional model of our layers, as `create_model` returns.
        path: The `.safetensors` file to write.
        overwrite: Whether to replace a file that is there already.

    Returns:
        The path.

    Raises:
        FileExistsError: the file exists and `overwrite` is false.
        ValueError: the model has weights that timm's model has no place for, or is none of ours.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Give overwrite=True to replace it.")
    if not any(isinstance(layer, PatchEmbedding) for layer in model.layers):
        raise ValueError(f"model must be a Vision Transformer of vit_keras. Received: model={model.name!r}")
    tensors: dict[str, np.ndarray] = {}
    for weight, value in _merged(model):
        source = TIMM.source(weight.path, tuple(weight.shape), num_heads=1)
        if source is None or weight.path.startswith("representation/"):
            raise ValueError(f"timm's model has no place for {weight.path}, {tuple(weight.shape)}.")
        parts = TIMM.from_ours(value, len(source.names))
        tensors.update(zip(source.names, parts, strict=True))
    for layer in model.layers:
        if isinstance(layer, (Sincos1DPositionEmbedding, Sincos2DPositionEmbedding)):
            tensors[TIMM.layers[POSITION][0]] = layer.position
    _write(path, {name: np.ascontiguousarray(array, "<f4") for name, array in tensors.items()})
    return path


def _merged(model: keras.Model) -> Iterator[tuple[keras.Variable, np.ndarray]]:
    """Yields a model's variables with their values, LoRA merged."""
    for layer in model.layers:
        plain = [weight for weight in layer.weights if weight.name not in LORA_WEIGHTS]
        yield from zip(plain, merged_weights(layer), strict=True)


def _write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [position, position + array.nbytes]}
        position += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in tensors.values():
                file.write(array.tobytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
