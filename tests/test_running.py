"""A run from end to end: what it leaves, what it refuses, and that it goes on where it was interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from conftest import SHORT
from harness import without_ends
from PIL import Image

import vit_keras
from vit_keras import create_model, load_model, weights
from vit_keras.export import KINDS, Classifier, Framing, LayerError, Relaxation, read_labels, to_saved_model, to_tflite
from vit_keras.export.files import alone
from vit_keras.export.quantize import DEFAULT_KINDS
from vit_keras.export.saved_model import decode_picture
from vit_keras.pipelines import cli, display, exporting, fitting, proof, run_folder, running
from vit_keras.pipelines.config import DistillConfig, ExportConfig, FitConfig, InputConfig, RunConfig
from vit_keras.pipelines.environment import environment
from vit_keras.pipelines.prediction import predict
from vit_keras.pipelines.run_folder import RunFolder, read_config
from vit_keras.pipelines.webpage import chosen_file

FILES = {
    "config.yaml",
    "confusion.png",
    "environment.json",
    "export",
    "history.png",
    "labels.txt",
    "metrics.csv",
    "model.keras",
    "report.html",
    "report.json",
}


def files_of(folder):
    """What a run leaves: the model of the last epoch too, if that is not the best one."""
    losses = [row["val_loss"] for row in RunFolder(folder).read_metrics()]
    return FILES if losses[-1] == min(losses) else FILES | {"last.keras"}


def config(folder, **changes):
    return RunConfig(out=str(folder), **{**SHORT, **changes})


@pytest.mark.parametrize("name", ["weights", "distill.teacher"])
def test_a_run_does_not_start_from_what_it_replaces(run_copy, name):
    before = (run_copy / "model.keras").read_bytes()
    own = str(run_copy) if name == "distill.teacher" else str(run_copy / "model.keras")
    changes = {"weights": own} if name == "weights" else {"distill": DistillConfig(own)}
    with pytest.raises(ValueError, match=f"{name} must lie outside of the run's folder"):
        running.train(config(run_copy, **changes), overwrite=True)
    assert (run_copy / "model.keras").read_bytes() == before


def test_a_run_leaves_its_files(finished_run):
    assert {p.name for p in finished_run.iterdir()} == files_of(finished_run)
    exported = {p.name for p in (finished_run / "export").iterdir()}
    assert exported == {"golden", "made.json", "saved_model", *(f"model.{kind}.tflite" for kind in DEFAULT_KINDS)}
    assert (finished_run / "labels.txt").read_text().split() == list("0123456789")
    for kind in DEFAULT_KINDS:
        assert read_labels(RunFolder(finished_run).tflite_file(kind)) == tuple("0123456789")
    for name in ("history.png", "confusion.png"):
        with Image.open(finished_run / name) as picture:
            picture.load()
            assert min(picture.size) > 300


def photographs(folder, side=40):
    """A folder of three classes, ten pictures each: a bright square left, right, or none."""
    rng = np.random.default_rng(0)
    for label in range(3):
        (folder / f"class {label}").mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 80, (side, side + 10, 3), dtype="uint8")
            if label < 2:
                pixels[10:30, 8 + 24 * label : 20 + 24 * label] += 150
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{i}.png")
    return folder


def test_a_published_checkpoint_is_fine_tuned_exported_and_read_as_it_expects(tmp_path):
    """From another library's weights, made for another size, to files whose pictures are cut as the weights expect."""
    model = create_model("deit_tiny_distilled_patch16_224", 5, 32, num_layers=1)
    weights.save_timm(model, tmp_path / "published.safetensors")
    folder = tmp_path / "run"
    settings = RunConfig(
        data=str(photographs(tmp_path / "pictures")),
        model="deit_tiny_distilled_patch16_224",
        weights=str(tmp_path / "published.safetensors"),
        out=str(folder),
        override={"num_layers": 1},
        input=InputConfig(image_size=48),
        fit=FitConfig(epochs=1, learning_rate=1e-9, warmup_epochs=0),
        export=ExportConfig(kinds="float32"),
    )
    report = running.run(settings)
    assert report["artefacts"][0]["max_abs_logit_error"] < 1e-4
    resolved = read_config(folder / "config.yaml")
    assert (resolved.input.interpolation, resolved.input.crop_fraction) == ("bicubic", 0.9)
    trained = load_model(folder / "model.keras")
    found, expected = (m.get_layer("block_0").get_weights() for m in (trained, weights.resize(model, 48)))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # Not trained from scratch.
    assert trained.output_shape == (None, 3)

    picture = tmp_path / "pictures" / "class 1" / "3.png"
    pixels = decode_picture(tf.io.read_file(str(picture)), (48, 48), Framing("bicubic", 0.9)).numpy()[None]
    logits = trained.predict(pixels.astype("float32"), verbose=0)
    assert np.abs(logits - trained.predict(decode(picture)[None], verbose=0)).max() > 0
    served = tf.saved_model.load(str(folder / "export" / "saved_model"))
    from_bytes = served.signatures["serving_bytes"](encoded=tf.constant([picture.read_bytes()]))
    np.testing.assert_allclose(from_bytes["logits"], logits, atol=1e-5)
    chance = float(np.asarray(from_bytes["probabilities"]).max())
    for model_file in (folder, folder / "export" / "model.float32.tflite"):
        assert abs(predict(model_file, [picture])[0].probability - chance) < 1e-5


def decode(picture):
    return decode_picture(tf.io.read_file(str(picture)), (48, 48)).numpy().astype("float32")


def test_weights_that_do_not_fit_leave_nothing(tmp_path):
    weights.save_timm(create_model("vit_tiny_patch16_224", 5, 32, num_layers=1), tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match=r"tiny\.safetensors \(timm naming\) does not fit vit_micro_patch2_8"):
        running.train(config(tmp_path / "run", weights=str(tmp_path / "tiny.safetensors")))
    assert not (tmp_path / "run").exists()


def test_the_configuration_is_resolved(finished_run):
    resolved = read_config(finished_run / "config.yaml")
    assert resolved.model == "vit_micro_patch2_8"
    assert resolved.input.image_size == (8, 8)
    assert resolved.export.kinds == DEFAULT_KINDS
    values = yaml.safe_load((finished_run / "config.yaml").read_text())
    open_settings = [name for part in ("fit", "augment") for name, value in values[part].items() if value is None]
    assert open_settings == ["checkpoint_steps"]  # Only at the ends of epochs.


def test_report_json(finished_run):
    report = json.loads((finished_run / "report.json").read_text())
    assert report["format"] == 1
    model = load_model(finished_run / "model.keras")
    expected = {"name": "vit_micro_patch2_8", "parameters": model.count_params(), "image_size": [8, 8]}
    assert report["model"] == {**expected, "classes": list("0123456789")}
    assert report["data"] == {"name": "digits", "train": 1077, "validation": 360, "test": 360}
    assert report["keras"]["accuracy"] > 0.6
    assert [a["kind"] for a in report["artefacts"]] == list(DEFAULT_KINDS)
    for artefact in report["artefacts"]:
        file = finished_run / artefact["file"]
        assert artefact["bytes"] == file.stat().st_size
        low, high = artefact["accuracy_interval"]
        assert 0 < low < artefact["accuracy"] < high < 1
        assert 0 < artefact["latency_ms"]["p50"] <= artefact["latency_ms"]["p90"]
        assert artefact["latency_ms"]["threads"] == 1
        operators = artefact["operators"]
        assert operators["total"] == operators["integer"] + operators["float"] > 0
        assert artefact["integer_only"] == (operators["float"] == 0) == KINDS[artefact["kind"]].integer_only


def test_every_kind_keeps_the_accuracy(finished_run):
    report = json.loads((finished_run / "report.json").read_text())
    by_kind = {a["kind"]: a for a in report["artefacts"]}
    assert by_kind["float32"]["max_abs_logit_error"] < 1e-4
    assert by_kind["float32"]["agreement"] == by_kind["float16"]["agreement"] == 1
    for kind, artefact in by_kind.items():
        assert artefact["agreement"] > (0.9 if kind == "full_int8" else 0.97)


def test_report_agrees_with_evaluate(finished_run):
    report = json.loads((finished_run / "report.json").read_text())
    evaluation = running.evaluate(finished_run)
    assert evaluation.accuracy == report["keras"]["accuracy"]
    assert abs(evaluation.loss - report["keras"]["loss"]) < 1e-5
    by_kind = {a["kind"]: a for a in report["artefacts"]}
    file = finished_run / by_kind["full_int8"]["file"]
    assert running.evaluate(file).accuracy == by_kind["full_int8"]["accuracy"]


def test_evaluate_refuses_files_that_do_not_fit_the_run(run_copy):
    file = run_copy / "export" / "other.tflite"
    to_tflite(create_model("vit_micro_patch2_8", num_classes=3, num_layers=1), file)
    with pytest.raises(ValueError, match=r"other\.tflite must give scores of the 10 classes of .*num_classes=3"):
        running.evaluate(file)
    file.write_bytes(without_ends(file.read_bytes()))
    with pytest.raises(ValueError, match=r"other\.tflite must take pictures"):
        running.evaluate(file)


def test_report_html_is_one_file(finished_run):
    page = (finished_run / "report.html").read_text()
    sources = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            sources.extend((tag, name, value) for name, value in attrs if name in ("src", "href"))

    Reader().feed(page)
    assert len(sources) == 3
    assert all(tag == "img" and value.startswith("data:image/png;base64,") for tag, _, value in sources)
    assert not re.search(r"https?://|@import|url\(", page)
    assert all(kind in page for kind in DEFAULT_KINDS)


def test_predict_with_the_model_and_with_a_file(finished_run, tmp_path):
    from vit_keras.pipelines.datasets import load_data

    test = load_data("digits").test
    expected = running.evaluate(finished_run).predictions[:5]
    pictures = []
    for i in range(5):
        pictures.append(tmp_path / f"Ziffer Nr. {i} ä.png")
        Image.fromarray(test.images[i]).save(pictures[-1])
    from_run = predict(finished_run, pictures)
    from_file = predict(finished_run / "export" / "model.float32.tflite", pictures)
    assert [p.label for p in from_run] == [p.label for p in from_file] == [str(c) for c in expected]
    np.testing.assert_allclose([p.probability for p in from_run], [p.probability for p in from_file], atol=1e-4)


def test_class_names_that_no_file_can_hold_are_refused_before_the_training(tmp_path, monkeypatch):
    data = running.load_data("digits")
    monkeypatch.setattr(running, "_load", lambda config: replace(data, classes=("0\n", *data.classes[1:])))
    with pytest.raises(ValueError, match=r"labels\[0\]"):
        running.run(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_refused_and_untouched(finished_run):
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")}
    with pytest.raises(FileExistsError, match="--overwrite"):
        running.run(config(finished_run))
    assert {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")} == before


def test_overwrite_replaces_a_run_and_nothing_else(run_copy, monkeypatch):
    (run_copy / "notes.txt").write_text("mine")
    monkeypatch.setattr(fitting, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        running.run(config(run_copy), overwrite=True)
    assert {p.name for p in run_copy.iterdir()} == {"config.yaml", "notes.txt"}


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_other_settings_do_not_go_on_with_an_unfinished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        running.run(config(tmp_path / "run"))
    changed = replace(SHORT["fit"], epochs=9)
    with pytest.raises(FileExistsError, match=r"fit\.epochs: 10, now 9"):
        running.run(config(tmp_path / "run", fit=changed))


def test_an_unfinished_run_goes_on_with_what_may_change(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "fit", interrupt)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".partial.config.yaml").touch()  # A program was killed before there was a run.
    for changes in ({}, {"checkpoint_steps": 3, "jit": not SHORT["fit"].jit}):
        with pytest.raises(KeyboardInterrupt):
            running.train(config(folder.path, fit=replace(SHORT["fit"], **changes)))
    assert folder.load_config().fit.checkpoint_steps == 3


def test_a_training_that_diverges_leaves_the_model_of_before(tmp_path, monkeypatch):
    fit = fitting.fit

    def diverging(*args, **kwargs):
        fit(*args, **kwargs)
        raise FloatingPointError("The loss became nan in epoch 11; the state before is kept.")

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match=r"nan.*last.keras holds.*--weights"):
        patch.setattr(fitting, "fit", diverging)
        running.train(config(tmp_path / "run"))
    model = load_model(tmp_path / "run" / "last.keras")
    assert all(np.isfinite(value).all() for value in model.get_weights())
    again = config(tmp_path / "again", weights=str(tmp_path / "run" / "last.keras"))
    assert running.train(again).accuracy > 0.2


@pytest.mark.parametrize("stage", ["to_saved_model", "to_tflite_files", "compare", "measure_latency", "write_html"])
def test_an_interrupted_run_goes_on(run_copy, monkeypatch, stage):
    """After training: what was there before the interruption is used, what was not is made."""
    report = (run_copy / "report.json").read_text()
    before = {p: p.stat().st_mtime_ns for p in run_copy.rglob("*.tflite")}
    for name in ("report.json", "report.html"):
        (run_copy / name).unlink()
    if stage == "to_saved_model":
        shutil.rmtree(run_copy / "export" / "saved_model")
    if stage == "to_tflite_files":
        (run_copy / "export" / "model.full_int8.tflite").unlink()
    home = proof.reporting if stage == "write_html" else exporting
    with monkeypatch.context() as patch:
        patch.setattr(home, stage, interrupt)
        patch.setattr(fitting, "fit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            running.run(config(run_copy))
    assert not (run_copy / "report.json").exists()
    monkeypatch.setattr(fitting, "fit", interrupt)
    if stage in ("measure_latency", "write_html"):
        monkeypatch.setattr(exporting, "compare", interrupt)  # Not a second time.
    again = running.run(config(run_copy))
    assert {p.name for p in run_copy.iterdir()} == files_of(run_copy)
    for file, stamp in before.items():
        assert (file.stat().st_mtime_ns == stamp) == (stage != "to_tflite_files" or "full_int8" not in file.name)
    old = json.loads(report)
    assert again["keras"] == old["keras"]
    for a, b in zip(again["artefacts"], old["artefacts"], strict=True):
        assert {k: v for k, v in a.items() if k != "latency_ms"} == {k: v for k, v in b.items() if k != "latency_ms"}


def test_train_then_run_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    evaluation = running.train(config(folder, export=ExportConfig(("float32",), saved_model=False)))
    assert not (folder / ".state" / "training").exists()
    with pytest.raises(FileExistsError, match="--overwrite"):
        running.train(config(folder, export=ExportConfig(("float32",), saved_model=False)))
    monkeypatch.setattr(fitting, "fit", interrupt)
    report = running.run(config(folder, export=ExportConfig(("float32",), saved_model=False)))
    assert report["keras"]["accuracy"] == evaluation.accuracy
    assert sorted(p.name for p in (folder / "export").iterdir()) == ["golden", "made.json", "model.float32.tflite"]


def test_logs_are_kept_whenever_the_program_dies(tmp_path, monkeypatch):
    """A folder with a model is a trained run: the logs must be in their place before."""

    def fit_with_logs(model, data, settings, folder, *rest):
        (folder / "tensorboard").mkdir(parents=True)
        (folder / "tensorboard" / "events").touch()
        return [{"epoch": 0, "loss": 1.0, "accuracy": 0.1, "val_loss": 1.0, "val_accuracy": 0.1, "learning_rate": 0.1}]

    monkeypatch.setattr(fitting, "fit", fit_with_logs)
    save = RunFolder.save_model
    monkeypatch.setattr(RunFolder, "save_model", lambda *arguments: (save(*arguments), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        running.train(config(tmp_path / "run"))
    assert RunFolder(tmp_path / "run").trained
    assert (tmp_path / "run" / "tensorboard" / "events").exists()


def test_a_package_of_another_name_does_not_end_a_run(monkeypatch):
    """Such as tensorflow-cpu."""
    import importlib.metadata

    version = importlib.metadata.version

    def other_name(package):
        if package == "tensorflow":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("importlib.metadata.version", other_name)
    packages = environment(RunConfig(), running.load_data("digits"))["packages"]
    assert packages["tensorflow"] is None and packages["keras"] == version("keras")


def test_export_again(run_copy):
    file = run_copy / "export" / "model.float16.tflite"
    file.unlink()
    report = running.export(run_copy, ExportConfig("float16,float32", saved_model=False))
    assert [a["kind"] for a in report["artefacts"]] == ["float32", "float16"]
    assert Classifier(file).image_size == (8, 8)
    assert RunFolder(run_copy).finished


def test_unwritable_and_full_disks_are_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "fit", interrupt)
    monkeypatch.setattr(running, "free_bytes", lambda path: 1000)
    with pytest.raises(OSError, match="MB of disk"):
        running.run(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def tmpfs(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("size", ["100k", "1m"])
def test_a_disk_that_fills_up(tmp_path, monkeypatch, size):
    """For real, on a small file system; only root may mount one."""
    folder = tmp_path / "disk"
    if not tmpfs(folder, size):
        pytest.skip("mounting a small file system needs root")
    monkeypatch.setattr(running, "BYTES_PER_PARAMETER", 0)
    try:
        with pytest.raises(OSError, match="No space left on device"):
            running.run(config(folder / "run"))
        assert [p.name for p in folder.rglob("*") if p.is_file()] == ["config.yaml"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_no_room_for_temporary_files(tmp_path, monkeypatch):
    """TensorFlow has its own error for it, and other writers have theirs."""
    folder = tmp_path / "disk"
    if not tmpfs(folder, "100k"):
        pytest.skip("mounting a small file system needs root")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    model = vit_keras.create_model("vit_micro_patch2_8", 10)
    try:
        with pytest.raises(OSError, match=f"No space left on device: '{folder}/vit_keras_"):
            to_tflite(model, tmp_path / "m.tflite")
        with pytest.raises(OSError, match="No space left on device"):
            to_saved_model(model, folder / "saved_model")
        left = [path.name for path in folder.iterdir()]  # What TensorFlow generates, it keeps while it runs.
        assert all("autograph" in name for name in left)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path):
    """A program that is killed again and again, later each time, ends with a whole run, and leaves only whole files."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "vit_keras.pipelines.cli", "run", "--out", str(folder)]
    command += ["--fit.epochs", "8", "--fit.warmup_epochs", "1", "--override.num_layers", "2"]
    kills, seconds = 0, 12.0
    while True:
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills, seconds = kills + 1, seconds + 1.5
            check_files_are_whole(folder)
            assert kills < 40
            continue
        assert process.returncode == 0, output.decode()
        break
    assert kills >= 3
    assert {p.name for p in folder.iterdir()} == files_of(folder)
    rows = RunFolder(folder).read_metrics()
    assert [row["epoch"] for row in rows] == list(range(8))
    time.sleep(0.1)


def check_files_are_whole(folder):
    for file in folder.rglob("*"):
        if file.name.startswith(".partial.") or any(p.name.startswith(".partial.") for p in file.parents):
            continue
        if file.suffix == ".keras":
            assert zipfile.ZipFile(file).testzip() is None
        elif file.suffix == ".tflite":
            Classifier(file)
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".png":
            Image.open(file).load()
        elif file.suffix == ".html":
            assert file.read_text().rstrip().endswith("</html>")


@pytest.mark.slow
def test_the_default_run_reaches_its_figures(tmp_path):
    """`vit-keras run` with nothing but a folder: the figures that the README names."""
    report = running.run(RunConfig(out=str(tmp_path / "run")))
    accuracy = report["keras"]["accuracy"]
    by_kind = {a["kind"]: a for a in report["artefacts"]}
    assert accuracy >= 0.98
    assert by_kind["float32"]["max_abs_logit_error"] < 1e-4
    assert by_kind["static_int8"]["accuracy"] >= accuracy - 0.006
    assert by_kind["full_int8"]["accuracy"] >= accuracy - 0.006
    assert by_kind["static_int8"]["bytes"] <= 0.35 * by_kind["float32"]["bytes"]


def test_export_for_targets_within_a_budget(run_copy):
    config = ExportConfig(targets="cpu,npu", max_drop=0.0, sensitivity=True, saved_model=False)
    assert config.kinds == ("static_int8", "full_int8")
    report = running.export(run_copy, config, overwrite=True)
    relaxations = json.loads((run_copy / "export" / "relaxations.json").read_text())
    for artefact in report["artefacts"]:
        assert artefact["relaxation"] == relaxations[artefact["kind"]]
        assert artefact["relaxation"]["within"] == (artefact["relaxation"]["drop"] <= 0)
        low, high = artefact["points_lost_interval"]
        assert low <= artefact["points_lost"] <= high
        lost = 100 * (report["keras"]["accuracy"] - artefact["accuracy"])
        assert artefact["points_lost"] == pytest.approx(lost)
    errors = json.loads((run_copy / "export" / "sensitivity.json").read_text())
    assert {error["layer"] for error in errors["static_int8"]} >= {"block_0_attention", "block_1_mlp", "output"}
    with Image.open(run_copy / "export" / "sensitivity.png") as picture:
        assert picture.width > 600
    page = (run_copy / "report.html").read_text()
    assert "What quantising does" in page and "<td>block_1_mlp</td>" in page


def test_files_of_other_settings_or_of_another_model_are_not_taken_for_those_asked_for(run_copy):
    for config, words in (
        (ExportConfig(kinds="static_int8", merge_tokens=0.25), "merge_tokens: 0.0, now 0.25; --overwrite"),
        (ExportConfig(kinds="full_int8", max_drop=0.5), "max_drop: None, now 0.5, validation_pictures: None, now 2000"),
    ):
        with pytest.raises(FileExistsError, match=words):
            running.export(run_copy, config)
    model = vit_keras.load_model(run_copy / "model.keras")
    model.get_layer("head").bias.assign([9.0] * 10)
    model.save(run_copy / "model.keras")
    with pytest.raises(FileExistsError, match=r"saved_model was made of another model; --overwrite"):
        running.export(run_copy)
    report = running.export(run_copy, ExportConfig(kinds="float32"), overwrite=True)
    assert report["artefacts"][0]["agreement"] == 1
    with pytest.raises(FileExistsError, match=r"static_int8.tflite was made of another model"):
        running.export(run_copy, ExportConfig(kinds="float32,static_int8"))
    (run_copy / "export" / "made.json").unlink()
    with pytest.raises(FileExistsError, match=r"float32.tflite is there, and not in made.json; --overwrite"):
        running.export(run_copy, ExportConfig(kinds="float32", saved_model=False))


@pytest.fixture
def quick_sensitivity(monkeypatch):
    """Something that is quickly found out, in place of a conversion for each layer."""

    def measured(model, kinds, *args, **kwargs):
        return {kind: [LayerError("output", 0.1, 0.2)] for kind in kinds}

    monkeypatch.setattr(exporting, "measure_sensitivity", measured)


def test_what_was_found_out_about_a_file_goes_with_it(run_copy, quick_sensitivity):
    config = {"kinds": "static_int8", "saved_model": False}
    [artefact] = running.export(run_copy, ExportConfig(**config, max_drop=0.0), overwrite=True)["artefacts"]
    assert artefact["relaxation"]
    [artefact] = running.export(run_copy, ExportConfig(**config), overwrite=True)["artefacts"]
    assert artefact["relaxation"] is None
    running.export(run_copy, ExportConfig(**config, sensitivity=True))
    config["kinds"] = "dynamic_int8,static_int8,full_int8"
    running.export(run_copy, ExportConfig(**config, sensitivity=True))
    errors = json.loads((run_copy / "export" / "sensitivity.json").read_text())
    assert set(errors) == {"static_int8", "full_int8"}
    running.export(run_copy, ExportConfig(**config), overwrite=True)
    assert not (run_copy / "export" / "sensitivity.json").exists()


def test_int4_is_refused_where_it_loses_too_much(run_copy, monkeypatch, caplog):
    def too_much(model, paths, *args, **kwargs):
        for path in paths.values():
            path.write_bytes(b"file")
        return {"int4": Relaxation(3.0, 4.0, ("block_0_mlp",), False)}

    monkeypatch.setattr(exporting, "to_tflite_within", too_much)
    report = running.export(run_copy, ExportConfig(kinds="int4", saved_model=False))
    assert report["artefacts"] == []
    assert not (run_copy / "export" / "model.int4.tflite").exists()
    assert "int4 loses 3.00 points" in caplog.text and "refused" in caplog.text


def test_a_file_with_attention_is_refused_too(run_copy, monkeypatch):
    def too_much(model, paths, *args, with_attention, **kwargs):
        for path in paths.values():
            path.write_bytes((run_copy / "export" / "model.static_int8.tflite").read_bytes())
        return {"int4": Relaxation(0.0, 4.0, ("block_0_mlp",), not with_attention)}

    monkeypatch.setattr(exporting, "to_tflite_within", too_much)
    report = running.export(run_copy, ExportConfig(kinds="int4", saved_model=False, with_attention=True))
    assert [artefact["relaxation"]["within"] for artefact in report["artefacts"]] == [True]
    assert report["attention"] == []


def test_files_within_a_budget_come_with_what_was_done_to_them(run_copy, monkeypatch):
    """An export that is interrupted between two files leaves neither: the first would have no verdict."""
    config = ExportConfig(kinds="float32,static_int8,full_int8", max_drop=2.0, saved_model=False)
    made = exporting.to_tflite_within

    def interrupted(model, paths, *args, **kwargs):
        made(model, {"static_int8": paths["static_int8"]}, *args, **kwargs)
        raise KeyboardInterrupt

    files = [run_copy / "export" / f"model.{kind}.tflite" for kind in config.kinds]
    for file in files:
        file.unlink()
    monkeypatch.setattr(exporting, "to_tflite_within", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.export(run_copy, config)
    assert not any(file.exists() for file in files)
    monkeypatch.undo()
    report = running.export(run_copy, config)
    relaxations = {artefact["kind"]: artefact["relaxation"] for artefact in report["artefacts"]}
    assert relaxations["float32"] is None and relaxations["static_int8"] and relaxations["full_int8"]
    assert not (run_copy / ".state").exists()


def test_a_model_from_elsewhere_is_exported_and_proven(finished_run, tmp_path, capsys):
    model = tmp_path / "mine.keras"
    shutil.copy(finished_run / "model.keras", model)
    export = ExportConfig(kinds="static_int8", max_drop=99, saved_model=False, sensitivity=True)
    config = RunConfig(data="digits", export=export)
    report = running.export_model(model, config)
    old = {a["kind"]: a for a in json.loads((finished_run / "report.json").read_text())["artefacts"]}
    assert [a["kind"] for a in report["artefacts"]] == ["static_int8"]
    assert report["artefacts"][0]["accuracy"] == old["static_int8"]["accuracy"]
    assert (tmp_path / "mine" / "export" / "model.static_int8.tflite").is_file()
    assert json.loads((tmp_path / "mine" / "report.json").read_text()) == report
    assert {error["layer"] for error in report["sensitivity"]["static_int8"]} >= {"block_0_mlp", "output"}
    assert (tmp_path / "mine" / "export" / "sensitivity.png").is_file()
    display.proof(report, tmp_path / "mine")
    printed = capsys.readouterr().out
    assert "block_0_mlp" in printed and "sensitivity.png" in printed.replace("\n", "")


def sums(folder):
    """What is in every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_where_replacing_it_fails(run_copy, monkeypatch, failure):
    def fails(*args, **kwargs):
        raise failure("no")

    before = sums(run_copy / "export")
    monkeypatch.setattr(exporting, "to_tflite_files", fails)
    with pytest.raises(failure):
        running.export(run_copy, ExportConfig(kinds="float32,static_int8"), overwrite=True)
    assert sums(run_copy / "export") == before
    monkeypatch.undo()
    with pytest.raises(ValueError, match="patch_size"):
        running.export(run_copy, ExportConfig(kinds="float32", image_sizes=(13,)), overwrite=True)
    assert sums(run_copy / "export") == before


def test_two_exports_into_one_folder(run_copy):
    before = sums(run_copy)
    with alone(run_copy, "export"), pytest.raises(FileExistsError, match="Another export is running"):
        running.export(run_copy, ExportConfig(kinds="float32"), overwrite=True)
    assert sums(run_copy) == before


def test_an_export_goes_on_where_one_that_replaced_files_was_killed(run_copy):
    before = sums(run_copy / "export")
    (run_copy / "export" / ".partial.replaced").mkdir()
    for name in ("model.float32.tflite", "made.json"):
        shutil.move(run_copy / "export" / name, run_copy / "export" / ".partial.replaced" / name)
    (run_copy / "export" / "made.json").write_text("{}")
    running.export(run_copy)
    assert sums(run_copy / "export") == before


def test_files_are_there_where_an_export_that_replaced_them_was_killed(run_copy):
    export = run_copy / "export"
    before, file = sums(export), export / "model.static_int8.tflite"
    (export / ".partial.replaced").mkdir()
    file.replace(export / ".partial.replaced" / file.name)
    with alone(run_copy, "export"), pytest.raises(FileNotFoundError):  # Another export is at work there.
        running.evaluate(file)
    running.evaluate(file)
    assert sums(export) == before
    picture = run_copy / "history.png"
    for use in (chosen_file, lambda file: chosen_file(file.parent.parent), lambda file: predict(file, [picture])):
        (export / ".partial.replaced").mkdir()
        file.replace(export / ".partial.replaced" / file.name)
        use(file)
        assert sums(export) == before


def test_what_a_killed_export_has_set_aside_is_left_to_those_who_may(run_copy, monkeypatch):
    export, picture = run_copy / "export", run_copy / "history.png"
    file, aside = export / "model.float32.tflite", export / ".partial.replaced"
    aside.mkdir()
    file.replace(aside / file.name)
    predict(export / "model.static_int8.tflite", [picture])  # Nothing that is asked for is missing.
    with pytest.raises(FileNotFoundError):
        predict(run_copy / "models" / "of_no_run.tflite", [picture])
    opened = Path.open

    def read_only(path, mode="r", *args, **kwargs):
        if path.name.endswith("lock"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *args, **kwargs)

    for name, value in ((f"{Path.__module__}.Path.open", read_only), (f"{run_folder.__name__}.LOCKS", False)):
        with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match=r"model\.float32\.tflite"):
            patch.setattr(name, value)
            predict(file, [picture])
    assert (aside / file.name).exists()
    for command in (["devices", str(file)], ["benchmark", str(file)], ["verify", str(file)]):
        if not aside.exists():
            aside.mkdir()
            file.replace(aside / file.name)
        cli.main(command)
        assert file.exists() and not aside.exists()


def test_a_run_goes_on_where_an_export_that_replaced_files_was_killed(run_copy):
    before = sums(run_copy / "export")
    (run_copy / "export" / ".partial.replaced").mkdir()
    shutil.move(run_copy / "export" / "made.json", run_copy / "export" / ".partial.replaced" / "made.json")
    (run_copy / "export" / "made.json").write_text("{}")
    (run_copy / ".state").mkdir()
    running.run(replace(read_config(run_copy / "config.yaml"), out=str(run_copy)))
    assert sums(run_copy / "export") == before


def test_damaged_notes_on_files_are_left_out(run_copy, caplog, quick_sensitivity):
    config = ExportConfig(kinds="static_int8", saved_model=False, sensitivity=True, max_drop=99.0)
    running.export(run_copy, config, overwrite=True)
    export = run_copy / "export"
    for name in ("relaxations.json", "sensitivity.json"):
        for content in ({"static_int8": 5}, {"static_int8": {"x": 1}}, {"static_int8": [{"layer": 1, "own": "a"}]}):
            (export / name).write_text(json.dumps(content))
            caplog.clear()
            report = running.export(run_copy, config)
            assert f"{name} is damaged: what it says of static_int8" in caplog.text
            display.proof(report, run_copy)
        assert (report["artefacts"][0]["relaxation"] is None) and report["sensitivity"]["static_int8"]
    state = run_copy / ".state" / "proof.static_int8.8x8.json"
    stamp = (export / "model.static_int8.tflite").stat().st_mtime_ns
    for content in ("{}", "[]", '{"stamp": 1}', json.dumps({"stamp": stamp})):
        state.parent.mkdir(exist_ok=True)
        state.write_text(content)
        assert running.export(run_copy, config)["artefacts"][0]["accuracy"] == report["artefacts"][0]["accuracy"]
    (export / "made.json").write_text("{")
    with pytest.raises(ValueError, match=r"made\.json must hold JSON; without it, it is made anew"):
        running.export(run_copy, config, overwrite=True)


def test_a_bundle_that_lost_its_file_is_another_one(run_copy):
    config = ExportConfig(kinds="static_int8", saved_model=False, bundles="android")
    running.export(run_copy, config)
    (run_copy / "export" / "android" / "model.tflite").unlink()
    with pytest.raises(FileExistsError, match=r"android holds another file than .*; --overwrite"):
        running.export(run_copy, config)


def test_a_file_of_no_run_is_not_evaluated(float32, tmp_path):
    (tmp_path / "m.tflite").write_bytes(float32)
    with pytest.raises(FileNotFoundError, match=r"m\.tflite must lie in the export/ of a run"):
        running.evaluate(tmp_path / "m.tflite")


@pytest.mark.parametrize("end", [interrupt, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["Ctrl+C", "SIGTERM"])
def test_an_export_that_is_ended_says_what_is_there(run_copy, monkeypatch, capsys, end):
    before = sums(run_copy / "export")
    monkeypatch.setattr(exporting, "to_tflite_files", lambda *args, **kwargs: end())
    handler = signal.getsignal(signal.SIGTERM)
    assert cli.main(["export", str(run_copy), "--kinds", "float32", "--overwrite"]) == 130
    assert "either the old ones or the new; the same command makes them anew" in capsys.readouterr().err
    assert sums(run_copy / "export") == before
    (run_copy / "export" / "model.float16.tflite").unlink()
    assert cli.main(["export", str(run_copy), "--kinds", "float16"]) == 130
    assert "without --overwrite goes on where it was" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == handler


def test_what_shall_be_integer_throughout_and_cannot_is_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(8, activation="softplus", name="soft")(x)
    keras.Model(inputs, keras.layers.Dense(10)(x)).save(tmp_path / "m.keras")
    given = {"kinds": "full_int8,int16x8", "saved_model": False}
    config = RunConfig(data="digits", export=ExportConfig(**given, integer_only=True))
    with pytest.raises(ValueError, match=r"integer_only must be left out.* EXP of soft in full_int8.* in int16x8"):
        running.export_model(tmp_path / "m.keras", config)
    assert not list(tmp_path.rglob("*.tflite"))
    report = running.export_model(tmp_path / "m.keras", replace(config, export=ExportConfig(**given)))
    assert [artefact["integer_only"] for artefact in report["artefacts"]] == [False, False]
    with pytest.raises(ValueError, match="integer_only must be left out"):
        running.export_model(tmp_path / "m.keras", config)
    assert len(list(tmp_path.rglob("*.tflite"))) == 2  # They were not made for this.
    with pytest.raises(ValueError, match=r"full_int8 or int16x8 with export.integer_only\. Received: .*=static_int8$"):
        ExportConfig(targets="cpu", integer_only=True)


def test_only_what_is_asked_for_is_replaced(run_copy):
    before = sums(run_copy / "export")
    running.export(run_copy, ExportConfig(kinds="float32", saved_model=False, merge_tokens=0.25), overwrite=True)
    now = sums(run_copy / "export")
    assert {name for name in before if now.get(name) != before[name]} == {
        "model.float32.tflite",
        "made.json",
        "golden/golden.json",
    }


def test_files_of_other_data_or_of_a_model_of_the_same_weights_are_not_kept(tmp_path):
    def save(scale):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Flatten()(keras.layers.Rescaling(scale)(inputs))
        keras.utils.set_random_seed(0)
        keras.Model(inputs, keras.layers.Dense(10, name="head")(x)).save(tmp_path / "m.keras")

    given = RunConfig(data="digits", export=ExportConfig(kinds="float32,full_int8", saved_model=False))
    save(1 / 255)
    running.export_model(tmp_path / "m.keras", given)
    running.export_model(tmp_path / "m.keras", given)
    with pytest.raises(FileExistsError, match=r"other settings, calibration: \w{16}, now \w{16}; --overwrite"):
        running.export_model(tmp_path / "m.keras", replace(given, input=InputConfig(split_seed=5)))
    save(-1 / 255)
    with pytest.raises(FileExistsError, match="another model"):
        running.export_model(tmp_path / "m.keras", given)
    kept = replace(given, export=ExportConfig(kinds="float16", saved_model=False))
    running.export_model(tmp_path / "m.keras", kept)
    golden = json.loads((tmp_path / "m" / "export" / "golden" / "golden.json").read_text())
    assert set(golden["answers"]) == {"keras", "float16"}


def test_a_folder_of_something_else_is_left_alone(finished_run, tmp_path):
    shutil.copy(finished_run / "model.keras", tmp_path / "mine.keras")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text("notes")
    with pytest.raises(FileExistsError, match="no export"):
        running.export_model(tmp_path / "mine.keras", RunConfig())
    assert (tmp_path / "mine" / "report.json").read_text() == "notes"


@pytest.mark.parametrize("content", ["", "[]", '{"model.float32.tflite": 3}'])
def test_what_files_were_made_of_may_be_damaged(run_copy, content):
    (run_copy / "export" / "made.json").write_text(content)
    with pytest.raises((ValueError, FileExistsError), match=r"made\.json|model\.float32\.tflite"):
        running.export(run_copy, ExportConfig(kinds="float32", saved_model=False))


def test_a_run_finds_its_pictures_from_elsewhere(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "pics" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (30 * i, 255 * (name == "a"), 0)).save(tmp_path / "pics" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    fit = FitConfig(epochs=1, batch_size=4)
    given = InputConfig(dir="downloads")
    expected = running.train(RunConfig(data="pics", out="run", fit=fit, input=given, override={"num_layers": 1}))
    assert read_config(tmp_path / "run" / "config.yaml").input.dir == str(tmp_path / "downloads")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert running.evaluate("../run").accuracy == expected.accuracy


def test_what_a_target_would_not_take_is_said(run_copy, capsys):
    options = ["--for", "edgetpu", "--for", "cpu", "--saved_model", "false"]
    assert cli.main(["export", str(run_copy), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("edgetpu: full_int8, because ") for line in lines)
    (refused,) = [line for line in lines if "would not take all of" in line]
    assert "GELU" in refused and refused.endswith("model.full_int8.tflite --for edgetpu` says why")


def test_a_file_behind_a_link_is_of_its_run(run_copy, tmp_path):
    (run_copy / "export").rename(tmp_path / "disk")
    (run_copy / "export").symlink_to(tmp_path / "disk")
    file = run_copy / "export" / "model.float32.tflite"
    assert running.evaluate(file).accuracy == running.evaluate(run_copy).accuracy


def test_a_model_of_other_classes_is_refused(tmp_path):
    create_model("vit_micro_patch2_8", 3, num_layers=1).save(tmp_path / "three.keras")
    with pytest.raises(ValueError, match=r"three\.keras must give scores of the 10 classes of digits"):
        running.export_model(tmp_path / "three.keras", RunConfig())
    assert not (tmp_path / "three").exists()


def test_export_for_several_picture_sizes(run_copy, capsys):
    flags = ["--kinds", "float32,static_int8", "--image_sizes", "[12,[8,16]]", "--saved_model", "false", "--overwrite"]
    assert cli.main(["export", str(run_copy), *flags]) == 0
    report = json.loads((run_copy / "report.json").read_text())
    sizes = [[8, 8], [12, 12], [8, 16]]
    assert [a["image_size"] for a in report["artefacts"]] == [size for size in sizes for _ in range(2)]
    for artefact in report["artefacts"]:
        assert artefact["agreement"] > 0.97
        if artefact["kind"] == "float32":
            assert artefact["max_abs_logit_error"] < 1e-4
    own, larger = report["artefacts"][0], report["artefacts"][2]
    assert own["file"] == larger["file"]
    assert larger["accuracy"] < own["accuracy"]  # It was not trained for this size; it is held against itself there.
    assert larger["latency_ms"]["p50"] > own["latency_ms"]["p50"]
    shown = capsys.readouterr().out
    assert "static_int8 12x12" in shown
    assert "static_int8 8x16" in (run_copy / "report.html").read_text()
