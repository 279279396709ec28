"""Arrays that explain a model: against hand-made numbers and independent computations, on several backends."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from harness import randomise_zeros

from vit_keras import create_model, explain
from vit_keras.explain.gradients import AttentionGradients

RNG = np.random.default_rng(0)
PICTURES = RNG.uniform(0, 255, (5, 8, 12, 3)).astype("float32")
VARIANTS = {
    "average": {},
    "token": {"pooling": "token"},
    "registers": {"pooling": "token", "num_register_tokens": 3},
    "attention": {"pooling": "attention"},
}


def built(name="token", **options):
    model = create_model("vit_micro_patch2_8", 3, num_layers=2, image_size=(8, 12), **{**VARIANTS[name], **options})
    randomise_zeros(model)
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_layout(name):
    layout = explain.TokenLayout.of(built(name))
    prefix = {"average": 0, "token": 1, "registers": 4, "attention": 0}[name]
    pooling = {"average": "average", "attention": "attention"}.get(name, "token")
    assert layout == explain.TokenLayout((4, 6), 2, prefix, pooling)
    assert layout.num_tokens == 24 + prefix
    assert layout.read_row().sum() == pytest.approx(1)
    np.testing.assert_array_equal(layout.on_grid(np.arange(prefix + 24))[1], np.arange(6, 12) + prefix)


@pytest.mark.parametrize("name", VARIANTS)
def test_class_attention_is_a_row_of_the_weights(name):
    model = built(name)
    scores = explain.attention_model(model).predict(PICTURES, verbose=0)
    found = explain.class_attention(model, PICTURES, batch_size=2)
    assert found.shape == (5, 2, 6, 4, 6)
    for block in range(2):
        rows = scores[block][:, :, 0] if "token" in name or name == "registers" else scores[block].mean(axis=2)
        np.testing.assert_allclose(found[:, block].reshape(5, 6, 24), rows[..., -24:], atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_rollout_equals_products_of_matrices(name):
    """Row by row in the graph, against whole matrices in NumPy, to 1e-5."""
    model = built(name)
    scores = explain.attention_model(model).predict(PICTURES, verbose=0)
    rollout = explain.attention_rollout(scores[:2])
    start = explain.TokenLayout.of(model).read_row() if name != "attention" else scores[2].mean(axis=1)
    row = (start @ rollout)[:, 0, -24:]
    expected = (row / row.sum(axis=1, keepdims=True)).reshape(5, 4, 6)
    np.testing.assert_allclose(explain.rollout_maps(model, PICTURES, batch_size=2), expected, atol=1e-6)


def test_gradients_are_what_a_small_change_does():
    model = built("token", dropout_rate=0.3, drop_path_rate=0.3)
    gradients = AttentionGradients(model, 3)
    found = gradients(PICTURES[:3], np.array([0, 2, 1]))
    assert [g.shape for g in found] == [(3, 6, 25, 25)] * 2
    step, places = 1e-2, [(0, 0, 1, 3, 4), (1, 0, 5, 0, 7), (0, 2, 2, 9, 0)]
    for block, picture, head, query, key in places:
        scores = []
        for sign in (1, -1):
            change = np.zeros((3, 6, 25, 25), "float32")
            change[picture, head, query, key] = sign * step
            for i, offset in enumerate(gradients._offsets):
                offset.assign(change if i == block else 0 * change)
            scores.append(gradients._model.predict(PICTURES[:3], verbose=0)[picture, [0, 2, 1][picture]])
        assert found[block][picture, head, query, key] == pytest.approx((scores[0] - scores[1]) / (2 * step), rel=0.02)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_rollout_equals_the_paper_s_matrices(name):
    model = built(name)
    before = model.get_weights()
    found = explain.gradient_rollout_maps(model, PICTURES, classes=1, batch_size=2)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    scores = explain.attention_model(model).predict(PICTURES, verbose=0)
    relevance = np.eye(scores[0].shape[-1])
    slopes = AttentionGradients(model, 5)(PICTURES, np.ones(5, int))
    for weights, slope in zip(scores[:2], slopes, strict=True):
        relevance = relevance + np.maximum(weights * slope, 0).mean(axis=1) @ relevance  # Equations 5 and 6.
    if name == "attention":
        row = (scores[2].mean(axis=1) @ relevance)[:, 0]
    elif name == "average":
        row = (relevance - np.eye(24)).mean(axis=1)
    else:
        row = relevance[:, 0]
    expected = row[:, -24:] / row[:, -24:].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.reshape(5, 24), expected, atol=1e-5)
    other = explain.gradient_rollout_maps(model, PICTURES, classes=np.array([0, 1, 2, 0, 1]))
    np.testing.assert_allclose(other[[1, 4]], found[[1, 4]], atol=1e-5)
    assert np.abs(other[0] - found[0]).max() > 1e-4


def test_statistics_of_even_attention():
    """Where all tokens are looked at alike, distance is the mean between patches, and entropy as large as it can be."""
    model = built("token")
    for block in ("block_0", "block_1"):
        qkv = model.get_layer(block).attention.qkv
        qkv.set_weights([np.zeros_like(w) for w in qkv.get_weights()])
    found = explain.attention_statistics(model, PICTURES, batch_size=2)
    places = [(2 * y, 2 * x) for y in range(4) for x in range(6)]
    mean = np.mean([np.hypot(a[0] - b[0], a[1] - b[1]) for a in places for b in places])
    np.testing.assert_allclose(found.distance, np.full((2, 6), mean), rtol=1e-5)
    np.testing.assert_allclose(found.entropy, np.full((2, 6), np.log(25)), rtol=1e-5)
    assert found.most == pytest.approx(np.log(25))


def test_statistics_equal_loops():
    model = built("token")
    scores = explain.attention_model(model).predict(PICTURES, verbose=0)
    found = explain.attention_statistics(model, PICTURES)
    weights = scores[1][:, 3].astype("float64")  # (n, N, N) of the second block's fourth head.
    entropy = np.mean([[-sum(p * np.log(p) for p in row) for row in picture] for picture in weights])
    assert found.entropy[1, 3] == pytest.approx(entropy, rel=1e-4)
    distances = []
    for picture in weights[:, 1:, 1:]:
        for i, row in enumerate(picture):
            far = [2 * np.hypot(i // 6 - j // 6, i % 6 - j % 6) for j in range(24)]
            distances.append(np.dot(row, far) / row.sum())
    assert found.distance[1, 3] == pytest.approx(np.mean(distances), rel=1e-4)


def test_filters_and_their_components():
    model = built()
    kernel = model.get_layer("patch_embedding").projection.kernel.numpy()
    filters = explain.patch_filters(model)
    np.testing.assert_array_equal(filters[7], kernel[..., 7])
    assert explain.convolution_filters(model).keys() == {"patch_embedding"}
    components = explain.principal_components(filters)
    assert components.shape == (12, 2, 2, 3)  # There are no more than weights in a filter.
    assert explain.principal_components(filters, 5).shape == (5, 2, 2, 3)
    flat, centred = components.reshape(12, 12), (filters - filters.mean(axis=0)).reshape(-1, 12)
    np.testing.assert_allclose(flat @ flat.T, np.eye(12), atol=1e-5)
    spread = (centred @ flat.T).var(axis=0)
    assert (np.diff(spread) <= 1e-6).all()
    assert spread.sum() == pytest.approx(centred.var(axis=0).sum(), rel=1e-5)
    with pytest.raises(ValueError, match="count must be >= 1"):
        explain.principal_components(filters, 0)


@pytest.mark.parametrize("kind", ["learned", "sincos_2d", "sincos_1d", "none"])
def test_position_similarity(kind):
    model = built("registers", position_embedding=kind)
    if kind == "none":
        with pytest.raises(ValueError, match="must have a position embedding"):
            explain.position_similarity(model)
        return
    found = explain.position_similarity(model)
    assert found.shape == (4, 6, 4, 6)
    np.testing.assert_allclose(np.einsum("ijij->ij", found), 1, atol=1e-5)
    if kind == "sincos_2d":
        assert found[1, 2, 1, 3] > found[1, 2, 1, 5] and found[1, 2, 2, 2] > found[1, 2, 3, 2]
        np.testing.assert_allclose(found[0, 0, 0, 1], found[2, 3, 2, 4], atol=1e-5)  # Only the distance counts.


def test_feature_maps_and_norms_are_those_of_the_layers():
    model = built("registers")
    maps = explain.feature_maps(model, PICTURES, batch_size=2)
    assert list(maps) == ["patch_embedding", "block_0", "block_1"]
    tokens = keras.Model(model.input, model.get_layer("block_1").output).predict(PICTURES, verbose=0)
    np.testing.assert_allclose(maps["block_1"].reshape(5, 24, -1), tokens[:, 4:], atol=1e-4)
    norms = explain.token_norms(model, PICTURES)
    assert norms.shape == (5, 2, 28)
    np.testing.assert_allclose(norms[:, 1], np.linalg.norm(tokens, axis=-1), rtol=1e-4)


def convolutional():
    inputs = keras.Input((8, 12, 3))
    x = keras.layers.Conv2D(5, 3, strides=2, activation="relu", name="stem")(inputs)
    x = keras.layers.Conv2D(7, 2, name="second")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)), name="plain")


def test_convolutions_have_filters_and_maps():
    model = convolutional()
    assert {n: f.shape for n, f in explain.convolution_filters(model).items()} == {
        "stem": (5, 3, 3, 3),
        "second": (7, 2, 2, 5),
    }
    maps = explain.feature_maps(model, PICTURES)
    assert {n: m.shape for n, m in maps.items()} == {"stem": (5, 3, 5, 5), "second": (5, 2, 4, 7)}
    np.testing.assert_allclose(maps["stem"], model.layers[1](PICTURES), atol=1e-3)


def test_linear_cka():
    x, y = RNG.normal(size=(40, 6)), RNG.normal(size=(40, 9))
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.linalg.norm
    assert explain.linear_cka(x, y) == pytest.approx(norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b)))
    turned, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    assert explain.linear_cka(x, 3 * x @ turned + 5) == pytest.approx(1)
    assert explain.linear_cka(x, np.ones((40, 2))) == 0
    with pytest.raises(ValueError, match=r"Received: shapes \(40, 6\) and \(39, 9\)"):
        explain.linear_cka(x, y[1:])


def test_layer_similarity():
    model, other = built(), built()
    pictures = RNG.uniform(0, 255, (40, 8, 12, 3)).astype("float32")
    found = explain.layer_similarity(model, pictures, batch_size=16)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    between = explain.layer_similarity(model, pictures, other)
    assert between.shape == (3, 3) and np.abs(between).max() < 1.01
    same = explain.layer_similarity(model, pictures, keras.models.clone_model(model))
    assert same.shape == (3, 3)
    with pytest.raises(ValueError, match="must be >= 4"):
        explain.layer_similarity(model, pictures[:3])


def test_unrelated_features_are_unlike():
    """The estimate has no bias: of unrelated features it is about 0, which the plain one is far from."""
    from vit_keras.explain.representation import _gram, _hsic

    pairs = [(_gram(RNG.normal(size=(16, 300))), _gram(RNG.normal(size=(16, 300)))) for _ in range(60)]
    mean = np.mean([_hsic(a, b) for a, b in pairs]) / np.mean([_hsic(a, a) for a, _ in pairs])
    assert abs(mean) < 0.05
    assert explain.linear_cka(RNG.normal(size=(16, 300)), RNG.normal(size=(16, 300))) > 0.8


# What models may be like


def test_mixed_precision_is_computed_in_float32():
    model = built()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = create_model("vit_micro_patch2_8", 3, num_layers=2, image_size=(8, 12), pooling="token")
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(model.get_weights())
    assert mixed.get_layer("block_0").compute_dtype == "bfloat16"
    for function in (explain.rollout_maps, explain.class_attention, explain.token_norms):
        np.testing.assert_allclose(function(mixed, PICTURES), function(model, PICTURES), rtol=1e-5)


def test_nested_models_are_laid_flat():
    model = built()
    inputs = keras.Input((8, 12, 3))
    nested = keras.Model(inputs, model(keras.layers.Identity()(inputs)), name="outer")
    deeper = keras.Sequential([keras.Input((8, 12, 3)), nested])
    for other in (nested, deeper):
        np.testing.assert_allclose(
            explain.rollout_maps(other, PICTURES), explain.rollout_maps(model, PICTURES), atol=1e-6
        )
        assert explain.patch_filters(other).shape == (96, 2, 2, 3)
    classes = np.zeros(5, int)
    np.testing.assert_allclose(
        explain.gradient_rollout_maps(deeper, PICTURES, classes),
        explain.gradient_rollout_maps(model, PICTURES, classes),
        atol=1e-5,
    )


def test_subclassed_models_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    for function in (explain.rollout_maps, explain.feature_maps, explain.class_attention, explain.token_norms):
        with pytest.raises(ValueError, match=r"must be functional.*Received: .*own"):
            function(Own(name="own"), PICTURES)
    with pytest.raises(ValueError, match="must be functional"):
        explain.convolution_filters(Own(name="own"))


def test_models_without_attention_are_refused():
    model = convolutional()
    with pytest.raises(ValueError, match="transformer blocks"):
        AttentionGradients(model, 2)
    for function in (explain.rollout_maps, explain.attention_statistics, explain.token_norms, explain.class_attention):
        with pytest.raises(ValueError, match="'plain'"):
            function(model, PICTURES)
    with pytest.raises(ValueError, match="PatchEmbedding"):
        explain.patch_filters(model)


@pytest.mark.parametrize("classes", [3, -1, [0, 1], 0.5, [0, 1, 2, 0, 3]])
def test_bad_classes_are_refused(classes):
    with pytest.raises(ValueError, match="classes must be"):
        explain.gradient_rollout_maps(built(), PICTURES, classes)


PROGRAM = """
import sys
import keras, numpy as np
import vit_keras
from vit_keras import explain
assert keras.backend.backend() == sys.argv[1]
model, x = vit_keras.load_model("model.keras"), np.load("pictures.npy")
statistics = explain.attention_statistics(model, x)
np.savez(
    sys.argv[1],
    rollout=explain.rollout_maps(model, x),
    gradient=explain.gradient_rollout_maps(model, x, 1, batch_size=3),
    rows=explain.class_attention(model, x),
    distance=statistics.distance,
    entropy=statistics.entropy,
    norms=explain.token_norms(model, x),
    similarity=explain.layer_similarity(model, x),
    positions=explain.position_similarity(model),
    filters=explain.patch_filters(model),
)
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_say_the_same(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; Keras can run on it, vit_keras does not need it")
    built("registers").save(tmp_path / "model.keras")
    np.save(tmp_path / "pictures.npy", PICTURES)
    for name in (backend, "tensorflow"):
        environment = {**os.environ, "KERAS_BACKEND": name}
        command = [sys.executable, "-c", PROGRAM, name]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    own, other = np.load(tmp_path / "tensorflow.npz"), np.load(tmp_path / f"{backend}.npz")
    assert len(own.files) == 9
    for name in own.files:
        np.testing.assert_allclose(other[name], own[name], rtol=1e-3, atol=1e-5, err_msg=name)
