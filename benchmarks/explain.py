"""What explaining costs beside a forward pass, in time and in memory.

    python benchmarks/explain.py --model vit_small_patch16_224 --rounds 7

Each line is the median of rounds in which everything is done in turn: a forward pass (`predict_on_batch`), then the
rollout of the same picture, then the gradient-weighted one. `--memory 100` explains so many pictures and says how much
the process grew beyond what one batch took.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

from vit_keras import create_model, explain


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=int, default=0, metavar="PICTURES")
    options = parser.parse_args()
    model = create_model(options.model)
    images = np.random.default_rng(0).uniform(0, 255, (max(1, options.memory), *model.input_shape[1:]))
    images = images.astype("float32")
    rollout = explain.rollout_model(model)
    whole = explain.attention_model(model)
    contestants = {
        "forward": lambda: model.predict_on_batch(images[:1]),
        "rollout": lambda: rollout.predict_on_batch(images[:1]),
        "weights, then N x N products": lambda: explain.attention_rollout(whole.predict_on_batch(images[:1])),
    }
    for function in contestants.values():
        function()
        function()
    rounds = [{name: seconds(function) for name, function in contestants.items()} for _ in range(options.rounds)]
    for name in contestants:
        ratio = statistics.median(r[name] / r["forward"] for r in rounds)
        print(f"{name}: {1e3 * statistics.median(r[name] for r in rounds):.1f} ms, {ratio:.2f} of a forward pass")
    if options.memory:
        explain.rollout_maps(model, images[:32])
        before = peak_mb()
        took = time.perf_counter()
        maps = explain.rollout_maps(model, images)
        took = time.perf_counter() - took
        print(f"{len(maps)} pictures in batches of 32: {took:.1f} s, {peak_mb() - before:.0f} MB beyond one batch")


if __name__ == "__main__":
    main()
