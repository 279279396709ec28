"""Two spectra that tell how a model computes: frequencies of its feature maps, and curvature of its loss."""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from vit_keras.explain import feature_maps
from vit_keras.graph import flat_copy


@dataclass(frozen=True)
class FourierSpectrum:
    """Frequencies of feature maps, layer by layer.

    Attributes:
        layers: Names, first to last.
        frequencies: As multiples of pi, `(k,)`, 0 to 1.
        amplitudes: Mean log amplitude less that of the mean, `(layers, k)`: what falls steeply is smooth. Layers whose
            maps are smaller are interpolated.
    """

    layers: tuple[str, ...]
    frequencies: np.ndarray
    amplitudes: np.ndarray


def fourier_spectrum(model: keras.Model, images: np.ndarray, points: int = 9, batch_size: int = 16) -> FourierSpectrum:
    """Measures which frequencies each layer's maps hold.

    Args:
        model: A functional model; its layers are those of `vit_keras.explain.feature_maps`, as far as their maps have
            2x2 places or more.
        images: `(n, H, W, 3)`; memory grows with the batch, not with n.
        points: Number of frequencies.
        batch_size: Pictures at a time.

    Raises:
        ValueError: a subclassed model, or one without such layers.

    Reference:
        Park, Kim, "How Do Vision Transformers Work?" (arXiv:2202.06709), figure 2 and section 3: the diagonal of the
        two-dimensional transform, in logarithms, relative to frequency 0. Transformer blocks lower high frequencies,
        convolutions raise them.
    """
    frequencies = np.linspace(0, 1, points)
    total, count = {}, 0
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        for name, maps in feature_maps(model, part, batch_size).items():
            side = min(maps.shape[1:3])
            if side < 2:
                continue
            amplitude = np.log(np.abs(np.fft.fft2(maps, axes=(1, 2))) + 1e-8)  # (n, h, w, C)
            steps = np.arange(side // 2 + 1)
            diagonal = amplitude[:, steps * maps.shape[1] // side, steps * maps.shape[2] // side].mean(axis=-1)
            line = np.interp(frequencies, 2 * steps / side, diagonal.sum(axis=0))
            total[name] = total.get(name, 0) + line
        count += len(part)
    if not total:
        raise ValueError(f"model must have feature maps of 2x2 places or more. Received: model={model.name!r}")
    lines = np.stack([line / count for line in total.values()])
    return FourierSpectrum(tuple(total), frequencies, lines - lines[:, :1])


def hessian_max_eigenvalues(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 16,
    iterations: int = 20,
    seed: int = 0,
) -> np.ndarray:
    """Measures how sharply the loss curves, batch by batch.

    Args:
        model: A functional classifier that gives logits.
        images: `(n, H, W, 3)`.
        labels: `(n,)`.
        batch_size: Pictures of one loss; what does not fill a batch is left out where there are more.
        iterations: Steps of the power iteration.
        seed: Of the directions it starts with.

    Returns:
        The eigenvalue of the loss's Hessian that is largest in size, `(batches,)`; a negative one tells a loss that is
        not convex there.

    Raises:
        ValueError: a subclassed model, or no picture.

    Reference:
        Park, Kim (arXiv:2202.06709), section 2 and figure 4: the spectrum of the Hessian's largest eigenvalues over
        small batches, by power iteration; the cross-entropy alone, without decay.
    """
    if not len(images) or len(images) != len(labels):
        raise ValueError(f"images and labels must be as many, >= 1. Received: {len(images)} and {len(labels)}")
    copy = keras.Model(*flat_copy(model))
    weights = [variable.value for variable in copy.trainable_variables]
    zero = tf.UnconnectedGradients.ZERO
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(reduce_retracing=True)
    def product(pictures, truth, direction):
        """The Hessian times a direction."""
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                value = loss(truth, copy(pictures, training=False))
            slopes = inner.gradient(value, weights, unconnected_gradients=zero)
            along = tf.add_n([tf.reduce_sum(s * d) for s, d in zip(slopes, direction, strict=True)])
        return outer.gradient(along, weights, unconnected_gradients=zero)

    rng = np.random.default_rng(seed)
    size = min(batch_size, len(images))
    found = []
    for start in range(0, len(images) - size + 1, size):
        pictures = tf.constant(np.asarray(images[start : start + size], "float32"))
        truth = tf.constant(np.asarray(labels[start : start + size]))
        direction = _unit([tf.constant(rng.normal(size=w.shape), "float32") for w in weights])
        value = 0.0
        for _ in range(iterations):
            turned = product(pictures, truth, direction)
            value = float(tf.add_n([tf.reduce_sum(t * d) for t, d in zip(turned, direction, strict=True)]))
            direction = _unit(turned)
        found.append(value)
    return np.array(found)


def _unit(parts: list) -> list:
    length = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(part)) for part in parts]))
    return [part / tf.maximum(length, 1e-30) for part in parts]
