"""From a run's model to its files, and their proof: what is there already is neither written nor measured again."""

import dataclasses
import filecmp
import json
import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vit_keras.export import (
    KINDS,
    Agreement,
    OperatorCensus,
    Relaxation,
    compare,
    measure_latency,
    measure_sensitivity,
    to_saved_model,
    to_tflite_files,
    to_tflite_within,
    write_bundle,
)
from vit_keras.export.bundle import MODEL_FILE
from vit_keras.export.files import remove
from vit_keras.export.framing import Framing
from vit_keras.export.platforms import bundled_kind

from .config import ExportConfig
from .datasets import ImageData, Split, stratified_sample
from .evaluation import Evaluation
from .preprocessing import batches
from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def export_files(folder: RunFolder, config: ExportConfig, model: keras.Model, data: ImageData) -> None:
    """Writes the files that a run lacks."""
    if config.saved_model and not folder.saved_model.exists():
        to_saved_model(model, folder.saved_model, framing=data.test.framing)
    missing = {kind: folder.tflite_file(kind) for kind in config.kinds if not folder.tflite_file(kind).exists()}
    image_size = model.input_shape[1:3]
    sample = data.train.take(stratified_sample(data.train.labels, config.calibration_pictures, seed=0))

    def calibration():
        return (images for images, _ in batches(sample, image_size, 64).as_numpy_iterator())

    limits = {kind: limit for kind in missing if (limit := _limit(kind, config)) is not None}
    if limits:
        held = data.validation.take(stratified_sample(data.validation.labels, config.validation_pictures, seed=0))
        validation = pixels(held, image_size), held.labels
        found = to_tflite_within(
            model, missing, calibration(), validation, limits, labels=data.classes, image_sizes=config.image_sizes
        )
        _keep_relaxations(folder, found, limits)
    elif missing:
        to_tflite_files(model, missing, calibration(), labels=data.classes, image_sizes=config.image_sizes)
    kinds = [kind for kind in config.kinds if KINDS[kind].calibrated]
    if config.sensitivity and kinds and (missing or not folder.sensitivity.exists()):
        errors = measure_sensitivity(model, kinds, calibration())
        folder.write_json(
            folder.sensitivity, {k: [dataclasses.asdict(e) for e in found] for k, found in errors.items()}
        )
    _write_bundles(folder, config, data.test.framing)


def _write_bundles(folder: RunFolder, config: ExportConfig, framing: Framing | None) -> None:
    """Writes the folders for apps that a run lacks.

    Raises:
        FileExistsError: a bundle is there and holds another file than it would now.
    """
    made = [kind for kind in config.kinds if folder.tflite_file(kind).exists()]
    if config.bundles and not made:
        logger.warning("No file is left for a bundle for %s.", ", ".join(config.bundles))
        return
    for platform in config.bundles:
        file, bundle = folder.tflite_file(bundled_kind(made)), folder.bundle(platform)
        if not bundle.exists():
            write_bundle(file, platform, bundle, framing)
        elif not filecmp.cmp(file, bundle / MODEL_FILE, shallow=False):
            raise FileExistsError(f"{bundle} holds another file than {file.name}; --overwrite replaces it.")


def _limit(kind: str, config: ExportConfig) -> float | None:
    """The points that a kind may lose: the stricter one of its own limit and the user's."""
    limits = [limit for limit in (KINDS[kind].max_drop, config.max_drop) if limit is not None]
    return min(limits, default=None)


def _keep_relaxations(folder: RunFolder, found: dict[str, Relaxation], limits: dict[str, float]) -> None:
    """Writes down how files were brought within their limits; removes a kind that is of no use beyond its own."""
    known = json.loads(folder.relaxations.read_text()) if folder.relaxations.exists() else {}
    for kind, relaxation in found.items():
        known[kind] = dataclasses.asdict(relaxation)
        if not relaxation.within:
            logger.warning(
                "%s loses %.2f points on the validation pictures, more than %.2f, with all layers relaxed.",
                *(kind, relaxation.drop, limits[kind]),
            )
            if KINDS[kind].max_drop is not None:
                logger.warning("%s is refused: a file that loses so much is of no use.", kind)
                remove(folder.tflite_file(kind))
    folder.write_json(folder.relaxations, known)


def pixels(split: Split, image_size: tuple[int, int]) -> np.ndarray:
    """Returns all pictures of a split, float32 `(n, H, W, 3)`."""
    return np.concatenate([images for images, _ in batches(split, image_size, 256).as_numpy_iterator()])


def prove(folder: RunFolder, config: ExportConfig, evaluation: Evaluation, images: np.ndarray) -> list[dict[str, Any]]:
    """Holds every file against the Keras model, on pictures of one size; what was measured before an interruption is
    not measured again."""
    files = {kind: folder.tflite_file(kind) for kind in config.kinds if folder.tflite_file(kind).exists()}
    relaxations = json.loads(folder.relaxations.read_text()) if folder.relaxations.exists() else {}
    agreements = {kind: _agreement(folder, kind, file, evaluation, images) for kind, file in files.items()}
    latencies = measure_latency(files, images[0], config.threads)
    return [
        {
            "kind": kind,
            "file": str(file.relative_to(folder.path).as_posix()),
            "image_size": list(images.shape[1:3]),
            "bytes": agreements[kind].bytes,
            "accuracy": agreements[kind].accuracy,
            "accuracy_interval": list(agreements[kind].accuracy_interval),
            "points_lost": agreements[kind].points_lost,
            "points_lost_interval": list(agreements[kind].points_lost_interval),
            "agreement": agreements[kind].agreement,
            "max_abs_logit_error": agreements[kind].max_abs_logit_error,
            "latency_ms": dataclasses.asdict(latencies[kind]),
            "operators": dataclasses.asdict(agreements[kind].operators),
            "integer_only": agreements[kind].operators.float == 0,
            "relaxation": relaxations.get(kind),
        }
        for kind, file in files.items()
    ]


def _agreement(folder: RunFolder, kind: str, file: Path, evaluation: Evaluation, images: np.ndarray) -> Agreement:
    """Compares one file, or takes the comparison that an interrupted run has left for the same file."""
    height, width = images.shape[1:3]
    state = folder.state / f"proof.{kind}.{height}x{width}.json"
    stamp = file.stat().st_mtime_ns
    if state.exists():
        saved = json.loads(state.read_text())
        if saved.pop("stamp") == stamp:
            intervals = {name: tuple(saved.pop(name)) for name in ("accuracy_interval", "points_lost_interval")}
            return Agreement(operators=OperatorCensus(**saved.pop("operators")), **intervals, **saved)
    agreement = compare(file, images, evaluation.labels, evaluation.logits)
    folder.write_json(state, {"stamp": stamp, **dataclasses.asdict(agreement)})
    return agreement
