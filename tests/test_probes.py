"""Probes: what they do to pictures, their curves, and two spectra against direct computation."""

import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vit_keras import create_model
from vit_keras.export import to_tflite
from vit_keras.pipelines.cli import main
from vit_keras.pipelines.explanation.corruptions import CORRUPTIONS, corrupt
from vit_keras.pipelines.explanation.embedding import embed, pooled_features
from vit_keras.pipelines.explanation.probes import (
    PROBES,
    check_probes,
    drop_patches,
    levels_of,
    probe_curves,
    shuffle_grid,
    translate,
)
from vit_keras.pipelines.explanation.probing import probe
from vit_keras.pipelines.explanation.spectra import fourier_spectrum, hessian_max_eigenvalues
from vit_keras.pipelines.explanation.subject import Subject, of_model

RNG = np.random.default_rng(0)
PICTURES = RNG.uniform(0, 255, (6, 16, 16, 3)).astype("float32")


# What is done to pictures


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_grow_with_their_strength(kind):
    smooth = gaussian_filter(RNG.normal(0, 300, (6, 64, 64, 3)), (0, 2, 2, 0)) + 120
    smooth = np.clip(smooth, 20, 220).astype("float32")
    changed = [corrupt(smooth, kind, strength) for strength in range(6)]
    np.testing.assert_array_equal(changed[0], smooth)
    np.testing.assert_array_equal(corrupt(smooth, kind, 3), changed[3])
    errors = [np.abs(x - smooth).mean() for x in changed]
    assert errors[1] > 0.2 and errors == sorted(errors)
    for x in changed:
        assert x.shape == smooth.shape and x.dtype == np.float32 and x.min() >= 0 and x.max() <= 255


def test_unknown_corruptions_are_refused():
    with pytest.raises(ValueError, match="kind must be one of gaussian_noise"):
        corrupt(PICTURES, "fog", 1)
    with pytest.raises(ValueError, match="strength must be 0 to 5"):
        corrupt(PICTURES, "jpeg", 6)


def test_shuffling_moves_whole_pieces():
    found = shuffle_grid(PICTURES, 4)
    assert (found != PICTURES).any()
    np.testing.assert_array_equal(shuffle_grid(PICTURES, 1), PICTURES)
    for before, after in zip(PICTURES, found, strict=True):
        pieces = [
            {x[i : i + 4, j : j + 4].tobytes() for i in range(0, 16, 4) for j in range(0, 16, 4)}
            for x in (before, after)
        ]
        assert pieces[0] == pieces[1]
    odd = shuffle_grid(PICTURES, 3)  # 15 of 16 rows and columns are covered.
    np.testing.assert_array_equal(odd[:, 15], PICTURES[:, 15])
    with pytest.raises(ValueError, match="pieces=17"):
        shuffle_grid(PICTURES, 17)


def test_translation_repeats_the_edge():
    found = translate(PICTURES, 3)
    np.testing.assert_array_equal(found[:, :, 3:], PICTURES[:, :, :-3])
    np.testing.assert_array_equal(found[:, :, 0], PICTURES[:, :, 0])
    np.testing.assert_array_equal(found[:, :, 2], PICTURES[:, :, 0])
    np.testing.assert_array_equal(translate(PICTURES, 0), PICTURES)


def test_dropping_follows_the_order():
    order = np.stack([RNG.permutation(16).reshape(4, 4) for _ in range(6)])
    found = drop_patches(PICTURES, order, 0.5)
    for image, after, places in zip(PICTURES, found, order, strict=True):
        for row, column in np.ndindex(4, 4):
            cell = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
            if places[row, column] < 8:
                assert not after[cell].any()
            else:
                np.testing.assert_array_equal(after[cell], image[cell])


def test_names_of_probes():
    assert check_probes(()) == tuple(PROBES)
    assert check_probes(["drop", "jpeg", "drop_random"]) == ("drop_random", "drop_salient", "drop_non_salient", "jpeg")
    with pytest.raises(ValueError, match="Did you mean 'shuffle'"):
        check_probes(["shufle"])


# Curves


def corner_reader(name="corner"):
    """A classifier that reads the lower right corner only."""

    def scores(x):
        bright = x[:, 12:, 12:].mean(axis=(1, 2, 3))
        return np.stack([np.full(len(x), 100.0), bright], axis=1)

    return Subject(name, "", (16, 16), ("dark", "bright"), scores)


def test_curves_of_a_classifier_that_is_known():
    images = np.full((8, 16, 16, 3), 30, "float32")
    images[::2, 12:, 12:] = 220
    labels = np.array([1, 0] * 4)
    steps = []
    probes = ["drop_salient", "drop_non_salient", "brightness", "translation"]
    found = probe_curves(
        [corner_reader(), corner_reader("again")], images, labels, probes, 3, progress=lambda *s: steps.append(s)
    )
    assert [(c.probe, c.subject) for c in found] == [(p, s) for p in probes for s in ("corner", "again")]
    curves = {c.probe: c for c in found if c.subject == "corner"}
    # Of bright ones the corner goes first, then the class is wrong; the least salient leave it to the last.
    assert curves["drop_salient"].accuracies[0] == 1 and curves["drop_salient"].accuracies[1] == 0.5
    assert (curves["drop_non_salient"].accuracies[:9] == 1).all()
    assert (curves["translation"].accuracies == 1).sum() >= 1
    np.testing.assert_allclose(curves["brightness"].levels, range(6))
    assert curves["brightness"].accuracies[0] == 1 and curves["brightness"].accuracies[-1] == 0.5
    for curve in found:
        assert curve.pictures == 8 and curve.intervals.shape == (len(curve.levels), 2)
        assert ((curve.intervals[:, 0] <= curve.accuracies) & (curve.accuracies <= curve.intervals[:, 1])).all()
    assert steps[-1] == (len(steps), len(steps))
    for a, b in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_array_equal(a.accuracies, b.accuracies)  # All see the very same pictures.


def test_levels(model):
    subject = of_model(model)
    assert levels_of("drop_random", subject) == tuple(round(0.1 * i, 1) for i in range(10))
    assert levels_of("shuffle", subject) == (1, 2, 4)
    assert levels_of("translation", subject) == (0, 1, 2)  # P = 2.
    assert levels_of("jpeg", subject) == (0, 1, 2, 3, 4, 5)


def test_classifiers_of_other_sizes_are_refused(model):
    with pytest.raises(ValueError, match="same size"):
        probe_curves([corner_reader(), of_model(model)], PICTURES, np.zeros(6, int), ["jpeg"])


def test_the_command_lays_a_run_and_a_file_over_each_other(finished_run, tmp_path, capsys):
    import vit_keras

    file = to_tflite(vit_keras.load_model(finished_run / "model.keras"), tmp_path / "m.tflite", "dynamic_int8")
    out = tmp_path / "out"
    command = ["probe", str(finished_run), str(file), "--probe", "drop_random,shuffle,fourier", "--count", "60"]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "drop_random" in printed and "shuffle" in printed and "fourier" in printed
    assert {path.name for path in out.iterdir()} == {"probe.html", "drop_random.png", "shuffle.png", "fourier.png"}
    page = (out / "probe.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert main([*command, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["RUN", "--probe", "shufle"], ["'shufle'", "Did you mean 'shuffle'?"]),
        (["FILE", "--probe", "jpeg"], ["data must be given"]),
        (["FILE", "--probe", "jpeg", "--data", "digits"], ["10 classes of digits", "Received: 4"]),
        (["FILE", "--probe", "hessian"], ["hessian needs a Keras model"]),
        (["RUN", "--count", "0"], ["pictures=0"]),
        (["RUN", "missing.tflite"], ["missing.tflite"]),
    ],
)
def test_the_command_refuses(finished_run, float32, tmp_path, monkeypatch, capsys, arguments, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "four.tflite").write_bytes(float32)
    words = {"RUN": str(finished_run), "FILE": "four.tflite"}
    assert main(["probe", *(words.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for part in parts:
        assert part in error
    assert not (tmp_path / "probes").exists()


# Spectra


def test_fourier_spectrum_of_known_maps():
    """A convolution that copies: the map's spectrum is the picture's."""
    inputs = keras.Input((16, 16, 3))
    layer = keras.layers.Conv2D(1, 1, use_bias=False, name="copy")
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(layer(inputs)))
    layer.set_weights([np.array([1.0, 0, 0]).reshape(1, 1, 3, 1)])
    found = fourier_spectrum(model, PICTURES, batch_size=4)
    assert found.layers == ("copy",)
    amplitude = np.log(np.abs(np.fft.fft2(PICTURES[..., 0].astype("float64"))))
    expected = np.array([amplitude[:, i, i].mean() for i in range(9)])
    np.testing.assert_allclose(found.amplitudes[0], expected - expected[0], atol=1e-3)
    np.testing.assert_allclose(found.frequencies, np.linspace(0, 1, 9))


def test_blurring_layers_lower_high_frequencies():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.DepthwiseConv2D(1, depthwise_initializer="ones", name="first")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same", depthwise_initializer="ones", name="blurred")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    first, blurred = fourier_spectrum(model, PICTURES).amplitudes
    assert blurred[-1] < first[-1] - 1


def test_the_largest_eigenvalue_is_that_of_the_whole_hessian():
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    images = RNG.normal(size=(24, 2, 2, 3)).astype("float32")
    labels = RNG.integers(0, 3, 24)
    found = hessian_max_eigenvalues(model, images, labels, batch_size=12, iterations=60)
    assert found.shape == (2,)
    for value, part in zip(found, (slice(0, 12), slice(12, 24)), strict=True):
        x = np.concatenate([images[part].reshape(12, 12), np.ones((12, 1))], axis=1)
        logits = model.predict(images[part], verbose=0)
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        hessian = np.zeros((39, 39))
        for row, p in zip(x, chances, strict=True):
            hessian += np.kron(np.outer(row, row), np.diag(p) - np.outer(p, p)) / 12
        assert value == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-2)
    with pytest.raises(ValueError, match="as many"):
        hessian_max_eigenvalues(model, images, labels[1:])


def test_spectra_of_a_transformer(model, pictures):
    labels = np.zeros(8, int)
    values = hessian_max_eigenvalues(model, pictures[:8], labels, batch_size=8, iterations=3)
    assert values.shape == (1,) and np.isfinite(values).all()
    found = fourier_spectrum(model, pictures[:8])
    assert found.layers == ("patch_embedding", "block_0", "block_1") and found.amplitudes.shape == (3, 9)


def test_spectra_and_embeddings_of_a_run(finished_run, tmp_path):
    found = probe([finished_run], ["fourier", "hessian", "embedding"], pictures=32, out=tmp_path / "o")
    assert not found.curves and len(found.fourier) == 1
    (values,) = found.hessian.values()
    assert values.shape == (2,)
    ((pca, tsne),) = found.embeddings.values()
    assert pca.points.shape == tsne.points.shape == (32, 2) and pca.neighbours > 0.4
    names = {"probe.html", "fourier.png", "hessian.png", "embedding.png"}
    assert {path.name for path in (tmp_path / "o").iterdir()} == names


def test_layers_of_two_models_are_compared(model, pictures, tmp_path, capsys):
    """Each two, once: a model with itself has ones on the diagonal, with one of other weights it has not."""
    files = []
    for number in range(3):
        keras.utils.set_random_seed(number)
        file = tmp_path / f"{number}.keras"
        create_model("vit_micro_patch2_8", 10, num_layers=1 + number).save(file)
        files.append(file)
    found = probe(files, ["similarity"], "digits", 32, tmp_path / "o")
    assert [(pair.subject, pair.other) for pair in found.similarities] == [
        (str(files[a]), str(files[b])) for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert [pair.cka.shape for pair in found.similarities] == [(2, 3), (2, 4), (3, 4)]
    assert found.similarities[0].layers == ("patch_embedding", "block_0")
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names == {"probe.html", "similarity.png", "similarity.1.png", "similarity.2.png"}
    words = ["probe", str(files[0]), "--data", "digits", "--probe", "similarity", "--out", str(tmp_path / "p")]
    assert main(words) == 0
    assert "most alike are patch_embedding patch_embedding, block_0 block_0" in capsys.readouterr().out
    (own,) = probe(files[:1], ["similarity"], "digits", 32, tmp_path / "q").similarities
    np.testing.assert_allclose(np.diag(own.cka), 1, atol=1e-5)
    assert found.similarities[2].cka.max() < 0.999


def test_pooled_features_are_what_the_head_reads(model, pictures):
    found = pooled_features(model, pictures[:5])
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_allclose(found @ kernel + bias, model.predict(pictures[:5], verbose=0), atol=1e-4)
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="must end in a linear layer"):
        pooled_features(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs)), pictures[:5])


def test_embeddings_keep_groups_apart():
    labels = np.repeat([0, 1, 2], 12)
    features = np.eye(3)[labels] @ RNG.normal(0, 5, (3, 20)) + RNG.normal(0, 0.3, (36, 20))
    for method in ("pca", "tsne"):
        found = embed(features, labels, method)
        assert found.neighbours == 1
        middles = np.stack([found.points[labels == i].mean(axis=0) for i in range(3)])
        nearest = np.linalg.norm(found.points[:, None] - middles, axis=-1).argmin(axis=1)
        np.testing.assert_array_equal(nearest, labels)
    centred = features - features.mean(axis=0)
    assert embed(features, labels, "pca").points.var(axis=0).sum() == pytest.approx(
        np.linalg.svd(centred)[1][:2] @ np.linalg.svd(centred)[1][:2] / 36
    )
    with pytest.raises(ValueError, match="method must be one of pca, tsne"):
        embed(features, labels, "umap")
    with pytest.raises(ValueError, match=">= 4"):
        embed(features[:3], labels[:3])
