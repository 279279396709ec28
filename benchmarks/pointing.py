"""The pointing test over several models: the table of docs/explain.md, and what methods say of themselves.

    python benchmarks/pointing.py --seeds 3 --out pipelines/explanation/pointing.json --table pointing.md

Trains for each seed and each kind of pooling a small ViT on pictures with a planted cue, and counts how often each
method's highest cell is the cue.
"""

import argparse
import json
import logging
import time
from pathlib import Path

from vit_keras.export.files import replacing
from vit_keras.export.verification import wilson_interval
from vit_keras.pipelines.explanation.methods import METHODS
from vit_keras.pipelines.explanation.pointing import CHANCE, planted_model, pointing_test

POOLINGS = ["token", "average", "attention"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=32, help="For each model.")
    parser.add_argument("--pooling", nargs="+", default=POOLINGS, choices=POOLINGS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    logging.getLogger("vit_keras").setLevel(logging.ERROR)
    found = {pooling: {} for pooling in options.pooling}
    accuracies = {pooling: [] for pooling in options.pooling}
    for pooling in options.pooling:
        for seed in range(options.seeds):
            start = time.perf_counter()
            model = planted_model(seed, pooling)
            trained = time.perf_counter() - start
            accuracy, rows = pointing_test(model, list(METHODS), options.pictures, seed)
            accuracies[pooling].append(accuracy)
            for row in rows:
                found[pooling].setdefault(row.method, []).append(row)
            took = time.perf_counter() - start - trained
            print(f"{pooling} {seed}: accuracy {accuracy:.3f}, training {trained:.0f} s, test {took:.0f} s", flush=True)
            print("  " + ", ".join(f"{row.method} {row.hits}" for row in rows), flush=True)
    content = {"chance": CHANCE, "accuracy": accuracies, "methods": summary(found, options.seeds)}
    with replacing(options.out) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.table:
        with replacing(options.table) as temporary:
            temporary.write_text(table(found), encoding="utf-8")


def summary(found: dict, seeds: int) -> dict:
    """Returns what each method did, for each kind of pooling."""
    return {
        pooling: {
            method: {"hits": sum(r.hits for r in rows), "pictures": sum(r.pictures for r in rows), "seeds": seeds}
            for method, rows in of.items()
            if method in METHODS
        }
        for pooling, of in found.items()
    }


def table(found: dict) -> str:
    """Returns the table of the documentation."""
    names = ("method", *(f"hits, {pooling}" for pooling in found), "95 % interval", "deletion", "insertion", "likeness")
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for method in (*METHODS, "random"):
        results = [found[pooling][method] for pooling in found]
        both = [row for rows in results for row in rows]
        low, high = wilson_interval(sum(r.hits for r in both), sum(r.pictures for r in both))
        cells = [f"{sum(r.hits for r in rows)}/{sum(r.pictures for r in rows)}" for rows in results]
        means = [sum(getattr(r, name) for r in both) / len(both) for name in ("deletion", "insertion")]
        like = sum(r.same_after_randomising for r in both) / len(both)
        name = f"`{method}`" if method in METHODS else method
        lines.append(
            f"| {name} | {' | '.join(cells)} | {100 * low:.0f}-{100 * high:.0f} % | "
            f"{means[0]:.2f} | {means[1]:.2f} | {like:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
