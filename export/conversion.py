"""The child process that converts: TensorFlow's converter leaks memory and may die.

`python -m vit_keras.export.conversion JOB` reads the folder that `tflite.py` filled: `job.json`, `validation.npz`, and
for each signature, that is for each picture size, a folder with `saved_model/` (a static batch) and `calibration.npy`.
TensorFlow's converter makes one float32 graph per signature; all kinds are made of it, and the signatures of a kind put
into one file. Each file appears under its name when it is whole, and what was found out about it in `results.json`.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .calibrate import Observed, observe
from .files import replacing
from .interpreter import Classifier
from .metadata import with_metadata
from .packing import merged, with_batch_axis
from .quantize import KINDS, Kind, Rule
from .sensitivity import layer_errors, relax

SENSITIVITY_PICTURES = 32
"""Pictures that a layer's effect on the logits is measured on."""


def main(job: Path) -> None:
    """Converts every kind of a job, in the order of the job's file."""
    description = json.loads((job / "job.json").read_text())
    graphs = {signature: _graph(job / signature, description) for signature in description["signatures"]}
    float32, observed = next(iter(graphs.values()))  # The model's own size: budgets and errors are measured on it.
    results, left_float = {}, {}
    for name, target in description["targets"].items():
        kind = dataclasses.replace(KINDS[name], input_dtype=description["input_dtype"] or KINDS[name].input_dtype)
        kind = kind.for_outliers() if description["outliers"] else kind
        if name in description["max_drop"] and kind.rules:
            validation = np.load(job / "validation.npz", allow_pickle=False)
            kind, found = _within_budget(float32, kind, observed, validation, description["max_drop"][name])
            results[name] = dataclasses.asdict(found)
        content = merged({signature: _of_kind(kind, *graph) for signature, graph in graphs.items()})
        if kind.integer_only and kind.input_dtype != "float32" and (left := Classifier(content).float_operators()):
            left_float[name] = left
        content = with_metadata(content, description["labels"], description["name"], kind.summary)
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    errors = {}
    for name in description["sensitivity"]:
        pictures = _pictures(job / next(iter(graphs)))[:SENSITIVITY_PICTURES]
        kind = KINDS[name].for_outliers() if description["outliers"] else KINDS[name]
        found = layer_errors(float32, kind, observed, pictures, quantize)
        errors[name] = [dataclasses.asdict(error) for error in found]
    (job / "results.json").write_text(json.dumps({"relaxations": results, "errors": errors, "left_float": left_float}))


def _graph(folder: Path, description: dict) -> tuple[bytes, dict[str, Observed]]:
    """Converts one signature to float32, and measures the ranges of its activations where a kind needs them."""
    float32 = convert(str(folder / "saved_model"))
    if not any(KINDS[kind].calibrated for kind in (*description["targets"], *description["sensitivity"])):
        return float32, {}
    return float32, observe(float32, _batches(_pictures(folder), description["batch_size"]), description["ranges"])


def _pictures(folder: Path) -> np.ndarray:
    return np.load(folder / "calibration.npy", allow_pickle=False)


def _of_kind(kind: Kind, float32: bytes, observed: dict[str, Observed]) -> bytes:
    return quantize(float32, kind, observed) if kind.rules else float32


def _within_budget(float32: bytes, kind: Kind, observed: dict[str, Observed], validation, max_drop: float):
    """Relaxes as few layers of a kind as keep the budget; returns the relaxed kind, and what was done."""
    images, labels = validation["images"], validation["labels"]

    def accuracy(content: bytes) -> float:
        return 100 * float((Classifier(content).logits(images).argmax(axis=1) == labels).mean())

    exact = accuracy(float32)

    def drop_of(layers: tuple[str, ...]) -> float:
        return exact - accuracy(quantize(float32, kind.relaxed(layers), observed))

    def most_sensitive_first() -> list[str]:
        errors = layer_errors(float32, kind, observed, images[:SENSITIVITY_PICTURES], quantize)
        return [error.layer for error in sorted(errors, key=lambda error: -error.alone)]

    found = relax(most_sensitive_first, drop_of, max_drop)
    return kind.relaxed(found.layers), found


def convert(saved_model: str) -> bytes:
    """Converts a SavedModel with TensorFlow's converter, to float32 and builtin operators only."""
    import tensorflow as tf

    return with_batch_axis(tf.lite.TFLiteConverter.from_saved_model(saved_model).convert())


def quantize(float32: bytes, kind: Kind, observed: dict[str, Observed]) -> bytes:
    """Makes a kind of a float32 file with ai-edge-quantizer.

    Ranges are our own: the quantiser's keep a moving average of minimum and maximum, which cost 4.8 points of accuracy
    on CIFAR-10.
    """
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(bytearray(float32))
    for rule in kind.rules:
        for operator in rule.operators:
            _apply(quantizer, operator, rule)
    if kind.integer_only:
        _set_ends(quantizer, kind.input_dtype)
    ranges = {name: {"min": o.low, "max": o.high} for name, o in observed.items()} if kind.calibrated else None
    return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)


def _apply(quantizer, operator: str, rule: Rule) -> None:
    """Adds one rule to the quantiser's recipe."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    name = qtyping.TFLOperationName(operator)
    granularity = qtyping.QuantGranularity[f"BLOCKWISE_{rule.block}" if rule.block else "CHANNELWISE"]
    if rule.activations:
        quantizer.add_static_config(rule.layers, name, rule.activations, rule.weights, granularity)
    elif rule.weights == 16:
        tensor = qtyping.TensorQuantizationConfig(16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=tensor,
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        quantizer.update_quantization_recipe(rule.layers, name, config, AlgorithmName.FLOAT_CASTING)
    else:
        quantizer.add_dynamic_config(rule.layers, name, rule.weights, granularity)


def _set_ends(quantizer, dtype: str) -> None:
    """Lets an integer file take and give uint8, as cameras have it, or float32; else it has its activations' type."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    unsigned = qtyping.OpQuantizationConfig(
        qtyping.TensorQuantizationConfig(8, symmetric=False, dtype=qtyping.TensorDataType.UINT),
        qtyping.TensorQuantizationConfig(8),
        qtyping.ComputePrecision.INTEGER,
        explicit_dequantize=False,
    )
    for name in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        if dtype == "uint8":
            quantizer.update_quantization_recipe(".*", name, unsigned)
        elif dtype == "float32":
            quantizer.update_quantization_recipe(".*", name, None, AlgorithmName.NO_QUANTIZE)


def _batches(pictures: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cuts pictures into batches of exactly `size`; the last is filled up with the first pictures."""
    for start in range(0, len(pictures), size):
        yield np.take(pictures, range(start, start + size), axis=0, mode="wrap")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
