"""What the quantisers need to know of real data: sample pictures, and the range of every tensor on them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


def sample(batches: Iterable[np.ndarray], image_size: tuple[int, int], limit: int = 200) -> np.ndarray:
    """Collects the pictures that the ranges of integer tensors are measured on.

    The first picture gets one black and one white corner pixel, so that the input's range is exactly 0 to 255 and a
    uint8 input needs no scaling: the bytes of a picture go in as they are.

    Args:
        batches: Batches of pictures, `(B, H, W, 3)`, 0 to 255.
        image_size: Height and width that the model takes, in pixels.
        limit: Most pictures to take; a few hundred give the true range of almost every tensor.

    Returns:
        `(n, H, W, 3)` float32 with 1 <= n <= `limit`.

    Raises:
        ValueError: no picture, or pictures of another size, with NaN, or outside 0 to 255.
    """
    taken, missing = [], limit
    for batch in batches:
        batch = np.asarray(batch, "float32")[:missing]
        if batch.shape[1:] != (*image_size, 3):
            raise ValueError(
                f"calibration pictures must have the model's shape, (n, {image_size[0]}, {image_size[1]}, 3). "
                f"Received: shape={batch.shape}"
            )
        if not (batch.min(initial=0) >= 0 and batch.max(initial=0) <= 255):
            raise ValueError(
                "calibration pictures must hold pixels 0 to 255 and no NaN. "
                f"Received: min={batch.min()}, max={batch.max()}"
            )
        taken.append(batch)
        missing -= len(batch)
        if not missing:
            break
    if missing == limit:
        raise ValueError("calibration must hold at least one picture. Received: none")
    pictures = np.concatenate(taken)
    pictures[0, 0, 0], pictures[0, 0, -1] = 0, 255
    return pictures


@dataclass(frozen=True)
class Observed:
    """What an activation did on the sample pictures.

    Attributes:
        low: Its minimum, `(1, ..., 1)` of the tensor's rank.
        high: Its maximum, likewise.
    """

    low: np.ndarray
    high: np.ndarray


RANGES: dict[str, str] = {
    "minmax": "the true minimum and maximum: nothing is cut",
    "percentile": "without the lowest and the highest hundred-thousandth",
    "mse": "the range with the least mean square error in 8 bits",
}
"""How the range of an activation is chosen from what it did on the sample pictures."""

_SAMPLE = 2048
"""Values of an activation that are kept of each batch, to choose a range from."""


def observe(float32: bytes, batches: Iterable[np.ndarray], ranges: str = "minmax") -> dict[str, Observed]:
    """Measures the range of every activation.

    Args:
        float32: Content of a float32 TensorFlow Lite file with one input.
        batches: Pictures as the file takes them, `(B, H, W, 3)`.
        ranges: A name in `RANGES`. The pixels keep their whole range.

    Returns:
        Tensor name to what was observed.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=float32,
        num_threads=os.cpu_count(),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    image_input = interpreter.get_input_details()[0]["index"]
    written = {int(index) for operator in interpreter._get_ops_details() for index in operator["outputs"]}
    names = {
        detail["index"]: detail["name"]
        for detail in interpreter.get_tensor_details()
        if detail["index"] in written | {image_input} and detail["dtype"] == np.float32
    }
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    ranks = {}
    samples: dict[int, list[np.ndarray]] = {index: [] for index in names}
    rng = np.random.default_rng(0)
    for batch in batches:
        interpreter.set_tensor(image_input, batch)
        interpreter.invoke()
        for index in names:
            values = interpreter.get_tensor(index)
            low[index], high[index] = min(low[index], values.min()), max(high[index], values.max())
            ranks[index] = values.ndim
            if ranges != "minmax":
                samples[index].append(rng.choice(values.ravel(), min(_SAMPLE, values.size), replace=False))
    for index in names if ranges != "minmax" else ():
        if index != image_input:
            low[index], high[index] = _cut(np.concatenate(samples[index]), low[index], high[index], ranges)
    return {
        name: Observed(*(np.full((1,) * ranks[index], end[index], "float32") for end in (low, high)))
        for index, name in names.items()
    }


def _cut(sample: np.ndarray, low: float, high: float, ranges: str) -> tuple[float, float]:
    """Returns the part of `low` to `high` that a method keeps."""
    if ranges == "percentile":
        inner_low, inner_high = np.quantile(sample, [1e-5, 1 - 1e-5])
        return max(low, inner_low), min(high, inner_high)
    best = (_error(sample, low, high), low, high)
    for share in np.linspace(0.3, 1, 36) if low < 0 else ():
        best = min(best, (_error(sample, low * share, best[2]), low * share, best[2]))
    for share in np.linspace(0.3, 1, 36) if high > 0 else ():
        best = min(best, (_error(sample, best[1], high * share), best[1], high * share))
    return best[1], best[2]


def _error(sample: np.ndarray, low: float, high: float) -> float:
    """The mean square error of 8-bit integers over a range, which always holds zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / 255, 1e-30)
    return float(np.square(np.clip(np.rint((sample - low) / step), 0, 255) * step + low - sample).mean())
