"""From a run's model to its files, and their proof: what is there already is neither written nor measured again."""

import dataclasses
import filecmp
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vit_keras.explain import rollout_maps
from vit_keras.export import (
    KINDS,
    Agreement,
    Classifier,
    LayerError,
    Relaxation,
    compare,
    measure_latency,
    measure_sensitivity,
    to_saved_model,
    to_tflite_files,
    to_tflite_within,
    write_bundle,
)
from vit_keras.export.attention import read_grids
from vit_keras.export.attention import rollout as attention_rollout
from vit_keras.export.bundle import MODEL_FILE
from vit_keras.export.files import remove
from vit_keras.export.framing import Framing, check_image_sizes
from vit_keras.export.platforms import bundled_kind
from vit_keras.export.structure import check_chain

from .config import ExportConfig
from .correlation import rank_correlations
from .datasets import ImageData, Split, stratified_sample
from .evaluation import Evaluation
from .export_records import read_agreement, read_made, read_relaxations, read_sensitivity
from .preprocessing import batches
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

ATTENTION_PICTURES = 100
"""Test pictures on which the attention of a file is held against the Keras model's."""


def export_files(folder: RunFolder, config: ExportConfig, model: keras.Model, data: ImageData) -> None:
    """Writes the files that a run lacks.

    Raises:
        FileExistsError: a file is there that was made of another model or with other settings, or a bundle that holds
            another file.
        ValueError: the files shall give their attention, and the model has none; or they shall be integer throughout,
            and cannot.
    """
    if config.with_attention:
        check_chain(model, "with_attention")
    image_size = model.input_shape[1:3]
    sample = data.train.take(stratified_sample(data.train.labels, config.calibration_pictures, seed=0))
    held = data.validation.take(stratified_sample(data.validation.labels, config.validation_pictures, seed=0))

    def calibration():
        return (images for images, _ in batches(sample, image_size, 64).as_numpy_iterator())

    limited = any(_limit(kind, config) is not None for kind in config.kinds)
    validation = (pixels(held, image_size), held.labels) if limited else None
    chosen = {"calibration": _digest(calibration())} if config.kinds else {}
    chosen |= {"validation": _digest(validation)} if validation else {}
    _settle(folder, config, model, data, chosen)
    for platform in config.bundles:
        _refuse_other(folder.tflite_file(bundled_kind(config.kinds)), folder.bundle(platform))
    if config.saved_model and not folder.saved_model.exists():
        to_saved_model(model, folder.saved_model, framing=data.test.framing)

    options = {"merge_tokens": config.merge_tokens, "calibration_pictures": config.calibration_pictures}
    described = {**options, "labels": data.classes, "image_sizes": config.image_sizes}

    def convert(files: dict[str, Path], with_attention: bool) -> None:
        changes = {**described, "with_attention": with_attention}
        limits = {kind: limit for kind in files if (limit := _limit(kind, config)) is not None}
        if not with_attention:
            _keep_relaxations(folder, files, {})
        if not limits or validation is None:
            if files:
                to_tflite_files(model, files, calibration(), **changes)
            return
        # A file comes to its place when what was done to it is written down: an interruption does not part the two.
        folder.state.mkdir(parents=True, exist_ok=True)
        staged = {kind: folder.state / file.name for kind, file in files.items()}
        found = to_tflite_within(model, staged, calibration(), validation, limits, overwrite=True, **changes)
        if not with_attention:
            _keep_relaxations(folder, files, found)
        for kind, file in files.items():
            if kind in found and _refused(kind, found[kind], limits[kind], config.merge_tokens > 0):
                remove(staged[kind])
            else:
                staged[kind].replace(file)

    missing = {kind: file for kind in config.kinds if not (file := folder.tflite_file(kind)).exists()}
    convert(missing, False)
    if config.integer_only:
        _refuse_floats({kind: folder.tflite_file(kind) for kind in config.kinds}, missing)
    if config.with_attention:  # Of a kind that was refused there is no file.
        made = [kind for kind in config.kinds if folder.tflite_file(kind).exists()]
        convert({kind: file for kind in made if not (file := folder.attention_file(kind)).exists()}, True)
    kinds = [kind for kind in config.kinds if KINDS[kind].calibrated]
    before = read_sensitivity(folder)
    known = {kind: errors for kind, errors in before.items() if kind not in missing}
    kinds = [kind for kind in kinds if kind not in known]
    if known != before:
        remove(folder.sensitivity_plot)
        _keep_sensitivity(folder, known)
    if config.sensitivity and kinds:
        _keep_sensitivity(folder, {**known, **measure_sensitivity(model, kinds, calibration(), **options)})
    _write_bundles(folder, config, data.test.framing)


def _refuse_floats(files: Mapping[str, Path], new: Iterable[str]) -> None:
    """Refuses files with a float operator in them; those of new kinds are removed."""
    refused = []
    for kind, file in files.items():
        left = Classifier(file).float_operators() if file.exists() else {}
        refused += [f"{operator} of {', '.join(layers)} in {kind}" for operator, layers in left.items()]
        if left and kind in new:
            remove(file)
    if refused:
        raise ValueError(
            "export.integer_only must be left out for this model: some of it stays in float for want of an integer "
            f"kernel. Received: {'; '.join(refused)}"
        )


def model_digest(model: keras.Model) -> str:
    """Returns what tells a model from others of other layers, settings or weights, 64 hexadecimal digits."""
    found = hashlib.sha256(json.dumps(json.loads(model.to_json())["config"], sort_keys=True).encode())
    for variable in model.weights:
        found.update(keras.ops.convert_to_numpy(variable).tobytes())
    return found.hexdigest()


def _digest(arrays: Iterable[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def _settle(
    folder: RunFolder, config: ExportConfig, model: keras.Model, data: ImageData, chosen: dict[str, str]
) -> None:
    """Writes down what each file that is missing will be made of and with, and refuses those that are not of the same.

    It stands there before the file does, so that an interruption leaves no file without it.

    Args:
        chosen: Digests of the pictures that files are calibrated and held against a limit on.
    """
    framing = None if data.test.framing is None else dataclasses.asdict(data.test.framing)
    common = {"model": model_digest(model), "classes": list(data.classes), "framing": framing}
    settings = {**common, "calibration": chosen.get("calibration"), "merge_tokens": config.merge_tokens}
    settings["calibration_pictures"] = config.calibration_pictures
    settings["image_sizes"] = [list(size) for size in check_image_sizes(config.image_sizes)]
    wanted: dict[Path, dict[str, Any]] = {folder.saved_model: common} if config.saved_model else {}
    for kind in config.kinds:
        limit = _limit(kind, config)
        held = {"max_drop": limit, "validation_pictures": config.validation_pictures}
        held = {} if limit is None else {**held, "validation": chosen.get("validation")}
        wanted[folder.tflite_file(kind)] = {**settings, **held}
        if config.with_attention:
            wanted[folder.attention_file(kind)] = {**settings, **held}
    known = read_made(folder)
    for file, new in wanted.items():
        old = known.get(file.name, {})
        if file.exists() and old != new:
            raise FileExistsError(f"{file} {_otherness(old, new)}; --overwrite replaces it.")
        known[file.name] = new
    if wanted:
        folder.write_json(folder.made, known)


def _otherness(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Says in what a file that was made of and with `old` is not the one asked for."""
    if not old:
        return "is there, and not in made.json"
    if old.get("model") != new["model"]:
        return "was made of another model"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return "was made with other settings, " + ", ".join(f"{n}: {old.get(n)}, now {new.get(n)}" for n in names)


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
        _refuse_other(file, bundle)
        if not bundle.exists():
            write_bundle(file, platform, bundle, framing)


def _refuse_other(file: Path, bundle: Path) -> None:
    """Refuses a bundle that is there and was not made of the file as it is."""
    held = bundle / MODEL_FILE
    if bundle.exists() and not (file.is_file() and held.is_file() and filecmp.cmp(file, held, shallow=False)):
        raise FileExistsError(f"{bundle} holds another file than {file.name}; --overwrite replaces it.")


def _limit(kind: str, config: ExportConfig) -> float | None:
    """The points that a kind may lose: the stricter one of its own limit and the user's."""
    limits = [limit for limit in (KINDS[kind].max_drop, config.max_drop) if limit is not None]
    return min(limits, default=None)


def _keep_sensitivity(folder: RunFolder, errors: Mapping[str, Iterable[LayerError]]) -> None:
    """Writes down what quantising does to each layer, by kind."""
    if not errors:
        remove(folder.sensitivity)
        return
    values = {kind: [dataclasses.asdict(error) for error in found] for kind, found in errors.items()}
    folder.write_json(folder.sensitivity, values)


def _keep_relaxations(folder: RunFolder, made: Iterable[str], found: dict[str, Relaxation]) -> None:
    """Writes down how the files that are made were brought within their limits, in place of what was known of them."""
    old = read_relaxations(folder)
    known = {**{kind: relaxation for kind, relaxation in old.items() if kind not in made}, **found}
    if known != old:
        values = {kind: dataclasses.asdict(relaxation) for kind, relaxation in known.items()}
        folder.write_json(folder.relaxations, values)


def _refused(kind: str, relaxation: Relaxation, limit: float, merges: bool) -> bool:
    """Whether a file is of no use because it is beyond its kind's own limit; says of any limit when it is exceeded."""
    if relaxation.within:
        return False
    how = ", with all layers relaxed" if relaxation.layers else ""
    if merges and not relaxation.layers:
        how = ", and merged patches alone lose more than that"
    logger.warning(
        "%s loses %.2f points on the validation pictures, more than %.2f%s.", *(kind, relaxation.drop, limit, how)
    )
    if KINDS[kind].max_drop is None:
        return False
    logger.warning("%s is refused: a file that loses so much is of no use.", kind)
    return True


def pixels(split: Split, image_size: tuple[int, int]) -> np.ndarray:
    """Returns all pictures of a split, float32 `(n, H, W, 3)`."""
    return np.concatenate([images for images, _ in batches(split, image_size, 256).as_numpy_iterator()])


def prove(folder: RunFolder, config: ExportConfig, evaluation: Evaluation, images: np.ndarray) -> list[dict[str, Any]]:
    """Holds every file against the Keras model, on pictures of one size; what was measured before an interruption is
    not measured again."""
    files = {kind: folder.tflite_file(kind) for kind in config.kinds if folder.tflite_file(kind).exists()}
    relaxations = {k: {**vars(found), "layers": list(found.layers)} for k, found in read_relaxations(folder).items()}
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
    if found := read_agreement(folder, state, stamp):
        return found
    agreement = compare(file, images, evaluation.labels, evaluation.logits)
    folder.write_json(state, {"stamp": stamp, **dataclasses.asdict(agreement)})
    return agreement


def prove_attention(
    folder: RunFolder, config: ExportConfig, model: keras.Model, images: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """Holds every file that gives its attention against the Keras model's, and against the same file without.

    Args:
        folder: Where the files are.
        config: Which files.
        model: The Keras model that the files were made of.
        images: The test pictures, float32 `(n, H, W, 3)`; `ATTENTION_PICTURES` of them are looked at.
        labels: Their labels, `(n,)`.
    """
    kinds = [kind for kind in config.kinds if config.with_attention and folder.attention_file(kind).exists()]
    if not kinds:
        return []
    images = images[stratified_sample(labels, ATTENTION_PICTURES, seed=0)]
    expected = rollout_maps(model, images)
    pairs = {kind: (folder.tflite_file(kind), folder.attention_file(kind)) for kind in kinds}
    latencies = measure_latency(
        {file.name: file for pair in pairs.values() for file in pair}, images[0], config.threads
    )
    rows = []
    for kind, (plain, file) in pairs.items():
        logits, attention = Classifier(file).logits_and_attention(images)
        maps = attention_rollout(attention, read_grids(file.read_bytes())[0])
        rows.append(
            {
                "kind": kind,
                "file": str(file.relative_to(folder.path).as_posix()),
                "pictures": len(images),
                "rollout_correlation": float(rank_correlations(maps, expected).mean()),
                "max_abs_logit_difference": float(np.abs(logits - Classifier(plain).logits(images)).max()),
                "bytes": file.stat().st_size,
                "bytes_without": plain.stat().st_size,
                "latency_ms": dataclasses.asdict(latencies[file.name]),
                "latency_ms_without": dataclasses.asdict(latencies[plain.name]),
            }
        )
    return rows
