"""The golden set of a run, replayed on its files, and by the programs that people run them with."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vit_keras
from vit_keras.export import Classifier, to_tflite, verify_golden, write_golden
from vit_keras.pipelines import cli
from vit_keras.pipelines.datasets import load_data
from vit_keras.pipelines.preprocessing import batches

KINDS = ("float32", "float16", "dynamic_int8", "static_int8", "full_int8", "int16x8")


@pytest.fixture(scope="module")
def export(finished_run) -> Path:
    return finished_run / "export"


@pytest.fixture(scope="module")
def index(export) -> dict:
    return json.loads((export / "golden" / "golden.json").read_text())


@pytest.fixture(scope="module")
def golden_pictures(export, index) -> np.ndarray:
    return np.stack([np.array(Image.open(export / "golden" / p["file"])) for p in index["pictures"]])


def test_a_run_writes_its_golden_set(finished_run, index, golden_pictures):
    assert (index["format"], index["image_size"], len(index["classes"])) == (1, [8, 8], 10)
    assert golden_pictures.shape == (50, 8, 8, 3)
    labels = [picture["label"] for picture in index["pictures"]]
    assert np.bincount(labels).tolist() == [5] * 10
    assert set(index["answers"]) == {"keras", *KINDS}
    logits = vit_keras.load_model(finished_run / "model.keras").predict(golden_pictures.astype("float32"), verbose=0)
    for best, row in zip(index["answers"]["keras"]["top"], logits, strict=True):
        assert [i for i, _ in best] == np.argsort(-row)[:5].tolist()
        np.testing.assert_allclose([z for _, z in best], np.sort(row)[:-6:-1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_gives_its_own_answers_again(export, kind):
    check = verify_golden(export / f"model.{kind}.tflite")
    assert (check.against, check.same_file, check.pictures) == (kind, True, 50)
    assert (check.top1, check.top5, check.max_abs_logit_error, check.different) == (1, 1, 0, ())
    assert check.passed


def test_another_file_is_held_against_the_one_of_its_name_or_keras(export, tmp_path, capsys):
    other = vit_keras.create_model("vit_micro_patch2_8", 10, num_layers=1)
    other.set_weights([np.random.default_rng(0).normal(0, 0.1, w.shape) for w in other.get_weights()])
    file = to_tflite(other, tmp_path / "model.float32.tflite")
    check = verify_golden(file, export / "golden")
    assert (check.against, check.same_file, check.passed) == ("float32", False, False)
    assert len(check.different) == round(50 * (1 - check.top1)) > 25
    assert check.max_abs_logit_error > 1
    assert cli.main(["verify", str(file), "--golden", str(export / "golden")]) == 1
    assert f"another class for {check.different[0]}" in capsys.readouterr().out
    renamed = shutil.copy(export / "model.float32.tflite", tmp_path / "mine.tflite")
    assert verify_golden(renamed, export / "golden").same_file
    assert verify_golden(file.rename(tmp_path / "b.tflite"), export / "golden").against == "keras"


def test_the_command_takes_the_flag_alone(export, capsys):
    assert cli.main(["verify", *(str(export / f"model.{kind}.tflite") for kind in KINDS), "--golden"]) == 0
    assert capsys.readouterr().out.count("yes") == len(KINDS)


def test_a_second_export_keeps_the_answers_of_the_first_ones_files(run_copy, capsys):
    assert cli.main(["export", str(run_copy), "--kinds", "float32", "--overwrite"]) == 0
    answers = json.loads((run_copy / "export" / "golden" / "golden.json").read_text())["answers"]
    assert set(answers) == {"keras", *KINDS}


# What is refused


def change(content, **values):
    return json.dumps({**content, **values})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: "{", "golden.json is no golden set"),
        (lambda c: "[" * 100_000, "golden.json is no golden set"),
        (lambda c: "[]", "golden.json is no golden set"),
        (lambda c: change(c, format=2), "format 2 instead of 1"),
        (lambda c: change(c, image_size=[9, 8]), "00.png cannot be used: must be RGB, 8x9"),
        (lambda c: change(c, pictures=[]), "no pictures"),
        (lambda c: change(c, pictures=c["pictures"][1:]), "do not fit 49 pictures"),
        (lambda c: change(c, answers={}), "no answers of keras"),
        (lambda c: change(c, classes=["a"]), "of 1 classes"),
        (lambda c: change(c, pictures=[{"file": "../0.png", "label": 0}] * 50), "must name pictures as 00.png"),
    ],
)
def test_a_damaged_set_is_refused(export, index, tmp_path, edit, words):
    folder = Path(shutil.copytree(export / "golden", tmp_path / "golden"))
    (folder / "golden.json").write_text(edit(index))
    with pytest.raises(ValueError, match=words):
        verify_golden(export / "model.float32.tflite", folder)


def test_what_is_not_there_is_named(export, tmp_path, model):
    folder = Path(shutil.copytree(export / "golden", tmp_path / "golden"))
    (folder / "07.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"No picture at .*07\.png"):
        verify_golden(export / "model.float32.tflite", folder)
    (folder / "07.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"07\.png cannot be used"):
        verify_golden(export / "model.float32.tflite", folder)
    with pytest.raises(FileNotFoundError, match=r"No golden set at .*: it holds no golden\.json"):
        verify_golden(export / "model.float32.tflite", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No TensorFlow Lite file at"):
        verify_golden(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="must give 10 scores"):
        verify_golden(to_tflite(model, tmp_path / "four.tflite"), export / "golden")


def test_a_set_is_written_whole_or_not_at_all(export, tmp_path):
    parts = np.zeros((2, 8, 8, 3)), np.array([0, 1])
    with pytest.raises(FileNotFoundError):
        write_golden(tmp_path / "set", *parts, ["a"] * 10, {"float32": tmp_path / "none"}, np.zeros((2, 10)))
    assert list(tmp_path.iterdir()) == []
    write_golden(tmp_path / "set", *parts, ["a"] * 10, {}, np.zeros((2, 10)))
    assert sorted(f.name for f in (tmp_path / "set").iterdir()) == ["00.png", "01.png", "golden.json"]


def test_no_pictures_are_refused(export):
    classifier = Classifier(export / "model.float32.tflite")
    for pictures in (np.zeros((0, 8, 8, 3)), np.zeros((0, 0, 3)), np.zeros((1, 7, 8, 3))):
        with pytest.raises(ValueError, match=r"pictures must be of shape \(n, 8, 8, 3\), n >= 1. Received: shape="):
            classifier.logits(pictures)


# The programs that people run the files with


@pytest.mark.parametrize("kind", KINDS)
def test_interpreter(export, index, golden_pictures, kind):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(export / f"model.{kind}.tflite"))
    runner = interpreter.get_signature_runner("serving_default")
    [given], [result] = runner.get_input_details().values(), runner.get_output_details().values()
    for picture, best in zip(golden_pictures, index["answers"][kind]["top"], strict=True):
        pixels = as_input(picture[None], given["dtype"], given["quantization"])
        [scores] = runner(**{next(iter(runner.get_input_details())): pixels}).values()
        assert int(scores[0].argmax()) == best[0][0]
        logits = as_logits(scores[0], result["quantization"])
        np.testing.assert_allclose(np.sort(logits)[:-6:-1], [z for _, z in best], atol=1e-5)


def as_input(pictures: np.ndarray, dtype, quantization: tuple[float, int]) -> np.ndarray:
    scale, zero_point = quantization
    return (np.rint(pictures / scale) + zero_point if scale else pictures).astype(dtype)


def as_logits(scores: np.ndarray, quantization: tuple[float, int]) -> np.ndarray:
    scale, zero_point = quantization
    return (scores.astype("float32") - zero_point) * scale if scale else scores


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "int16x8"])  # Its Python buffers know no int16.
def test_compiled_model(export, index, golden_pictures, kind):
    from ai_edge_litert.compiled_model import CompiledModel

    details = Classifier(export / f"model.{kind}.tflite")
    model = CompiledModel.from_file(str(export / f"model.{kind}.tflite"))
    [images], [scores] = model.create_input_buffers(0), model.create_output_buffers(0)
    agree = 0
    for picture, best in zip(golden_pictures, index["answers"][kind]["top"], strict=True):
        images.write(as_input(picture[None], details._input["dtype"], details._input["quantization"]))
        model.run_by_index(0, [images], [scores])
        agree += int(scores.read(10, details._outputs[0]["dtype"]).argmax()) == best[0][0]
    assert agree >= (50 if kind == "float32" else 49)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "int16x8"])
def test_benchmark_program(export, tmp_path, kind):
    program = Path(sys.executable).with_name("litert-benchmark")
    if not program.exists():
        pytest.skip("this ai-edge-litert has no litert-benchmark; 2.3 has")
    found = tmp_path / "found.json"
    command = [program, "--model", export / f"model.{kind}.tflite", "--num_runs", "3", "--result_json", found]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    content = json.loads(found.read_text())
    assert (content["signature"], content["latency"]["num_runs"]) == ("serving_default", 3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "int16x8"])  # It wants float32 or uint8 pixels.
def test_mediapipe_names_what_our_interpreter_names(finished_run, export, kind):
    mediapipe = pytest.importorskip("mediapipe")
    pictures = np.concatenate([x for x, _ in batches(load_data("digits").test, (8, 8), 256).as_numpy_iterator()])
    file = export / f"model.{kind}.tflite"
    ours, names = Classifier(file).logits(pictures), (finished_run / "labels.txt").read_text().split()
    options = mediapipe.tasks.vision.ImageClassifierOptions(mediapipe.tasks.BaseOptions(model_asset_path=str(file)))
    same = []
    with mediapipe.tasks.vision.ImageClassifier.create_from_options(options) as classifier:
        for picture, logits in zip(pictures.astype("uint8"), ours, strict=True):
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
            best = classifier.classify(image).classifications[0].categories[0]
            same.append(best.category_name == names[logits.argmax()])
            assert best.score == pytest.approx(logits[best.index], abs=1e-4)
    assert len(same) == 360
    assert np.mean(same) >= (1 if kind == "float32" else 0.99)


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Path:
    """The interpreter of an environment with nothing in it but what a board needs."""
    folder = tmp_path_factory.mktemp("board")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraints = Path(__file__).parent.parent / "constraints.txt"
    command = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, "ai-edge-litert", "pillow"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode and ("onnection" in result.stderr or "name resolution" in result.stderr):
        pytest.skip("pip reaches no package index to install ai-edge-litert and pillow from")
    assert result.returncode == 0, result.stderr
    return python


def test_the_boards_script_needs_no_tensorflow(board, export, index):
    script = Path(vit_keras.__file__).parent / "export" / "standalone" / "classify.py"
    probe = "import importlib.util as u; print([m for m in ('tensorflow', 'keras', 'vit_keras') if u.find_spec(m)])"
    here = {"cwd": board.parent, "capture_output": True, "text": True}
    assert subprocess.run([board, "-c", probe], check=True, **here).stdout.strip() == "[]"
    for kind in KINDS:
        command = [board, script, export / f"model.{kind}.tflite"]
        command += [export / "golden" / picture["file"] for picture in index["pictures"]]
        lines = subprocess.run(command, check=True, **here).stdout.splitlines()
        found = [line.split("\t")[1].split(" ")[0] for line in lines]
        assert found == [index["classes"][best[0][0]] for best in index["answers"][kind]["top"]]
    replay = "import sys; from vit_keras.export import verify_golden; print(verify_golden(sys.argv[1]).passed)"
    command = [board, "-c", replay, export / "model.static_int8.tflite"]
    environment = {**os.environ, "PYTHONPATH": str(Path(vit_keras.__file__).parent.parent)}
    result = subprocess.run(command, env=environment, check=False, **here)
    assert result.stdout.strip() == "True", result.stderr
    keras_top = [index["classes"][best[0][0]] for best in index["answers"]["keras"]["top"]]
    assert sum(a == b for a, b in zip(found, keras_top, strict=True)) >= 49
