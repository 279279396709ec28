"""From a Keras model to TensorFlow Lite files: static batch, static shapes, builtin operators only."""

import errno
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vit_keras.graph import as_classifier

from .attention import OUTPUT as ATTENTION_OUTPUT
from .attention_rows import patch_grid
from .calibrate import RANGES, sample
from .exactness import accuracy_of, check_copy, gives_chances
from .files import ALMOST_FULL, disk_full, free_bytes, refuse_existing, saying_what_is_full
from .framing import check_image_sizes
from .inspection import ending
from .metadata import OUTPUTS, check_labels
from .quantize import KINDS, ROUNDINGS, check_kinds, check_merging
from .rewriting import REWRITES, at_size, check_rewrites, rewrite
from .saved_model import quiet_tensorflow
from .sensitivity import LayerError, Relaxation
from .smoothing import smoothed_channels
from .verification import check_class_indices

logger = logging.getLogger(__name__)

OWN_SIZE = "serving_default"
"""Signature of a file for the picture size that the model has itself."""


@dataclass(frozen=True)
class FileOptions:
    """What files are like, whatever their kind.

    Attributes:
        labels: Class names in the order of the logits, for the files' metadata.
        batch_size: Pictures per call of a file, >= 1. It is fixed: delegates reject a dynamic one.
        rewrites: Exact rewrites to apply first, names in `vit_keras.export.REWRITES`.
        rounding: How weights are rounded, a name in `vit_keras.export.ROUNDINGS`; without calibration pictures always
            to the nearest.
        ranges: How ranges of activations are chosen, a name in `vit_keras.export.RANGES`.
        calibration_pictures: Most calibration pictures that are looked at, >= 1: the first ones.
        input_dtype: Type that integer-only files take and give: `"uint8"` or `"int8"` (`int16x8`: `"int16"`), or
            `"float32"` for all kinds; the kind's own if `None`.
        output: `"logits"`, or `"probabilities"` for their softmax.
        image_sizes: Further picture sizes, `(height, width)` or one number for both. A file then has a signature for
            each, `serving_160x224`, beside `serving_default` for the model's own; they share their weights.
        with_attention: Whether files give the model's attention as a second output, `attention`; see
            `vit_keras.export.attention`. Programs that want one output, as MediaPipe's classifier, refuse such files.
        merge_tokens: Share of the patches that are merged into others, 0 to 0.5: less to compute for a little accuracy;
            see `vit_keras.export.merging`. Kinds that are integer throughout have no operators for it.
    """

    labels: Sequence[str] | None = None
    batch_size: int = 1
    rewrites: Iterable[str] = tuple(REWRITES)
    rounding: str = "compensated"
    ranges: str = "closest"
    calibration_pictures: int = 200
    input_dtype: str | None = None
    output: str = "logits"
    image_sizes: Iterable[int | tuple[int, int]] = ()
    with_attention: bool = False
    merge_tokens: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "calibration_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1. Received: {name}={getattr(self, name)}")
        object.__setattr__(self, "rewrites", check_rewrites(self.rewrites))
        object.__setattr__(self, "image_sizes", check_image_sizes(self.image_sizes))
        known_names = {"rounding": ROUNDINGS, "ranges": RANGES, "output": OUTPUTS}
        for name, known in known_names.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}. Received: {name}={getattr(self, name)!r}")

    def check_for(self, kinds: Sequence[str]) -> None:
        """Refuses what one of the kinds cannot be like."""
        check_merging(self.merge_tokens, kinds, self.with_attention)
        for kind in kinds:
            own = KINDS[kind].input_dtype
            known = dict.fromkeys((own, "int8", "float32") if own == "uint8" else (own, "float32"))
            if self.input_dtype not in (None, *known):
                raise ValueError(
                    f"input_dtype of {kind} must be one of {', '.join(known)}. "
                    f"Received: input_dtype={self.input_dtype!r}"
                )


def to_tflite(
    model: keras.Model,
    path: str | Path,
    kind: str = "float32",
    calibration: Iterable[np.ndarray] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Exports a classifier as one TensorFlow Lite file.

    Args:
        model: A Keras model from pictures, float32 `(B, H, W, 3)` with pixels 0 to 255, to logits, `(B, num_classes)`.
        path: The file to write.
        kind: A name in `vit_keras.export.KINDS`.
        calibration: Batches of pictures, `(B, H, W, 3)`, 0 to 255; needed by the kinds that are calibrated, of use to
            all that have integer weights.
        overwrite: Whether to replace a file that is there already.
        **options: Attributes of `FileOptions`, as `labels` and `batch_size`.

    Returns:
        The path. The file has a signature `serving_default`, from `images` to `logits` or `probabilities`, further ones
        where there are `image_sizes`, and standard metadata: see `vit_keras.export.metadata`.

    Raises:
        ValueError: an unknown kind, a calibrated kind without pictures, pictures that do not fit the model, labels
            that do not, or `with_attention` for a model that has none.
        FileExistsError: the file exists and `overwrite` is false, or is a folder.
        ChildProcessError: the conversion failed; the message holds the last lines that the converter printed, a
            note of the error some more.
        OSError: there is no room for the file, or for the temporary ones.
    """
    return to_tflite_files(model, {kind: path}, calibration, overwrite, **options)[kind]


def to_tflite_files(
    model: keras.Model,
    paths: Mapping[str, str | Path],
    calibration: Iterable[np.ndarray] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Path]:
    """Exports a classifier as several kinds at once: as `to_tflite`, with one child process for all.

    Args:
        paths: Kind to the file to write. A file appears under its name as soon as it is whole.

    Returns:
        Kind to path.
    """
    _convert(model, paths, calibration, overwrite, FileOptions(**options))
    return {kind: Path(path) for kind, path in paths.items()}


def to_tflite_within(
    model: keras.Model,
    paths: Mapping[str, str | Path],
    calibration: Iterable[np.ndarray] | None,
    validation: tuple[np.ndarray, np.ndarray],
    max_drop: float | Mapping[str, float],
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Relaxation]:
    """Exports a classifier as several kinds, each within a budget of accuracy: otherwise as `to_tflite_files`.

    Where a file loses more than the budget, the layers that lose most are computed more finely until it does not: with
    activations quantised on the fly, in an integer-only kind with int16 activations, in `int4` with int8 weights. What
    merged patches lose counts too: where that alone is more than the budget, no layer is relaxed.

    Args:
        calibration: Training pictures.
        validation: Pictures, `(n, H, W, 3)`, 0 to 255, and integer labels, `(n,)`: neither the calibration's nor the
            test's.
        max_drop: Points of accuracy that a file may lose against the model, in float32 and without merged patches, on
            the validation pictures, or kind to points; kinds that are not named have no limit.

    Returns:
        Kind to what was relaxed. A file that stays beyond the budget is written all the same; `within` says so.
    """
    images, labels = map(np.asarray, validation)
    if not len(images) or len(images) != len(labels):
        raise ValueError(f"validation must hold pictures and as many labels. Received: {len(images)} and {len(labels)}")
    labels = check_class_indices(labels, "validation")
    limits = dict(max_drop) if isinstance(max_drop, Mapping) else dict.fromkeys(paths, max_drop)
    for kind, limit in limits.items():
        if not limit >= 0:
            raise ValueError(f"max_drop must be points >= 0. Received: max_drop={limit} for {kind}")
    results = _convert(model, paths, calibration, overwrite, FileOptions(**options), limits, (images, labels))
    found = results["relaxations"]
    return {kind: Relaxation(**{**values, "layers": tuple(values["layers"])}) for kind, values in found.items()}


def measure_sensitivity(
    model: keras.Model, kinds: Iterable[str], calibration: Iterable[np.ndarray], **options: Any
) -> dict[str, list[LayerError]]:
    """Measures what quantising does to each layer of a classifier. No file is written.

    Args:
        model: As in `to_tflite`.
        kinds: Names in `vit_keras.export.KINDS`.
        calibration: Batches of pictures, `(B, H, W, 3)`, 0 to 255: for the ranges, the first 32 for the errors too.
        **options: Attributes of `FileOptions`.

    Returns:
        Kind to the errors of its layers, in the order in which they run.
    """
    kinds = check_kinds(kinds)
    results = _convert(model, {}, calibration, False, FileOptions(**options), sensitivity=kinds)
    return {kind: [LayerError(**error) for error in results["errors"][kind]] for kind in kinds}


def _convert(
    model: keras.Model,
    paths: Mapping[str, str | Path],
    calibration: Iterable[np.ndarray] | None,
    overwrite: bool,
    options: FileOptions,
    max_drop: Mapping[str, float] | None = None,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    sensitivity: Sequence[str] = (),
) -> dict[str, Any]:
    """Checks the arguments, and lets the child process write the files; returns the content of its results."""
    model = as_classifier(model)
    kinds = check_kinds((*paths, *sensitivity))
    targets = {kind: _target(paths[kind], overwrite) for kind in kinds if kind in paths}
    if len({path.resolve() for path in targets.values()}) < len(targets):
        raise ValueError(
            f"paths must give each kind a file of its own. Received: {', '.join(map(str, paths.values()))}"
        )
    labels = None if options.labels is None else check_labels(options.labels, model.output_shape[-1])
    if validation is not None and validation[0].shape[1:] != model.input_shape[1:]:
        raise ValueError(
            f"validation must hold pictures of the model's shape, {model.input_shape[1:]}. "
            f"Received: shape={validation[0].shape}"
        )
    options.check_for(kinds)
    calibrated = [kind for kind in kinds if KINDS[kind].calibrated or kind in sensitivity]
    rounded = options.rounding != "nearest" and any(KINDS[kind].rounds for kind in kinds)
    if calibrated and calibration is None:
        raise ValueError(f"calibration must be given for {', '.join(calibrated)}. Received: calibration=None")
    _refuse_lambdas(model)
    with tempfile.TemporaryDirectory(prefix="vit_keras_") as job, _start_child() as child, saying_what_is_full(job):
        pictures = None
        if (calibrated or rounded) and calibration is not None:
            pictures = sample(calibration, model.input_shape[1:3], options.calibration_pictures)
        changes = {"with_attention": options.with_attention, "merge_tokens": options.merge_tokens}
        lean = rewrite(model, options.rewrites, pictures, **changes)
        # Merging alone changes what is computed.
        exact = rewrite(model, options.rewrites, pictures) if options.merge_tokens else lean
        chances = gives_chances(check_copy(model, exact, pictures))
        merges = options.merge_tokens > 0
        if not (merges or any(KINDS[kind].rules for kind in kinds if kind in (max_drop or ()))):
            validation = None  # Nothing can be lost.
        accuracy = None
        if validation is not None:
            np.savez(f"{job}/validation.npz", images=validation[0], labels=validation[1])
            accuracy = accuracy_of(exact, *validation)
        del exact
        if chances and options.output == "logits":
            logger.warning("%s ends in a softmax that cannot be taken off: files give probabilities.", model.name)
            options = replace(options, output="probabilities")
        description = {
            "batch_size": options.batch_size,
            "name": model.name,
            "labels": labels,
            "rounding": options.rounding,
            "ranges": options.ranges,
            "input_dtype": options.input_dtype,
            "output": options.output,
            "max_drop": dict(max_drop or {}),
            "accuracy": accuracy,
            "merges": merges,
            "sensitivity": list(sensitivity),
            "targets": {kind: str(path.absolute()) for kind, path in targets.items()},
        }
        smoothing = smoothed_channels(lean)
        description["outliers"] = bool(smoothing)
        description["grids"] = [patch_grid(lean)] if options.with_attention else []
        signatures = description["signatures"] = [OWN_SIZE]
        _save(lean, pictures, Path(job, OWN_SIZE), options, not chances)
        for size in check_image_sizes(options.image_sizes):
            if size != model.input_shape[1:3]:
                signatures.append(f"serving_{size[0]}x{size[1]}")
                sized = at_size(model, size)
                lean = rewrite(sized, options.rewrites, smoothing=smoothing, **changes)
                if not options.merge_tokens:
                    check_copy(sized, lean)
                if options.with_attention:
                    description["grids"].append(patch_grid(lean))
                _save(lean, pictures, Path(job, signatures[-1]), options, not chances)
        Path(job, "job.json").write_text(json.dumps(description))
        del lean
        gc.collect()  # A Keras model refers to itself: the rewritten one, as large as the first, would stay.
        _run(child, job)
        results = json.loads(Path(job, "results.json").read_text())
    if "refused" in results:
        raise ValueError(f"model cannot be quantised: {results['refused']} Received: model={model.name!r}")
    logger.debug("Ranges: %s", results["ranges"])
    for remark in results["remarks"]:
        logger.warning(remark)
    return results


def _target(path: str | Path, overwrite: bool) -> Path:
    """Returns the path of a file that may be written."""
    path = refuse_existing(path, overwrite)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; choose another name for the file.")
    return path


def _refuse_lambdas(model: keras.Model) -> None:
    """Refuses models with code in place of a layer: such a file cannot be loaded, checked or rewritten safely."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Lambda):
            raise ValueError(
                f"model must not have Lambda layers: write a registered layer instead. Received: {layer.name!r}"
            )


def _save(
    model: keras.Model, pictures: np.ndarray | None, folder: Path, options: FileOptions, are_logits: bool = True
) -> None:
    """Saves a SavedModel with one signature of a fixed batch, and the pictures to calibrate with at the model's size.

    A dynamic batch would fill the graph with shape operators.
    """
    import tensorflow as tf

    folder.mkdir()
    if pictures is not None:
        np.save(folder / "calibration.npy", _resized(pictures, model.input_shape[1:3]))
    signature = [tf.TensorSpec((options.batch_size, *model.input_shape[1:]), tf.float32, name="images")]
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]

    def serve(images):
        logits, *attention = keras.tree.flatten(model(images, training=False))
        scores = tf.nn.softmax(logits) if are_logits and options.output == "probabilities" else logits
        return {options.output: scores, **({ATTENTION_OUTPUT: attention[0]} if attention else {})}

    serve = tf.function(serve, input_signature=signature)
    with quiet_tensorflow():
        tf.saved_model.save(module, str(folder / "saved_model"), signatures={OWN_SIZE: serve})


def _resized(pictures: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Brings pictures to another size; their range stays exactly 0 to 255, as `sample` wants it."""
    if pictures.shape[1:3] == image_size:
        return pictures
    resized = np.asarray(keras.ops.image.resize(pictures, image_size, antialias=True))
    return sample([resized.clip(0, 255)], image_size, len(resized))


def _start_child() -> subprocess.Popen[str]:
    """Starts the process that converts: it imports TensorFlow while this one rewrites and saves the model."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-P", "-m", "vit_keras.export.conversion"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def _run(child: subprocess.Popen[str], job: str) -> None:
    """Lets the child convert what is in the folder of a job."""
    try:
        _, printed = child.communicate(f"{job}\n")
    except BaseException:
        child.kill()  # It would go on, and put its files where others stand again.
        raise
    logger.debug("%s", printed)
    if child.returncode:
        if os.strerror(errno.ENOSPC) in printed:
            target = next(iter(json.loads(Path(job, "job.json").read_text())["targets"].values()), job)
            raise disk_full(job if free_bytes(job) < ALMOST_FULL else target)
        message = f"Conversion ended with {ending(child.returncode)}"
        last = [line for line in printed.splitlines() if line.strip()][-2:]
        if child.returncode > 0 and last:  # A signal comes unannounced.
            message += f": {'; '.join(last)}"
        error = ChildProcessError(message)
        error.add_note(printed[-2000:])
        raise error
