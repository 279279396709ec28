"""How long a file takes per picture, measured so that files can be compared."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .interpreter import Classifier


@dataclass(frozen=True)
class Latency:
    """Time of one call, in milliseconds: median, ninetieth percentile, and the number of threads."""

    p50: float
    p90: float
    threads: int


def measure_latency(
    files: Mapping[str, str | Path], picture: np.ndarray, threads: int = 1, rounds: int = 10, seconds: float = 0.1
) -> dict[str, Latency]:
    """Measures files in turn, round after round, so that a machine that slows down slows them all.

    Args:
        files: Name to TensorFlow Lite file.
        picture: One picture, `(H, W, 3)`, with pixels 0 to 255.
        threads: Threads of the interpreter.
        rounds: How often every file has its turn, >= 1.
        seconds: Length of a turn; at least one call is made in it.

    Returns:
        Name to latency, over all calls of all rounds but one warming call per file.
    """
    classifiers = {name: Classifier(file, threads) for name, file in files.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for classifier in classifiers.values():
        classifier.set_input(np.repeat(picture[None], classifier.batch_size, axis=0))
        classifier.invoke()
    for _ in range(rounds):
        for name, classifier in classifiers.items():
            end = time.perf_counter() + seconds
            while True:
                start = time.perf_counter()
                classifier.invoke()
                stop = time.perf_counter()
                times[name].append(1e3 * (stop - start))
                if stop > end:
                    break
    return {
        name: Latency(float(np.percentile(ms, 50)), float(np.percentile(ms, 90)), threads) for name, ms in times.items()
    }
