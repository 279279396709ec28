"""From a checkpoint to the weights of a model, every tensor accounted for."""

import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import ml_dtypes
import numpy as np

from ..layers import TransformerBlock
from ..layers.dense import LORA_WEIGHTS
from .formats import FORMATS, HEADS, PATCHES, POSITION, Format, KerasFormat, Source
from .resample import fit_positions, resample_patches
from .source import fetch
from .tensors import Tensor, TensorFile, open_tensors

logger = logging.getLogger(__name__)

SHOWN = 12
"""Tensors of a kind that an error message lists."""
MAX_PATCHES = 2**16
"""Largest grid of position embeddings that is interpolated: 256 by 256 patches."""
MAX_PATCH_SIZE = 64
"""Largest patch whose projection is resampled."""


@dataclass(frozen=True)
class LoadReport:
    """What came of loading.

    Attributes:
        format: Naming of the file: timm, Hugging Face, Google's ViT, big_vision or Keras.
        head: `"kept"`, or why not: `"dropped: 1000 classes in the file, 10 in the model"`, ...
        resampled: `"14x14 to 24x24"` if position embeddings were interpolated, else `None`.
        patches: `"16x16 to 8x8"` if the patch projection was fitted to patches of another size, else `None`.
        parameters: Number of parameters that were set.
    """

    format: str
    head: str
    resampled: str | None
    patches: str | None
    parameters: int


def load(model: keras.Model, path: str | Path, grid_size: tuple[int, int] | None = None) -> LoadReport:
    """Loads a checkpoint into a model: Google's, timm's, Hugging Face's or ours.

    The naming is recognised by content. Position embeddings are interpolated to the model's grid, and the patch
    projection is fitted to the model's patches. The head is kept if it has the model's number of classes and dropped
    otherwise. The model is changed only if all fits.

    Args:
        model: A functional model of our layers, as `create_model` returns.
        path: A `.npz`, `.safetensors`, `.weights.h5` or `.keras` file; `https://…`, with `#sha256=…` to have it
            checked; or `hf://owner/name[@revision][/file]`.
        grid_size: Grid of the file's position embeddings, `(height, width)` in patches, where it is not square.

    Returns:
        What came of it; the same is logged.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: `hf://` without huggingface_hub.
        ValueError: a file of another kind, a cut-off or damaged one, or tensors that are missing, left over or of
            a wrong shape; the message lists them.
    """
    with open_tensors(fetch(path)) as file:
        return _load(model, file, grid_size)


def _load(model: keras.Model, file: TensorFile, grid_size: tuple[int, int] | None) -> LoadReport:
    naming, tensors = _recognise(model, file)
    num_heads = next((layer.num_heads for layer in model.layers if isinstance(layer, TransformerBlock)), 1)
    sources: dict[str, Source] = {}
    kinds = ("missing in the file", "of a wrong shape", "of a wrong type", "left over in the file")
    problems: dict[str, list[str]] = {kind: [] for kind in kinds}
    for weight in model.weights:
        source = naming.source(weight.path, tuple(weight.shape), num_heads)
        if source:
            sources[weight.path] = source
        else:
            problems["missing in the file"].append(f"{weight.path} {tuple(weight.shape)} (this naming has none)")
    head, ignored = _settle_head(sources, naming, tensors)
    resampled = patches = None
    if PATCHES in sources:
        sources[PATCHES], patches = _settle_patches(model, naming, tensors, sources[PATCHES], num_heads)
    if POSITION in sources:
        try:
            sources[POSITION], resampled = _settle_positions(model, file, naming, tensors, sources[POSITION], grid_size)
        except _NoGridError as error:
            problems["of a wrong shape"].append(str(error))
            ignored = ignored.union(sources.pop(POSITION).names)

    needed = {name: shape for source in sources.values() for name, shape in source.needs().items()}
    for name, shape in needed.items():
        tensor = tensors.get(name)
        if tensor is None:
            problems["missing in the file"].append(f"{name} {shape}")
        elif tensor.shape != shape:
            problems["of a wrong shape"].append(f"{name} {tensor.shape}, {model.name} needs {shape}")
        elif tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
            problems["of a wrong type"].append(f"{name} {tensor.dtype}, expected floating-point numbers")
    left = tensors.keys() - needed.keys() - ignored
    problems["left over in the file"] = [f"{name} {t.shape}" for name, t in tensors.items() if name in left]
    if any(problems.values()):
        raise ValueError(f"{file.path} ({naming.title} naming) does not fit {model.name}.{_listed(problems)}")

    values = {path: _read(source, tensors, file.path) for path, source in sources.items()}
    for weight in model.weights:
        if weight.path in values:
            weight.assign(values[weight.path])
    report = LoadReport(naming.title, head, resampled, patches, sum(value.size for value in values.values()))
    moved = f", positions interpolated from {resampled}" if resampled else ""
    moved += f", patches resampled from {patches}" if patches else ""
    logger.info("%s: %s naming, %d parameters, head %s%s", file.path, report.format, report.parameters, head, moved)
    return report


def _listed(problems: dict[str, list[str]]) -> str:
    lines = ""
    for kind, names in problems.items():
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines += f"\n  {kind} ({len(names)}): {', '.join(names[:SHOWN])}{more}" if names else ""
    return lines


def _settle_head(
    sources: dict[str, Source], naming: Format | KerasFormat, tensors: Mapping[str, Tensor]
) -> tuple[str, set[str]]:
    """Keeps the head or takes it out of `sources`, by the number of classes.

    Returns:
        What became of it, and the tensors of the file that are left out with it.
    """
    ours = {path: source for path, source in sources.items() if path.partition("/")[0] in HEADS}
    theirs = naming.head_tensors(tensors)
    wanted = [shape for source in ours.values() for shape in source.shapes]
    # The biases tell the numbers of classes.
    ours_classes, their_classes = (
        {shape[0] for shape in shapes if len(shape) == 1} for shapes in (wanted, [tensors[n].shape for n in theirs])
    )
    if ours and ours_classes == their_classes:
        return "kept", set()
    for path in ours:
        del sources[path]
    ignored = theirs
    if "representation/kernel" not in sources:
        ignored = theirs | naming.head_tensors(tensors, ("representation",))
    if not theirs:
        return "fresh: none in the file" if ours else "none", ignored
    if not ours:
        return "dropped: the model has none", ignored
    in_file, in_model = (" and ".join(map(str, sorted(classes))) for classes in (their_classes, ours_classes))
    return f"dropped: {in_file or 'unknown'} classes in the file, {in_model} in the model", ignored


def _settle_patches(
    model: keras.Model,
    naming: Format | KerasFormat,
    tensors: Mapping[str, Tensor],
    source: Source,
    num_heads: int,
) -> tuple[Source, str | None]:
    """Returns the source of the patch projection, resampled where patches differ, and a word on that."""
    tensor = tensors.get(source.names[0])
    size, _, *rest = next(weight.shape for weight in model.weights if weight.path == PATCHES)
    if tensor is None or len(tensor.shape) != 4:
        return source, None  # The error that lists all tensors will say so.
    for theirs in {tensor.shape[0], tensor.shape[3]} - {size}:
        found = naming.source(PATCHES, (theirs, theirs, *rest), num_heads)
        if found and found.shapes == (tensor.shape,) and theirs <= MAX_PATCH_SIZE:

            def assemble(arrays: list[np.ndarray], found: Source = found) -> np.ndarray:
                return resample_patches(found.assemble(arrays), size)

            return Source(source.names, (tensor.shape,), assemble), f"{theirs}x{theirs} to {size}x{size}"
    return source, None


class _NoGridError(Exception):
    """Position embeddings that are not of the grid that they should be of."""


def _settle_positions(
    model: keras.Model,
    file: TensorFile,
    naming: Format | KerasFormat,
    tensors: Mapping[str, Tensor],
    source: Source,
    grid_size: tuple[int, int] | None,
) -> tuple[Source, str | None]:
    """Returns the source of the position embeddings, interpolated where grids differ, and a word on that."""
    layer = model.get_layer(POSITION.partition("/")[0])
    tensor = tensors.get(source.names[0])
    if tensor is None or len(tensor.shape) != 3 or (tensor.shape[0], tensor.shape[2]) != (1, source.shapes[0][2]):
        return source, None  # The error that lists all tensors will say so.
    config = file.positions.get(layer.name, {})
    as_in_model = tensor.shape == source.shapes[0] or naming.prefix_positions is not False
    num_prefix = config.get("num_prefix", layer.num_prefix if as_in_model else 0)
    patches = tensor.shape[1] - num_prefix
    side = math.isqrt(max(patches, 0))
    same_count = patches == math.prod(layer.grid_size)
    if grid_size is None and "grid_size" in config:
        grid_size = config["grid_size"]
    if grid_size is None and same_count and (isinstance(naming, KerasFormat) or side**2 != patches):
        grid_size = layer.grid_size
    height, width = grid_size or (side, side)
    if patches > MAX_PATCHES or num_prefix not in (0, layer.num_prefix):
        raise _NoGridError(f"{source.names[0]} {tensor.shape}, of which {num_prefix} are said to be prefix tokens")
    if patches < 1 or height * width != patches:
        grid = f"a grid of {height}x{width}" if grid_size else "a square grid; give grid_size=(height, width)"
        raise _NoGridError(
            f"{source.names[0]} {tensor.shape}, which after {num_prefix} prefix tokens are {patches} positions, "
            f"not {grid}"
        )
    if (height, width) == layer.grid_size and num_prefix == layer.num_prefix:
        return source, None

    def assemble(arrays: list[np.ndarray]) -> np.ndarray:
        return fit_positions(arrays[0], (height, width), num_prefix, layer)

    words = [f"{rows}x{columns}" for rows, columns in ((height, width), layer.grid_size)]
    return Source(source.names, (tensor.shape,), assemble), " to ".join(words) if words[0] != words[1] else None


def _read(source: Source, tensors: Mapping[str, Tensor], path: Path) -> np.ndarray:
    value = source.assemble([np.asarray(tensors[name].read()).astype("float32") for name in source.names])
    if not np.isfinite(value).all():
        raise ValueError(f"{path}: {', '.join(source.names)} holds values that are not finite numbers.")
    return value


def _recognise(model: keras.Model, file: TensorFile) -> tuple[Format | KerasFormat, dict[str, Tensor]]:
    """Returns the naming of a file, and its tensors under the one spelling that the naming's table knows."""
    # Neither the state of generators nor LoRA, which a Keras file holds merged as well, is a weight of a plain model.
    tensors = {
        name: tensor
        for name, tensor in file.tensors.items()
        if "seed_generator/" not in name and name.rpartition("/")[2] not in LORA_WEIGHTS
    }
    if any(name.startswith("layers/") for name in tensors):
        layers = file.layers or [(type(layer).__name__, layer.name) for layer in model.layers]
        return KerasFormat(_containers(layers)), {k: v for k, v in tensors.items() if k.startswith("layers/")}
    # Checkpoints of a training hold the optimiser's state beside the parameters.
    for prefix in ("params/", "opt/target/"):
        inner = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        tensors = inner or tensors
    tensors = _unstacked(tensors)
    for naming in FORMATS:
        renamed = {naming.rename(name): tensor for name, tensor in tensors.items()}
        if naming.mark.format(0) in renamed.keys() | tensors.keys():
            if len(renamed) < len(tensors):
                raise ValueError(f"{file.path}: two tensors stand for the same thing in {naming.title} naming.")
            return naming, renamed
    known = ", ".join(dict.fromkeys(naming.title for naming in FORMATS))
    names = ", ".join(sorted(tensors)[:SHOWN])
    raise ValueError(f"{file.path} must hold a ViT or DeiT named as in {known} or Keras. Received tensors: {names}")


def _containers(layers: list[tuple[str, str]]) -> dict[str, str]:
    """Returns from the names of layers, given as (class, name), to Keras's names in weight files: class and number."""
    counts: Counter[str] = Counter()
    containers = {}
    for class_name, name in layers:
        group = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", class_name)).lower()
        containers[name] = f"{group}_{counts[group]}" if counts[group] else group
        counts[group] += 1
    return containers


def _unstacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes blocks apart that a scan over layers has stacked on a first axis."""
    flat: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, stacked, after = name.partition("Transformer/encoderblock/")
        if not stacked or not tensor.shape:
            flat[name] = tensor
            continue
        read = functools.cache(tensor.read)  # Once for all blocks.
        for i in range(min(tensor.shape[0], 1000)):
            block = Tensor(tensor.shape[1:], tensor.dtype, lambda read=read, i=i: read()[i])
            flat[f"{before}Transformer/encoderblock_{i}/{after}"] = block
    return flat
