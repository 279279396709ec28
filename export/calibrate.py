"""What the quantisers need to know of real data: sample pictures, and the range of every tensor on them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .inspection import all_threads
from .interpreter import Classifier
from .packing import check_model, results_of
from .quantize import layer_of


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
        ValueError: no picture, pictures of another size, with NaN, outside 0 to 255, or all of one colour throughout.
    """
    taken, missing = [], limit
    for batch in batches:
        if isinstance(batch, (tuple, list, dict)):
            raise ValueError(
                "calibration must give batches of pictures alone, arrays of shape (n, H, W, 3). "
                f"Received: a {type(batch).__name__} of {len(batch)}, such as pictures with labels"
            )
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
    if (pictures == pictures[:, :1, :1]).all():
        raise ValueError(
            "calibration pictures must show something: ranges are measured on them. "
            f"Received: {len(pictures)} of one colour throughout"
        )
    pictures[0, 0, 0], pictures[0, 0, -1] = 0, 255
    return pictures


RANGES: dict[str, str] = {
    "minmax": "the true minimum and maximum: nothing is cut",
    "percentile": "without the lowest and the highest hundred-thousandth",
    "mse": "the range with the least mean square error in 8 bits",
    "closest": "whichever of these leaves the logits of sample pictures closest to float32's",
}
"""How the ranges of activations are chosen from what these did on the sample pictures."""

_SAMPLE = 1024
"""Values of an activation that are kept of each picture, to choose a range from."""
_BINS = 4096


_NOTHING = 1e-9
"""An activation that never was larger gets a range of 1: the quantiser's own would be none that a runtime takes."""


@dataclass(frozen=True)
class Observed:
    """What an activation did on the sample pictures.

    Attributes:
        low: Its minimum, `(1, ..., 1)` of the tensor's rank.
        high: Its maximum, likewise.
        sample: Some of its values, `(n,)`; none where nothing shall be cut.
        symmetric: Whether its integers must have no zero point.
    """

    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray = field(default_factory=lambda: np.zeros(0, "float32"))
    symmetric: bool = False

    def cut(self, ranges: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ends of the range that a method in `RANGES` chooses, shaped as `low` and `high`.

        `"closest"`, which is none of them before a file was made with each, cuts nothing.
        """
        way = {"minmax": "_whole", "closest": "_whole", "percentile": "_inner", "mse": "_least_error"}[ranges]
        low, high = getattr(self, way)
        if max(-low, high) < _NOTHING:  # All that is there may have been cut.
            low, high = self._whole
        if max(-low, high) < _NOTHING:
            low, high = 0.0, 1.0
        if self.symmetric:
            high = max(-low, high)
            low = -high * 128 / 127
        return np.full_like(self.low, low), np.full_like(self.high, high)

    @property
    def _whole(self) -> tuple[float, float]:
        return self.low.item(), self.high.item()

    @cached_property
    def _inner(self) -> tuple[float, float]:
        if not self.sample.size:
            return self._whole
        low, high = np.quantile(self.sample, [1e-5, 1 - 1e-5])
        return max(self.low.item(), low), min(self.high.item(), high)

    @cached_property
    def _least_error(self) -> tuple[float, float]:
        return least_error(self.sample, *self._whole) if self.sample.size else self._whole


class RefusedError(ValueError):
    """A model that cannot be quantised."""


def observe(
    float32: bytes,
    batches: Iterable[np.ndarray],
    see: Callable[[str, np.ndarray], None] | None = None,
    sampled: bool = False,
) -> dict[str, Observed]:
    """Looks at every activation.

    Args:
        float32: Content of a float32 TensorFlow Lite file with one input.
        batches: Pictures as the file takes them, `(B, H, W, 3)`.
        see: What else is to see every tensor of every batch: its name and values.
        sampled: Whether to keep a sample of each activation, as other `RANGES` than `"minmax"` need it; not of the
            pixels, which keep their whole range.

    Returns:
        Tensor name to what was observed.

    Raises:
        RefusedError: an activation is no number, or infinite.
    """
    symmetric = second_operands(float32)
    classifier = Classifier(float32, all_threads(), keep_tensors=True)
    ends: dict[str, tuple[float, float]] = {}
    ranks: dict[str, int] = {}
    samples: dict[str, list[np.ndarray]] = {}
    for number, batch in enumerate(batches):
        classifier.set_input(batch)
        classifier.invoke()
        for name, values in chain([(classifier.input_name, batch)], classifier.tensors()):
            if see is not None:
                see(name, values)
            low, high = ends.get(name, (np.inf, -np.inf))
            ends[name] = np.minimum(low, values.min()), np.maximum(high, values.max())
            ranks[name] = values.ndim
            if sampled and name != classifier.input_name:
                samples.setdefault(name, []).append(_drawn(values.ravel(), _SAMPLE * len(batch), number))
    for name in (result for _, results in results_of(float32) for result in results):
        if not np.isfinite(ends.get(name, ())).all():
            raise RefusedError(
                f"{layer_of(name)} gives infinity or NaN on the calibration pictures, in TensorFlow Lite's float32 "
                "arithmetic: no integers stand for that."
            )
    observed = {}
    for name, low_high in ends.items():
        low, high = (np.full((1,) * ranks[name], end, "float32") for end in low_high)
        drawn = np.concatenate(samples.pop(name, [np.zeros(0, "float32")]))
        observed[name] = Observed(low, high, drawn, name in symmetric)
    return observed


def _drawn(values: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Returns a sample of some values, which depends on nothing but these and the seed."""
    if values.size <= most:
        return values
    return values[np.random.default_rng(seed).integers(values.size, size=most)]


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


def least_error(sample: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Returns the part of `low` to `high`, between which a sample lies, where 8-bit integers have the least error."""
    # In float64: float32 has no 4,096 edges between neighbours such as 1 and 1.0003.
    counts, edges = np.histogram(sample.astype("float64"), _BINS, (low, high))
    values = ((edges[:-1] + edges[1:]) / 2)[counts > 0]
    counts = counts[counts > 0]

    def error(low: float, high: float) -> float:
        low, high = min(low, 0.0), max(high, 0.0)  # The range always holds zero.
        step = max((high - low) / 255, 1e-30)
        return float(np.square(np.clip(np.rint((values - low) / step), 0, 255) * step + low - values) @ counts)

    best = (error(low, high), low, high)
    for share in np.linspace(0.3, 1, 36) if low < 0 else ():
        best = min(best, (error(low * share, best[2]), low * share, best[2]))
    for share in np.linspace(0.3, 1, 36) if high > 0 else ():
        best = min(best, (error(best[1], high * share), best[1], high * share))
    return best[1], best[2]
