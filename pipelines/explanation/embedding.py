"""Pooled features of pictures in two dimensions: do classes lie apart?"""

from dataclasses import dataclass

import keras
import numpy as np
from matplotlib.figure import Figure

from vit_keras.graph import flat_copy

EMBEDDINGS = ("pca", "tsne")
_PERPLEXITY = 30


@dataclass(frozen=True)
class Embedding:
    """Pooled features in two dimensions.

    Attributes:
        method: `"pca"` or `"tsne"`.
        points: `(n, 2)`.
        labels: `(n,)`.
        neighbours: Share of the pictures whose nearest other one, in all dimensions of the features, is of the same
            class; what is seen in two dimensions may say less.
    """

    method: str
    points: np.ndarray
    labels: np.ndarray
    neighbours: float


def pooled_features(model: keras.Model, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Returns what a classifier's last linear layer reads, `(n, D)`.

    Raises:
        ValueError: a subclassed model, or one without a linear layer.
    """
    read: list[keras.KerasTensor] = []

    def visit(layer, *args, **kwargs):
        if isinstance(layer, keras.layers.Dense) and len(args[0].shape) == 2:
            read.append(args[0])
        return layer(*args, **kwargs)

    inputs, _ = flat_copy(model, visit)
    if not read:
        raise ValueError(f"model must end in a linear layer. Received: model={model.name!r}")
    return np.asarray(keras.Model(inputs, read[-1]).predict(images, batch_size=batch_size, verbose=0))


def embed(features: np.ndarray, labels: np.ndarray, method: str = "tsne", seed: int = 0) -> Embedding:
    """Lays features out in two dimensions.

    Args:
        features: `(n, D)`, n >= 4.
        labels: `(n,)`.
        method: `"pca"` (the two directions of most variance; distances can be trusted) or `"tsne"` (neighbours stay
            neighbours; distances between groups say nothing).
        seed: Of t-SNE.

    Raises:
        ValueError: an unknown method, or fewer than four pictures.

    Reference:
        van der Maaten, Hinton, "Visualizing Data using t-SNE", JMLR 2008; scikit-learn's, with perplexity 30 or a third
        of the pictures, started from PCA.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    if method not in EMBEDDINGS:
        raise ValueError(f"method must be one of {', '.join(EMBEDDINGS)}. Received: method={method!r}")
    if len(features) < 4 or len(features) != len(labels):
        raise ValueError(
            f"features and labels must be as many, >= 4. Received: {len(features)} features, {len(labels)} labels"
        )
    features = np.asarray(features, "float64")
    if method == "pca":
        points = PCA(2, random_state=seed).fit_transform(features)
    else:
        perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    nearest = NearestNeighbors(n_neighbors=2).fit(features).kneighbors(features, return_distance=False)[:, 1]
    return Embedding(method, points, np.asarray(labels), float(np.mean(labels[nearest] == labels)))


def plot_embeddings(found: list[Embedding], classes: tuple[str, ...]) -> Figure:
    """Plots embeddings side by side, a colour a class; classes are named where there are at most 20."""
    figure = Figure(figsize=(4.4 * len(found) + 1.4, 4.4), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        colours = "tab10" if len(classes) <= 10 else "tab20"
        shown = axes.scatter(*one.points.T, c=one.labels, cmap=colours, s=9, vmin=0, vmax=max(9, len(classes) - 1))
        axes.set(title={"pca": "PCA", "tsne": "t-SNE"}[one.method], xticks=[], yticks=[])
    if len(classes) <= 20:
        marks = [axes.scatter([], [], color=shown.cmap(shown.norm(i)), s=18) for i in range(len(classes))]
        figure.legend(marks, classes, loc="outside right center", frameon=False, fontsize=8)
    return figure
