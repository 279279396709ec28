"""What is explained: a run's model, a `.keras` file, or a TensorFlow Lite file, behind one face."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

import vit_keras
from vit_keras.explain import TokenLayout
from vit_keras.export import Classifier, try_file
from vit_keras.export.attention import read_grids
from vit_keras.export.framing import Framing
from vit_keras.graph import is_functional, layers_of
from vit_keras.layers import TransformerBlock
from vit_keras.messages import nearest

from ..prediction import check_pictures, read_pictures
from ..run_folder import RunFolder, framing_of, labels_of, read_labels
from .methods import FIGURES, METHODS


@dataclass(frozen=True)
class Subject:
    """A classifier to be explained.

    Attributes:
        name: What it is called.
        path: Where it is.
        image_size: Height and width of the pictures that it takes.
        labels: Class names.
        scores: Gives class scores, `(n, num_classes)`, of pictures `(n, H, W, 3)` with pixels 0 to 255.
        framing: How pictures are brought to its size; `None` for the default.
        model: The Keras model, if it is one.
        file: The TensorFlow Lite file's interpreter, if it is one.
        grid: Height and width in patches, if it tells its attention.
        pooling: How it pools tokens, if it is a Keras model that tells its attention.
    """

    name: str
    path: Path
    image_size: tuple[int, int]
    labels: tuple[str, ...]
    scores: Callable[[np.ndarray], np.ndarray]
    framing: Framing | None = None
    model: keras.Model | None = None
    file: Classifier | None = None
    grid: tuple[int, int] | None = None
    pooling: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods and figures that can explain it."""
        able = {"scores"}
        if self.model is not None and is_functional(self.model):
            able |= {"gradients", "weights"}
            convolves = any(isinstance(layer, keras.layers.Conv2D) for layer in layers_of(self.model))
            if self.grid is not None:
                able |= {"attention"}
            if self.grid is not None or convolves:
                able |= {"features"}
        names = {name for name, kind in (*METHODS.items(), *FIGURES.items()) if kind.needs in able}
        if self.file is not None and self.grid is not None:
            names.add("rollout")
        return tuple(name for name in (*METHODS, *FIGURES) if name in names)

    def require(self, method: str) -> None:
        """Refuses a method that cannot explain it, and says which can.

        Raises:
            ValueError: `method` needs what the classifier does not have.
        """
        if method in self.methods:
            return
        lacks = {
            "attention": "attention weights, which only models of our transformer blocks"
            + (" and files exported with --with-attention" if method == "rollout" else "")
            + " tell",
            "features": "a functional Keras model with transformer blocks or convolutions",
            "gradients": "a functional Keras model",
            "weights": "a functional Keras model",
        }[(METHODS.get(method) or FIGURES[method]).needs]
        raise ValueError(
            f"{method} needs {lacks}. What remains for {self.name}: {', '.join(self.methods)}. Received: {self.path}"
        )

    def read(self, pictures: Sequence[str | Path]) -> np.ndarray:
        """Reads picture files of any size and mode as the classifier is fed them, float32 `(n, H, W, 3)`.

        Raises:
            FileNotFoundError: a picture that is not there.
            ValueError: a file that is no whole picture.
        """
        check_pictures(pictures)
        return read_pictures(pictures, self.image_size, self.framing)

    def check(self, images: np.ndarray) -> np.ndarray:
        """Returns pictures as float32.

        Raises:
            ValueError: they are not `(n, H, W, 3)` of the classifier's size, or none.
        """
        height, width = self.image_size
        if np.ndim(images) != 4 or np.shape(images)[1:] != (height, width, 3) or not len(images):
            raise ValueError(
                f"images must be of shape (n, {height}, {width}, 3), n >= 1. Received: shape={np.shape(images)}"
            )
        return np.asarray(images, "float32")

    def class_index(self, word: str | int) -> int:
        """Finds a class by name or number.

        Raises:
            ValueError: there is none of that name (with the nearest one), or the number is out of range.
        """
        if str(word) in self.labels:
            return self.labels.index(str(word))
        try:
            index = int(word)
        except ValueError:
            raise ValueError(
                f"class must be a class name or 0 to {len(self.labels) - 1}.{nearest(str(word), self.labels)} "
                f"Received: class={word!r}"
            ) from None
        if not 0 <= index < len(self.labels):
            raise ValueError(f"class must be 0 to {len(self.labels) - 1}. Received: class={word}")
        return index


def _grid_of(path: Path, classifier: Classifier) -> tuple[int, int] | None:
    """Returns the grid of patches of a file that gives its attention."""
    grids = read_grids(path.read_bytes())
    if not grids:
        return None
    (height, width), tokens = grids[0], classifier.num_tokens
    if height * width > tokens:
        raise ValueError(f"{path} must give attention on its grid. Received: {height}x{width} patches, {tokens} tokens")
    return grids[0]


def load_subject(path: str | Path) -> Subject:
    """Opens a run's folder, a `.keras` file or a `.tflite` file.

    Raises:
        FileNotFoundError: there is no such run or file.
        ValueError: it is no classifier of pictures, or no whole file.
    """
    path = Path(path)
    if path.suffix == ".tflite":
        try_file(path)
        classifier = Classifier(path)
        return Subject(
            path.name.removesuffix(".tflite"),
            path,
            classifier.image_size,
            labels_of(path, classifier.num_classes),
            classifier.logits,
            framing_of(path),
            file=classifier,
            grid=_grid_of(path, classifier),
        )
    if path.suffix == ".keras":
        model = vit_keras.load_model(path)
        return of_model(model, path, tuple(str(i) for i in range(model.output_shape[-1])))
    folder = RunFolder(path)
    model = vit_keras.load_model(folder.require_model())
    labels = read_labels(folder.labels_file, model.output_shape[-1])
    return of_model(model, path, labels, folder.load_config().input.framing)


def of_model(
    model: keras.Model, path: str | Path = "", labels: Sequence[str] = (), framing: Framing | None = None
) -> Subject:
    """Makes a subject of a Keras classifier.

    Raises:
        ValueError: it does not go from pictures to class scores.
    """
    shapes = (getattr(model, "input_shape", None), getattr(model, "output_shape", None))
    given, made = (shape if isinstance(shape, tuple) else () for shape in shapes)
    if len(given) != 4 or None in given[1:] or given[3] != 3 or len(made) != 2:
        raise ValueError(
            f"model must take pictures of a fixed size, (B, H, W, 3), and give class scores, (B, num_classes). "
            f"Received: {shapes[0]} to {shapes[1]}"
        )
    grid = pooling = None
    if is_functional(model) and any(isinstance(layer, TransformerBlock) for layer in layers_of(model)):
        layout = TokenLayout.of(model)
        grid, pooling = layout.grid, layout.pooling

    def scores(images: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(images, batch_size=64, verbose=0), "float32")

    names = tuple(labels) or tuple(str(i) for i in range(made[1]))
    return Subject(model.name, Path(path), given[1:3], names, scores, framing, model, grid=grid, pooling=pooling)
