"""What a search for hyperparameters finds and costs: the figures of docs/tuning.md.

    python benchmarks/tuning.py search --data digits --minutes 8
    python benchmarks/tuning.py search --data fashion_mnist --dir path/to/tfds --minutes 20 --epochs 3 \
        --batch-size 128 --backend torch --precision mixed_bfloat16 --only-device-aware
    python benchmarks/tuning.py memory --trials 50

`search` trains the default preset, then searches for the same time twice: for a model that takes at most half the
latency of the preset's exported file, and without looking at the device. Then every model that the first one trained is
exported, and all are measured in turn with the preset's, so that a machine that slows down slows them all. `memory`
samples the search's own resident memory over many short trials.
"""

import argparse
import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from workers import memory_mb, table

from vit_keras.pipelines.config import FitConfig, InputConfig, RunConfig
from vit_keras.pipelines.tune_config import TuneConfig

KIND = "static_int8"
TRAIN = """
import json, sys
from vit_keras.pipelines.config import RunConfig
from vit_keras.pipelines.running import train_folder
train_folder(RunConfig.from_dict(json.loads(sys.argv[1])))
"""


@dataclass(frozen=True)
class Exported:
    """A run's exported file, its accuracy on the test pictures, and that of the Keras model on the validation ones."""

    file: Path
    validation: float
    test: float

    @classmethod
    def of(cls, run: Path, out: Path) -> "Exported":
        import vit_keras
        from vit_keras.export import Classifier, to_tflite
        from vit_keras.pipelines.datasets import load_data, stratified_sample
        from vit_keras.pipelines.exporting import pixels
        from vit_keras.pipelines.run_folder import RunFolder

        folder = RunFolder(run)
        config = folder.load_config()
        model = vit_keras.load_model(folder.require_model())
        data = load_data(config.data, config.input.dir).framed(config.input.framing)
        size = model.input_shape[1:3]
        sample = data.train.take(stratified_sample(data.train.labels, 200, seed=0))
        file = to_tflite(model, out, KIND, [pixels(sample, size)], True, labels=data.classes)
        right = Classifier(file).logits(pixels(data.test, size)).argmax(-1) == data.test.labels
        best = min(folder.read_metrics(), key=lambda row: row["val_loss"])
        return cls(file, best["val_accuracy"], float(right.mean()))


def compare(options: argparse.Namespace) -> None:
    """Prints the default preset beside the best of a search that knows the device and of one that does not."""
    from vit_keras.export import measure_latency
    from vit_keras.pipelines.measuring import measure_file
    from vit_keras.pipelines.tuning import search

    out = Path(options.out or tempfile.mkdtemp())
    fit = FitConfig(epochs=options.epochs, batch_size=options.batch_size, precision=options.precision)
    base = RunConfig(data=options.data, input=InputConfig(dir=options.dir), fit=fit)
    keras.backend.backend()  # This process has its backend, TensorFlow's, which exports; those that train get another.
    os.environ["KERAS_BACKEND"] = options.backend
    start = time.monotonic()
    run = dataclasses.replace(base, out=str(out / "default"))
    subprocess.run([sys.executable, "-c", TRAIN, json.dumps(run.to_dict())], check=True)
    found = {"default preset": Exported.of(out / "default", out / "default.tflite")}
    notes = {"default preset": ("1", f"{(time.monotonic() - start) / 60:.1f}")}
    limit = min(measure_file(found["default preset"].file).latency for _ in range(5)) / 2
    print(f"Half the default's latency: {limit:.4f} ms", flush=True)
    chosen = []
    for name, latency in (("device-aware", limit), ("plain", None))[: 1 if options.only_device_aware else 2]:
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
        if result.best is None:
            sys.exit(f"{name}: no trial was trained in {options.minutes:g} minutes; give it more.")
        trained = [record for record in result.records if record.status == "trained"]
        rejected = sum(record.status == "rejected" for record in result.records)
        spent = result.seconds
        print(
            f"{name}: {spent['measuring']:.0f} s measuring, {spent['training']:.0f} s training, besides "
            f"{1 - (spent['measuring'] + spent['training']) / spent['total']:.1%} of {spent['total']:.0f} s",
            flush=True,
        )
        trials = out / name / "trials"
        wanted = trained if latency else [result.best]
        runs = {record.id: Exported.of(trials / record.id, out / f"{name}.{record.id}.tflite") for record in wanted}
        found[name] = runs[result.best.id]
        notes[name] = (f"{len(trained)} + {rejected}", f"{spent['total'] / 60:.1f}")
        if latency:
            within = sum(record.measurement.latency <= limit for record in trained)
            same = sum(runs[record.id].file.stat().st_size == record.measurement.bytes for record in trained)
            print(f"within the limit as measured before training: {within} of {len(trained)}; {same} have those bytes")
            chosen = [one.file for one in runs.values()]
    files = {str(file): file for file in [*(one.file for one in found.values()), *chosen]}
    times = {name: latency.p50 for name, latency in measure_latency(files, rounds=40).items()}
    default = times[str(found["default preset"].file)]
    ratios = sorted(times[str(file)] / default for file in chosen)
    anew = sum(times[str(file)] <= limit for file in chosen)
    print(f"measured in turn: {anew} of {len(chosen)} within the limit; of the preset's time ", end="")
    print(", ".join(f"{ratio:.2f}" for ratio in ratios))
    lines = []
    for name, one in found.items():
        ms = times[str(one.file)]
        cells = f"{one.validation:.2%}", f"{one.test:.2%}", f"{ms:.4f}", f"{ms / default:.2f}"
        lines.append((name, *cells, f"{one.file.stat().st_size:,}", *notes[name]))
    heads = ("model", "validation", f"test, {KIND}", "ms", "of the preset's", "bytes", "trained + rejected", "minutes")
    print(table(heads, *lines))


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
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--backend", default="tensorflow", help="Of Keras, for all trainings.")
    parser.add_argument("--precision", default="float32", help="Of all trainings.")
    parser.add_argument("--only-device-aware", action="store_true", help="Leaves out the plain search.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--out", help="Folder to keep everything in.")
    options = parser.parse_args()
    logging.getLogger("vit_keras").setLevel(logging.WARNING)
    {"search": compare, "memory": memory}[options.what](options)


if __name__ == "__main__":
    sys.exit(main())
