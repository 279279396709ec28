"""Maps of a file beside the Keras model's, on a run's test pictures."""

import numpy as np
import pytest

from vit_keras import load_model
from vit_keras.export import to_tflite
from vit_keras.pipelines.cli import main
from vit_keras.pipelines.explanation.comparing import compare_maps


@pytest.fixture(scope="module")
def quantised(finished_run, tmp_path_factory):
    """A dynamic_int8 file of the run that gives its attention."""
    file = tmp_path_factory.mktemp("files") / "m.attention.tflite"
    return to_tflite(load_model(finished_run / "model.keras"), file, "dynamic_int8", with_attention=True)


def test_rollout_of_a_file_is_compared(finished_run, quantised, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["explain", str(finished_run), "--compare", str(quantised), "--count", "40", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("rollout: rank correlation 0.9") and "40 test pictures" in printed
    assert len(list(out.glob("*.png"))) == 12
    page = (out / "explain.html").read_text()
    assert page.count("data:image/png;base64,") == 12 and "40" in page


def test_the_most_different_come_first(finished_run, quantised, tmp_path):
    steps = []
    found = compare_maps(
        finished_run, quantised, "occlusion", 20, tmp_path / "o", progress=lambda *step: steps.append(step)
    )
    correlations = [picture.correlation for picture in found.pictures]
    assert correlations == sorted(correlations) and len(correlations) == 20
    assert found.least == correlations[0] and found.mean == pytest.approx(np.mean(correlations))
    assert 0.5 < found.mean < 1 and found.agreement > 0.9 and found.refused == 0
    assert steps == [(16, 20), (20, 20)]


def test_the_attention_is_read_from_the_file_beside(finished_run, quantised, tmp_path):
    plain = quantised.with_name("m.tflite")
    to_tflite(load_model(finished_run / "model.keras"), plain, "dynamic_int8")
    assert compare_maps(finished_run, plain, pictures=4, out=tmp_path / "a").method == "rollout"
    quantised.rename(quantised.with_name("elsewhere.tflite"))
    try:
        found = compare_maps(finished_run, plain, pictures=12, out=tmp_path / "b")
        assert found.method == "occlusion" and found.mean > 0.9  # The same squares are covered.
    finally:
        quantised.with_name("elsewhere.tflite").rename(quantised)


def test_files_that_do_not_fit_are_refused(finished_run, float32, quantised, tmp_path, capsys):
    other = tmp_path / "other.tflite"
    other.write_bytes(float32)  # Of four classes.
    for file, method, part in (
        (other, [], "must be for the run's pictures and classes"),
        (quantised, ["--method", "saliency"], "What remains for m.attention: rollout, occlusion"),
        (tmp_path / "missing.tflite", [], "missing.tflite"),
    ):
        assert main(["explain", str(finished_run), "--compare", str(file), *method, "--out", str(tmp_path / "o")]) == 2
        assert part in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
