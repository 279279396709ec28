"""What a search for hyperparameters finds and costs: the figures of docs/tuning.md.

    python benchmarks/tuning.py search --data digits --minutes 8
    python benchmarks/tuning.py search --data fashion_mnist --dir path/to/tfds --minutes 20 --epochs 6
    python benchmarks/tuning.py memory --trials 50

`search` trains the default preset, then searches for the same time twice: for a model that takes at most half the
latency of the preset's exported file, and without looking at the device. Every model that the first one trained is
exported and measured again. `memory` samples the search's own resident memory over many short trials.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from workers import memory_mb, table

from vit_keras.pipelines.config import FitConfig, InputConfig, RunConfig
from vit_keras.pipelines.tune_config import TuneConfig

KIND = "static_int8"


def exported(run: Path, scratch: Path) -> dict[str, float]:
    """Exports a run's model, and returns what the file takes and how many test pictures it names right."""
    import vit_keras
    from vit_keras.export import Classifier, to_tflite
    from vit_keras.pipelines.datasets import load_data, stratified_sample
    from vit_keras.pipelines.exporting import pixels
    from vit_keras.pipelines.measuring import measure_file
    from vit_keras.pipelines.run_folder import RunFolder

    folder = RunFolder(run)
    config = folder.load_config()
    model = vit_keras.load_model(folder.require_model())
    data = load_data(config.data, config.input.dir).framed(config.input.framing)
    size = model.input_shape[1:3]
    sample = data.train.take(stratified_sample(data.train.labels, 200, seed=0))
    file = to_tflite(model, scratch / "model.tflite", KIND, [pixels(sample, size)], True, labels=data.classes)
    right = Classifier(file).logits(pixels(data.test, size)).argmax(-1) == data.test.labels
    found = measure_file(file)
    rows = folder.read_metrics()
    val_accuracy = min(rows, key=lambda row: row["val_loss"])["val_accuracy"]
    return {"val": val_accuracy, "test": float(right.mean()), **dataclasses.asdict(found)}


def compare(options: argparse.Namespace) -> None:
    """Prints the default preset beside the best of a search that knows the device and of one that does not."""
    from vit_keras.pipelines.running import train_folder
    from vit_keras.pipelines.tuning import search

    out = Path(options.out or tempfile.mkdtemp())
    base = RunConfig(data=options.data, input=InputConfig(dir=options.dir), fit=FitConfig(epochs=options.epochs))
    start = time.monotonic()
    default = train_folder(dataclasses.replace(base, out=str(out / "default"))).path
    rows = {"default preset": (exported(default, out), "1", f"{(time.monotonic() - start) / 60:.1f}")}
    limit = rows["default preset"][0]["latency"] / 2
    print(f"Half the default's latency: {limit:.4f} ms", flush=True)
    for name, latency in (("device-aware", limit), ("plain", None)):
        tune = TuneConfig(
            space=options.space,
            tuner=options.tuner,
            trials=1000,
            max_latency_ms=latency,
            time_budget=f"{options.minutes}m",
            seeds=0,
            seed=options.seed,
        )
        result = search(dataclasses.replace(base, out=str(out / name)), tune, on_progress=None)
        trained = [r for r in result.records if r.status == "trained"]
        if result.best is None:
            sys.exit(f"{name}: no trial was trained in {options.minutes:g} minutes; give it more.")
        rejected = sum(r.status == "rejected" for r in result.records)
        work = result.seconds["measuring"] + result.seconds["training"]
        minutes = f"{result.seconds['total'] / 60:.1f}"
        rows[name] = (exported(out / name / "trials" / result.best.id, out), f"{len(trained)} + {rejected}", minutes)
        print(f"{name}: besides training and measuring {1 - work / result.seconds['total']:.1%}", flush=True)
        if latency:
            again = [exported(out / name / "trials" / r.id, out) for r in trained]
            within = sum(r.measurement.latency <= limit for r in trained)
            anew = sum(found["latency"] <= limit for found in again)
            changes = [found["bytes"] / r.measurement.bytes - 1 for found, r in zip(again, trained, strict=True)]
            ratios = [found["latency"] / r.measurement.latency for found, r in zip(again, trained, strict=True)]
            print(f"within the limit: {within} of {len(trained)} as measured before training, {anew} when the trained")
            print(f"  model is exported; bytes differ by at most {max(map(abs, changes)):.2%}, times by a factor of")
            print(f"  {min(ratios):.2f} to {max(ratios):.2f}", flush=True)
    lines = [
        (name, f"{f['val']:.2%}", f"{f['test']:.2%}", f"{f['latency']:.4f}", f"{f['bytes']:,}", trials, minutes)
        for name, (f, trials, minutes) in rows.items()
    ]
    print(table(("model", "validation", "test, static_int8", "ms", "bytes", "trained + rejected", "minutes"), *lines))


def memory(options: argparse.Namespace) -> None:
    """Prints the resident memory of a search after its first trials and after its last."""
    from vit_keras.pipelines.tuning import search

    space = Path(tempfile.mkdtemp()) / "space.yaml"
    space.write_text("override.num_layers: {choice: [1, 2]}\nfit.learning_rate: {float: [1e-4, 1e-2]}\n")
    seen: dict[int, int] = {}
    config = RunConfig(out=options.out or tempfile.mkdtemp(), fit=FitConfig(epochs=1, batch_size=256))
    tune = TuneConfig(space=str(space), trials=options.trials, seeds=0)
    result = search(
        config, tune, on_progress=lambda progress: seen.setdefault(len(progress.records), memory_mb("VmRSS"))
    )
    work = result.seconds["measuring"] + result.seconds["training"]
    print(json.dumps({trials: mb for trials, mb in seen.items() if trials % 5 == 0}))
    print(f"{result.seconds['total']:.0f} s, besides training and measuring {1 - work / result.seconds['total']:.1%}")


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("what", choices=("search", "memory"))
    parser.add_argument("--data", default="digits")
    parser.add_argument("--dir", help="Folder of a prepared TFDS data set.")
    parser.add_argument("--space", default="small")
    parser.add_argument("--tuner", default="random")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--epochs", type=int, help="Of every training; as `vit-keras run` has it if not given.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--out", help="Folder to keep everything in.")
    options = parser.parse_args()
    logging.getLogger("vit_keras").setLevel(logging.WARNING)
    {"search": compare, "memory": memory}[options.what](options)


if __name__ == "__main__":
    sys.exit(main())
