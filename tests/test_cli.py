"""The command line: whatever is wrong, one sentence, exit code 2 and no new file; `--help` without a backend."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vit_keras.pipelines.cli import build_parser, main
from vit_keras.pipelines.config import FitConfig, InputConfig, RunConfig

COMMANDS = (
    *("run", "train", "tune", "evaluate", "export", "predict", "explain", "probe"),
    *("list", "data", "devices", "benchmark", "verify", "web"),
)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty current folder; a training or a download that starts fails the test."""
    from vit_keras.pipelines import fitting

    def never(*args, **kwargs):
        raise AssertionError("started in spite of bad input")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "fit", never)
    monkeypatch.setattr("tensorflow_datasets.core.DatasetBuilder.download_and_prepare", never)
    monkeypatch.delenv("VIT_KERAS_TRACEBACK", raising=False)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    import vit_keras

    path = tmp_path_factory.mktemp("model") / "model.keras"
    vit_keras.create_model("vit_micro_patch2_8", 10, num_layers=1).save(path)
    return path


@pytest.fixture
def run_folder(tmp_path, model_file):
    """A run of an untrained model, `run/`."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = RunConfig(
        model="vit_micro_patch2_8", out=str(folder), input=InputConfig(image_size=8), fit=FitConfig(epochs=1)
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    (folder / "labels.txt").write_text("".join(f"{i}\n" for i in range(10)))
    shutil.copy(model_file, folder / "model.keras")
    return folder


@pytest.fixture
def picture(tmp_path):
    save_picture(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def save_picture(file, side=8):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype="uint8")).save(file)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(capsys, *arguments):
    """Runs a command that must be refused, and returns its sentence."""
    before = tree(Path.cwd())
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("vit-keras: error: ")
    assert captured.err.endswith("\n") and len(captured.err.splitlines()) == 1
    assert "Traceback" not in captured.err
    after = tree(Path.cwd())
    assert sorted(after) == sorted(before)
    assert after == before
    return captured.err


# Words


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["A command is missing", *COMMANDS]),
        (["rn"], ["'rn'", "Did you mean 'run'?", *COMMANDS]),
        (["evalute", "x"], ["'evalute'", "Did you mean 'evaluate'?"]),
        (["--verbos", "list"], ["'--verbos'", "Did you mean '--verbose'?"]),
        (["run", "--fit.epoch", "3"], ["'--fit.epoch'", "Did you mean '--fit.epochs'?"]),
        (["run", "--fit.epoch=3"], ["'--fit.epoch'", "Did you mean '--fit.epochs'?"]),
        (["train", "--fit.epoch", "3"], ["'--fit.epoch'", "Did you mean '--fit.epochs'?"]),
        (["run", "--dat", "digits"], ["'--dat'", "Did you mean '--data'?"]),
        (["run", "--mod", "auto"], ["'--mod'", "Did you mean '--model'?"]),
        (["run", "--overwrit"], ["'--overwrit'", "Did you mean '--overwrite'?"]),
        (["run", "--conf", "x.yaml"], ["'--conf'", "Did you mean '--config'?"]),
        (["export", "x", "--kind", "float32"], ["'--kind'", "Did you mean '--kinds'?"]),
        (["evaluate", "x", "--model", "y"], ["'--model'"]),
        (["list", "a", "b"], ["'b'"]),
        (["export", "x", "--kinds", "float3"], ["'float3'", "Did you mean 'float32'?", "full_int8"]),
        (["export", "x", "--kinds", "float32,full_int"], ["'full_int'", "Did you mean 'full_int8'?"]),
        (["run", "--export.kinds", "statc_int8"], ["'statc_int8'", "Did you mean 'static_int8'?"]),
        (["run", "--export.kinds", ""], ["kind"]),
        (["run", "--export.targets", "cpi"], ["'cpi'", "Did you mean 'cpu'?"]),
        (["run", "--export.max_drop", "-1"], ["export.max_drop=-1"]),
        (["export", "x", "--for", "edgetp"], ["'edgetp'", "Did you mean 'edgetpu'?"]),
        (["export", "x", "--bundle", "andriod"], ["'andriod'", "Did you mean 'android'?"]),
        (["export", "x", "--kinds", "int16x8", "--bundle", "ios"], ["bundle for ios", "kind='int16x8'"]),
        (["run", "--export.bundles", "iso"], ["'iso'", "Did you mean 'ios'?"]),
        (["export", "x", "--for", "cpu", "--integer-only"], ["full_int8 or int16x8", "static_int8"]),
        (["export", "x", "--max-drop", "101"], ["export.max_drop=101"]),
        (["export", "x", "--data", "digits"], ["--data", ".keras"]),
        (["export", "x", "--input.skip_bad"], ["--input", ".keras"]),
        (["export", "x.keras", "--for", "cpu"], ["--data", "x.keras"]),
        (["export", "x.keras", "--data", "digits", "--input.balance", "weights"], ["'--input.balance'"]),
        (["run", "--model", "vit_micro_patch2_9"], ["'vit_micro_patch2_9'", "Did you mean 'vit_micro_patch2_8'?"]),
        (["run", "--data", "cifar1"], ["'cifar1'", "Did you mean 'cifar10'?"]),
        (["run", "--data", "digit"], ["'digit'", "Did you mean 'digits'?"]),
        (["list", "nothing*"], ["nothing*", "vit-keras list"]),
        (["evaluate"], ["path"]),
        (["export"], ["path"]),
        (["predict"], ["path"]),
        (["predict", "x"], ["pictures"]),
        (["web"], ["path"]),
        (["explain"], ["path"]),
        (["explain", "x", "p.png", "--metod", "rollout"], ["'--metod'", "Did you mean '--method'?"]),
        (["probe"], ["paths"]),
        (["web", "x", "--kin", "float32"], ["'--kin'", "Did you mean '--kind'?"]),
        (["web", "x", "--kind", "float3"], ["'float3'", "Did you mean 'float32'?", "full_int8"]),
        (["web", "x", "--overwrite"], ["--overwrite", "--out"]),
        (["tune", "--trial", "3"], ["'--trial'", "Did you mean '--trials'?"]),
        (["tune", "--tuner", "bayes"], ["'bayes'", "Did you mean 'bayesian'?"]),
        (["tune", "--trials", "0"], ["trials=0"]),
        (["tune", "--space", "smal"], ["'smal'", "Did you mean 'small'?", "finetune"]),
        (["tune", "--space", "none.yaml"], ["none.yaml"]),
        (["tune", "--max-bytes", "2X"], ["max_bytes", "2X"]),
        (["tune", "--max-latency-ms", "fast"], ["max_latency_ms"]),
        (["tune", "--objective", "speed"], ["objective", "val_accuracy"]),
        (["tune", "--measurements", "none.csv"], ["none.csv"]),
        (["tune", "--role", "boss"], ["role", "chief"]),
        (["tune", "--role", "chief"], ["HOST:PORT"]),
        (["tune", "--role", "worker", "--oracle", "here"], ["HOST:PORT", "here"]),
        (["tune", "--fit.epochs", "0"], ["fit.epochs=0"]),
    ],
)
def test_unknown_and_missing_words(capsys, arguments, parts):
    sentence = refused(capsys, *arguments)
    for part in parts:
        assert part in sentence


# Values


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("fit.epochs", "abc"),
        ("fit.epochs", "1.5"),
        ("fit.batch_size", "many"),
        ("fit.learning_rate", "fast"),
        ("fit.batch_size", "null"),
        ("augment.flip", "perhaps"),
        ("augment.shift", "[1, 2]"),
        ("export.threads", "1.5"),
        ("export.saved_model", "3"),
        ("input.image_size", "big"),
        ("input.split_seed", "1.5"),
        ("input.skip_bad", "perhaps"),
        ("override", "3"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_flag(capsys, flag, value):
    assert flag in refused(capsys, "run", f"--{flag}={value}")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("fit.epochs", "0"),
        ("fit.batch_size", "0"),
        ("fit.learning_rate", "0"),
        ("fit.learning_rate", "-1e-3"),
        ("fit.learning_rate", ".nan"),
        ("fit.learning_rate", ".inf"),
        ("fit.warmup_epochs", "-1"),
        ("fit.weight_decay", "-0.1"),
        ("fit.weight_decay", ".inf"),
        ("fit.label_smoothing", "1"),
        ("fit.clip_norm", "0"),
        ("fit.patience", "0"),
        ("fit.seed", "-1"),
        ("augment.shift", "1.1"),
        ("augment.rotation", "181"),
        ("augment.zoom", "1"),
        ("augment.noise", "-0.1"),
        ("export.threads", "0"),
        ("export.calibration_pictures", "0"),
        ("input.image_size", "0"),
        ("input.image_size", "[8, 8, 8]"),
        ("input.split_seed", "-1"),
        ("input.balance", "classes"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_flag(capsys, flag, value):
    sentence = refused(capsys, "run", f"--{flag}={value}")
    assert flag in sentence


@pytest.mark.parametrize("command", ["run", "train"])
def test_an_image_size_that_the_patch_does_not_divide(capsys, command):
    sentence = refused(
        capsys, command, "--data", "digits", "--model", "vit_micro_patch2_8", "--input.image_size", "9", "--out", "new"
    )
    assert "9" in sentence and "patch_size" in sentence


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("num_layer=3", ["'num_layer'", "Did you mean 'num_layers'?"]),
        ("num_layers=0", ["num_layers"]),
        ("num_layers=many", ["num_layers"]),
        ("num_heads=5", ["num_heads"]),
        ("pooling=max", ["pooling", "average"]),
        ("patch_size=0", ["patch_size"]),
        ("dropout_rate=2", ["dropout_rate"]),
    ],
)
def test_an_override_that_does_not_fit(capsys, override, parts):
    sentence = refused(capsys, "run", "--model", "vit_micro_patch2_8", f"--override.{override}", "--out", "new")
    for part in parts:
        assert part in sentence


# Configuration files


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("fit: {epochs: [1\n", []),
        ("fit:\n\tepochs: 3\n", []),
        ("- a\n- list\n", []),
        ("fit:\n  epoch: 3\n", ["epoch"]),
        ("dat: digits\n", ["dat"]),
        ("fit:\n  epochs: 0\n", ["fit.epochs"]),
        ("fit:\n  epochs: many\n", ["fit.epochs"]),
        ("export:\n  kinds: [float3]\n", ["'float3'", "float32"]),
    ],
)
def test_a_bad_configuration_file_is_refused(capsys, tmp_path, text, parts):
    (tmp_path / "bad.yaml").write_text(text)
    sentence = refused(capsys, "run", "--config", "bad.yaml")
    for part in parts or ["bad.yaml"]:
        assert part in sentence


def test_a_missing_configuration_file_is_named(capsys):
    assert "none.yaml" in refused(capsys, "run", "--config", "none.yaml")


# Data


@pytest.mark.parametrize("data", ["./none", "pictures/none", "/no/such/folder"])
def test_a_missing_data_folder_is_named(capsys, data):
    assert data in refused(capsys, "run", "--data", data, "--out", "new")


def test_bad_pictures_in_a_folder_are_named(capsys, tmp_path):
    for name in ("cat", "dog"):
        for i in range(10):
            save_picture(tmp_path / "pets" / name / f"{i}.png")
    bad = {"empty.jpg": b"", "text.png": b"no picture " * 9, "cut.png": (tmp_path / "pets/cat/0.png").read_bytes()[:80]}
    for name, content in bad.items():
        (tmp_path / "pets" / "cat" / name).write_bytes(content)
    sentence = refused(capsys, "run", "--data", "./pets", "--out", "new")
    assert "3 of 23" in sentence
    for name, reason in (("empty.jpg", "empty"), ("text.png", "not a picture"), ("cut.png", "damaged")):
        assert f"{Path('pets/cat') / name}: " in sentence and reason in sentence


@pytest.mark.parametrize("counts", [{}, {"cat": 5}, {"cat": 5, "dog": 0}, {"cat": 1, "dog": 1}])
def test_a_folder_that_is_no_data_is_named(capsys, tmp_path, counts):
    (tmp_path / "pets").mkdir()
    for name, count in counts.items():
        (tmp_path / "pets" / name).mkdir()
        for i in range(count):
            save_picture(tmp_path / "pets" / name / f"{i}.png")
    assert "pets" in refused(capsys, "run", "--data", "./pets", "--out", "new")


def test_a_file_as_data_is_named(capsys, picture):
    assert str(picture) in refused(capsys, "run", "--data", picture, "--out", "new")


# The folder of a run


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_an_out_folder_that_is_no_run_is_left_alone(capsys, tmp_path, flags):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "mine" / "model.keras").write_text("not yours")
    assert "mine" in refused(capsys, "run", "--out", "mine", *flags)


def test_an_out_that_is_a_file_is_left_alone(capsys, picture):
    assert "picture.png" in refused(capsys, "run", "--out", picture)
    assert "picture.png" in refused(capsys, "run", "--out", picture / "deeper")


def test_a_finished_run_is_left_alone(capsys, run_folder):
    (run_folder / "report.json").write_text("{}")
    sentence = refused(capsys, "run", "--out", "run")
    assert "run" in sentence and "--overwrite" in sentence
    assert "--overwrite" in refused(capsys, "train", "--out", "run")


def test_an_unfinished_run_of_other_settings_is_left_alone(capsys, run_folder):
    (run_folder / "model.keras").unlink()
    sentence = refused(capsys, "run", "--out", "run", "--fit.epochs", "2", "--model", "vit_micro_patch2_8")
    assert "fit.epochs: 1, now 2" in sentence and "--overwrite" in sentence


def test_of_a_trained_run_other_files_are_a_matter_of_export(capsys, run_folder):
    from vit_keras.pipelines.datasets import load_data
    from vit_keras.pipelines.resolving import resolve

    (run_folder / "config.yaml").write_text(
        yaml.safe_dump(resolve(RunConfig(out="run"), load_data("digits")).to_dict())
    )
    sentence = refused(capsys, "run", "--out", "run", "--export.threads", "2")
    assert "export.threads: 1, now 2" in sentence and "export it" in sentence and "--overwrite" not in sentence
    assert "holds a trained run" in refused(capsys, "train", "--out", "run")


def test_a_model_from_elsewhere_is_not_exported_into_a_run(capsys, run_folder, model_file):
    sentence = refused(capsys, "export", model_file, "--data", "digits", "--out", "run", "--overwrite")
    assert "run is a run" in sentence and "--out" in sentence


@pytest.mark.parametrize(
    "flags",
    [["--model", "vit_nano"], ["--fit.epochs", "0"], ["--data", "cifar1"], ["--input.image_size", "9"]],
)
def test_a_refused_overwrite_keeps_the_old_run(capsys, run_folder, flags):
    (run_folder / "report.json").write_text("{}")
    refused(capsys, "run", "--out", "run", "--model", "vit_micro_patch2_8", "--overwrite", *flags)


COMMANDS_ON_A_RUN = {"evaluate": [], "export": [], "predict": ["picture.png"]}


@pytest.mark.parametrize("command", COMMANDS_ON_A_RUN)
def test_a_folder_without_a_whole_run_is_refused_by_name(capsys, tmp_path, run_folder, picture, command):
    rest = COMMANDS_ON_A_RUN[command]
    assert "missing" in refused(capsys, command, "missing", *rest)
    assert "picture.png" in refused(capsys, command, picture, *rest)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, command, "empty", *rest)

    model = run_folder / "model.keras"
    content = model.read_bytes()
    model.unlink()
    sentence = refused(capsys, command, "run", *rest)
    assert "run" in sentence and "model.keras" in sentence
    model.write_bytes(content[: len(content) // 2])
    assert "model.keras" in refused(capsys, command, "run", *rest)
    model.write_bytes(b"")
    assert "model.keras" in refused(capsys, command, "run", *rest)


@pytest.mark.parametrize("damage", ["bytes", "members"])
@pytest.mark.parametrize("command", COMMANDS_ON_A_RUN)
def test_a_damaged_archive_is_refused_by_name(capsys, run_folder, picture, command, damage):
    model = run_folder / "model.keras"
    if damage == "bytes":
        content = bytearray(model.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 200] = bytes(200)
        model.write_bytes(content)
    else:
        with zipfile.ZipFile(model, "w") as archive:
            archive.writestr("something", "else")
    assert "model.keras" in refused(capsys, command, "run", *COMMANDS_ON_A_RUN[command])


@pytest.mark.parametrize("text", ["fit: [", "just words", "", "fit: {epoch: 3}\n", "fit: {epochs: 0}\n", "fit: 3\n"])
@pytest.mark.parametrize("command", COMMANDS_ON_A_RUN)
def test_a_damaged_run_configuration_is_refused(capsys, run_folder, picture, command, text):
    (run_folder / "config.yaml").write_text(text)
    sentence = refused(capsys, command, "run", *COMMANDS_ON_A_RUN[command])
    assert "config.yaml" in sentence or "fit.epochs" in sentence


@pytest.mark.parametrize("content", [None, b"", b"0\n1\n"])
def test_predict_refuses_a_run_without_its_labels(capsys, run_folder, picture, content):
    labels = run_folder / "labels.txt"
    labels.unlink()
    if content is not None:
        labels.write_bytes(content)
    assert "labels.txt" in refused(capsys, "predict", "run", picture)


@pytest.mark.parametrize("content", [None, b"", b"\0" * 64, b"\x1c\0\0\0TFL3" + bytes(range(200)), b"just words"])
def test_a_corrupted_tflite_file_is_named(capsys, run_folder, picture, content):
    file = run_folder / "export" / "model.float32.tflite"
    file.parent.mkdir()
    if content is not None:
        file.write_bytes(content)
    assert "model.float32.tflite" in refused(capsys, "predict", file, picture)
    assert "model.float32.tflite" in refused(capsys, "evaluate", file)


def test_evaluate_and_export_refuse_a_file_that_is_in_no_run(capsys, tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"x")
    refused(capsys, "evaluate", "model.tflite")
    assert "model.tflite" in refused(capsys, "export", "model.tflite")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No picture at"), (b"", "empty"), (b"no picture", "not a picture"), ("cut", "damaged")],
)
def test_a_picture_that_cannot_be_used_is_named(capsys, tmp_path, run_folder, picture, content, reason):
    if content is not None:
        (tmp_path / "bad.png").write_bytes(picture.read_bytes()[:80] if content == "cut" else content)
    sentence = refused(capsys, "predict", "run", picture, "bad.png")
    assert "bad.png" in sentence and reason in sentence


def test_a_folder_as_picture_is_named(capsys, tmp_path, run_folder):
    (tmp_path / "pictures").mkdir()
    assert "pictures" in refused(capsys, "predict", "run", "pictures")


# What works


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (False, True)),
        (["--input.skip_bad", "--export.saved_model=false"], (True, False)),
        (["--input.skip_bad", "true", "--export.saved_model", "false"], (True, False)),
        (["--export.saved_model", "--input.skip_bad=false"], (False, True)),
    ],
)
def test_a_flag_may_stand_alone_or_have_a_value(arguments, expected):
    options = build_parser()[0].parse_args(["run", *arguments])["run"]
    assert (options.input.skip_bad, options.export.saved_model) == expected


def test_pictures_that_were_left_out_are_in_the_environment(tmp_path):
    from vit_keras.pipelines import running
    from vit_keras.pipelines.environment import environment

    for name in ("cat", "dog"):
        for i in range(10):
            save_picture(tmp_path / "pets" / name / f"{i}.png")
    (tmp_path / "pets" / "cat" / "bad.png").write_bytes(b"")
    config = RunConfig(data=str(tmp_path / "pets"), input=InputConfig(skip_bad=True))
    skipped = environment(config, running._load(config))["skipped"]
    assert skipped == {str(tmp_path / "pets" / "cat" / "bad.png"): "the file is empty"}


@pytest.mark.parametrize(("data", "name"), [("a/pets.csv", "pets"), ("mine.npz", "mine"), ("pets.v2", "pets.v2")])
def test_a_run_is_called_as_its_data(data, name):
    from vit_keras.pipelines.running import folder_of

    assert folder_of(RunConfig(data=data)) == Path("runs") / name


def test_predict_prints_one_line_per_picture(capsys, run_folder, picture):
    assert main(["predict", "run", "picture.png", str(picture)]) == 0
    captured = capsys.readouterr()
    rows = [line.split("\t") for line in captured.out.splitlines()]
    assert [row[2] for row in rows] == ["picture.png", str(picture)]
    assert rows[0][:2] == rows[1][:2] and rows[0][0] in "0123456789" and 0.1 <= float(rows[0][1]) <= 1
    assert captured.err == ""


def test_names_do_not_steer_the_terminal(capsys, run_folder, picture):
    name = picture.with_name("red\x1b[31m\nline.png")
    shutil.copy(picture, name)
    assert main(["predict", "run", str(name)]) == 0
    assert main(["predict", "run", str(name) + "none"]) == 2
    assert main(["devices", str(name)]) == 2
    captured = capsys.readouterr()
    assert "red?[31m?line.png" in captured.out and "red?[31m" in captured.err
    assert "\x1b" not in captured.out + captured.err
    assert len(captured.out.splitlines()) == 1 and len(captured.err.splitlines()) == 2


def test_a_file_that_ends_in_a_softmax_says_the_same(capsys, run_folder, picture):
    from vit_keras import load_model
    from vit_keras.export import to_tflite

    model = load_model("run/model.keras")
    to_tflite(model, "chances.tflite", output="probabilities")
    assert main(["predict", "run", str(picture)]) == main(["predict", "chances.tflite", str(picture)]) == 0
    (_, one, _), (_, other, _) = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert abs(float(one) - float(other)) < 2e-4


def test_list_prints_every_preset(capsys):
    from vit_keras import get_preset, list_models

    assert main(["list"]) == 0
    captured = capsys.readouterr()
    cells = [[cell.strip() for cell in line.split("│")] for line in captured.out.splitlines()]
    rows = {row[1]: row for row in cells if len(row) > 2 and row[1]}  # A long source takes more lines.
    assert list(rows) == list_models() and len(rows) >= 14
    for name, row in rows.items():
        assert row[2] == "x".join(str(side) for side in get_preset(name).image_size)
        assert row[3] == str(get_preset(name).arguments["patch_size"])
    assert captured.err == ""


def test_list_prints_what_a_pattern_matches(capsys):
    from vit_keras import list_models

    assert main(["list", "vit_m*"]) == 0
    out = capsys.readouterr().out
    for name in list_models():
        assert (name in out) == name.startswith("vit_m")


def test_traceback_is_raised_when_asked_for(monkeypatch):
    monkeypatch.setenv("VIT_KERAS_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="No run at missing"):
        main(["evaluate", "missing"])


def call(*arguments, options=()):
    command = [sys.executable, *options, "-m", "vit_keras.pipelines.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "120"})


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), *((name, "--help") for name in COMMANDS), ("data", "check", "--help")],
)
def test_help_imports_no_backend(arguments):
    result = call(*arguments, options=("-X", "importtime"))
    assert result.returncode == 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert "vit_keras" in modules and "jsonargparse" in modules
    assert not modules & {"tensorflow", "keras", "tensorflow_datasets", "sklearn", "matplotlib", "ai_edge_litert"}
    if arguments == ("--version",):
        assert result.stdout.startswith("vit-keras ") and len(result.stdout.splitlines()) == 1
    else:
        assert result.stdout.lower().startswith("usage: vit-keras")
    if arguments == ("--help",):
        assert all(name in result.stdout for name in COMMANDS)


def test_a_real_process_says_one_sentence_too(tmp_path):
    result = call("evaluate", "missing")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "vit-keras: error: No run at missing: there is no such folder.\n"


# Recipes and the sheet


def test_recipes_are_configurations():
    from vit_keras.pipelines.recipe import list_recipes, recipe_file
    from vit_keras.pipelines.run_folder import read_config

    recipes = list_recipes()
    assert "digits" in recipes
    for name, text in recipes.items():
        assert len(text) > 20
        read_config(recipe_file(name))


def test_a_recipe_is_called_by_its_name(capsys):
    assert main(["train", "--config", "digit"]) == 2
    assert "Unknown recipe 'digit'. Did you mean 'digits'?" in capsys.readouterr().err
    for arguments in (["--config", "digits"], ["--config=digits"]):
        assert main(["train", *arguments, "--data", "nowhere/at/all"]) == 2
        assert "nowhere/at/all" in capsys.readouterr().err


def test_list_prints_the_recipes(capsys):
    assert main(["list", "--recipes"]) == 0
    assert "digits" in capsys.readouterr().out
    assert main(["list", "x*", "--recipes"]) == 2
    assert "must match a recipe" in capsys.readouterr().err


def test_data_show_draws_a_sheet(tmp_path, capsys):
    command = ["data", "show", "digits", "--rows", "2", "--columns", "3", "--augment.policy", "none"]
    assert main(command) == 0
    assert Image.open("pictures.png").size[0] > 300
    assert "pictures.png" in capsys.readouterr().out
    assert main(command) == 2
    assert "overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
