"""The whole way, stage by stage: pictures, training, evaluation, export, proof, report.

Every stage leaves whole files behind and is skipped when they are there: an interrupted run goes on where it was.
"""

import dataclasses
import errno
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
from matplotlib.figure import Figure

import vit_keras
from vit_keras import explain, get_preset, merge_lora
from vit_keras.export import try_file
from vit_keras.export.files import free_bytes, refuse_existing, remove
from vit_keras.export.framing import check_image_sizes
from vit_keras.export.metadata import check_labels
from vit_keras.export.rewriting import at_size

from . import distribution
from . import report as reporting
from .config import ExportConfig, RunConfig
from .datasets import ImageData, load_data, median_side, stratified_sample
from .distribution import Process
from .evaluation import Evaluation, evaluate_model
from .exporting import export_files, pixels, prove
from .fitting import build_model, fit_model, with_teacher
from .preprocessing import batches
from .run_folder import RunFolder
from .sheet import picture_sheet
from .training import check_fit, write_metrics
from .yaml_text import write_yaml

logger = logging.getLogger(__name__)

REPORT_FORMAT = 1
BYTES_PER_PARAMETER = 88
"""Disk space of a run: three training states with all an optimiser has, the model, the SavedModel, six files."""
NUM_PICTURES = 12
"""Test pictures on the report's page."""


def run(config: RunConfig, overwrite: bool = False, verbose: str | int = 0) -> dict[str, Any]:
    """Goes the whole way: trains, exports, proves and reports.

    Args:
        config: What to run.
        overwrite: Whether to replace a run that is in the folder already.
        verbose: Progress of the training, as in `model.fit`.

    Returns:
        The content of `report.json`.

    Raises:
        FileExistsError: the folder holds a finished run, one of other settings, or something else.
        ValueError: data or settings that cannot be used.
    """
    process = distribution.initialize()
    if process.count > 1:
        raise ValueError(
            "Several processes can train together, not run: call train, then export in one process on TensorFlow. "
            f"Received: count={process.count}"
        )
    with distribution.scope():
        folder, config, data, model = _prepare(config, overwrite, "finished", process)
        model = _trained_model(folder, config, data, model, verbose, process)
    with _timed(folder, "export"):
        export_files(folder, config.export, model, data)
    return _report(folder, config, data, model)


def train(config: RunConfig, overwrite: bool = False, verbose: str | int = 0) -> Evaluation:
    """Trains a model and leaves it in the run's folder; `run` with the same settings goes on from there.

    Returns:
        The model's evaluation on the test split.
    """
    keras.utils.set_random_seed(config.fit.seed)
    process = distribution.initialize()
    with distribution.scope():
        folder, config, data, model = _prepare(config, overwrite, "trained", process)
        model = _trained_model(folder, config, data, model, verbose, process)
    return evaluate_model(model, data.test)


def evaluate(path: str | Path) -> Evaluation:
    """Evaluates a run, or one TensorFlow Lite file of a run, on the run's test split.

    Args:
        path: A run's folder, or a `.tflite` file in its `export/`.
    """
    path = Path(path)
    is_file = path.suffix == ".tflite"
    if is_file:
        try_file(path)
    folder = RunFolder(path.resolve().parent.parent if is_file else path)
    data = _load(folder.load_config())
    if not is_file:
        return evaluate_model(vit_keras.load_model(folder.require_model()), data.test)
    from vit_keras.export import Classifier

    from .evaluation import evaluate_logits

    classifier = Classifier(path)
    images = (images for images, _ in batches(data.test, classifier.image_size, 256).as_numpy_iterator())
    return evaluate_logits(np.concatenate([classifier.logits(batch) for batch in images]), data.test.labels)


def export(path: str | Path, config: ExportConfig | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Exports a run's model again, proves the files, and renews the run's report.

    Args:
        path: A run's folder.
        config: What to export; the run's own settings if `None`.
        overwrite: Whether to replace files that are there already; without it they are kept and proven again.

    Returns:
        The content of `report.json`.
    """
    folder = RunFolder(path)
    run_config = folder.load_config()
    config = config or run_config.export
    model = vit_keras.load_model(folder.require_model())
    data = _load(run_config)
    _export_again(folder, config, model, data, overwrite)
    return _report(folder, dataclasses.replace(run_config, export=config), data, model)


def export_model(path: str | Path, config: RunConfig, overwrite: bool = False) -> dict[str, Any]:
    """Exports a Keras model that came from elsewhere, and proves the files on data.

    Args:
        path: A `.keras` file.
        config: `export` says what to export, `data` and `input` on which pictures to calibrate and to prove it, and
            `out` where to: a folder named as the file if not given.
        overwrite: Whether to replace files that are there already; without it they are kept and proven again.

    Returns:
        The content of `report.json`.
    """
    path = Path(path)
    model = vit_keras.load_model(path)
    folder = RunFolder(config.out or path.with_suffix(""))
    data = _load(config)
    if model.output_shape[1:] != (len(data.classes),):
        raise ValueError(
            f"{path} must give scores of the {len(data.classes)} classes of {data.name}. "
            f"Received: output_shape={model.output_shape}"
        )
    _export_again(folder, config.export, model, data, overwrite)
    content, _, _ = _prove(folder, path.stem, config.export, data, model)
    folder.write_json(folder.report_json, content)
    remove(folder.state)
    return content


def show_data(config: RunConfig, path: str | Path, rows: int = 5, columns: int = 8, overwrite: bool = False) -> Figure:
    """Draws a sheet of training pictures as a run of this configuration would feed them to its model.

    Args:
        config: `data`, `model`, `input` and `augment` count.
        path: The PNG file to write.
        rows: Rows of pictures.
        columns: Columns of pictures.
        overwrite: Whether to replace a file that is there already.

    Raises:
        FileExistsError: the file exists and `overwrite` is false.
    """
    refuse_existing(path, overwrite)
    data = _load(config)
    resolved = _resolve(config, RunFolder(folder_of(config)), data)
    image_size = cast("tuple[int, int]", resolved.input.image_size)
    return picture_sheet(
        data.framed(resolved.input.framing), image_size, resolved.augment, path, rows, columns, config.fit.seed
    )


def folder_of(config: RunConfig) -> Path:
    """Returns the folder that a run of this configuration goes into."""
    if config.out:
        return Path(config.out)
    data = Path(config.data).expanduser().resolve()
    return Path("runs") / (data.stem if data.suffix in (".csv", ".npz") else data.name).replace(":", "_")


# Stages


def _prepare(
    config: RunConfig, overwrite: bool, until: str, process: Process
) -> tuple[RunFolder, RunConfig, ImageData, keras.Model]:
    """Loads the data, resolves what the configuration leaves open, builds the model, and makes the folder ready.

    In this order, so that whatever can be refused is refused before a file is touched.
    """
    folder = RunFolder(folder_of(config))
    if getattr(folder, until) and not overwrite:
        raise FileExistsError(f"{folder.path} holds a finished run; --overwrite replaces it.")
    if config.model != "auto":
        get_preset(config.model)
    data = _load(config)
    check_labels(data.classes, len(data.classes))
    config = _resolve(config, folder, data)
    data = data.framed(config.input.framing)
    keras.utils.set_random_seed(config.fit.seed)
    weights = None if folder.trained and not overwrite else config.weights
    check_fit(config.fit)
    model = build_model(config, len(data.classes), weights)
    if overwrite or not folder.trained:
        with_teacher(model, config)
    needed = BYTES_PER_PARAMETER * model.count_params()
    if free_bytes(folder.path) < needed:
        raise OSError(
            errno.ENOSPC, f"A run of {config.model} needs about {needed / 1e6:.1f} MB of disk", str(folder.path)
        )
    if process.index == 0:
        folder.begin(config, overwrite)
    return folder, config, data, model


def _load(config: RunConfig) -> ImageData:
    data = load_data(config.data, config.input.dir, config.input.split_seed, config.input.skip_bad)
    return data.framed(config.input.framing)


def _resolve(config: RunConfig, folder: RunFolder, data: ImageData) -> RunConfig:
    name = config.model if config.model != "auto" else _fitting_model(data)
    preset = get_preset(name)
    image_size = config.input.image_size or preset.image_size
    image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
    interpolation = config.input.interpolation or preset.interpolation
    crop_fraction = config.input.crop_fraction or preset.crop_fraction
    epochs = config.fit.epochs
    if epochs is None:
        steps_per_epoch = max(1, len(data.train) // config.fit.batch_size)
        epochs = max(20, min(120, math.ceil(2000 / steps_per_epoch)))
    return dataclasses.replace(
        config,
        model=name,
        out=str(folder.path),
        input=dataclasses.replace(
            config.input, image_size=image_size, interpolation=interpolation, crop_fraction=crop_fraction
        ),
        augment=config.augment.resolved(image_size),
        fit=dataclasses.replace(config.fit, epochs=epochs),
    )


def _fitting_model(data: ImageData) -> str:
    """Chooses the small preset whose input size is next to the pictures' own."""
    presets = ("vit_micro_patch2_8", "vit_mini_patch4_28", "vit_mini_patch4_32", "vit_mini_patch8_64")
    side = median_side(data.train)
    return min(presets, key=lambda name: abs(math.log(get_preset(name).image_size[0] / side)))


def _trained_model(
    folder: RunFolder, config: RunConfig, data: ImageData, model: keras.Model, verbose: str | int, process: Process
) -> keras.Model:
    """Trains a fresh model, or loads the run's where that was done before. The first of several processes writes."""
    if folder.trained:
        return vit_keras.load_model(folder.model_file)
    with _timed(folder, "training"):
        rows = fit_model(folder, config, data, model, verbose, process)
    with distribution.local():
        model = merge_lora(model, dtype="float32")
    if process.index:
        return model
    write_metrics(rows, folder.metrics_file)
    reporting.plot_history(rows, folder.history_plot)
    folder.write_text(folder.labels_file, "\n".join(data.classes) + "\n")
    folder.write_json(folder.environment_file, _environment(config, data))
    # A plain loss, so that the file loads in any program that knows our layers.
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    with distribution.local():
        folder.save_model(model)
    logs = folder.state / "training" / "tensorboard"
    if logs.exists():
        remove(folder.tensorboard)
        logs.rename(folder.tensorboard)
    for file in ("training", "pixels"):
        remove(folder.state / file)
    return model


def _export_again(
    folder: RunFolder, config: ExportConfig, model: keras.Model, data: ImageData, overwrite: bool
) -> None:
    """Writes the files that are missing, or all of them."""
    if overwrite:
        for file in (folder.saved_model, *(folder.tflite_file(kind) for kind in config.kinds)):
            remove(file)
    export_files(folder, config, model, data)


def _prove(
    folder: RunFolder, name: str, config: ExportConfig, data: ImageData, model: keras.Model
) -> tuple[dict[str, Any], Evaluation, np.ndarray]:
    """Proves every file; returns the content of `report.json`, the Keras model's evaluation and the test pictures."""
    with _timed(folder, "proof"):
        evaluation = evaluate_model(model, data.test)
        image_size = model.input_shape[1:3]
        images = pixels(data.test, image_size)
        artefacts = prove(folder, config, evaluation, images)
        for size in check_image_sizes(config.image_sizes):
            if size != image_size:
                other = evaluate_model(at_size(model, size), data.test)
                artefacts += prove(folder, config, other, pixels(data.test, size))
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
    }
    return content, evaluation, images


def _report(folder: RunFolder, config: RunConfig, data: ImageData, model: keras.Model) -> dict[str, Any]:
    """Proves every file and writes the report."""
    content, evaluation, images = _prove(folder, config.model, config.export, data, model)
    reporting.write_html(
        folder.report_html,
        content,
        write_yaml(config.to_dict()),
        reporting.plot_history(folder.read_metrics()),
        reporting.plot_confusion(evaluation.confusion(), data.classes, folder.confusion_plot),
        _pictures(model, evaluation, images, data.classes),
        reporting.plot_sensitivity(json.loads(folder.sensitivity.read_text()), folder.sensitivity_plot)
        if config.export.sensitivity and folder.sensitivity.exists()
        else None,
    )
    folder.write_json(folder.report_json, content)
    remove(folder.state)
    return content


def _pictures(model: keras.Model, evaluation: Evaluation, images: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """Plots wrong predictions first, at most half of the pictures, then right ones of all classes."""
    labels, predictions = evaluation.labels, evaluation.predictions
    wrong = np.nonzero(predictions != labels)[0][: NUM_PICTURES // 2]
    right = np.nonzero(predictions == labels)[0]
    right = right[stratified_sample(labels[right], NUM_PICTURES - len(wrong), seed=0)]
    chosen = np.concatenate([wrong, right])
    chances = np.asarray(keras.ops.softmax(evaluation.logits[chosen])).max(axis=1)
    return reporting.plot_pictures(
        images[chosen],
        explain.rollout_maps(model, images[chosen]),
        [classes[i] for i in labels[chosen]],
        [classes[i] for i in predictions[chosen]],
        chances.tolist(),
    )


def _environment(config: RunConfig, data: ImageData) -> dict[str, Any]:
    """Returns what a result may depend on: versions, seeds, hardware, pictures that were left out."""
    packages = ("keras", "tensorflow", "ai-edge-litert", "ai-edge-quantizer", "numpy", "scikit-learn")
    return {
        "vit_keras": vit_keras.__version__,
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages},
        "backend": keras.backend.backend(),
        "seed": config.fit.seed,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "skipped": {bad.picture: bad.fault for bad in data.skipped},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@contextmanager
def _timed(folder: RunFolder, stage: str) -> Iterator[None]:
    """Says in the log how long a stage took."""
    logger.info("%s: %s", folder.path, stage)
    start = time.monotonic()
    yield
    logger.info("%s: %s took %.1f s", folder.path, stage, time.monotonic() - start)
