"""What can be seen in the weights alone: filters and positions."""

import keras
import numpy as np

from ..graph import is_functional, layers_of
from ..layers import (
    LearnedPositionEmbedding,
    PatchEmbedding,
    Sincos1DPositionEmbedding,
    Sincos2DPositionEmbedding,
)
from .layout import TokenLayout

_POSITIONS = (LearnedPositionEmbedding, Sincos1DPositionEmbedding, Sincos2DPositionEmbedding)


def convolution_filters(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the filters of every layer that convolves pictures or feature maps, those of nested models included.

    Args:
        model: A functional model; `PatchEmbedding`s count, as they are convolutions.

    Returns:
        Layer name to filters, `(count, kernel height, kernel width, channels)`; with three channels they can be shown
        as RGB. Empty where nothing is convolved.

    Raises:
        ValueError: a subclassed model.
    """
    if not is_functional(model):
        raise ValueError(f"model must be functional or sequential. Received: a {type(model).__name__}")
    found = {}
    for layer in layers_of(model):
        convolution = layer.projection if isinstance(layer, PatchEmbedding) else layer
        if type(convolution) is keras.layers.Conv2D:
            kernel = keras.ops.convert_to_numpy(convolution.kernel)  # (kh, kw, C, count)
            if isinstance(layer, PatchEmbedding):  # A rewritten model's has a row of pixels as channels.
                kernel = kernel.reshape(layer.patch_size, layer.patch_size, -1, layer.hidden_dim)
            found[layer.name] = np.transpose(kernel, (3, 0, 1, 2)).astype("float32")
    return found


def patch_filters(model: keras.Model) -> np.ndarray:
    """Returns the filters of the patch embedding, `(D, patch_size, patch_size, 3)`, for normalised pictures.

    Raises:
        ValueError: the model is subclassed, or has not exactly one `PatchEmbedding`.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), figure 7 (left).
    """
    TokenLayout.of(model)
    name = next(layer.name for layer in layers_of(model) if isinstance(layer, PatchEmbedding))
    return convolution_filters(model)[name]


def principal_components(filters: np.ndarray, count: int = 28) -> np.ndarray:
    """Returns the directions in which filters differ most, most important first.

    Args:
        filters: `(D, height, width, channels)`.
        count: How many at most; there are no more than filters or weights in a filter.

    Returns:
        `(count, height, width, channels)`, each of length 1.

    Raises:
        ValueError: fewer than one component.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), figure 7 (left): the first 28 components of ViT-L/32's filters.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1. Received: count={count}")
    flat = filters.reshape(len(filters), -1).astype("float64")
    _, _, directions = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    return directions[:count].reshape(-1, *filters.shape[1:]).astype("float32")


def position_similarity(model: keras.Model) -> np.ndarray:
    """Compares the position embeddings of patches with each other.

    Args:
        model: A functional model with one patch embedding and one position embedding, learned or fixed.

    Returns:
        `(height, width, height, width)`: the cosine similarity of each patch's position to every other's.

    Raises:
        ValueError: the model is subclassed, or has no position embedding.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), figure 7 (middle).
    """
    layout = TokenLayout.of(model)
    layers = [layer for layer in layers_of(model) if isinstance(layer, _POSITIONS)]
    if not layers:
        raise ValueError(f"model must have a position embedding. Received: model={model.name!r}")
    height, width = layout.grid
    vectors = keras.ops.convert_to_numpy(layers[0].position)[0, -height * width :]  # (N, D): prefix tokens come first.
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return (vectors @ vectors.T).reshape(height, width, height, width)
