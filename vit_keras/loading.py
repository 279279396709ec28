"""Loading a saved model, with our layers registered."""

import zipfile
from pathlib import Path

import keras

from . import layers as _layers  # noqa: F401  (importing it registers every layer)
from .weights import resize


def load_model(path: str | Path, compile: bool = False, image_size: int | tuple[int, int] | None = None) -> keras.Model:
    """Loads a `.keras` file whose layers are Keras's or ours.

    Args:
        path: A `.keras` file.
        compile: Whether to restore the optimiser and the loss too.
        image_size: Height and width in pixels, or one number for both, if the model shall take pictures of another
            size than it was saved with; position embeddings are interpolated, and the model is not compiled.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a whole `.keras` archive, or holds what cannot be loaded safely, or the patch does
            not divide `image_size`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No model file at {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a whole .keras file: it is truncated or of another format.")
    try:
        model = keras.saving.load_model(path, compile=compile, safe_mode=True)
    except (zipfile.BadZipFile, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as a Keras model: {error}") from error
    return model if image_size is None else resize(model, image_size)
