"""A run from end to end: what it leaves, what it refuses, and that it goes on where it was interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from conftest import SHORT
from PIL import Image

from vit_keras import load_model
from vit_keras.export import KINDS, Classifier
from vit_keras.pipelines import running
from vit_keras.pipelines.config import ExportConfig, RunConfig
from vit_keras.pipelines.prediction import predict
from vit_keras.pipelines.run_folder import RunFolder, read_config

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


def config(folder, **changes):
    return RunConfig(out=str(folder), **{**SHORT, **changes})


def test_a_run_leaves_its_files(finished_run):
    assert {p.name for p in finished_run.iterdir()} == FILES
    exported = {p.name for p in (finished_run / "export").iterdir()}
    assert exported == {"saved_model", *(f"model.{kind}.tflite" for kind in KINDS)}
    assert (finished_run / "labels.txt").read_text().split() == list("0123456789")
    for name in ("history.png", "confusion.png"):
        with Image.open(finished_run / name) as picture:
            picture.load()
            assert min(picture.size) > 300


def test_the_configuration_is_resolved(finished_run):
    resolved = read_config(finished_run / "config.yaml")
    assert resolved.model == "vit_micro_patch2_8"
    assert resolved.input.image_size == (8, 8)
    assert resolved.export.kinds == tuple(KINDS)
    assert None not in yaml.safe_load((finished_run / "config.yaml").read_text())["fit"].values()


def test_report_json(finished_run):
    report = json.loads((finished_run / "report.json").read_text())
    assert report["format"] == 1
    model = load_model(finished_run / "model.keras")
    expected = {"name": "vit_micro_patch2_8", "parameters": model.count_params(), "image_size": [8, 8]}
    assert report["model"] == {**expected, "classes": list("0123456789")}
    assert report["data"] == {"name": "digits", "train": 1077, "validation": 360, "test": 360}
    assert report["keras"]["accuracy"] > 0.6
    assert [a["kind"] for a in report["artefacts"]] == list(KINDS)
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
    assert all(kind in page for kind in KINDS)


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


def test_a_finished_run_is_refused_and_untouched(finished_run):
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")}
    with pytest.raises(FileExistsError, match="--overwrite"):
        running.run(config(finished_run))
    assert {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")} == before


def test_overwrite_replaces_a_run_and_nothing_else(run_copy, monkeypatch):
    (run_copy / "notes.txt").write_text("mine")
    monkeypatch.setattr(running, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        running.run(config(run_copy), overwrite=True)
    assert {p.name for p in run_copy.iterdir()} == {"config.yaml", "notes.txt"}


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_other_settings_do_not_go_on_with_an_unfinished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        running.run(config(tmp_path / "run"))
    changed = replace(SHORT["fit"], epochs=9)
    with pytest.raises(FileExistsError, match=r"fit\.epochs: 8, now 9"):
        running.run(config(tmp_path / "run", fit=changed))


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
    home = running.reporting if stage == "write_html" else running
    with monkeypatch.context() as patch:
        patch.setattr(home, stage, interrupt)
        patch.setattr(running, "fit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            running.run(config(run_copy))
    assert not (run_copy / "report.json").exists()
    monkeypatch.setattr(running, "fit", interrupt)
    if stage in ("measure_latency", "write_html"):
        monkeypatch.setattr(running, "compare", interrupt)  # Not a second time.
    again = running.run(config(run_copy))
    assert {p.name for p in run_copy.iterdir()} == FILES
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
    monkeypatch.setattr(running, "fit", interrupt)
    report = running.run(config(folder, export=ExportConfig(("float32",), saved_model=False)))
    assert report["keras"]["accuracy"] == evaluation.accuracy
    assert [p.name for p in (folder / "export").iterdir()] == ["model.float32.tflite"]


def test_export_again(run_copy):
    file = run_copy / "export" / "model.float16.tflite"
    file.unlink()
    report = running.export(run_copy, ExportConfig("float16,float32", saved_model=False))
    assert [a["kind"] for a in report["artefacts"]] == ["float32", "float16"]
    assert Classifier(file).image_size == (8, 8)
    assert RunFolder(run_copy).finished


def test_unwritable_and_full_disks_are_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "fit", interrupt)
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
    assert {p.name for p in folder.iterdir()} == FILES
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
