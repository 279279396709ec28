"""Channels that stand out in a rewritten model: LayerNorm's results and the product after them share their size."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from .inference_layers import InferenceAttention, InferenceMLP, InferenceNormalization, InferenceReadout

OUTLIER = 5.0
"""How many times as large as the median a channel is that stands out: without one, nothing is smoothed."""
TOKENS = 2048
"""Tokens that are looked at, of 4 to 32 pictures: in ViT-B/16, 32 pictures take longer than all else before the
converter."""


def smoothing_factors(lean: keras.Model, pictures: np.ndarray | None) -> dict[str, np.ndarray]:
    """Returns, for each LayerNorm with a channel that stands out, factors for its results.

    A channel that is large in the results spoils the range of all others, one that is large in the product's kernel
    that of all weights: half of each, in logarithms, moves to the other side.

    Reference:
        Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
        (arXiv:2211.10438), equation 4 with alpha = 0.5.
    """
    layers = {layer.name: layer for layer in lean.layers}
    kernels = {}
    for name, layer in layers.items():
        if isinstance(layer, InferenceNormalization) and not layer.affine:
            after = layers.get(name.removesuffix("_norm"))
            if isinstance(after, (InferenceAttention, InferenceReadout, InferenceMLP)):
                kernels[name] = after.token_kernel()
    sizes = {name: np.ones(len(kernel)) for name, kernel in kernels.items()}
    if pictures is not None and kernels:
        probe = keras.Model(lean.inputs, [ops.max(ops.abs(layers[name].output), axis=1) for name in kernels])
        results = keras.tree.flatten(probe.predict(pictures[: _enough(layers)], batch_size=4, verbose=0))
        sizes = {name: result.max(axis=0) for name, result in zip(kernels, results, strict=True)}
    factors = {}
    for name, kernel in kernels.items():
        result, weight = (size / _median(size) for size in (sizes[name], np.abs(kernel).max(axis=1)))
        if max(result.max(), weight.max()) > OUTLIER:
            factors[name] = np.sqrt(np.maximum(weight, 1e-3) / np.maximum(result, 1e-3))
    return factors


def _median(sizes: np.ndarray) -> float:
    """The median of the channels that are not zero throughout: more than half of them may have been pruned."""
    return max(float(np.median(sizes[sizes > 0])) if sizes.any() else 0.0, 1e-12)


def _enough(layers: Mapping[str, keras.layers.Layer]) -> int:
    """Returns how many pictures show which channels stand out: each has as many results as it has tokens."""
    tokens = max(layer.output.shape[1] for layer in layers.values() if isinstance(layer, InferenceNormalization))
    return max(4, min(32, TOKENS // tokens))


def smoothed_channels(lean: keras.Model) -> dict[str, np.ndarray]:
    """Returns the factors that `"smoothing"` gave a model's LayerNorms, by name; none where no channel stood out."""
    norms = (layer for layer in lean.layers if isinstance(layer, InferenceNormalization) and layer.scale)
    return {layer.name: layer.get_weights()[0] for layer in norms}
