"""The child process that makes files of a SavedModel: what goes wrong in it leaves the program alone.

`python -m vit_keras.export.conversion` reads a line with the folder that `tflite.py` has filled; it is started before
that, and gets TensorFlow imported meanwhile. In the folder are `job.json`, `validation.npz`, and for each signature,
that is for each picture size, a folder with `saved_model/` (a static batch) and `calibration.npy`. TensorFlow's
converter makes one float32 graph per signature; all kinds are made of it, and the signatures of a kind put into one
file. Each file appears under its name when it is whole, and what was found out about it in `results.json`.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .calibrate import RANGES, Observed, RefusedError, observe
from .files import replacing
from .inspection import all_threads, ending
from .interpreter import Classifier
from .metadata import with_metadata
from .packing import merged, result_name, results_of, with_named_logits, with_scores_first
from .quantize import KINDS, Kind, Rule, layer_of
from .rounding import Rounding, products
from .sensitivity import Relaxation, layer_errors, relative_error, relax

SENSITIVITY_PICTURES = 32
"""Pictures that a layer's effect on the logits is measured on."""
RANGES_PICTURES = 64
"""Pictures that the ways to choose ranges are compared on."""
_PARENT = os.getppid()
_MOST_STEPS = 2.0**31 / 1.01
"""Steps that a bias may be long."""
_FINEST = 2.0**30
"""Steps that a result's own step may be long: XNNPACK takes 2**32, ..."""
_COARSEST = 128.0
"""... and results' steps that one of a product's may be long: XNNPACK takes 256."""
_TINY = 2.0**-20
"""A weight that stands for none: far below any that matters, and its scale is still a number in half precision."""


class Converter:
    """TensorFlow's converter, in a process of its own, whose memory is free afterwards. It starts at once."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "vit_keras.export.converter"]
        # TensorFlow's allocator for oneDNN keeps what is freed; nothing is computed there that oneDNN would speed up.
        environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)

    def convert(self, saved_model: Path) -> bytes:
        """Converts one SavedModel, and ends; returns the content of the file."""
        file = saved_model.with_suffix(".tflite")
        self._process.communicate(f"{saved_model}\n{file}\n")
        if code := self._process.returncode:
            sys.exit(f"TensorFlow's converter ended with {ending(code)}")
        content = file.read_bytes()
        file.unlink()
        return content


def main(job: Path, converter: Converter) -> None:
    """Converts every kind of a job, in the order of the job's file.

    Args:
        job: The folder.
        converter: For the first signature.
    """
    description = json.loads((job / "job.json").read_text())
    graphs: dict[str, Graph] = {}
    for signature in description["signatures"]:
        rounding = next(iter(graphs.values())).rounding if graphs else None
        graphs[signature] = Graph.of(job / signature, description, rounding, Converter() if graphs else converter)
    own = next(iter(graphs.values()))  # The model's own size: ranges, budgets and errors are measured on it.
    pictures = _pictures(job / next(iter(graphs)))
    results, remarks, ranges = {}, [], {}
    budgets, merging = description["max_drop"], 0.0
    if budgets and description["merges"]:
        merging = _drop(own.float32, job, description)
    for name, target in description["targets"].items():
        kind = own.settled(_as_told(name, description), pictures)
        if kind.cuts:
            ranges[name] = kind.ranges
        if name in budgets and (kind.rules or description["merges"]):
            found = Relaxation(merging, merging, (), merging <= budgets[name])
            if kind.rules:
                kind, found = _within_budget(own, kind, job, description, budgets[name], merging)
            results[name] = dataclasses.asdict(found)
        content = merged({signature: graph.make(kind) for signature, graph in graphs.items()})
        if kind.integer_only and kind.input_dtype != "float32" and (left := Classifier(content).float_operators()):
            remarks += [
                f"{name} is not integer throughout: {operator} of {_some(layers)} stays in float, "
                "for want of an integer kernel or a rule."
                for operator, layers in left.items()
            ]
        if broken := list(dict.fromkeys(map(layer_of, kind.broken_blocks(own.rows)))):
            remarks.append(f"{name} has int8 weights in {_some(broken)}: their rows do not divide into whole blocks.")
        if kind.calibrated:
            _try(name, content)
        told = {part: description[part] for part in ("labels", "name", "grids", "output")}
        content = with_metadata(content, **told, description=kind.summary)
        if os.getppid() != _PARENT:
            sys.exit("Whoever asked for the files has ended.")
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    errors = {}
    for name in description["sensitivity"]:
        kind = own.settled(_as_told(name, description), pictures)
        found = layer_errors(own.float32, kind, pictures[:SENSITIVITY_PICTURES], own.make)
        errors[name] = [dataclasses.asdict(error) for error in found]
    _tell(job, {"relaxations": results, "errors": errors, "ranges": ranges, "remarks": remarks})


def _try(name: str, content: bytes) -> None:
    """Loads a file: XNNPACK may refuse what has been quantised."""
    try:
        Classifier(content)
    except ValueError as error:
        raise RefusedError(f"{name} cannot be run: {error}") from error


def _tell(job: Path, found: dict[str, Any]) -> None:
    (job / "results.json").write_text(json.dumps(found))


def _as_told(name: str, description: dict[str, Any]) -> Kind:
    """Returns a kind with what a job says of its input and its ranges, and with what the model's outliers need."""
    kind = dataclasses.replace(KINDS[name], ranges=description["ranges"])
    if description["input_dtype"]:
        kind = dataclasses.replace(kind, input_dtype=description["input_dtype"])
    return kind.for_outliers() if description["outliers"] else kind


def _some(layers: list[str]) -> str:
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")


@dataclass(frozen=True)
class Graph:
    """One signature in float32, with what was found out on sample pictures.

    Attributes:
        float32: Content of a file.
        observed: What the activations did; empty if no kind needs it.
        rounding: Rounds the weights; `None` for the quantiser's own way, to the nearest.
        scores: What the file gives of the sample pictures, `(n, num_classes)`, if it was looked at.
    """

    float32: bytes
    observed: dict[str, Observed]
    rounding: Rounding | None
    scores: np.ndarray | None = None

    @classmethod
    def of(cls, folder: Path, description: dict[str, Any], rounding: Rounding | None, converter: Converter) -> "Graph":
        """Converts a signature's SavedModel.

        Args:
            folder: Where the signature's files lie.
            description: The job's.
            rounding: That of another signature: all have the same weights.
            converter: What converts it.
        """
        float32 = converter.convert(folder / "saved_model")
        if description["grids"]:
            float32 = with_scores_first(float32)
        float32 = with_named_logits(float32)
        kinds = [_as_told(name, description) for name in (*description["targets"], *description["sensitivity"])]
        pictures = _pictures(folder)
        looked_at = len(pictures) > 0
        new = Rounding(float32) if rounding is None and looked_at and description["rounding"] == "compensated" else None
        if not (new or (looked_at and any(kind.calibrated for kind in kinds))):
            return cls(float32, {}, rounding)
        result, scores = result_name(float32), []

        def see(name: str, values: np.ndarray) -> None:
            if new:
                new.see(name, values)
            if name == result:
                scores.append(values.copy())

        batches = _batches(pictures, description["batch_size"])
        observed = observe(float32, batches, see, sampled=any(kind.cuts for kind in kinds))
        return cls(float32, observed, new or rounding, np.concatenate(scores)[: len(pictures)])

    def settled(self, kind: Kind, pictures: np.ndarray) -> Kind:
        """Returns a kind with the method that its ranges are chosen by, where it asks for the closest.

        Args:
            kind: The kind.
            pictures: The sample pictures, `(n, H, W, 3)`: the method is found on the first of them.
        """
        if not kind.cuts or kind.ranges != "closest":
            return kind
        pictures = pictures[:RANGES_PICTURES]

        def scores(content: bytes) -> np.ndarray:
            return Classifier(content, all_threads()).logits(pictures)

        exact = scores(self.float32) if self.scores is None else self.scores[: len(pictures)]
        candidates = [dataclasses.replace(kind, ranges=name) for name in RANGES if name != "closest"]
        return min(candidates, key=lambda candidate: relative_error(scores(self.make(candidate)), exact))

    def make(self, kind: Kind) -> bytes:
        """Returns the content of a file of a kind."""
        if not kind.rules:
            return self.float32
        return quantize(self.float32, kind.with_whole_blocks(self.rows), self.observed, self.rounding)

    @cached_property
    def rows(self) -> dict[tuple[str, str], int]:
        """How many weights stand in a row of each product, by its operator and the name of its result."""
        return {(p.operator, p.result): p.weights.shape[1] for p in products(self.float32)}


def _pictures(folder: Path) -> np.ndarray:
    """Returns the pictures of a signature to calibrate with; none where there are none."""
    file = folder / "calibration.npy"
    return np.load(file, "r", allow_pickle=False) if file.exists() else np.zeros(0, "float32")


def _within_budget(
    graph: Graph, kind: Kind, job: Path, description: dict[str, Any], max_drop: float, merging: float
) -> tuple[Kind, Relaxation]:
    """Relaxes as few layers of a kind as keep the budget; returns the relaxed kind, and what was done.

    Args:
        graph: The model as files have it.
        kind: The kind.
        job: The job's folder.
        description: The job's.
        max_drop: Points that may be lost.
        merging: Points that merged patches lose alone. No layer can win those back.
    """

    def drop_of(layers: tuple[str, ...]) -> float:
        return _drop(graph.make(kind.relaxed(layers)), job, description)

    def most_sensitive_first() -> list[str]:
        if merging > max_drop:
            return []
        images = np.load(job / "validation.npz", allow_pickle=False)["images"][:SENSITIVITY_PICTURES]
        errors = layer_errors(graph.float32, kind, images, graph.make)
        return [error.layer for error in sorted(errors, key=lambda error: -error.alone)]

    found = relax(most_sensitive_first, drop_of, max_drop)
    return kind.relaxed(found.layers), found


def _drop(content: bytes, job: Path, description: dict[str, Any]) -> float:
    """Points of accuracy that a file loses against the model on the validation pictures."""
    validation = np.load(job / "validation.npz", allow_pickle=False)
    found = Classifier(content).logits(validation["images"]).argmax(axis=1)
    return description["accuracy"] - 100 * float((found == validation["labels"]).mean())


def quantize(float32: bytes, kind: Kind, observed: dict[str, Observed], rounding: Rounding | None = None) -> bytes:
    """Makes a kind of a float32 file with ai-edge-quantizer.

    Ranges are our own: the quantiser's keep a moving average of minimum and maximum, which cost 4.8 points of accuracy
    on CIFAR-10.
    """
    from ai_edge_quantizer.quantizer import Quantizer

    ranges: dict[str, dict[str, np.ndarray]] = {}
    room = kind.headroom
    if kind.calibrated:
        wide = _in_16_bits(float32, kind)  # They have room for all, and are that wide for the sake of outliers.
        ends = {name: o.cut("minmax" if name in wide else kind.ranges) for name, o in observed.items()}
        ranges = {name: {"min": low * room, "max": high * room} for name, (low, high) in ends.items()}
    content = rounding(float32, kind) if rounding else bytearray(float32)
    _fill_empty_blocks(content, kind)
    _fit_steps(content, kind, ranges)
    quantizer = Quantizer(content)
    for rule in kind.rules:
        for operator in rule.operators:
            _apply(quantizer, operator, rule)
    if kind.integer_only:
        _set_ends(quantizer, kind.input_dtype)
    return bytes(quantizer.quantize(ranges or None, enable_progress_report=False).quantized_model)


def _in_16_bits(float32: bytes, kind: Kind) -> set[str]:
    """Returns the names of the results of those operators whose activations a kind computes in 16 bits."""
    rules = ((results, kind.rule_for(operator, results[0])) for operator, results in results_of(float32))
    return {result for results, rule in rules if rule and rule.activations == 16 for result in results}


def _fill_empty_blocks(content: bytearray, kind: Kind) -> None:
    """Puts one tiny weight into every block of zeros, as a fresh head has: a scale of zero is refused by XNNPACK."""
    for product in products(content):
        rule = kind.rule_for(product.operator, product.result)
        if rule and rule.block:
            blocks = product.weights.reshape(-1, rule.block)
            blocks[~blocks.any(axis=1), 0] = _TINY


def _fit_steps(content: bytearray, kind: Kind, ranges: dict[str, dict[str, np.ndarray]]) -> None:
    """Keeps the steps of a product's integers in proportion where weights, or results, are next to nothing.

    A product is summed up in steps of its inputs' scale times its weights'. Where these are too small beside a bias,
    its int32 would be cut; too small or too large beside a result's step, XNNPACK refuses the product. For the former
    one weight of the channel is raised, for the latter the range of the results. The weight adds less than a hundredth
    of a result's step, or at most 1.5e-5 of the bias with int8 inputs, and 0.2 % of it with int16.
    """
    for product in products(content):
        rule = kind.rule_for(product.operator, product.result)
        if not {product.inputs, product.result} <= set(ranges) or not (rule and rule.activations and rule.weights):
            continue
        taken, given = (_step(ranges[name], rule.activations) for name in (product.inputs, product.result))
        largest = np.abs(product.weights).argmax(axis=1)
        sizes = product.weights[np.arange(len(largest)), largest]
        coarse = taken * np.abs(sizes).max() / 127 / _COARSEST
        if given < coarse:
            ranges[product.result] = {end: value * coarse / given for end, value in ranges[product.result].items()}
            given = coarse
        bias = np.zeros(1) if product.bias is None else np.abs(product.bias)
        smallest = 127 / taken * np.maximum(bias / _MOST_STEPS, given / _FINEST)
        raised = np.flatnonzero(np.abs(sizes) < smallest)
        product.weights[raised, largest[raised]] = np.copysign(smallest, sizes)[raised]


def _step(ends: Mapping[str, np.ndarray], bits: int) -> float:
    """Returns the scale of an activation's integers."""
    low, high = (float(np.min(ends[end])) for end in ("min", "max"))
    return (max(high, 0) - min(low, 0)) / 255 if bits == 8 else max(high, -low) / 32767


def _apply(quantizer, operator: str, rule: Rule) -> None:
    """Adds one rule to the quantiser's recipe."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    name = qtyping.TFLOperationName(operator)
    granularity = qtyping.QuantGranularity[f"BLOCKWISE_{rule.block}" if rule.block else "CHANNELWISE"]
    if rule.weights is None:
        quantizer.update_quantization_recipe(rule.layers, name, None, AlgorithmName.NO_QUANTIZE)
    elif rule.activations:
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
    waiting = Converter()
    if folder := sys.stdin.readline().rstrip("\n"):  # Nothing comes from a caller that has failed.
        try:
            main(Path(folder), waiting)
        except RefusedError as error:
            _tell(Path(folder), {"refused": str(error)})
