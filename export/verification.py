"""The proof: an exported file against the Keras model, on real data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from vit_keras.graph import as_classifier

from .exactness import gives_chances
from .flatbuffer import read_file
from .interpreter import Classifier, OperatorCensus
from .latency import Latency, measure_latency
from .rewriting import at_size


@dataclass(frozen=True)
class Agreement:
    """What a file does on the test pictures, beside the Keras model.

    Attributes:
        accuracy: Share of the pictures that the file classifies rightly, 0 to 1.
        accuracy_interval: Its 95 % interval (Wilson), 0 to 1.
        points_lost: Accuracy lost against the Keras model, in points (hundredths of 1); negative for a gain.
        points_lost_interval: Its 95 % interval, paired: only pictures on which the two differ count (Agresti and Min).
        agreement: Share of the pictures on which file and Keras model name the same class, 0 to 1.
        max_abs_logit_error: Largest difference of a logit from the Keras model's.
        bytes: Size of the file.
        operators: What the file is made of.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    points_lost: float
    points_lost_interval: tuple[float, float]
    agreement: float
    max_abs_logit_error: float
    bytes: int
    operators: OperatorCensus


@dataclass(frozen=True)
class Proof:
    """A file's `Agreement` and `Latency`."""

    file: Path
    agreement: Agreement
    latency: Latency


def verify(
    model: keras.Model,
    files: Mapping[str, str | Path],
    dataset: Iterable[tuple[np.ndarray, np.ndarray]],
    threads: int = 1,
) -> dict[str, Proof]:
    """Runs files and the Keras model they come from over a test set.

    Args:
        model: The Keras model, from pixels to logits.
        files: Name to TensorFlow Lite file.
        dataset: Batches of pictures, `(B, H, W, 3)` with pixels 0 to 255, and integer labels, `(B,)`. Pictures of
            another size than the model's are for the signatures of `image_sizes`: the model is brought to it.
        threads: Threads of the interpreter while latency is measured.

    Returns:
        Name to proof.

    Raises:
        ValueError: an empty dataset, or a file that does not fit the model.
        FileNotFoundError: a file that is not there.
    """
    batches = [(np.asarray(images), np.asarray(labels)) for images, labels in dataset]
    if not batches:
        raise ValueError("dataset must hold at least one batch. Received: none")
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    labels = check_class_indices(labels, "dataset")
    model = as_classifier(model)
    if images.shape[1:3] != model.input_shape[1:3]:
        model = at_size(model, images.shape[1:3])
    reference = model.predict(images, verbose=0)
    agreements = {name: compare(file, images, labels, reference) for name, file in files.items()}
    latencies = measure_latency(files, images[0], threads)
    return {name: Proof(Path(files[name]), agreements[name], latencies[name]) for name in files}


def check_class_indices(labels: np.ndarray, name: str) -> np.ndarray:
    """Returns labels as `(n,)`; they may come as a column, `(n, 1)`.

    Raises:
        ValueError: they are no integers, or of another shape.
    """
    labels = np.asarray(labels)
    column = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if column.ndim != 1 or column.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integer labels, (n,). Received: shape={labels.shape}, dtype={labels.dtype}")
    return column


def compare(file: str | Path, images: np.ndarray, labels: np.ndarray, reference: np.ndarray) -> Agreement:
    """Runs one file over test pictures and holds it against the Keras model's logits.

    Args:
        file: A TensorFlow Lite file.
        images: `(n, H, W, 3)`, pixels 0 to 255.
        labels: `(n,)`, integers.
        reference: The Keras model's logits, `(n, num_classes)`; of a file that gives probabilities their softmax is
            looked at.
    """
    classifier = Classifier(file, image_size=images.shape[1:3])
    if classifier.num_classes != reference.shape[1]:
        raise ValueError(
            f"{file} must give {reference.shape[1]} scores. Received: num_classes={classifier.num_classes}"
        )
    logits = classifier.logits(images)
    if read_file(file).ends_in_softmax and not gives_chances(reference):
        reference = np.asarray(keras.ops.softmax(reference))
    predicted = logits.argmax(axis=1)
    right = int((predicted == labels).sum())
    reference_right = reference.argmax(axis=1) == labels
    lost = int((reference_right & (predicted != labels)).sum())
    won = int((~reference_right & (predicted == labels)).sum())
    return Agreement(
        accuracy=right / len(labels),
        accuracy_interval=wilson_interval(right, len(labels)),
        points_lost=100 * (lost - won) / len(labels),
        points_lost_interval=paired_interval(lost, won, len(labels)),
        agreement=float((predicted == reference.argmax(axis=1)).mean()),
        max_abs_logit_error=float(np.abs(logits - reference).max()),
        bytes=Path(file).stat().st_size,
        operators=classifier.operators(),
    )


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the 95 % interval of a rate.

    Reference:
        Wilson, "Probable inference, the law of succession, and statistical inference" (JASA 22, 1927).
    """
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * (rate * (1 - rate) / trials + z * z / (4 * trials * trials)) ** 0.5
    scale = 1 + z * z / trials
    low = (centre - spread) / scale if successes else 0.0
    high = (centre + spread) / scale if successes < trials else 1.0
    return low, high


def paired_interval(lost: int, won: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of two rates on the same trials, in points.

    Args:
        lost: Trials that only the first got right.
        won: Trials that only the second got right.
        trials: All trials.
        z: Quantile of the normal distribution.

    Reference:
        Agresti, Min, "Simple improved confidence intervals for comparing matched proportions" (Statistics in Medicine
        24, 2005): half a trial is added to each of the four outcomes.
    """
    n, b, c = trials + 2, lost + 0.5, won + 0.5
    centre = (b - c) / n
    spread = z * ((b + c) - (b - c) ** 2 / n) ** 0.5 / n
    return 100 * max(-1.0, centre - spread), 100 * min(1.0, centre + spread)
