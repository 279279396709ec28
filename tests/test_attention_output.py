"""Attention as a file's second output: against the Keras model's rollout, in every kind, and what is refused."""

import json

import keras
import numpy as np
import pytest
from harness import randomise_zeros
from test_rewriting import MODELS, pixels, with_pixels

from vit_keras import create_model
from vit_keras.adaptation import adapt
from vit_keras.explain import rollout_maps
from vit_keras.export import KINDS, Classifier, rewrite, to_tflite, to_tflite_files, write_bundle
from vit_keras.export.attention import ENTRY, entry_of, read_grids, rollout
from vit_keras.export.metadata import read_labels, with_metadata
from vit_keras.export.packing import check_model, with_entry
from vit_keras.export.structure import flatten
from vit_keras.pipelines import running
from vit_keras.pipelines.cli import main
from vit_keras.pipelines.config import ExportConfig
from vit_keras.pipelines.correlation import rank_correlations
from vit_keras.pipelines.explanation.subject import load_subject

GRID = (3, 3)


@pytest.mark.parametrize("rewrites", ["all", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_the_rollout_is_that_of_the_keras_model(name, rewrites):
    model = with_pixels(MODELS[name])
    lean = rewrite(model, **({} if rewrites == "all" else {"rewrites": []}), with_attention=True)
    logits, rows = lean.predict(pixels(), verbose=0)
    np.testing.assert_allclose(logits, rewrite(model).predict(pixels(), verbose=0), atol=1e-5)
    np.testing.assert_allclose(rows.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(rollout(rows, GRID), rollout_maps(flatten(model), pixels()), atol=1e-6)


@pytest.mark.parametrize("rewrites", ["all", "none"])
@pytest.mark.parametrize("method", ["prompt_shallow", "prompt_deep"])
def test_prompts_are_no_part_of_the_picture(method, rewrites):
    """With one head, it is the same whether heads are averaged before or after prompts are left out."""
    model = create_model("vit_micro_patch2_8", 3, num_layers=3, num_heads=1, pooling="token")
    model = adapt(model, method)
    randomise_zeros(model)
    x = pixels((4, 8, 8, 3))
    lean = rewrite(model, **({} if rewrites == "all" else {"rewrites": []}), with_attention=True)
    _, rows = lean.predict(x, verbose=0)
    assert rows.shape[2] == 1 + 16
    assert rows[:, 1:].sum(axis=2).min() < 0.99  # Prompts took their part.
    np.testing.assert_allclose(rollout(rows, (4, 4)), rollout_maps(model, x), atol=1e-6)


def test_rollout_equals_loops():
    """Two blocks of three tokens, of the last one only the first token's row; one class token and two patches."""
    rows = np.random.default_rng(0).uniform(0.1, 1, (1, 1 + 3 + 1, 3))
    rows[0, 0] = 1, 0, 0
    first, last = (block / block.sum(axis=1, keepdims=True) for block in (rows[0, 1:4], rows[0, 4:]))
    row = [0.5 * (j == 0) + 0.5 * last[0, j] for j in range(3)]
    row = [sum(row[i] * (0.5 * (i == j) + 0.5 * first[i, j]) for i in range(3)) for j in range(3)]
    np.testing.assert_allclose(rollout(rows, (1, 2)), [[[row[1] / (row[1] + row[2]), row[2] / (row[1] + row[2])]]])


def test_a_grid_of_another_file_is_refused():
    with pytest.raises(ValueError, match=r"no more patches than there are tokens, 3\. Received: grid=2x2"):
        rollout(np.ones((1, 4, 3)), (2, 2))


@pytest.fixture(scope="module")
def files(model, pictures, tmp_path_factory):
    """Kind to the file that gives its attention, and to the one that does not."""
    folder = tmp_path_factory.mktemp("attention")
    options = {"calibration": [pictures], "labels": ["ant", "bee", "cat", "dog"]}
    with_it = to_tflite_files(model, {k: folder / f"{k}.a.tflite" for k in KINDS}, with_attention=True, **options)
    without = to_tflite_files(model, {k: folder / f"{k}.tflite" for k in KINDS}, **options)
    return {kind: (with_it[kind], without[kind]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_attention(files, model, pictures, kind):
    file, without = files[kind]
    logits, rows = Classifier(file).logits_and_attention(pictures)
    np.testing.assert_array_equal(logits, Classifier(without).logits(pictures))
    np.testing.assert_array_equal(Classifier(file).logits(pictures), logits)
    maps, expected = rollout(rows, *read_grids(file.read_bytes())), rollout_maps(model, pictures)
    assert rank_correlations(maps, expected).mean() > {"float32": 0.9999, "float16": 0.999}.get(kind, 0.97)
    if kind == "float32":
        np.testing.assert_allclose(maps, expected, atol=1e-5)
    assert Classifier(file).operators().float == 0 or not KINDS[kind].integer_only


def test_the_scores_stay_the_first_output(files):
    """Programs that know nothing of a second output read the first one, and the metadata describes both."""
    file, without = files["static_int8"]
    assert ranks(file) == [2, 3]
    assert read_labels(file) == ("ant", "bee", "cat", "dog")
    assert read_grids(file.read_bytes()) == ((4, 4),) and read_grids(without.read_bytes()) == ()


def ranks(file) -> list[int]:
    graph = check_model(file.read_bytes()).Subgraphs(0)
    return [graph.Tensors(graph.Outputs(i)).ShapeLength() for i in range(graph.OutputsLength())]


def test_probabilities_sizes_and_batches(model, pictures, tmp_path):
    options = {"output": "probabilities", "batch_size": 2, "image_sizes": [(8, 12)]}
    file = to_tflite(model, tmp_path / "m.tflite", with_attention=True, **options)
    assert ranks(file) == [2, 3]  # The converter gives them the other way round.
    scores, rows = Classifier(file).logits_and_attention(pictures[:5])
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert read_grids(file.read_bytes()) == ((4, 4), (4, 6))
    np.testing.assert_allclose(rollout(rows, (4, 4)), rollout_maps(model, pictures[:5]), atol=1e-5)
    wide = np.random.default_rng(0).uniform(0, 255, (3, 8, 12, 3)).astype("float32")
    scores, rows = Classifier(file, image_size=(8, 12)).logits_and_attention(wide)
    assert scores.shape == (3, 4) and rollout(rows, (4, 6)).shape == (3, 4, 6)


def test_models_without_attention_are_refused(tmp_path, pictures):
    inputs = keras.Input((8, 8, 3))
    plain = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs)), name="plain")
    with pytest.raises(
        ValueError, match=r"with_attention needs a model of one PatchEmbedding.*Received: model='plain'"
    ):
        to_tflite(plain, tmp_path / "m.tflite", with_attention=True)
    assert not (tmp_path / "m.tflite").exists()
    file = to_tflite(plain, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="must give its attention"):
        Classifier(file).logits_and_attention(pictures)


def test_a_damaged_entry_is_refused(float32):
    grids = [[[1, 2, 3]], [], [[0, 4]], [[-4, -4]], [[1e999, 1]], [["a", 1]]]
    for content in (b"no JSON", b"{}", *(json.dumps({"grids": grid}).encode() for grid in grids)):
        with pytest.raises(ValueError, match=f"{ENTRY} must hold the grids"):
            read_grids(b"".join(with_entry(float32, ENTRY, content)))
    assert read_grids(b"".join(with_entry(float32, ENTRY, entry_of([(2, 5)])))) == ((2, 5),)
    with pytest.raises(ValueError, match="one input and two outputs"):
        with_metadata(float32, grids=[(4, 4)])


def test_a_grid_that_is_not_the_file_s_is_told_with_its_name(files, tmp_path):
    content = files["float32"][0].read_bytes()
    (tmp_path / "m.tflite").write_bytes(content.replace(b"[[4, 4]]", b"[[9, 9]]"))
    with pytest.raises(
        ValueError, match=r"m\.tflite must give attention on its grid\. Received: 9x9 patches, 16 tokens"
    ):
        load_subject(tmp_path / "m.tflite")


def test_bundles_take_files_of_one_output(files, tmp_path):
    with pytest.raises(ValueError, match="must take one picture"):
        write_bundle(files["static_int8"][0], "android", tmp_path / "android")


def test_flat_maps_count_as_unlike():
    maps = np.random.default_rng(0).uniform(size=(2, 3, 3))
    np.testing.assert_allclose(rank_correlations(maps, np.exp(maps)), 1)
    np.testing.assert_allclose(rank_correlations(maps, -maps), -1)
    np.testing.assert_allclose(rank_correlations(maps, np.stack([maps[0], np.ones((3, 3))])), [1, 0])


def test_a_run_proves_what_its_files_look_at(run_copy, capsys):
    command = ["export", str(run_copy), "--kinds", "float32,full_int8", "--with-attention", "--saved_model", "false"]
    assert main(command) == 0
    report = json.loads((run_copy / "report.json").read_text())
    assert [row["kind"] for row in report["attention"]] == ["float32", "full_int8"]
    for row in report["attention"]:
        file = run_copy / row["file"]
        assert file == run_copy / "export" / f"model.{row['kind']}.attention.tflite"
        assert row["bytes"] == file.stat().st_size > row["bytes_without"]
        assert row["pictures"] == 100
        assert row["max_abs_logit_difference"] == 0
        assert row["rollout_correlation"] > {"float32": 0.9999, "full_int8": 0.9}[row["kind"]]
        assert row["latency_ms"]["p50"] > 0 < row["latency_ms_without"]["p50"]
    assert "with attention" in capsys.readouterr().out
    assert "Attention as a second output" in (run_copy / "report.html").read_text()
    assert main(["verify", *map(str, (run_copy / "export").glob("model.float32*.tflite"))]) == 0
    # Another export without them keeps the files and says nothing of them.
    running.export(run_copy, ExportConfig(kinds=("float32",), saved_model=False))
    assert json.loads((run_copy / "report.json").read_text())["attention"] == []
    assert (run_copy / "export" / "model.float32.attention.tflite").exists()
