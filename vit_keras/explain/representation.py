"""What the layers of a model hold: feature maps, their likeness to one another, the size of tokens."""

import keras
import numpy as np
from keras import ops

from ..graph import flat_copy
from ..layers import PatchEmbedding, TransformerBlock
from .layout import TokenLayout

_MAPS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)


def tap_outputs(model: keras.Model, kinds: tuple[type, ...]) -> tuple[keras.KerasTensor, dict[str, keras.KerasTensor]]:
    """Copies a model, and returns its input and, by name, what its layers of some kinds give, first to last.

    Raises:
        ValueError: the model is subclassed, or has no such layer.
    """
    found: dict[str, keras.KerasTensor] = {}

    def visit(layer, *args, **kwargs):
        output = layer(*args, **kwargs)
        if isinstance(layer, kinds):
            found[layer.name] = output
        return output

    inputs, _ = flat_copy(model, visit)
    if not found:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"model must have a layer of these: {names}. Received: model={model.name!r}")
    return inputs, found


def feature_model(model: keras.Model) -> tuple[list[str], keras.Model]:
    """Builds a model that gives a list of maps, `(B, h, w, C)`: of the patch embedding, of every block (prefix tokens
    left out) and of every convolution. Returns the layers' names, first to last, and the model.

    Raises:
        ValueError: the model is subclassed, or has no such layer.
    """
    inputs, tensors = tap_outputs(model, (PatchEmbedding, TransformerBlock, *_MAPS))
    maps = []
    for tensor in tensors.values():
        if len(tensor.shape) == 3:
            height, width = TokenLayout.of(model).grid
            patches = tensor[:, tensor.shape[1] - height * width :]  # Prefix tokens and prompts come first.
            tensor = ops.reshape(patches, (-1, height, width, tensor.shape[-1]))
        maps.append(tensor)
    return list(tensors), keras.Model(inputs, maps)


def feature_names(model: keras.Model) -> list[str]:
    """Returns the names of the layers of `feature_maps`, first to last."""
    return feature_model(model)[0]


def feature_maps(model: keras.Model, images: np.ndarray, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Returns what each layer makes of pictures, laid out as maps.

    Args:
        model: A functional model; blocks of tokens and convolutions count.
        images: Pictures as the model takes them, `(n, H, W, 3)`; all maps of all of them are kept.
        batch_size: Pictures at a time.

    Returns:
        Layer name to `(n, h, w, C)`, first layer first.

    Raises:
        ValueError: the model is subclassed, or has no such layer.
    """
    names, features = feature_model(model)
    found = features.predict(images, batch_size=batch_size, verbose=0)
    return dict(zip(names, found if isinstance(found, list) else [found], strict=True))


def token_norms(model: keras.Model, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Measures the length of every token behind every block: outliers among patches of plain background are artefacts,
    which a model uses as memory.

    Args:
        model: A functional model with transformer blocks.
        images: Pictures as the model takes them, `(n, H, W, 3)`.
        batch_size: Pictures at a time; memory grows with it, not with n.

    Returns:
        `(n, L, P + N)`, without learned prompts.

    Raises:
        ValueError: the model is subclassed, or has no transformer block or no patch embedding.

    Reference:
        Darcet et al., "Vision Transformers Need Registers" (arXiv:2309.16588), section 2 and figure 3.
    """
    layout = TokenLayout.of(model)
    inputs, tensors = tap_outputs(model, (TransformerBlock,))
    count = layout.grid[0] * layout.grid[1]
    norms = []
    for tensor in tensors.values():
        lengths = ops.sqrt(ops.sum(ops.square(tensor), axis=-1))  # (B, P + prompts + N)
        before, after = lengths[:, : layout.num_prefix], lengths[:, lengths.shape[1] - count :]
        norms.append(ops.concatenate([before, after], axis=1))
    return np.asarray(keras.Model(inputs, ops.stack(norms, axis=1)).predict(images, batch_size=batch_size, verbose=0))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Compares two representations of the same pictures: 1 where one is the other turned and scaled, 0 if unrelated.

    Args:
        x: Features, `(n, p)`.
        y: Features of the same pictures in the same order, `(n, q)`.

    Raises:
        ValueError: other shapes.

    Reference:
        Kornblith et al., "Similarity of Neural Network Representations Revisited" (arXiv:1905.00414), section 3 and
        table 1: linear CKA, `|Y'X|^2 / (|X'X| |Y'Y|)` of centred features in Frobenius norms, here from the Gram
        matrices, `(n, n)`, which says the same.
    """
    if np.ndim(x) != 2 or np.ndim(y) != 2 or len(x) != len(y):
        raise ValueError(f"x and y must be (n, p) and (n, q). Received: shapes {np.shape(x)} and {np.shape(y)}")
    x, y = (np.asarray(a, "float64") for a in (x, y))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    first, second = x @ x.T, y @ y.T
    sizes = np.sqrt((first * first).sum() * (second * second).sum())
    return float((first * second).sum() / sizes) if sizes else 0.0


def layer_similarity(
    model: keras.Model, images: np.ndarray, other: keras.Model | None = None, batch_size: int = 64
) -> np.ndarray:
    """Compares all layers of a model with each other, or with those of another one, by linear CKA.

    Args:
        model: A functional model; its layers are those of `feature_maps`.
        images: Pictures as both models take them, `(n, H, W, 3)`, n >= 4; more make it more certain.
        other: The model to compare with; the same one if `None`.
        batch_size: Pictures at a time, >= 4; memory grows with it, not with n. What does not fill a batch is left out
            where n is larger.

    Returns:
        `(layers, layers of the other)`; about 1 for equal layers, about 0 (also slightly below) for unrelated ones.

    Raises:
        ValueError: a subclassed model, fewer than four pictures or a smaller batch.

    Reference:
        Nguyen, Raghu, Kornblith, "Do Wide and Deep Networks Learn the Same Things?" (arXiv:2010.15327), equations 2
        and 3: CKA of unbiased HSIC, averaged over batches; the maps are those of Raghu et al., "Do Vision Transformers
        See Like Convolutional Neural Networks?" (arXiv:2108.08810), figure 1.
    """
    size = min(batch_size, len(images))
    if size < 4:
        raise ValueError(f"images and batch_size must be >= 4. Received: {len(images)} images, batch_size={batch_size}")
    _, first = feature_model(model)
    second = first if other is None else feature_model(other)[1]
    cross = own = others = 0.0
    for start in range(0, len(images) - size + 1, size):
        part = np.asarray(images[start : start + size], "float32")
        grams = _grams(first, part)
        twins = grams if second is first else _grams(second, part)
        cross = cross + np.array([[_hsic(a, b) for b in twins] for a in grams])
        own = own + np.array([_hsic(a, a) for a in grams])
        others = others + np.array([_hsic(b, b) for b in twins])
    return cross / np.sqrt(np.maximum(np.outer(own, others), 1e-30))


def _grams(features: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    maps = features.predict_on_batch(images)
    return [_gram(found) for found in (maps if isinstance(maps, list) else [maps])]


def _gram(maps: np.ndarray) -> np.ndarray:
    """Returns the products of pictures' features, `(n, n)`, with zeros on the diagonal."""
    flat = np.asarray(maps).reshape(len(maps), -1)
    flat = flat - flat.mean(axis=0)
    gram = (flat @ flat.T).astype("float64")
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate of HSIC: equation 3 of Nguyen et al."""
    n = len(a)
    own = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2))
    return float((own - 2 / (n - 2) * (a.sum(axis=0) @ b.sum(axis=0))) / (n * (n - 3)))
