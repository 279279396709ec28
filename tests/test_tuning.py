"""Searches from end to end, on digits with tiny models; a measurement file spares most of them the exports."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import keras_tuner
import numpy as np
import pytest
from PIL import Image

import vit_keras
from vit_keras.export.files import alone
from vit_keras.pipelines import cli, running
from vit_keras.pipelines.config import ExportConfig, FitConfig, RunConfig
from vit_keras.pipelines.hypermodel import VitHyperModel
from vit_keras.pipelines.measuring import Measurement
from vit_keras.pipelines.run_folder import RunFolder, read_config
from vit_keras.pipelines.search_folder import Record, SearchFolder
from vit_keras.pipelines.space import make_space
from vit_keras.pipelines.tune_config import TuneConfig
from vit_keras.pipelines.tune_report import importance, pareto_front, write_hparams
from vit_keras.pipelines.tuning import BUDGET_USED, search

SPACE = """
override.num_layers: {choice: [1, 2, 3]}
fit.learning_rate: {float: [1e-3, 8e-3], sampling: log}
"""
PHONE = "override.num_layers,latency_ms,bytes\n1,5.0,100000\n2,9.0,200000\n3,14.0,300000\n"


def base(folder, **fit):
    """What trials share: a training of seconds."""
    settings = {"epochs": 2, "batch_size": 128, "warmup_epochs": 1, "jit": False, **fit}
    override = {"hidden_dim": 24, "num_heads": 2, "mlp_dim": 24, "num_layers": 1}
    return RunConfig(out=str(folder), override=override, fit=FitConfig(**settings), export=ExportConfig("float32"))


@pytest.fixture
def files(tmp_path):
    """A space and the measurements of a phone, in files."""
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "phone.csv").write_text(PHONE)
    return {"space": str(tmp_path / "space.yaml"), "measurements": str(tmp_path / "phone.csv")}


def test_a_search_on_this_machine_from_the_command_to_the_run(tmp_path, capsys, monkeypatch):
    """Measured here: files, table, front, HParams, other seeds; then `run` goes on from the best."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(vit_keras.__file__).parents[1]))  # Of an uninstalled checkout too.
    Path("space.yaml").write_text("override.num_layers: {choice: [1, 2]}\n")
    words = ["tune", "--space", "space.yaml", "--tuner", "grid", "--trials", "5", "--seeds", "1", "--kind", "float32"]
    words += ["--fit.epochs=3", "--fit.batch_size=128", "--fit.jit=false", "--export.kinds=float32"]
    words += ["--override", '{"hidden_dim": 24, "num_heads": 2, "mlp_dim": 24}']
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    folder = SearchFolder("runs/tune")
    records = folder.records()
    assert [r.status for r in records] == ["trained", "trained"]
    assert "the space is exhausted" in printed and "trial 0001 trained" in printed and "1 other seed:" in printed
    for record in records:
        run = folder.trial(record.id)
        best = min(run.read_metrics(), key=lambda row: row["val_loss"])
        assert record.val_accuracy == record.score == best["val_accuracy"]
        assert (folder.tensorboard / record.id).is_dir()
    small, large = (r.measurement for r in records)
    assert 0 < small.bytes < large.bytes and small.latency > 0 and small.memory >= 0
    summary = json.loads(folder.summary_file.read_text())
    assert summary["counts"] == {"trained": 2} and len(summary["seeds"]["test_accuracy"]) == 1
    assert summary["seeds"]["seeds"] == [1]
    spent = summary["seconds"]
    assert spent["measuring"] + spent["training"] <= spent["total"]
    rows = list(csv.DictReader(folder.trials_table.open()))
    assert [row["override.num_layers"] for row in rows] == ["1", "2"] and rows[0]["run"] == "trials/0000"
    with Image.open(folder.front_plot) as plot:
        assert min(plot.size) > 300

    # The file of the trained model is the one that was measured before, but for what its weights decide.
    report = running.run(read_config(folder.best_file))
    best = next(r for r in records if r.id == summary["best"])
    assert report["artefacts"][0]["bytes"] == pytest.approx(best.measurement.bytes, rel=0.01)
    assert RunFolder(folder.trial(best.id).path).finished
    assert cli.main(words) == 2
    assert "holds a finished search" in capsys.readouterr().err
    assert cli.main([*words, "--fit.seed", "3"]) == 2
    assert "another search (run.fit.seed: 0, now 3)" in capsys.readouterr().err
    assert cli.main([*words, "--out", "runs/none", "--max-bytes", "1k"]) == 2
    assert "the smallest one has bytes" in capsys.readouterr().err
    assert not Path("runs/none").exists()


def test_a_constraint_is_held_by_every_trained_trial(tmp_path, files):
    """Shapes above it are rejected before training, and counted apart; more trials go on with the same search."""
    tune = TuneConfig(trials=2, max_latency_ms=10.0, max_bytes="250k", seeds=0, seed=5, **files)
    seen = []
    result = search(base(tmp_path / "search"), tune, on_progress=seen.append)
    assert result.ended == "all trials are trained"
    statuses = [r.status for r in result.records]
    assert statuses.count("trained") == 2 and "rejected" in statuses
    for record in result.records:
        layers = record.values["override.num_layers"]
        assert record.measurement.latency == {1: 5.0, 2: 9.0, 3: 14.0}[layers]
        assert (record.status == "trained") == (layers < 3)
        assert RunFolder(result.folder / "trials" / record.id).trained == (layers < 3)
    rejected = next(r for r in result.records if r.status == "rejected")
    assert rejected.message == "latency 14 ms > 10, bytes 300,000 bytes > 250,000"
    assert result.best.id in {r.id for r in result.records if r.status == "trained"}
    assert any(progress.stage.startswith("epoch") for progress in seen)
    with pytest.raises(FileExistsError, match="finished search"):
        search(base(tmp_path / "search"), tune)
    with pytest.raises(FileExistsError, match=r"another search .*tune\.tuner: random, now grid"):
        search(base(tmp_path / "search"), dataclasses.replace(tune, tuner="grid", trials=3))
    more = search(base(tmp_path / "search"), dataclasses.replace(tune, trials=3))
    assert [r.id for r in more.records][: len(result.records)] == [r.id for r in result.records]
    assert sum(r.status == "trained" for r in more.records) == 3


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [({"max_latency_ms": 1.0}, "latency 5 ms > 1"), ({"max_bytes": 99}, "bytes 100,000 bytes > 99")],
)
def test_a_constraint_that_nothing_meets_is_refused_before_any_training(tmp_path, files, limits, sentence):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=sentence):
        search(base(tmp_path / "deep" / "search"), TuneConfig(**limits, **files))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_wrong_with_the_data_or_the_space_is_said_before_a_file_is_written(tmp_path):
    (tmp_path / "space.yaml").write_text("override.patch_size: {choice: [3, 5]}\n")
    before = sorted(tmp_path.rglob("*"))
    for config, tune, part in (
        (RunConfig(data="no/such/folder.csv", out=str(tmp_path / "a")), TuneConfig(), "folder.csv"),
        (base(tmp_path / "a"), TuneConfig(space=str(tmp_path / "space.yaml")), "a shape that can be built"),
    ):
        with pytest.raises(ValueError, match=part):
            search(config, tune)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, files):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no search"):
        search(base(tmp_path / "mine"), TuneConfig(**files))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with alone(tmp_path / "busy", "search"), pytest.raises(FileExistsError, match="Another search is running"):
        search(base(tmp_path / "busy"), TuneConfig(**files))
    assert not (tmp_path / "busy").exists()


def own_model(hp):
    """A user's function: its default cannot be built, and other values crash, diverge or are too large."""
    fate = hp.Choice("fate", ["broken", "crash", "nan", "scores", "large", "good"])
    hp.Float("fit.learning_rate", 1e-3, 1e-2, step=9e-3)
    if fate == "broken":
        raise ValueError("no such model")
    if fate == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    pixels = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(float("nan") if fate == "nan" else 1 / 255)(pixels))
    return keras.Model(pixels, keras.layers.Dense(3 if fate == "scores" else 10)(x))


@pytest.mark.slow
def test_a_user_s_function_and_whatever_becomes_of_its_trials(tmp_path):
    """What cannot be built is rejected, a crash and a loss that is no number fail, and the search goes on."""
    latency = {"broken": 1, "crash": 1, "nan": 1, "scores": 1, "large": 99, "good": 1}
    (tmp_path / "phone.json").write_text(json.dumps([{"fate": f, "latency_ms": ms} for f, ms in latency.items()]))
    tune = TuneConfig(
        tuner="grid", trials=2, max_latency_ms=10, measurements=str(tmp_path / "phone.json"), seeds=1, seed=1
    )
    result = search(base(tmp_path / "search"), tune, build_model=own_model)
    found = {}
    for record in result.records:
        found.setdefault(record.values["fate"], set()).add((record.status, record.values["fit.learning_rate"]))
    statuses = {fate: {status for status, _ in pairs} for fate, pairs in found.items()}
    failed, rejected = {"failed"}, {"rejected"}
    assert statuses == {
        "broken": rejected, "crash": failed, "nan": failed, "scores": rejected, "large": rejected, "good": {"trained"}
    }  # fmt: skip
    messages = {r.values["fate"]: r.message for r in result.records}
    assert "no such model" in messages["broken"] and "SIGKILL" in messages["crash"]
    assert "FloatingPointError" in messages["nan"] and "10 scores" in messages["scores"]
    trained = [r for r in result.records if r.status == "trained"]
    assert len(trained) == 2  # Failures have used up none.
    rates = {RunFolder(result.folder / "trials" / r.id).load_config().fit.learning_rate for r in trained}
    assert rates == {1e-3, 1e-2}
    assert not (result.folder / "best.yaml").exists()  # A configuration does not say what the function built.
    model = vit_keras.load_model(result.folder / "trials" / result.best.id / "model.keras")
    assert len(model.layers) == 4 and 0 <= result.seeds.test_accuracy[0] <= 1


@pytest.mark.slow
def test_the_time_budget_ends_a_search_in_a_trial_that_goes_on_later(tmp_path, files):
    config = base(tmp_path / "search", epochs=400)
    state = tmp_path / "search" / "trials" / "0000" / ".state" / "training" / "state.json"
    tune = TuneConfig(trials=1, seeds=0, **files)
    start = time.monotonic()

    def stop(progress):
        if state.exists() and len(json.loads(state.read_text())["rows"]) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(config, tune, on_progress=stop)
    before = json.loads(state.read_text())["rows"]
    spent = time.monotonic() - start
    result = search(config, dataclasses.replace(tune, time_budget=spent), on_progress=None)
    rows = json.loads(state.read_text())["rows"] if state.exists() else []
    assert result.ended == BUDGET_USED and result.best is None and result.records == ()
    assert len(rows) >= len(before) and rows[: len(before)] == before


@pytest.mark.slow
def test_a_killed_search_goes_on_in_the_epoch_where_it_was(tmp_path, files):
    """kill -9 of the search: its child dies too, and the same call goes on with the same trial."""
    folder = tmp_path / "search"
    words = ["tune", "--space", files["space"], "--measurements", files["measurements"], "--trials", "1", "--seeds=0"]
    words += ["--fit.epochs=40", "--fit.batch_size=128", "--fit.jit=false", "--out", str(folder)]
    words += ["--override", '{"hidden_dim": 24, "num_heads": 2, "mlp_dim": 24, "num_layers": 1}']
    environment = {**os.environ, "PYTHONPATH": str(Path(vit_keras.__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, "-m", "vit_keras.pipelines.cli", *words], env=environment)
    state = folder / "trials" / "0000" / ".state" / "training" / "state.json"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = [int(p) for p in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert children
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)
    assert SearchFolder(folder).records() == []
    known = json.loads(state.read_text())
    known["rows"][0]["loss"] = 123.0  # What only a training that goes on will have.
    state.write_text(json.dumps(known))
    assert cli.main(words) == 0
    (record,) = SearchFolder(folder).records()
    assert (record.id, record.status) == ("0000", "trained")
    assert SearchFolder(folder).trial("0000").read_metrics()[0]["loss"] == 123.0


@pytest.mark.slow
def test_trials_train_on_another_backend_and_shapes_are_measured_on_tensorflow_s(tmp_path):
    """The default settings first, then a limit between the two shapes: one is rejected, one trained."""
    pytest.importorskip("jax")
    environment = {**os.environ, "PYTHONPATH": str(Path(vit_keras.__file__).parents[1]), "KERAS_BACKEND": "jax"}
    (tmp_path / "space.yaml").write_text("override.hidden_dim: {choice: [24, 96]}\n")
    words = ["tune", "--space", "space.yaml", "--tuner", "grid", "--trials", "2", "--seeds", "1", "--kind", "float32"]
    words += ["--fit.epochs=2", "--fit.batch_size=128", "--max-bytes", "40k", "--out", "search"]
    words += ["--override", '{"num_heads": 2, "mlp_dim": 24, "num_layers": 1}']
    command = [sys.executable, "-m", "vit_keras.pipelines.cli", *words]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    folder = SearchFolder(tmp_path / "search")
    small, large = folder.records()
    assert (small.status, large.status) == ("trained", "rejected") and large.message.startswith("bytes ")
    assert small.measurement.latency > 0 and 10_000 < small.measurement.bytes < 40_000
    trained = json.loads((folder.trial(small.id).path / "environment.json").read_text())
    assert trained["backend"] == "jax"
    assert len(json.loads(folder.summary_file.read_text())["seeds"]["test_accuracy"]) == 1


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# Parts


class Instant:
    """Children that have always finished already."""

    def __init__(self):
        self.trials = 0

    def warm_up(self):
        pass

    def do(self, job, tick=None, more=True):
        if job["task"] == "resolve":
            return {"status": "done", "model": "vit_micro_patch2_8", "epochs": 2, "classes": 10}
        measured = {"measurement": {"latency": 1.0, "bytes": 10, "memory": 10}, "measuring": 0.0, "hp": None}
        if job["task"] == "measure":
            return {"status": "done", **measured}
        self.trials += 1
        tick({"stage": "training"})
        folder = RunFolder(job["config"]["out"])
        folder.begin(RunConfig.from_dict(job["config"]), False)
        return {"status": "trained", **measured, "val_accuracy": 0.5, "epochs": 2, "training": 0.0, "ends": True}

    def close(self):
        pass


def test_the_parent_s_memory_is_flat_over_fifty_trials(tmp_path, files, monkeypatch):
    """All of the parent's own work: oracle, records, HParams, what is shown. Models live in its children only."""
    monkeypatch.setattr("vit_keras.pipelines.tuning.Children", Instant)
    seen = {}

    def look(progress):
        status = Path("/proc/self/status").read_text()
        seen[len(progress.records)] = int(status.split("VmRSS:")[1].split()[0]) / 1024

    tune = TuneConfig(space=files["space"], trials=60, seeds=0)
    result = search(base(tmp_path / "search"), tune, on_progress=look)
    assert len(result.records) == 60
    assert seen[60] - seen[10] < 20, seen  # MB


def record(trial_id, accuracy, latency, **values):
    return Record(trial_id, "trained", values, accuracy, accuracy, 1, Measurement(latency, 1, 1))


def test_the_front_holds_what_nothing_beats():
    records = [record("0", 0.9, 5.0), record("1", 0.8, 1.0), record("2", 0.7, 2.0), record("3", 0.9, 4.0)]
    records += [record("4", 0.8, 1.5), Record("5", "rejected", {}, measurement=Measurement(0.1, 1, 1))]
    assert [r.id for r in pareto_front(records)] == ["1", "3"]


def test_tensorboard_reads_the_hyperparameters_and_what_they_gave(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = SearchFolder(tmp_path)
    write_hparams(folder, record("0003", 0.75, 5.0, layers=2, kind="a"))
    events = EventAccumulator(str(folder.tensorboard / "0003"))
    events.Reload()
    values = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert values == {"score": 0.75, "val_accuracy": 0.75, "latency": 5.0, "bytes": 1.0, "memory": 1.0}
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"layers" in content and b"0003" in content


def test_importance_finds_what_mattered_and_names_its_method():
    rng = np.random.default_rng(0)
    records = []
    for i in range(40):
        layers, rate, kind = int(rng.integers(1, 7)), float(rng.random()), str(rng.choice(["a", "b"]))
        records.append(record(f"{i:02d}", layers / 10 + 0.1 * (kind == "b"), 1.0, layers=layers, rate=rate, kind=kind))
    found = importance(records)
    assert next(iter(found.shares)) == "layers" and found.shares["rate"] < 0.02 < found.shares["kind"]
    assert sum(found.shares.values()) == pytest.approx(1) and found.fit > 0.8
    assert "permutation importance of a random forest" in found.method
    assert importance(records[:5]) is None


@pytest.mark.slow
def test_our_hypermodel_in_a_user_s_own_tuner(tmp_path):
    """Default values that cannot be built end no search, and a shape above the limit fails before it is trained."""
    space = make_space({"override.patch_size": {"choice": [3, 2, 4]}, "override.num_layers": {"choice": [1, 2]}})
    config = RunConfig(model="vit_micro_patch2_8", override={"hidden_dim": 24, "num_heads": 2}, fit=FitConfig(epochs=1))
    hypermodel = VitHyperModel(space, 10, config, 2, TuneConfig(max_bytes="90k", kind="float32"), tmp_path / "measured")
    tuner = keras_tuner.GridSearch(hypermodel, "val_accuracy", max_trials=4, directory=tmp_path, project_name="mine")
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype("float32")
    labels = np.arange(32) % 10
    tuner.oracle.max_consecutive_failed_trials = 9
    tuner.search(images, labels, validation_data=(images, labels), verbose=0)
    found = {
        tuple(t.hyperparameters.values[n] for n in ("override.patch_size", "override.num_layers")): t
        for t in tuner.oracle.trials.values()
    }
    assert [found[key].status for key in ((3, 1), (3, 2), (2, 1), (2, 2))] == [
        "FAILED",
        "FAILED",
        "COMPLETED",
        "FAILED",
    ]
    assert "bytes" in found[2, 2].message and "patch_size" in found[3, 1].message
    assert tuner.get_best_models()[0].output_shape == (None, 10)
    with pytest.raises(ValueError, match="config must name a preset"):
        VitHyperModel(space)
