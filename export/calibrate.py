"""What the quantisers need to know of real data: sample pictures, and the range of every tensor on them."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .interpreter import Classifier
from .packing import check_model


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


def observe(
    float32: bytes,
    batches: Iterable[np.ndarray],
    ranges: str = "minmax",
    see: Callable[[str, np.ndarray], None] | None = None,
) -> dict[str, Observed]:
    """Measures the range of every activation.

    Args:
        float32: Content of a float32 TensorFlow Lite file with one input.
        batches: Pictures as the file takes them, `(B, H, W, 3)`.
        ranges: A name in `RANGES`. The pixels keep their whole range.
        see: What else is to see every tensor of every batch: its name and values.

    Returns:
        Tensor name to what was observed.
    """
    symmetric = second_operands(float32)
    classifier = Classifier(float32, os.cpu_count() or 1, keep_tensors=True)
    ends: dict[str, tuple[float, float]] = {}
    ranks: dict[str, int] = {}
    samples: dict[str, list[np.ndarray]] = {}
    rng = np.random.default_rng(0)
    for batch in batches:
        classifier.set_input(batch)
        classifier.invoke()
        for name, values in chain([(classifier.input_name, batch)], classifier.tensors()):
            if see is not None:
                see(name, values)
            low, high = ends.get(name, (np.inf, -np.inf))
            ends[name] = min(low, values.min()), max(high, values.max())
            ranks[name] = values.ndim
            if ranges != "minmax":
                sample = rng.choice(values.ravel(), min(_SAMPLE, values.size), replace=False)
                samples.setdefault(name, []).append(sample)
    for name, values in samples.items():
        if name != classifier.input_name:
            ends[name] = _cut(np.concatenate(values), *ends[name], ranges)
    for name in symmetric & ends.keys():
        largest = max(map(abs, ends[name]))
        ends[name] = -largest * 128 / 127, largest
    return {
        name: Observed(*(np.full((1,) * ranks[name], end, "float32") for end in low_high))
        for name, low_high in ends.items()
    }


_SAME_SCALE = ("RESHAPE", "SLICE", "SPLIT", "STRIDED_SLICE", "TRANSPOSE")


def second_operands(float32: bytes) -> set[str]:
    """Returns the tensors that are the right one of a BATCH_MATMUL, or share their scale with such a one.

    XNNPACK packs it as it packs weights, and takes a product of two int8 tensors only where its zero point is 0: such
    tensors have symmetric ranges.

    Args:
        float32: Content of a TensorFlow Lite file.

    Returns:
        Names of tensors.
    """
    model = check_model(float32)
    graph = model.Subgraphs(0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    codes = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
    same_scale = {getattr(schema.BuiltinOperator, name) for name in _SAME_SCALE}
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    found = {o.Inputs(1) for o in operators if codes[o.OpcodeIndex()] == schema.BuiltinOperator.BATCH_MATMUL}
    moves = [
        {int(i) for i in (*operator.InputsAsNumpy(), *operator.OutputsAsNumpy()) if graph.Tensors(int(i)).Type() == 0}
        for operator in operators
        if codes[operator.OpcodeIndex()] in same_scale
    ]
    while joined := [tensors for tensors in moves if tensors & found and not tensors <= found]:
        found |= set().union(*joined)
    return {graph.Tensors(index).Name().decode() for index in found}


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
