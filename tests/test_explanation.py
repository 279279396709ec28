"""Maps and pages of explanations: made right for tokens, refused with a reason, for Keras models and files."""

import re

import keras
import numpy as np
import pytest
from harness import randomise_zeros
from PIL import Image

from vit_keras import create_model
from vit_keras.explain import rollout_maps
from vit_keras.export import to_tflite
from vit_keras.pipelines.cli import main
from vit_keras.pipelines.explanation import methods as table
from vit_keras.pipelines.explanation.cams import MAP, scoring_copy
from vit_keras.pipelines.explanation.explaining import explain, figure_of
from vit_keras.pipelines.explanation.maps import Explainer, Maps, fault_of, occlusion_maps, on_grid
from vit_keras.pipelines.explanation.methods import FIGURES, METHODS, Evidence
from vit_keras.pipelines.explanation.subject import load_subject, of_model

BY_TOKENS = ("grad_cam", "grad_cam_plus_plus", "layer_cam")


@pytest.fixture(scope="module")
def with_token():
    """A model with a class token and a register, for 8x12 pictures."""
    keras.utils.set_random_seed(0)
    options = {"num_layers": 2, "image_size": (8, 12), "pooling": "token", "num_register_tokens": 1}
    model = create_model("vit_micro_patch2_8", 3, **options)
    randomise_zeros(model)
    return model


@pytest.fixture(scope="module")
def explainer(with_token):
    return Explainer(of_model(with_token))


@pytest.fixture(scope="module")
def wide():
    return np.random.default_rng(0).uniform(0, 255, (3, 8, 12, 3)).astype("float32")


def plain(softmax=False):
    inputs = keras.Input((8, 12, 3))
    x = keras.layers.Conv2D(5, 3, strides=2, activation="relu", name="stem")(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(3, activation="softmax" if softmax else None)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x, name="plain")


# What stands on the way of tf-keras-vis


def test_the_copy_has_a_true_map_and_says_the_same(with_token, wide):
    copy, name = scoring_copy(with_token)
    assert name == MAP and copy.get_layer(MAP).output.shape == (None, 4, 6, 96)
    np.testing.assert_allclose(copy.predict(wide), with_token.predict(wide, verbose=0), atol=1e-5)


def test_grad_cam_equals_its_equations(explainer, with_token, wide):
    """Equations 1 and 2 of Grad-CAM, from the tokens before the last block, computed here without tf-keras-vis."""
    import tensorflow as tf

    copy, name = scoring_copy(with_token)
    both = keras.Model(copy.input, [copy.get_layer(name).output, copy.output])
    with tf.GradientTape() as tape:
        maps, logits = both(wide)
        slopes = tape.gradient(tf.reduce_sum(logits[:, 2]), maps).numpy()
    weights = slopes.mean(axis=(1, 2), keepdims=True)
    assert np.abs(weights).min() > 0
    expected = np.maximum((maps.numpy() * weights).sum(axis=-1), 0)
    found = explainer.maps("grad_cam", wide, np.full(3, 2))
    for one, want in zip(found.maps, expected, strict=True):
        assert (one is None) == (not want.any())
        if one is not None:
            np.testing.assert_allclose(one, want, rtol=1e-3, atol=1e-5)


def test_score_cam_equals_loops(explainer, with_token, wide):
    """Channel by channel: the softmax score of the picture seen through the channel's map."""
    from scipy.ndimage import zoom

    copy, name = scoring_copy(with_token)
    maps = keras.Model(copy.input, copy.get_layer(name).output).predict(wide[:1], verbose=0)[0]
    total = np.zeros((4, 6))
    masks = []
    for channel in range(maps.shape[-1]):
        mask = zoom(maps[..., channel], 2, order=1)
        masks.append((mask - mask.min()) / (mask.max() - mask.min() + 1e-7))
    logits = with_token.predict(np.stack(masks)[..., None] * wide[0], verbose=0)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for channel, chance in enumerate(chances[:, 1]):
        total += chance * maps[..., channel]
    found = explainer.maps("score_cam", wide[:1], np.array([1])).maps[0]
    np.testing.assert_allclose(found, np.maximum(total, 0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_maps_of_its_size(explainer, wide, method):
    found = explainer.maps(method, wide, np.array([0, 1, 2]))
    shape = (8, 12) if method in ("saliency", "smooth_grad") else (4, 6)
    assert len(found.maps) == len(found.reasons) == 3
    kept = [one for one in found.maps if one is not None]
    assert kept and all(one.shape == shape and np.isfinite(one).all() and one.any() for one in kept)
    assert all(bool(reason) == (one is None) for one, reason in zip(found.maps, found.reasons, strict=True))


def test_smooth_grad_draws_the_same_twice_and_leaves_numpy_alone(explainer, wide):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = explainer.maps("smooth_grad", wide).array()
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal(explainer.maps("smooth_grad", wide).array(), first)


def test_mixed_precision_and_nested_models(with_token, wide):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        options = {"num_layers": 2, "image_size": (8, 12), "pooling": "token", "num_register_tokens": 1}
        mixed = create_model("vit_micro_patch2_8", 3, **options)
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(with_token.get_weights())
    inputs = keras.Input((8, 12, 3))
    nested = keras.Model(inputs, mixed(inputs), name="nested")
    classes = np.array([0, 1, 2])
    expected = Explainer(of_model(with_token)).maps("saliency", wide, classes).array()
    np.testing.assert_allclose(Explainer(of_model(nested)).maps("saliency", wide, classes).array(), expected, rtol=1e-3)


def test_a_softmax_at_the_end_is_left_out(wide):
    model, other = plain(softmax=True), plain()
    other.set_weights(model.get_weights())
    classes = np.zeros(3, int)
    for method in ("saliency", "occlusion"):
        found, expected = (Explainer(of_model(m)).maps(method, wide, classes).maps for m in (model, other))
        if method == "saliency":
            np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=1e-6)
        else:
            assert np.abs(np.stack(found)).max() <= 1  # Of a probability.


# What is refused


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (np.zeros((4, 6)), "zero everywhere"),
        (np.ones((4, 6)), "the same everywhere"),
        (np.full((4, 6), np.nan), "not finite"),
        (np.ones(24), r"shape \(24,\)"),
        (np.ones((4, 6, 96)), r"shape \(4, 6, 96\)"),
    ],
)
def test_maps_that_cannot_be_used_are_refused(found, part):
    assert re.search(part, fault_of(found))
    with pytest.raises(ValueError, match=f"grad_cam of picture 1: .*{part}"):
        Maps("grad_cam", (np.eye(2), None), ("", fault_of(found))).array()
    assert fault_of(np.eye(3)) == ""


def test_all_zero_maps_are_refused(wide):
    """A head of zeros: nothing speaks for a class, and gradients say so."""
    model = create_model("vit_micro_patch2_8", 3, num_layers=1, image_size=(8, 12))
    found = Explainer(of_model(model)).maps("grad_cam", wide)
    assert found.maps == (None,) * 3
    assert all("zero everywhere" in reason for reason in found.reasons)


def test_a_model_without_attention_says_what_remains(wide):
    explainer = Explainer(of_model(plain()))
    with pytest.raises(
        ValueError, match=r"rollout needs attention weights.*What remains for plain: saliency, .*occlus"
    ):
        explainer.maps("rollout", wide)
    assert explainer.maps("saliency", wide).array().shape == (3, 8, 12)
    assert explainer.cams().layer == "stem" and "grad_cam" in explainer.subject.methods
    assert set(explainer.subject.methods) & {"attention", "rollout", "heads", "positions"} == set()

    dense = keras.Sequential([keras.Input((8, 12, 3)), keras.layers.Flatten(), keras.layers.Dense(3)], name="dense")
    with pytest.raises(ValueError, match="grad_cam needs a functional Keras model with transformer blocks or convol"):
        Explainer(of_model(dense)).maps("grad_cam", wide)


def test_a_subclassed_model_can_still_be_occluded(wide):
    class Own(keras.Model):
        input_shape = (None, 8, 12, 3)
        output_shape = (None, 2)

        def call(self, x):
            return keras.ops.mean(x[:, :, :2], axis=(1, 2))[:, :2] / 255

    subject = of_model(Own(name="own"))
    assert subject.methods == ("occlusion",)
    with pytest.raises(ValueError, match=r"saliency needs a functional Keras model. What remains for own: occlusion"):
        Explainer(subject).maps("saliency", wide)
    found = Explainer(subject).maps("occlusion", wide, np.zeros(3, int)).array()
    assert np.abs(found[:, :, :2]).min() > 0 and not found[:, :, 2:].any()


def test_bad_pictures_and_classes_are_refused(explainer, wide):
    for images in (wide[:, :6], wide[..., :1], wide[0], wide[:0]):
        with pytest.raises(ValueError, match=r"images must be of shape \(n, 8, 12, 3\)"):
            explainer.maps("occlusion", images)
    for classes in (np.array([0, 1, 3]), np.array([0, -1, 1]), np.array([0, 1]), np.array([0.5, 1, 1])):
        with pytest.raises(ValueError, match="classes must be"):
            explainer.maps("occlusion", wide, classes)
    with pytest.raises(ValueError, match="method must be one of"):
        explainer.maps("heads", wide)
    for word, part in ((3, "0 to 2"), ("-1", "0 to 2"), ("cet", "Did you mean 'cat'?")):
        with pytest.raises(ValueError, match=re.escape(part)):
            of_model(explainer.subject.model, labels=("cat", "dog", "1")).class_index(word)
    assert of_model(explainer.subject.model, labels=("cat", "dog", "0")).class_index("0") == 2  # A name goes first.


def test_models_that_are_no_classifier_are_refused():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ValueError, match="must take pictures of a fixed size"):
        of_model(model)


# Occlusion, and maps on a grid


def test_occlusion_equals_loops(wide):
    def scores(x):
        return np.stack([x[:, :2, :2].sum(axis=(1, 2, 3)), x[:, 4:6, 10:].sum(axis=(1, 2, 3))], axis=1)

    found = occlusion_maps(scores, wide, np.array([0, 1, 0]), (4, 6))
    assert found.shape == (3, 4, 6)
    for i, (cls, cell) in enumerate(((0, (0, 0)), (1, (2, 5)), (0, (0, 0)))):
        covered = wide[i : i + 1].copy()
        rows, columns = (slice(2 * n, 2 * n + 2) for n in cell)
        covered[:, rows, columns] = wide[i].mean(axis=(0, 1))
        expected = np.zeros((4, 6))
        expected[cell] = scores(wide[i : i + 1])[0, cls] - scores(covered)[0, cls]
        np.testing.assert_allclose(found[i], expected, atol=1e-2)
    assert occlusion_maps(scores, wide, np.zeros(3, int)).shape == (3, 8, 12)
    odd = np.zeros((1, 50, 70, 3), "float32")
    assert occlusion_maps(lambda x: np.zeros((len(x), 2)), odd, np.array([0])).shape == (1, 9, 12)


def test_on_grid_sums_parts():
    fine = np.arange(64.0).reshape(1, 8, 8)
    found = on_grid(fine, (4, 2))
    assert found[0, 1, 1] == fine[0, 2:4, 4:].sum()
    assert on_grid(fine[:, :4, :4], (6, 6)).shape == (1, 6, 6)


# The table, and what it says of methods


def test_the_table_is_whole():
    poolings = ("token", "average", "attention")
    for name in METHODS:
        rows = [table.evidence(name, pooling) for pooling in poolings]
        for found in rows:
            assert found.seeds >= 3 and found.pictures >= 50 and 0 <= found.hits <= found.pictures
            assert found.chance == 1 / 64
        assert table.evidence(name).hits == sum(found.hits for found in rows)
        assert table.evidence(name).pictures == sum(found.pictures for found in rows)


def test_a_method_that_does_not_beat_chance_says_so(explainer, wide, monkeypatch, caplog):
    good, bad = Evidence(60, 64, 1 / 64, 3), Evidence(2, 64, 1 / 64, 3)
    monkeypatch.setattr(
        table, "evidence", lambda name, pooling: bad if (name, pooling) == ("occlusion", "token") else good
    )
    assert explainer.maps("rollout", wide).warning is None
    assert table.warning_of("occlusion", "average") is None
    assert not caplog.messages
    found = explainer.maps("occlusion", wide)
    assert (
        "occlusion does not beat chance: in the pointing test it hit the planted cue in 2 of 64 pictures of models "
        "with token pooling"
    ) in found.warning
    assert caplog.messages == [found.warning]


# Files and folders


@pytest.fixture(scope="module")
def attention_file(with_token, tmp_path_factory):
    folder = tmp_path_factory.mktemp("file")
    return to_tflite(with_token, folder / "m.tflite", labels=["ant", "bee", "cat"], with_attention=True)


def test_a_file_is_explained_by_rollout_and_occlusion(attention_file, with_token, wide):
    subject = load_subject(attention_file)
    assert subject.methods == ("rollout", "occlusion") and subject.labels == ("ant", "bee", "cat")
    found = Explainer(subject).maps("rollout", wide).array()
    np.testing.assert_allclose(found, rollout_maps(with_token, wide), atol=1e-5)
    classes = np.array([0, 1, 2])
    found = Explainer(subject).maps("occlusion", wide, classes).array()
    expected = Explainer(of_model(with_token)).maps("occlusion", wide, classes).array()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"saliency needs .*What remains for m: rollout, occlusion"):
        subject.require("saliency")


@pytest.fixture
def odd_pictures(tmp_path):
    """Pictures of other sizes and modes."""
    rng = np.random.default_rng(0)
    for name, shape, mode in (("gray", (20, 31), "L"), ("alpha", (9, 8, 4), "RGBA"), ("rgb", (8, 8, 3), "RGB")):
        Image.fromarray(rng.integers(0, 256, shape, dtype="uint8"), mode).save(tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in ("gray", "alpha", "rgb")]


def test_the_command_writes_a_page_and_pictures(finished_run, odd_pictures, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["explain", str(finished_run), *map(str, odd_pictures), "--out", str(out), "--class", "7"]
    assert main([*command, "--method", "rollout,occlusion", "--method", "heads"]) == 0
    printed = capsys.readouterr().out
    assert f"Page: {out / 'explain.html'}" in printed and len(printed.splitlines()) >= 4
    assert sorted(file.name for file in out.iterdir()) == [
        "0001.gray.heads.png",
        "0001.gray.png",
        "0002.alpha.heads.png",
        "0002.alpha.png",
        "0003.rgb.heads.png",
        "0003.rgb.png",
        "explain.html",
    ]
    page = (out / "explain.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http://" not in page and "https://" not in page and page.rstrip().endswith("</html>")
    assert Image.open(out / "0001.gray.png").size[0] > 400
    assert main(command) == 2  # It is there already.
    assert "exists already" in capsys.readouterr().err


def test_nothing_is_left_of_an_explanation_that_fails(finished_run, odd_pictures, tmp_path, monkeypatch):
    from vit_keras.pipelines.explanation import explaining

    def fail(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(explaining.figures, "plot_heads", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        explain(finished_run, odd_pictures, ["heads"], out=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_progress_and_defaults(attention_file, odd_pictures, tmp_path):
    steps = []
    found = explain(attention_file, odd_pictures, out=tmp_path / "o", progress=lambda *step: steps.append(step))
    assert found.methods == ("rollout", "occlusion")
    assert steps == [(3, 3)]
    assert [picture.explained for picture in found.pictures] == [picture.label for picture in found.pictures]


@pytest.mark.parametrize("name", FIGURES)
def test_figures(explainer, name, monkeypatch):
    from vit_keras.pipelines.explanation.cams import ClassMaps

    if name == "maximised":  # Its steps are many; what they do is tested below.
        monkeypatch.setattr(ClassMaps, "maximised", lambda self, classes: np.zeros((len(classes), 8, 12, 3)))
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 12, 3)).astype("float32")
    figure = figure_of(name, explainer, images)
    assert len(figure.axes) >= 1


def test_painted_pictures_score_higher(explainer, with_token):
    painted = explainer.cams().maximised(np.array([0, 1]), steps=15)
    assert painted.shape == (2, 8, 12, 3) and painted.min() >= 0 and painted.max() <= 255
    start = np.random.default_rng(0).uniform(118, 138, (2, 8, 12, 3))
    before, after = (with_token.predict(x, verbose=0)[[0, 1], [0, 1]] for x in (start, painted))
    assert (after > before + 0.05).all()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["RUN", "PICTURE", "--method", "rolout"], ["'rolout'", "Did you mean 'rollout'?"]),
        (["RUN", "PICTURE", "--class", "10"], ["0 to 9", "class=10"]),
        (["RUN", "missing.png"], ["missing.png"]),
        (["missing", "PICTURE"], ["missing"]),
        (["RUN"], ["pictures", "--compare"]),
        (["RUN", "PICTURE", "--compare", "x.tflite"], ["--compare"]),
        (["FILE", "PICTURE", "--method", "saliency"], ["What remains", "rollout, occlusion"]),
    ],
)
def test_the_command_refuses(finished_run, attention_file, odd_pictures, capsys, arguments, parts):
    words = {"RUN": str(finished_run), "FILE": str(attention_file), "PICTURE": str(odd_pictures[0])}
    assert main(["explain", *(words.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for part in parts:
        assert part in error
    assert not (finished_run / "explain").exists()
