"""The last stage of a run: every file is proven on the test pictures, and the report is written."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from vit_keras import explain
from vit_keras.export import KINDS, Classifier, golden, write_golden
from vit_keras.export.files import remove
from vit_keras.export.framing import check_image_sizes
from vit_keras.export.rewriting import at_size

from . import report as reporting
from .config import ExportConfig, RunConfig
from .datasets import ImageData, stratified_sample
from .evaluation import Evaluation, evaluate_model
from .export_records import read_made, read_sensitivity
from .exporting import model_digest, pixels, prove, prove_attention
from .run_folder import RunFolder
from .yaml_text import write_yaml

logger = logging.getLogger(__name__)

REPORT_FORMAT = 1
NUM_PICTURES = 12
"""Test pictures on the report's page."""


def report_files(
    folder: RunFolder, name: str, config: ExportConfig, data: ImageData, model: keras.Model
) -> dict[str, Any]:
    """Proves every file of a model, writes `report.json`, and returns its content.

    Args:
        folder: Where the files are.
        name: What the model is called.
        config: Which files.
        data: The pictures.
        model: The Keras model that the files were made of.
    """
    content = _prove(folder, name, config, data, model).content
    _finish(folder, content)
    return content


def report_run(folder: RunFolder, config: RunConfig, data: ImageData, model: keras.Model) -> dict[str, Any]:
    """Proves every file of a run, writes its report, for programs and for people, and returns the former's content."""
    proof = _prove(folder, config.model, config.export, data, model)
    reporting.write_html(
        folder.report_html,
        proof.content,
        write_yaml(config.to_dict()),
        reporting.plot_history(folder.read_metrics()),
        reporting.plot_confusion(proof.evaluation.confusion(), data.classes, folder.confusion_plot),
        _pictures(model, proof, data.classes),
        proof.sensitivity,
    )
    _finish(folder, proof.content)
    return proof.content


def _finish(folder: RunFolder, content: dict[str, Any]) -> None:
    folder.write_json(folder.report_json, content)
    remove(folder.state)


@dataclass(frozen=True)
class _Proof:
    """The content of `report.json`, the Keras model's evaluation, the test pictures, float32 `(n, H, W, 3)`, and the
    plot of sensitivity if it was measured."""

    content: dict[str, Any]
    evaluation: Evaluation
    images: np.ndarray
    sensitivity: Figure | None


def _prove(folder: RunFolder, name: str, config: ExportConfig, data: ImageData, model: keras.Model) -> _Proof:
    with folder.timed("proof"):
        evaluation = evaluate_model(model, data.test)
        image_size = model.input_shape[1:3]
        images = pixels(data.test, image_size)
        artefacts = prove(folder, config, evaluation, images)
        attention = prove_attention(folder, config, model, images, evaluation.labels)
        _write_golden(folder, data, model, evaluation, images)
        for size in check_image_sizes(config.image_sizes):
            if size != image_size:
                other = evaluate_model(at_size(model, size), data.test)
                artefacts += prove(folder, config, other, pixels(data.test, size))
    measured = read_sensitivity(folder) if config.sensitivity else {}
    errors = {kind: [dataclasses.asdict(error) for error in found] for kind, found in measured.items()}
    content = {
        "format": REPORT_FORMAT,
        "model": {
            "name": name,
            "parameters": model.count_params(),
            "image_size": list(image_size),
            "classes": list(data.classes),
        },
        "data": {
            "name": data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
        },
        "keras": {"accuracy": evaluation.accuracy, "loss": evaluation.loss},
        "artefacts": artefacts,
        "attention": attention,
        "sensitivity": errors,
    }
    plot = reporting.plot_sensitivity(errors, folder.sensitivity_plot) if errors else None
    return _Proof(content, evaluation, images, plot)


def _places(folder: RunFolder, kind: str) -> dict[str, Path]:
    return {kind: folder.tflite_file(kind), f"{kind}.attention": folder.attention_file(kind)}


def _write_golden(
    folder: RunFolder, data: ImageData, model: keras.Model, evaluation: Evaluation, images: np.ndarray
) -> None:
    """Keeps test pictures of all classes with the answers of every file of the model, of this export or another."""
    chosen = np.sort(stratified_sample(evaluation.labels, golden.NUM_PICTURES, seed=0))
    places = {name: place for kind in KINDS for name, place in _places(folder, kind).items()}
    made, digest, files = read_made(folder), model_digest(model), {}
    for name, file in places.items():
        if file.exists() and made.get(file.name, {}).get("model") == digest:
            try:
                Classifier(file)
            except ValueError as error:  # It was made by another export, and damaged since.
                logger.warning("%s", error)
                continue
            files[name] = file
    parts = images[chosen], evaluation.labels[chosen]
    write_golden(folder.golden, *parts, data.classes, files, evaluation.logits[chosen])


def _pictures(model: keras.Model, proof: _Proof, classes: tuple[str, ...]) -> Figure:
    """Plots wrong predictions first, at most half of the pictures, then right ones of all classes."""
    labels, predictions = proof.evaluation.labels, proof.evaluation.predictions
    wrong = np.nonzero(predictions != labels)[0][: NUM_PICTURES // 2]
    right = np.nonzero(predictions == labels)[0]
    right = right[stratified_sample(labels[right], NUM_PICTURES - len(wrong), seed=0)]
    chosen = np.concatenate([wrong, right])
    chances = np.asarray(keras.ops.softmax(proof.evaluation.logits[chosen])).max(axis=1)
    images = proof.images[chosen]
    return reporting.plot_pictures(
        images,
        explain.rollout_maps(model, images),
        [classes[i] for i in labels[chosen]],
        [classes[i] for i in predictions[chosen]],
        chances.tolist(),
    )
