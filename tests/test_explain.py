"""Attention out of a trained model, and its rollout against NumPy."""

import keras
import numpy as np
import pytest

from vit_keras import create_model
from vit_keras.explain import attention_model, attention_rollout, rollout_maps


@pytest.mark.parametrize("pooling", ["token", "average"])
def test_attention_model_leaves_the_model_alone(pooling):
    model = create_model("vit_micro_patch2_8", 3, num_layers=2, pooling=pooling, image_size=(8, 12))
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 12, 3))
    before, weights = model.predict(x, verbose=0), model.get_weights()
    scores = attention_model(model).predict(x, verbose=0)
    tokens = 24 + (pooling == "token")
    assert [s.shape for s in scores] == [(2, 6, tokens, tokens)] * 2
    np.testing.assert_allclose(np.sum(scores, axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    assert all((a == b).all() for a, b in zip(weights, model.get_weights(), strict=True))
    block = model.get_layer("block_1")
    inputs = keras.Model(model.input, block.input)(x)
    np.testing.assert_allclose(scores[1], block(inputs, return_attention_scores=True)[1], atol=1e-5)


def test_rollout_equals_loops():
    rng = np.random.default_rng(0)
    scores = [rng.dirichlet(np.ones(4), (1, 2, 4)) for _ in range(3)]
    expected = np.eye(4)
    for block in scores:
        mean = (block[0, 0] + block[0, 1]) / 2
        mixed = np.array([[0.5 * mean[i, j] + 0.5 * (i == j) for j in range(4)] for i in range(4)])
        expected = np.array([[sum(mixed[i, k] * expected[k, j] for k in range(4)) for j in range(4)] for i in range(4)])
    np.testing.assert_allclose(attention_rollout(scores)[0], expected, atol=1e-12)
    np.testing.assert_allclose(attention_rollout(scores).sum(-1), 1)


VARIANTS = {
    "average": {},
    "token": {"pooling": "token"},
    "registers": {"pooling": "token", "num_register_tokens": 3},
    "registers, average": {"num_register_tokens": 3},
    "attention": {"pooling": "attention"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_rollout_maps_follow_the_pooling(name):
    """The row of the rollout that the pooled result is made of, without the prefix tokens."""
    model = create_model("vit_micro_patch2_8", 3, num_layers=2, image_size=(8, 12), **VARIANTS[name])
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 12, 3))
    maps = rollout_maps(model, x)
    assert maps.shape == (2, 4, 6)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1)

    scores = attention_model(model).predict(x, verbose=0)
    rollout = attention_rollout(scores[:2])
    num_prefix = rollout.shape[-1] - 24
    assert num_prefix == {"average": 0, "token": 1, "registers": 4, "registers, average": 3, "attention": 0}[name]
    if name == "attention":
        row = np.einsum("bhn,bnm->bm", scores[2][:, :, 0], rollout) / 6
    else:
        row = rollout[:, 0] if "pooling" in VARIANTS[name] else rollout[:, num_prefix:].mean(axis=1)
    row = row[:, num_prefix:]
    np.testing.assert_allclose(maps.reshape(2, 24), row / row.sum(axis=1, keepdims=True), atol=1e-6)


def test_attention_of_a_distilled_model():
    model = create_model("deit_tiny_distilled_patch16_224", 3, (32, 48), num_layers=2)
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 48, 3))
    assert [s.shape for s in attention_model(model).predict(x, verbose=0)] == [(2, 3, 8, 8)] * 2
    assert rollout_maps(model, x).shape == (2, 2, 3)


def test_model_without_attention_is_refused():
    inputs = keras.Input((8, 8, 3), name="images")
    plain = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)), name="plain")
    with pytest.raises(ValueError, match="'plain'"):
        attention_model(plain)
    with pytest.raises(ValueError, match="PatchEmbedding"):
        rollout_maps(plain, np.zeros((1, 8, 8, 3)))
