"""How far attention reaches, and how sharp it is."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from .attention import tapped_model
from .layout import TokenLayout


@dataclass(frozen=True)
class AttentionStatistics:
    """Of every block and head, averaged over pictures and tokens.

    Attributes:
        distance: Mean attention distance in pixels, `(L, H)`.
        entropy: Entropy of the attention weights in nats, `(L, H)`: 0 where a token takes from one other only, log of
            the number of tokens where it takes from all alike.
        most: That largest entropy.
    """

    distance: np.ndarray
    entropy: np.ndarray
    most: float


def attention_statistics(model: keras.Model, images: np.ndarray, batch_size: int = 32) -> AttentionStatistics:
    """Measures how far each head looks, and how sharply.

    Args:
        model: A functional model with one patch embedding and transformer blocks.
        images: Pictures as the model takes them, `(n, H, W, 3)`.
        batch_size: Pictures at a time; memory grows with it, not with n.

    Raises:
        ValueError: the model is subclassed, or has no transformer block or no patch embedding.

    Reference:
        Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv:2010.11929), figure 7 (right) and appendix D.7:
        distances between the patches' middles, weighted by attention. Prefix tokens have no place: their rows and
        columns are left out of the distance, and the rest scaled to a sum of 1.
    """
    layout = TokenLayout.of(model)
    tapped = tapped_model(model)
    height, width = layout.grid
    places = np.indices((height, width)).reshape(2, -1).T * layout.patch_size  # (N, 2)
    between = np.linalg.norm(places[:, None] - places[None], axis=-1).astype("float32")  # (N, N)
    distances, entropies = [], []
    for weights in tapped.scores:
        patches = weights[:, :, layout.num_prefix :, layout.num_prefix :]
        patches = patches / ops.maximum(ops.sum(patches, axis=-1, keepdims=True), 1e-12)
        distances.append(ops.mean(ops.sum(patches * between, axis=-1), axis=-1))  # (B, H)
        surprise = -weights * ops.log(ops.maximum(weights, 1e-30))
        entropies.append(ops.mean(ops.sum(surprise, axis=-1), axis=-1))  # (B, H)
    measured = keras.Model(tapped.inputs, [ops.stack(distances, axis=1), ops.stack(entropies, axis=1)])
    distance, entropy = measured.predict(images, batch_size=batch_size, verbose=0)  # (n, L, H)
    most = float(np.log(tapped.scores[0].shape[-1]))
    return AttentionStatistics(distance.mean(axis=0), entropy.mean(axis=0), most)
