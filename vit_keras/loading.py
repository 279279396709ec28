"""Loading a saved model, with our layers registered."""

import zipfile
from pathlib import Path

import keras

from . import layers as _layers  # noqa: F401  (importing it registers every layer)


def load_model(path: str | Path, compile: bool = False) -> keras.Model:
    """Loads a `.keras` file whose layers are Keras's or ours.

    Args:
        path: A `.keras` file.
        compile: Whether to restore the optimiser and the loss too.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a whole `.keras` archive, or holds what cannot be loaded safely.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No model file at {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a whole .keras file: it is truncated or of another format.")
    try:
        return keras.saving.load_model(path, compile=compile, safe_mode=True)
    except (zipfile.BadZipFile, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as a Keras model: {error}") from error
