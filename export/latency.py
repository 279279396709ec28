"""How long a file takes per picture, measured so that files can be compared."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .inspection import check_threads, try_file
from .interpreter import Classifier


@dataclass(frozen=True)
class Latency:
    """Time of one call, in milliseconds: median, ninetieth percentile, and the number of threads."""

    p50: float
    p90: float
    threads: int


def measure_latency(
    files: Mapping[str, str | Path],
    picture: np.ndarray | None = None,
    threads: int = 1,
    rounds: int = 10,
    seconds: float = 0.1,
) -> dict[str, Latency]:
    """Measures files in turn, round after round, so that a machine that slows down slows them all.

    Args:
        files: Name to TensorFlow Lite file.
        picture: One picture, `(H, W, 3)`, with pixels 0 to 255; without one, every file gets noise of its own size.
            Its size chooses the signature of files that have several.
        threads: Threads of the interpreter, 1 to 64.
        rounds: How often every file has its turn, >= 1.
        seconds: Length of a turn; at least one call is made in it.

    Returns:
        Name to latency, over all calls of all rounds but one warming call per file.
    """
    image_size = None if picture is None else picture.shape[:2]
    classifiers = {name: Classifier(file, threads, image_size=image_size) for name, file in files.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for classifier in classifiers.values():
        shown = _noise(classifier.image_size) if picture is None else picture
        classifier.set_input(np.repeat(shown[None], classifier.batch_size, axis=0))
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


@dataclass(frozen=True)
class Benchmark:
    """A file's `Latency`, its size in bytes, and the peak of memory in bytes that it takes beyond an idle process."""

    file: Path
    latency: Latency
    bytes: int
    memory: int


def benchmark(files: Sequence[str | Path], threads: int = 1) -> list[Benchmark]:
    """Measures files from anywhere: each is tried in a process of its own first, which also tells its memory.

    Args:
        files: TensorFlow Lite files from pictures to class scores, each once.
        threads: Threads of the interpreter, 1 to 64.

    Returns:
        One result per file, in their order.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: another number of threads, or a file that is damaged, cannot be run, or is no classifier.
    """
    check_threads(threads)
    paths = [Path(file) for file in files]
    runs = {str(path): try_file(path, threads) for path in paths}
    latencies = measure_latency({str(path): path for path in paths}, threads=threads)
    return [Benchmark(p, latencies[str(p)], p.stat().st_size, runs[str(p)].memory) for p in paths]


def _noise(image_size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*image_size, 3)).astype("float32")
