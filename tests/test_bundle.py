"""Folders for apps: what the code and the README in them say is what the file says."""

import re
from pathlib import Path

import numpy as np
import pytest

from vit_keras.export import (
    PLATFORMS,
    Classifier,
    Framing,
    read_labels,
    to_tflite,
    to_tflite_files,
    write_bundle,
)
from vit_keras.export import bundle as bundling
from vit_keras.export.platforms import bundled_kind
from vit_keras.pipelines import cli
from vit_keras.pipelines.config import ExportConfig

LABELS = ('a "quoted" $name ${x} @width', "back\\slash \\(x) %s", "ç 猫 👩‍🔬", "*/ // end `tick` | <b>")
KINDS = {
    "android": ("float32", "float16", "static_int8", "full_int8", "int16x8", "int4"),
    "ios": ("float32", "float16", "static_int8", "full_int8"),
}
CASES = [(platform, kind) for platform, kinds in KINDS.items() for kind in kinds]
CALLS = {
    ("android", "float32"): {"writeFloat(", "readFloat("},
    ("android", "uint8"): {"writeInt8(", "readInt8(", "and 0xFF)"},
    ("android", "int16"): {"putShort(", "getShort("},
    ("ios", "float32"): {"Data(buffer: ", "copyBytes(to: "},
    ("ios", "uint8"): {"UInt8(clamping: ", "Self.outputScale * "},
}
"""What only code for one type of input and output calls."""
LINES = {
    "android": 'implementation("com.google.ai.edge.litert:litert:2.3.0")',
    "ios": "pod 'TensorFlowLiteSwift', '~> 2.17.0'",
}


@pytest.fixture(scope="module")
def files(model, pictures, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return to_tflite_files(model, {k: folder / f"{k}.tflite" for k in KINDS["android"]}, [pictures[:32]], labels=LABELS)


@pytest.fixture(scope="module")
def bundles(files, tmp_path_factory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {(p, kind): write_bundle(files[kind], p, folder / p / kind, Framing("bilinear", 0.875)) for p, kind in CASES}


def source_of(folder: Path) -> str:
    (file,) = folder.glob("PictureClassifier.*")
    return file.read_text(encoding="utf-8")


def constants(source: str) -> dict[str, float]:
    """The numbers that a source sets, `INPUT_SCALE` and `inputScale` alike as `inputscale`."""
    found = re.findall(r"(?:const val|static let) (\w+)(?:: Float)? = (-?[\d.]+(?:e-?\d+)?)f?$", source, re.MULTILINE)
    return {name.replace("_", "").lower(): float(value) for name, value in found}


def details(file: Path) -> tuple[dict, dict]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    return interpreter.get_input_details()[0], interpreter.get_output_details()[0]


@pytest.mark.parametrize(("platform", "kind"), CASES)
def test_a_bundle_holds_the_file_and_its_class_names(bundles, files, platform, kind):
    folder = bundles[platform, kind]
    assert {path.name for path in folder.iterdir()} == {
        *("model.tflite", "labels.txt", "README.md"),
        PLATFORMS[platform].source,
    }
    assert (folder / "model.tflite").read_bytes() == files[kind].read_bytes()
    lines = (folder / "labels.txt").read_bytes().decode().split("\n")
    assert tuple(lines[:-1]) == read_labels(files[kind]) == LABELS and lines[-1] == ""


@pytest.mark.parametrize(("platform", "kind"), CASES)
def test_the_code_has_the_numbers_of_the_file(bundles, files, pictures, platform, kind):
    image, scores = details(files[kind])
    found = constants(source_of(bundles[platform, kind]))
    expected = {"height": image["shape"][1], "width": image["shape"][2], "numclasses": scores["shape"][1]}
    expected["cropfraction"] = 0.875
    for name, detail in (("input", image), ("output", scores)):
        if detail["dtype"] != np.float32:
            expected |= dict(zip((f"{name}scale", f"{name}zeropoint"), detail["quantization"], strict=True))
    assert {name: np.float32(value) for name, value in found.items()} == {
        name: np.float32(value) for name, value in expected.items()
    }
    if "inputscale" in found:  # As the code does it, step by step.
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(files[kind]))
        interpreter.allocate_tensors()
        steps = np.round(pictures[:1] / np.float32(found["inputscale"])) + found["inputzeropoint"]
        limits = np.iinfo(image["dtype"])
        interpreter.set_tensor(image["index"], steps.clip(limits.min, limits.max).astype(image["dtype"]))
        interpreter.invoke()
        raw = interpreter.get_tensor(scores["index"]).astype("float32")
        logits = np.float32(found["outputscale"]) * (raw - np.float32(found["outputzeropoint"]))
        np.testing.assert_allclose(logits, Classifier(files[kind]).logits(pictures[:1]), rtol=1e-6)


@pytest.mark.parametrize(("platform", "kind"), CASES)
def test_the_code_is_for_the_types_of_the_file_only(bundles, files, platform, kind):
    source, dtype = source_of(bundles[platform, kind]), np.dtype(details(files[kind])[0]["dtype"]).name
    for (other_platform, other), calls in CALLS.items():
        for call in calls:
            if other_platform == platform:
                assert (call in source) == (other == dtype), call
    assert ("InterpreterApi" in source) == (dtype == "int16")
    assert "softmax(" in source


@pytest.mark.parametrize(("platform", "kind"), CASES)
def test_all_templates_are_filled(bundles, platform, kind):
    folder = bundles[platform, kind]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for text in (source_of(folder), readme):
        assert not re.search(r"@|// only|// end", text)
        assert not any(label in text for label in LABELS)
        for opening, closing in ("()", "[]", "{}"):
            assert text.count(opening) == text.count(closing)
        assert all(len(line) <= 160 and line == line.rstrip() for line in text.split("\n"))
    assert "\n\n\n" not in readme


@pytest.mark.parametrize(("platform", "kind"), CASES)
def test_the_readme_says_what_the_file_is(bundles, files, platform, kind):
    folder = bundles[platform, kind]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for detail in details(files[kind]):
        shown = f"{np.dtype(detail['dtype']).name} [{', '.join(map(str, detail['shape']))}]"
        assert shown in readme and shown in source_of(folder)
    assert f"{files[kind].stat().st_size:,} bytes" in readme and f"one of {len(LABELS)} classes" in readme
    for path in folder.iterdir():
        assert f"`{path.name}`" in readme or path.name == "README.md"
    assert LINES[platform] in readme and ", 0.875 of the side" in readme
    assert ("MediaPipe" in readme) == (kind != "int16x8")
    links = re.findall(r"https://[^\s)]+", readme)
    assert len(links) >= 4 and not any("localhost" in link for link in links)
    assert "https://" in source_of(folder)


@pytest.mark.parametrize(("platform", "kind"), CASES)
def test_the_code_parses(bundles, platform, kind):
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_kotlin" if platform == "android" else "tree_sitter_swift")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    assert not parser.parse(source_of(bundles[platform, kind]).encode()).root_node.has_error
    assert parser.parse(source_of(bundles[platform, kind]).replace("{", "", 1).encode()).root_node.has_error


def test_probabilities_are_not_made_twice(model, pictures, tmp_path):
    paths = {kind: tmp_path / f"{kind}.tflite" for kind in ("float32", "full_int8")}
    for kind, file in to_tflite_files(model, paths, [pictures[:8]], output="probabilities").items():
        for platform in PLATFORMS:
            folder = write_bundle(file, platform, tmp_path / platform / kind)
            assert "softmax" not in source_of(folder)
            assert "probabilities" in (folder / "README.md").read_text()


def test_classes_without_names_are_numbers(float32, tmp_path):
    (tmp_path / "a.tflite").write_bytes(float32)
    folder = write_bundle(tmp_path / "a.tflite", "ios", tmp_path / "new" / "ios")
    assert (folder / "labels.txt").read_text() == "0\n1\n2\n3\n"
    readme = (folder / "README.md").read_text()
    assert "names none" in readme and "MediaPipe" not in readme


@pytest.mark.parametrize("kind", ["int16x8", "int4"])
def test_ios_runs_no_such_file(files, tmp_path, kind):
    with pytest.raises(ValueError, match=rf"{kind}\.tflite must be .* for ios can run: .* Received: tensors of type"):
        write_bundle(files[kind], "ios", tmp_path / "ios")
    with pytest.raises(ValueError, match=rf"bundle for ios must hold .* Received: kind='{kind}'"):
        ExportConfig(kinds=kind, bundles="ios")
    assert not list(tmp_path.iterdir())


def test_int8_at_the_ends(model, pictures, tmp_path):
    file = to_tflite(model, tmp_path / "a.tflite", "full_int8", [pictures[:8]], input_dtype="int8")
    source = source_of(write_bundle(file, "android", tmp_path / "android"))
    assert "coerceIn(-128, 127)" in source and "writeInt8(" in source and "0xFF)" not in source
    assert constants(source)["inputzeropoint"] == details(file)[0]["quantization"][1] == -128
    with pytest.raises(ValueError, match="tensors of type int8"):
        write_bundle(file, "ios", tmp_path / "ios")


def test_files_that_are_refused(model, tmp_path):
    file = to_tflite(model, tmp_path / "two.tflite", batch_size=2)
    with pytest.raises(ValueError, match=r"two\.tflite must take one picture.* Received: shapes=\[\(2, 8, 8, 3\)"):
        write_bundle(file, "android", tmp_path / "android")
    (tmp_path / "text.tflite").write_text("just words")
    with pytest.raises(ValueError, match=r"text\.tflite"):
        write_bundle(tmp_path / "text.tflite", "android", tmp_path / "android")
    with pytest.raises(FileNotFoundError, match=r"none\.tflite"):
        write_bundle(tmp_path / "none.tflite", "android", tmp_path / "android")
    with pytest.raises(ValueError, match=r"Unknown platform 'andriod'\. Did you mean 'android'\?"):
        write_bundle(file, "andriod", tmp_path / "android")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.tflite", "two.tflite"]


def test_nothing_is_replaced_unasked(files, tmp_path, monkeypatch):
    folder = write_bundle(files["float32"], "android", tmp_path / "android")
    with pytest.raises(FileExistsError, match="android"):
        write_bundle(files["full_int8"], "android", folder)
    assert "writeFloat(" in source_of(folder)
    write_bundle(files["full_int8"], "android", folder, overwrite=True)
    assert "writeInt8(" in source_of(folder)
    with pytest.raises(FileExistsError, match="no bundle for ios"):
        write_bundle(files["float32"], "ios", folder, overwrite=True)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundling.shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(files["float32"], "android", folder, overwrite=True)
    assert "writeInt8(" in source_of(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["android"]


def test_the_command_writes_bundles(run_copy, capsys):
    def export(*flags: str) -> int:
        return cli.main(["export", str(run_copy), "--saved_model", "false", *flags])

    assert export("--kinds", "float32,static_int8", "--bundle", "ios", "--bundle", "android") == 0
    shown = capsys.readouterr().out
    folders = {platform: run_copy / "export" / platform for platform in PLATFORMS}
    for platform, folder in folders.items():
        assert f"For an app on {platform}: {folder}" in shown
        assert (folder / "model.tflite").read_bytes() == (run_copy / "export/model.static_int8.tflite").read_bytes()
        assert (folder / "labels.txt").read_text() == "".join(f"{i}\n" for i in range(10))
    before = (folders["ios"] / "README.md").stat().st_mtime_ns
    assert export("--kinds", "float32,static_int8", "--bundle", "ios") == 0
    assert (folders["ios"] / "README.md").stat().st_mtime_ns == before
    report = (run_copy / "report.json").stat().st_mtime_ns
    assert export("--for", "gpu", "--bundle", "android") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (run_copy / "report.json").stat().st_mtime_ns == report
    assert export("--for", "gpu", "--bundle", "android", "--overwrite") == 0
    assert (folders["android"] / "model.tflite").read_bytes() == (run_copy / "export/model.float16.tflite").read_bytes()


def test_the_kind_for_phones():
    assert ExportConfig(bundles="ios,android").bundles == ("android", "ios")
    assert bundled_kind(ExportConfig().kinds) == "static_int8"
    assert bundled_kind(ExportConfig(targets="npu").kinds) == "full_int8"
    assert bundled_kind(ExportConfig(targets="cpu,gpu").kinds) == "static_int8"
