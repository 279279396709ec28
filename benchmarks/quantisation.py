"""What each technique of quantisation is worth: files with it and without it, on a run's test pictures.

    python benchmarks/quantisation.py runs/digits --out ablation.md
    python benchmarks/quantisation.py runs/planted --plant        # trains a model with planted outliers there first

`--plant` trains on digits a ViT with a class token in which four channels of every LayerNorm start twelve times as
large and four channels of the positions start at plus or minus 30: the outliers of large pretrained ViTs, in a model
that has learnt with them.
"""

import argparse
import dataclasses
import fnmatch
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import vit_keras
from vit_keras.export import KINDS, RANGES, REWRITES, Classifier, FileOptions, Rule, rewrite
from vit_keras.export.calibrate import observe, sample
from vit_keras.export.conversion import Converter, Graph
from vit_keras.export.quantize import PRODUCTS, Kind
from vit_keras.export.rounding import Rounding
from vit_keras.export.sensitivity import relative_error
from vit_keras.export.smoothing import smoothed_channels
from vit_keras.export.tflite import _save
from vit_keras.pipelines import fitting, running
from vit_keras.pipelines.config import FitConfig, RunConfig
from vit_keras.pipelines.datasets import load_data, stratified_sample
from vit_keras.pipelines.exporting import pixels
from vit_keras.pipelines.run_folder import RunFolder

NORMS = Rule(("ADD", "MUL", "MEAN", "RSQRT", "SUB"), activations=16, layers="[_/]norm(_1)?/")
SUMS = Rule(("ADD",), activations=16, layers="_add|position")
SOFTMAX = Rule(("SOFTMAX", "BATCH_MATMUL"), activations=16)
FLOAT_ATTENTION = Rule(("BATCH_MATMUL", "RESHAPE", "SPLIT", "TRANSPOSE"), weights=None)


def with_rules(kind: str, *rules: Rule) -> Kind:
    """Returns a kind with further rules."""
    return dataclasses.replace(KINDS[kind], rules=(*KINDS[kind].rules, *rules))


@dataclass(frozen=True)
class Variant:
    """One file: its title, its kind, and how it is made."""

    title: str
    kind: Kind
    rewrites: tuple[str, ...] = tuple(REWRITES)
    rounding: str = "compensated"


def variants() -> Iterator[Variant]:
    """What is compared."""
    for name in ("dynamic_int8", "static_int8", "full_int8", "int16x8", "int4"):
        yield Variant(name, KINDS[name])
        yield Variant(f"{name}, weights to the nearest", KINDS[name], rounding="nearest")
    for name in ("static_int8", "full_int8"):
        yield Variant(f"{name}, no rewrites", KINDS[name], ())
        for left_out in REWRITES:
            yield Variant(f"{name} without {left_out}", KINDS[name], tuple(r for r in REWRITES if r != left_out))
        for ranges in (r for r in RANGES if r != KINDS[name].ranges):
            yield Variant(f"{name}, ranges {ranges}", dataclasses.replace(KINDS[name], ranges=ranges))
    further = {
        "static_int8": {
            "attention in float": (FLOAT_ATTENTION,),
            "first and last product calibrated": (Rule(PRODUCTS, activations=8),),
            "first block on the fly": (Rule(PRODUCTS, layers="block_0_"),),
        },
        "full_int8": {
            "LayerNorms in int16": (NORMS,),
            "residual sums in int16": (SUMS,),
            "both in int16": (NORMS, SUMS),
            "softmax and its products in int16": (SOFTMAX,),
            "all of these in int16": (NORMS, SUMS, SOFTMAX),
        },
    }
    for name, changes in further.items():
        for title, rules in changes.items():
            yield Variant(f"{name}, {title}", with_rules(name, *rules))


def plant(folder: Path) -> None:
    """Trains a model with planted outliers and leaves it as a run."""
    build = fitting.create_model

    def planted(*args, **kwargs) -> keras.Model:
        model = build(*args, **kwargs)
        rng = np.random.default_rng(0)
        for weight in model.trainable_variables:
            value = keras.ops.convert_to_numpy(weight).copy()
            channels = rng.choice(value.shape[-1], 4, replace=False)
            if weight.name == "gamma":
                value[channels] *= 12
            elif weight.name == "position":
                value[..., channels] += [30, -30, 30, -30]
            weight.assign(value)
        return model

    fitting.create_model = planted
    override = {"pooling": "token", "position_embedding": "learned"}
    running.train(RunConfig(out=str(folder), override=override, fit=FitConfig(epochs=60)), verbose=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--plant", action="store_true")
    parser.add_argument("--pictures", type=int, default=2000, help="Most test pictures.")
    parser.add_argument("--only", nargs="+", default=["*"], help="shell-style patterns of the files' titles")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = RunFolder(options.run)
    if options.plant and not folder.trained:
        plant(options.run)
    config, model = folder.load_config(), vit_keras.load_model(folder.require_model())
    data = load_data(config.data, config.input.dir, config.input.split_seed).framed(config.input.framing)
    size = model.input_shape[1:3]
    test = data.test.take(stratified_sample(data.test.labels, options.pictures, seed=0))
    images, labels = pixels(test, size), test.labels
    train = data.train.take(stratified_sample(data.train.labels, 200, seed=0))
    calibration = sample([pixels(train, size)], size)
    exact = model.predict(images, verbose=0).astype("float64")
    right = exact.argmax(axis=1) == labels
    lines = [
        f"{config.data}, {config.model}: float32 {right.mean():.2%} on {len(labels):,} test pictures.",
        "",
        "| file | points lost | agreement | relative logit error | cosine, mean | cosine, least |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    files: dict[tuple[str, ...], tuple[bytes, bool]] = {}
    for variant in (v for v in variants() if any(fnmatch.fnmatch(v.title, p) for p in options.only)):
        if variant.rewrites not in files:
            with tempfile.TemporaryDirectory() as job:
                lean = rewrite(model, variant.rewrites, calibration)
                _save(lean, None, Path(job, "graph"), FileOptions())
                content = Converter().convert(Path(job, "graph", "saved_model"))
                files[variant.rewrites] = content, bool(smoothed_channels(lean))
        float32, outliers = files[variant.rewrites]
        kind = variant.kind.for_outliers() if outliers and "in int16" not in variant.title else variant.kind
        rounding = Rounding(float32) if variant.rounding == "compensated" else None
        see = rounding.see if rounding else None
        observed = observe(float32, (p[None] for p in calibration), see, sampled=kind.cuts)
        graph = Graph(float32, observed, rounding)
        settled = graph.settled(kind, calibration)
        title = variant.title if settled is kind else f"{variant.title} ({settled.ranges})"
        logits = Classifier(graph.make(settled)).logits(images).astype("float64")
        cosine = (logits * exact).sum(1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(exact, axis=1)
        guesses = logits.argmax(axis=1)
        cells = (
            f"{100 * (right.mean() - (guesses == labels).mean()):.2f}",
            f"{(guesses == exact.argmax(axis=1)).mean():.4f}",
            f"{relative_error(logits, exact):.4f}",
            f"{cosine.mean():.5f}",
            f"{cosine.min():.5f}",
        )
        lines.append(f"| {title} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
