"""What a trained classifier is worth on pictures it has not seen."""

from dataclasses import dataclass

import keras
import numpy as np

from vit_keras.export.verification import wilson_interval

from .datasets import Split
from .preprocessing import batches


@dataclass(frozen=True)
class Evaluation:
    """A classifier on a labelled split.

    Attributes:
        accuracy: Share classified rightly, 0 to 1.
        accuracy_interval: Its 95 % interval (Wilson).
        loss: Mean cross-entropy in nats.
        logits: `(n, num_classes)`.
        labels: `(n,)`.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    loss: float
    logits: np.ndarray
    labels: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """Class indices, `(n,)`."""
        return self.logits.argmax(axis=1)

    def confusion(self) -> np.ndarray:
        """Returns counts, `(num_classes, num_classes)`: row is the true class, column the predicted one."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predictions, labels=range(self.logits.shape[1]))


def evaluate_logits(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Scores logits, `(n, num_classes)`, against integer labels, `(n,)`."""
    right = int((logits.argmax(axis=1) == labels).sum())
    shifted = logits.astype("float64") - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -float(log_probabilities[np.arange(len(labels)), labels].mean())
    return Evaluation(right / len(labels), wilson_interval(right, len(labels)), loss, logits, labels)


def evaluate_model(model: keras.Model, split: Split, batch_size: int = 64) -> Evaluation:
    """Runs a Keras model over a split."""
    dataset = batches(split, model.input_shape[1:3], batch_size)  # `predict` takes the pictures and leaves the labels.
    return evaluate_logits(model.predict(dataset, verbose=0), split.labels)
