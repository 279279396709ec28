"""Other sizes of pictures and patches: position embeddings on another grid, patch projections of other patches."""

import keras
import numpy as np

from ..layers import LearnedPositionEmbedding, PatchEmbedding
from ..layers.dense import plain_config, take_weights


def resample_grid(position: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Interpolates a grid of vectors, bicubic (a = -0.5) and antialiased, pixel centres aligned.

    Args:
        position: Vectors row by row, `(h * w, D)`.
        old: Their grid, `(h, w)`.
        new: The grid wanted, `(H, W)`.

    Returns:
        float32 `(H * W, D)`; the same numbers if the grids are equal.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), section 3.2; the filter is that of Pillow, and of PyTorch's and timm's
        antialiased resampling.
    """
    if tuple(old) == tuple(new):
        return np.asarray(position, "float32")
    grid = np.asarray(position, "float64").reshape(*old, -1)
    grid = np.einsum("Hh,hwd->Hwd", resample_filter(old[0], new[0]), grid)
    grid = np.einsum("Ww,Hwd->HWd", resample_filter(old[1], new[1]), grid)
    return grid.reshape(new[0] * new[1], -1).astype("float32")


def resample_filter(old: int, new: int) -> np.ndarray:
    """Returns what each of `new` samples takes from each of `old`, float64 `(new, old)`, rows summing to 1."""
    scale = old / new
    centre = (np.arange(new)[:, None] + 0.5) * scale - 0.5
    x = np.abs(np.arange(old) - centre) / max(scale, 1.0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def resample_patches(kernel: np.ndarray, patch_size: int) -> np.ndarray:
    """Fits a patch projection to patches of another size.

    Args:
        kernel: `(p, p, C, D)`.
        patch_size: The size P that is wanted.

    Returns:
        float32 `(P, P, C, D)`. Where P > p, it gives for an enlarged patch exactly what `kernel` gives for the patch;
        else it comes nearest to that.

    Reference:
        Beyer et al., "FlexiViT: One Model for All Patch Sizes" (arXiv:2212.08013), section 3.4, PI-resize: the
        pseudoinverse of the transposed resizing, here bicubic and antialiased.
    """
    if len(kernel) == patch_size:
        return np.asarray(kernel, "float32")
    back = np.linalg.pinv(resample_filter(len(kernel), patch_size).T)  # (P, p)
    return np.einsum("Hh,Ww,hwcd->HWcd", back, back, np.asarray(kernel, "float64")).astype("float32")


def fit_positions(
    position: np.ndarray, old: tuple[int, int], num_prefix: int, layer: LearnedPositionEmbedding
) -> np.ndarray:
    """Brings position embeddings to the grid and the prefix tokens of a layer.

    Args:
        position: `(1, num_prefix + h * w, D)`.
        old: Its grid, `(h, w)`.
        num_prefix: Positions of prefix tokens that stand before the grid: kept as they are, or zero if there are
            none but the layer has some.
        layer: What it is for.

    Returns:
        float32 `(1, P + H * W, D)`.
    """
    prefix, grid = position[0, :num_prefix], position[0, num_prefix:]
    if not num_prefix:
        prefix = np.zeros((layer.num_prefix, position.shape[-1]), "float32")
    return np.concatenate([prefix, resample_grid(grid, old, layer.grid_size)])[None].astype("float32")


def resize(model: keras.Model, image_size: int | tuple[int, int]) -> keras.Model:
    """Builds the same model, with the same weights, for pictures of another size.

    Args:
        model: A functional model of our layers, as `create_model` returns. It is left as it is.
        image_size: Height and width in pixels, or one number for both; the patch must divide them.

    Returns:
        A new model, not compiled. Learned positions are interpolated, fixed ones computed anew; LoRA is merged.

    Raises:
        ValueError: the patch does not divide the size, or the model has no patch embedding.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    patches = [layer for layer in model.layers if isinstance(layer, PatchEmbedding)]
    if not patches:
        raise ValueError(f"model must have a PatchEmbedding to change its size. Received: model={model.name!r}")
    grid_size = patches[0].grid_size((None, height, width, 3))

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = plain_config(layer)
        if "grid_size" in config:
            config["grid_size"] = grid_size
        return type(layer).from_config(config)

    inputs = keras.Input((height, width, 3), dtype=model.input.dtype, name=model.input.name)
    resized = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    for old, new in zip(model.layers, resized.layers, strict=True):
        if isinstance(new, LearnedPositionEmbedding):
            new.set_weights([fit_positions(old.get_weights()[0], old.grid_size, old.num_prefix, new)])
        else:
            take_weights(new, old)
    return resized
