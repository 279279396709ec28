"""Naming what pictures show, with a run's Keras model or with an exported file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import vit_keras
from vit_keras.export import Classifier, try_file
from vit_keras.export.framing import Framing
from vit_keras.export.inspection import inspect_file
from vit_keras.export.saved_model import decode_picture

from .pictures import picture_fault
from .run_folder import RunFolder, framing_of, labels_of, read_labels, recover_file


@dataclass(frozen=True)
class Prediction:
    """What a picture shows: the class's name and its probability, 0 to 1."""

    picture: str
    label: str
    probability: float


def predict(path: str | Path, pictures: Sequence[str | Path]) -> list[Prediction]:
    """Classifies picture files.

    Args:
        path: A run's folder, or a `.tflite` file; its class names are those inside it, else those of the `labels.txt`
            beside it or above it.
        pictures: JPEG, PNG, BMP or GIF files.

    Returns:
        One prediction per picture, in their order.

    Raises:
        FileNotFoundError: a model or a picture that is not there.
        ValueError: a file that is no model, or no whole picture.
    """
    path = Path(path)
    check_pictures(pictures)
    if path.suffix == ".tflite":
        recover_file(path)
        try_file(path)
        classifier = Classifier(path)
        logits = classifier.logits(read_pictures(pictures, classifier.image_size, framing_of(path)))
        labels = labels_of(path, classifier.num_classes)
        are_chances = inspect_file(path).ends_in_softmax
    else:
        folder = RunFolder(path)
        model = vit_keras.load_model(folder.require_model())
        framing = folder.load_config().input.framing
        logits = model.predict(read_pictures(pictures, model.input_shape[1:3], framing), verbose=0)
        labels = read_labels(folder.labels_file, logits.shape[1])
        are_chances = False
    chances = logits if are_chances else keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    return [Prediction(str(p), labels[c.argmax()], float(c.max())) for p, c in zip(pictures, chances, strict=True)]


def check_pictures(pictures: Sequence[str | Path]) -> None:
    """Refuses files that are not there (`FileNotFoundError`) or are no whole pictures (`ValueError`)."""
    for picture in pictures:
        if not Path(picture).is_file():
            raise FileNotFoundError(f"No picture at {picture}.")
        fault = picture_fault(picture)
        if fault:
            raise ValueError(f"{picture} cannot be used as a picture: {fault}.")


def read_pictures(
    pictures: Sequence[str | Path], image_size: tuple[int, int], framing: Framing | None = None
) -> np.ndarray:
    """Reads picture files as a model of an `image_size` is fed them, float32 `(n, H, W, 3)`."""
    pixels = [decode_picture(tf.io.read_file(str(picture)), image_size, framing) for picture in pictures]
    return np.stack(pixels).astype("float32")
