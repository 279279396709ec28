"""Common corruptions of pictures, each at five strengths."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

STRENGTHS = (1, 2, 3, 4, 5)
_SIDE = 224
"""The numbers of blur and pixelate are for pictures of this side; smaller ones take less."""

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def _gaussian_noise(x: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    return x + rng.normal(0, 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[strength], x.shape)


def _shot_noise(x: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    rate = (60, 25, 12, 5, 3)[strength]
    return rng.poisson(np.maximum(x, 0) / 255 * rate) * (255 / rate)


def _impulse_noise(x: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    hit = rng.uniform(size=x.shape) < (0.03, 0.06, 0.09, 0.17, 0.27)[strength]
    return np.where(hit, 255.0 * rng.integers(0, 2, x.shape), x)


def _blur(x: np.ndarray, strength: int, _rng: np.random.Generator) -> np.ndarray:
    sigma = (1, 2, 3, 4, 6)[strength] * min(x.shape[1:3]) / _SIDE
    sigma = max(sigma, 0.5 * (1 + strength))  # Less would leave small pictures as they are.
    return gaussian_filter(x, (0, sigma, sigma, 0))


def _contrast(x: np.ndarray, strength: int, _rng: np.random.Generator) -> np.ndarray:
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[strength] + mean


def _brightness(x: np.ndarray, strength: int, _rng: np.random.Generator) -> np.ndarray:
    return x + 255 * (0.1, 0.2, 0.3, 0.4, 0.5)[strength]


def _pixelate(x: np.ndarray, strength: int, _rng: np.random.Generator) -> np.ndarray:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[strength]

    def coarse(picture: Image.Image) -> Image.Image:
        width, height = (max(1, int(n * share)) for n in picture.size)
        small = picture.resize((width, height), Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.NEAREST)

    return _through(x, coarse)


def _jpeg(x: np.ndarray, strength: int, _rng: np.random.Generator) -> np.ndarray:
    def coded(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=(25, 18, 15, 10, 7)[strength])
        return Image.open(file)

    return _through(x, coded)


def _through(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    pictures = [Image.fromarray(np.clip(np.rint(picture), 0, 255).astype("uint8")) for picture in x]
    return np.stack([np.asarray(change(picture).convert("RGB"), "float64") for picture in pictures])


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
"""What spoils pictures, by name."""


def corrupt(images: np.ndarray, kind: str, strength: int, seed: int = 0) -> np.ndarray:
    """Spoils pictures.

    Args:
        images: Pixels 0 to 255, `(n, H, W, 3)`.
        kind: A name of `CORRUPTIONS`.
        strength: 1 to 5; 0 leaves them as they are.
        seed: Of the noise.

    Returns:
        Float32 of the same shape, 0 to 255.

    Raises:
        ValueError: an unknown kind or strength.

    Reference:
        Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
        (arXiv:1903.12261), with the numbers of their code for ImageNet-C.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}. Received: kind={kind!r}")
    if strength not in (0, *STRENGTHS):
        raise ValueError(f"strength must be 0 to 5. Received: strength={strength}")
    if strength == 0:
        return np.asarray(images, "float32")
    changed = CORRUPTIONS[kind](np.asarray(images, "float64"), strength - 1, np.random.default_rng([seed, strength]))
    return np.clip(changed, 0, 255).astype("float32")
