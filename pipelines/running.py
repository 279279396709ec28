"""The whole way, stage by stage: pictures, training, evaluation, export, proof, report.

Every stage leaves whole files behind and is skipped when they are there: an interrupted run goes on where it was.
"""

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
from matplotlib.figure import Figure

import vit_keras
from vit_keras import get_preset
from vit_keras.export import Classifier, try_file
from vit_keras.export.files import alone, bring_back, free_bytes, is_whole, refuse_existing, remove, set_aside
from vit_keras.export.metadata import check_labels
from vit_keras.graph import as_classifier

from . import distribution
from .config import ExportConfig, RunConfig
from .datasets import ImageData, load_data
from .distribution import Process
from .environment import environment
from .evaluation import Evaluation, evaluate_logits, evaluate_model
from .exporting import export_files
from .fitting import Fitted, build_model, fit_model, with_teacher
from .preprocessing import batches
from .proof import report_files, report_run
from .report import plot_history
from .resolving import folder_of, resolve
from .run_folder import RunFolder, recover_file, run_of
from .sheet import picture_sheet
from .training import check_fit, write_metrics

Build = Callable[[RunConfig, int, str | None], keras.Model]
BYTES_PER_PARAMETER = 92
"""Disk space of a run: three training states with all an optimiser has, two models, the SavedModel, six files."""


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
    folder, config, data, model = _train(config, overwrite, "finished", verbose, process)
    with alone(folder.path, "export"):
        bring_back(folder.export)
        with folder.timed("export"):
            export_files(folder, config.export, model, data)
        return report_run(folder, config, data, model)


def train(config: RunConfig, overwrite: bool = False, verbose: str | int = 0) -> Evaluation:
    """Trains a model and leaves it in the run's folder; `run` with the same settings goes on from there.

    Returns:
        The model's evaluation on the test split.
    """
    keras.utils.set_random_seed(config.fit.seed)
    process = distribution.initialize()
    _, _, data, model = _train(config, overwrite, "trained", verbose, process)
    return evaluate_model(model, data.test)


def train_folder(config: RunConfig, build: Build = build_model, verbose: str | int = 0) -> RunFolder:
    """Trains a run's model and does not look at the test pictures; a trained run is left as it is.

    Args:
        config: What to run; `out` must be given.
        build: What builds the model, called as `fitting.build_model`.
        verbose: Progress of the training, as in `model.fit`.
    """
    folder = RunFolder(folder_of(config))
    if not folder.trained:
        _train(config, False, "trained", verbose, Process(), build)
    return folder


def evaluate(path: str | Path) -> Evaluation:
    """Evaluates a run, or one TensorFlow Lite file of a run, on the run's test split.

    Args:
        path: A run's folder, or a `.tflite` file in its `export/`.
    """
    path = Path(path)
    is_file = path.suffix == ".tflite"
    folder = run_of(path) if is_file else RunFolder(path)
    if is_file:
        recover_file(path)
        try_file(path)
    if is_file and not folder.config_file.is_file():
        raise FileNotFoundError(f"{path} must lie in the export/ of a run: on its test pictures it is evaluated.")
    data = _load(folder.load_config())
    if not is_file:
        return evaluate_model(vit_keras.load_model(folder.require_model()), data.test)
    classifier = Classifier(path)
    if classifier.num_classes != len(data.classes):
        raise ValueError(
            f"{path} must give scores of the {len(data.classes)} classes of {data.name}. "
            f"Received: num_classes={classifier.num_classes}"
        )
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
    with alone(folder.path, "export"):
        _export_again(folder, config, model, data, overwrite)
        return report_run(folder, dataclasses.replace(run_config, export=config), data, model)


def export_model(path: str | Path, config: RunConfig, overwrite: bool = False) -> dict[str, Any]:
    """Exports a Keras model that came from elsewhere, and proves the files on data.

    Args:
        path: A `.keras` file.
        config: `export` says what to export, `data` and `input` on which pictures to calibrate and to prove it, and
            `out` where to: a folder named as the file if not given.
        overwrite: Whether to replace files that are there already; without it they are kept and proven again.

    Returns:
        The content of `report.json`.

    Raises:
        FileExistsError: the folder is a run, or holds what no export has written.
        ValueError: the model does not fit the data.
    """
    path = Path(path)
    model = vit_keras.load_model(path)
    try:
        model = as_classifier(model)
    except ValueError as error:
        raise ValueError(f"{path} cannot be exported: {error}") from error
    folder = RunFolder(config.out or path.with_suffix(""))
    if folder.config_file.exists():
        raise FileExistsError(
            f"{folder.path} is a run; choose another folder with --out, or export the run by its name."
        )
    if folder.path.exists() and not folder.path.is_dir():
        raise FileExistsError(f"{folder.path} is a file; choose a folder with --out.")
    if folder.path.exists() and any(map(is_whole, folder.path.iterdir())) and not folder.made.exists():
        raise FileExistsError(f"{folder.path} holds files that are no export; choose another folder with --out.")
    data = _load(config)
    if model.output_shape[1:] != (len(data.classes),):
        raise ValueError(
            f"{path} must give scores of the {len(data.classes)} classes of {data.name}. "
            f"Received: output_shape={model.output_shape}"
        )
    with alone(folder.path, "export"):
        _export_again(folder, config.export, model, data, overwrite)
        return report_files(folder, path.stem, config.export, data, model)


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
    resolved = resolve(config, data)
    return picture_sheet(
        data.framed(resolved.input.framing),
        cast("tuple[int, int]", resolved.input.image_size),
        resolved.augment,
        path,
        rows,
        columns,
        config.fit.seed,
        config.input.balance,
    )


# Stages


def _train(
    config: RunConfig, overwrite: bool, until: str, verbose: str | int, process: Process, build: Build = build_model
) -> tuple[RunFolder, RunConfig, ImageData, keras.Model]:
    """Goes as far as the trained model; it runs on one device, whatever it was trained on."""
    with distribution.scope():
        folder, config, data, model = _prepare(config, overwrite, until, process, build)
        model = _trained_model(folder, config, data, model, verbose, process)
        mirrored = distribution.replicas() > 1
    # A variable that was made in the scope of several devices stays one of all of them: a file knows nothing of them.
    return folder, config, data, vit_keras.load_model(folder.model_file) if mirrored else model


def _prepare(
    config: RunConfig, overwrite: bool, until: str, process: Process, build: Build
) -> tuple[RunFolder, RunConfig, ImageData, keras.Model]:
    """Loads the data, resolves what the configuration leaves open, builds the model, and makes the folder ready.

    In this order, so that whatever can be refused is refused before a file is touched.
    """
    folder = RunFolder(folder_of(config))
    if getattr(folder, until) and not overwrite:
        raise FileExistsError(f"{folder.path} holds a {until} run; --overwrite replaces it.")
    if config.model != "auto":
        get_preset(config.model)
    for name, source in (("weights", config.weights), ("distill.teacher", config.distill.teacher)):
        if source and Path(source).resolve().is_relative_to(folder.path.resolve()):  # It would be removed.
            raise ValueError(f"{name} must lie outside of the run's folder, {folder.path}. Received: {name}={source}")
    data = _load(config)
    check_labels(data.classes, len(data.classes))
    config = resolve(config, data)
    data = data.framed(config.input.framing)
    keras.utils.set_random_seed(config.fit.seed)
    weights = None if folder.trained and not overwrite else config.weights
    check_fit(config.fit, max(1, len(data.train) // config.fit.batch_size))
    model = build(config, len(data.classes), weights)
    if overwrite or not folder.trained:
        with_teacher(model, config)
    needed = BYTES_PER_PARAMETER * model.count_params()
    if free_bytes(folder.path) < needed:
        raise OSError(
            errno.ENOSPC, f"A run of {config.model} needs about {needed / 1e6:.1f} MB of disk", str(folder.path)
        )
    process.first(lambda: folder.begin(config, overwrite))
    return folder, config, data, model


def _load(config: RunConfig) -> ImageData:
    data = load_data(config.data, config.input.dir, config.input.split_seed, config.input.skip_bad)
    return data.framed(config.input.framing)


def _trained_model(
    folder: RunFolder, config: RunConfig, data: ImageData, model: keras.Model, verbose: str | int, process: Process
) -> keras.Model:
    """Trains a fresh model, or loads the run's where that was done before. The first of several processes writes."""
    if folder.trained:
        return vit_keras.load_model(folder.model_file)
    with folder.timed("training"):
        fitted = fit_model(folder, config, data, model, verbose, process)
    process.first(lambda: _keep(folder, config, data, fitted))
    return fitted.best


def _keep(folder: RunFolder, config: RunConfig, data: ImageData, fitted: Fitted) -> None:
    """Writes what a training leaves, the model last: a run that has it is trained."""
    write_metrics(fitted.rows, folder.metrics_file)
    plot_history(fitted.rows, folder.history_plot)
    folder.write_text(folder.labels_file, "\n".join(data.classes) + "\n")
    folder.write_json(folder.environment_file, environment(config, data))
    logs = folder.state / "training" / "tensorboard"
    if logs.exists():
        remove(folder.tensorboard)
        logs.rename(folder.tensorboard)
    with distribution.local():
        remove(folder.last_model_file)  # An attempt that diverged may have left one.
        if fitted.last:
            folder.save_model(fitted.last, folder.last_model_file)
        folder.save_model(fitted.best, folder.model_file)
    remove(folder.state)


def _export_again(
    folder: RunFolder, config: ExportConfig, model: keras.Model, data: ImageData, overwrite: bool
) -> None:
    """Writes the files that are missing, or all that are asked for; those of before stay if that fails."""
    if not overwrite:
        bring_back(folder.export)
        export_files(folder, config, model, data)
        return
    new = [file(kind) for kind in config.kinds for file in (folder.tflite_file, folder.attention_file)]
    new += [folder.bundle(platform) for platform in config.bundles]
    new += [folder.saved_model] if config.saved_model else []
    told = (folder.made, folder.relaxations, folder.sensitivity, folder.sensitivity_plot)
    with set_aside(folder.export, [path.name for path in new], [path.name for path in told]):
        export_files(folder, config, model, data)
