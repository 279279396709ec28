"""Which layers lose accuracy when they are quantised, and how few must be computed more finely to keep a budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .interpreter import Classifier
from .packing import results_of
from .quantize import Kind, layer_of


@dataclass(frozen=True)
class LayerError:
    """What quantising does to one layer.

    Attributes:
        layer: Name of the Keras layer.
        own: Relative error of the layer's results in a file that is quantised throughout: its own error and what it
            was given, as root mean square over that of the results. NaN where the file has no such tensor.
        alone: Relative error of the logits when this layer is the only one quantised.
    """

    layer: str
    own: float
    alone: float


@dataclass(frozen=True)
class Relaxation:
    """How a file was brought within a budget.

    Attributes:
        drop: Accuracy lost on the validation pictures against the model in float32, in points; negative for a gain.
        first_drop: The same before any layer was relaxed.
        layers: Names of the layers that are computed more finely than the kind has it.
        within: Whether the drop is within the budget.
    """

    drop: float
    first_drop: float
    layers: tuple[str, ...]
    within: bool


def layers_of(float32: bytes) -> tuple[str, ...]:
    """Returns the names of the Keras layers of a converted file, in the order in which they run."""
    return tuple(dict.fromkeys(layer_of(results[0]) for _, results in results_of(float32)))


def layer_errors(
    float32: bytes,
    kind: Kind,
    pictures: np.ndarray,
    make: Callable[[Kind], bytes],
) -> list[LayerError]:
    """Measures what a kind does to each layer.

    Args:
        float32: Content of the float32 file.
        kind: The kind.
        pictures: Sample pictures, `(n, H, W, 3)`; a few dozen do.
        make: Returns the content of a file of a kind.

    Returns:
        One per layer, in the order in which they run. Layers that the kind leaves as they are are left out.
    """
    reference = Classifier(float32).logits(pictures)
    own = _own_errors(float32, make(kind), pictures[:16])
    errors = []
    for layer in layers_of(float32):
        content = make(kind.only(layer))
        alone = relative_error(Classifier(content).logits(pictures), reference)
        if alone:  # Zero where nothing of this layer is quantised.
            errors.append(LayerError(layer, own.get(layer, float("nan")), alone))
    return errors


def _own_errors(float32: bytes, quantised: bytes, pictures: np.ndarray) -> dict[str, float]:
    """Relative errors of the results of every layer in a quantised file."""
    exact, coarse = (Classifier(content, keep_tensors=True) for content in (float32, quantised))
    wrong: dict[str, float] = {}
    power: dict[str, float] = {}
    for i in range(0, len(pictures), exact.batch_size):
        for classifier in (exact, coarse):
            classifier.logits(pictures[i : i + exact.batch_size])
        found = dict(coarse.tensors())
        for name, values in exact.tensors():
            if name in found:
                layer = layer_of(name)
                wrong[layer] = wrong.get(layer, 0) + float(np.square(found[name] - values).sum())
                power[layer] = power.get(layer, 0) + float(np.square(values).sum())
    return {layer: (wrong[layer] / power[layer]) ** 0.5 for layer in wrong if power[layer]}


def relative_error(values: np.ndarray, reference: np.ndarray) -> float:
    """Returns the root mean square error over the spread of the reference's logits within a picture.

    Where all logits of a picture are equal it is over their size, and where they are zero the error itself.
    """
    spread = reference - reference.mean(axis=1, keepdims=True)
    power = np.square(spread).mean() or np.square(reference).mean() or 1
    return float(np.sqrt(np.square(values - reference).mean() / power))


def relax(
    order: Callable[[], Sequence[str]], drop_of: Callable[[tuple[str, ...]], float], max_drop: float
) -> Relaxation:
    """Finds the shortest run of the most sensitive layers that has to be relaxed to keep a budget.

    The number of layers is doubled until the budget is kept, and then halved in between: a drop need not fall with
    every layer, but a try costs a conversion and a validation.

    Args:
        order: Gives the layers, the most sensitive first, none if that is of no use; called only if it is needed.
        drop_of: Points lost with some layers relaxed.
        max_drop: The budget, in points.
    """
    first = drop_of(())
    if first <= max_drop:
        return Relaxation(first, first, (), True)
    layers = tuple(order())
    if not layers:
        return Relaxation(first, first, (), False)
    low, high = 0, 1
    while (drop := drop_of(layers[:high])) > max_drop and high < len(layers):
        low, high = high, min(2 * high, len(layers))
    if drop > max_drop:
        return Relaxation(drop, first, layers, False)
    while high - low > 1:
        middle = (low + high) // 2
        middle_drop = drop_of(layers[:middle])
        if middle_drop <= max_drop:
            high, drop = middle, middle_drop
        else:
            low = middle
    return Relaxation(drop, first, layers[:high], True)
