"""What each technique of quantisation is worth: files with it and without it, on a run's test pictures.

    python benchmarks/quantisation.py runs/digits --out ablation.md
    python benchmarks/quantisation.py runs/planted --plant        # trains a model with planted outliers there first

`--plant` trains on digits a ViT with a class token in which four channels of every LayerNorm start twelve times as
large and four channels of the positions start at plus or minus 30: the outliers of large pretrained ViTs, in a model
that has learnt with them.
"""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import vit_keras
from vit_keras.export import KINDS, REWRITES, Classifier, Rule, rewrite
from vit_keras.export.calibrate import observe, sample
from vit_keras.export.conversion import convert, quantize
from vit_keras.export.quantize import PRODUCTS, Kind
from vit_keras.export.rewriting import has_outliers
from vit_keras.export.sensitivity import relative_error
from vit_keras.export.tflite import _save
from vit_keras.pipelines import running
from vit_keras.pipelines.config import FitConfig, RunConfig
from vit_keras.pipelines.datasets import load_data, stratified_sample
from vit_keras.pipelines.exporting import pixels
from vit_keras.pipelines.run_folder import RunFolder

NORMS = Rule(("ADD", "MUL", "MEAN", "RSQRT", "SUB"), activations=16, layers="[_/]norm(_1)?/")
SUMS = Rule(("ADD",), activations=16, layers="_add|position")
SOFTMAX = Rule(("SOFTMAX", "BATCH_MATMUL"), activations=16)


def with_rules(kind: str, *rules: Rule) -> Kind:
    """Returns a kind with further rules."""
    return dataclasses.replace(KINDS[kind], rules=(*KINDS[kind].rules, *rules))


def variants() -> Iterator[tuple[str, Kind, tuple[str, ...], str]]:
    """What is compared: title, kind, rewrites, ranges."""
    every = tuple(REWRITES)
    for name in ("dynamic_int8", "static_int8", "full_int8", "int16x8", "int4"):
        yield name, KINDS[name], every, "minmax"
    for name in ("static_int8", "full_int8"):
        yield f"{name}, no rewrites", KINDS[name], (), "minmax"
        for left_out in REWRITES:
            yield f"{name} without {left_out}", KINDS[name], tuple(r for r in every if r != left_out), "minmax"
        for ranges in ("percentile", "mse"):
            yield f"{name}, ranges {ranges}", KINDS[name], every, ranges
    calibrated = Rule(PRODUCTS, activations=8)
    yield "static_int8, first and last product calibrated", with_rules("static_int8", calibrated), every, "minmax"
    yield (
        "static_int8, first block on the fly",
        with_rules("static_int8", Rule(PRODUCTS, layers="block_0_")),
        every,
        "minmax",
    )
    yield "full_int8, LayerNorms in int16", with_rules("full_int8", NORMS), every, "minmax"
    yield "full_int8, residual sums in int16", with_rules("full_int8", SUMS), every, "minmax"
    yield "full_int8, both in int16", with_rules("full_int8", NORMS, SUMS), every, "minmax"
    yield "full_int8, softmax and its products in int16", with_rules("full_int8", SOFTMAX), every, "minmax"
    yield "full_int8, all of these in int16", with_rules("full_int8", NORMS, SUMS, SOFTMAX), every, "minmax"


def plant(folder: Path) -> None:
    """Trains a model with planted outliers and leaves it as a run."""
    build = running.create_model

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

    running.create_model = planted
    override = {"pooling": "token", "position_embedding": "learned"}
    running.train(RunConfig(out=str(folder), override=override, fit=FitConfig(epochs=60)), verbose=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--plant", action="store_true")
    parser.add_argument("--pictures", type=int, default=2000, help="Most test pictures.")
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
    for title, kind, rewrites, ranges in variants():
        if rewrites not in files:
            with tempfile.TemporaryDirectory() as job:
                lean = rewrite(model, rewrites, calibration)
                _save(lean, job, 1)
                files[rewrites] = convert(job), has_outliers(lean)
        float32, outliers = files[rewrites]
        kind = kind.for_outliers() if outliers and "in int16" not in title else kind
        observed = observe(float32, (p[None] for p in calibration), ranges)
        logits = Classifier(quantize(float32, kind, observed)).logits(images).astype("float64")
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
