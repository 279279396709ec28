"""Every layer through the harness, and what each one computes against NumPy."""

import keras
import numpy as np
import pytest
from harness import check_layer

from vit_keras import layers

LAYERS = {
    "LayerNormalization": (lambda: layers.LayerNormalization(epsilon=1e-5), (2, 5, 8), (2, 5, 8)),
    "StochasticDepth": (lambda: layers.StochasticDepth(0.5, seed=1), (4, 5, 8), (4, 5, 8)),
    "LayerScale": (lambda: layers.LayerScale(0.1), (2, 5, 8), (2, 5, 8)),
    "MultiHeadSelfAttention": (lambda: layers.MultiHeadSelfAttention(2, use_qkv_bias=False), (2, 5, 8), (2, 5, 8)),
    "MLP": (lambda: layers.MLP(16, dropout_rate=0.1), (2, 5, 8), (2, 5, 8)),
    "TransformerBlock": (
        lambda: layers.TransformerBlock(2, 16, True, 0.1, 0.1, 0.1, layer_scale_init=1e-2),
        (2, 5, 8),
        (2, 5, 8),
    ),
    "PatchEmbedding": (lambda: layers.PatchEmbedding(4, 8), (2, 8, 12, 3), (2, 6, 8)),
    "PrefixTokens": (lambda: layers.PrefixTokens(2, "ones"), (2, 5, 8), (2, 7, 8)),
    "LearnedPositionEmbedding": (layers.LearnedPositionEmbedding, (2, 5, 8), (2, 5, 8)),
    "Sincos2DPositionEmbedding": (lambda: layers.Sincos2DPositionEmbedding((2, 3), 1), (2, 7, 8), (2, 7, 8)),
}


def test_table_is_complete():
    assert set(LAYERS) == set(layers.__all__)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, tmp_path):
    make, shape, output_shape = LAYERS[name]
    check_layer(make(), shape, output_shape, tmp_path)


def rng_array(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def test_layer_normalization_equals_keras():
    x = 3 + 2 * rng_array(4, 5, 16)
    ours, theirs = layers.LayerNormalization(1e-6), keras.layers.LayerNormalization(epsilon=1e-6)
    ours.build(x.shape), theirs.build(x.shape)
    weights = [rng_array(16), rng_array(16) + 1]
    ours.set_weights(weights), theirs.set_weights(weights)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)


def test_layer_normalization_is_exact_in_float16():
    x = (1000 + rng_array(2, 64)).astype("float16")
    y = keras.ops.convert_to_numpy(layers.LayerNormalization(dtype="mixed_float16")(x)).astype("float32")
    assert abs(y.mean()) < 1e-2
    assert abs(y.std() - 1) < 1e-2


def test_patch_embedding_is_flatten_and_project():
    layer = layers.PatchEmbedding(4, 7)
    x = rng_array(2, 8, 12, 3)
    y = layer(x)
    kernel, bias = layer.get_weights()
    patches = x.reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 48)
    np.testing.assert_allclose(y, patches @ kernel.reshape(48, 7) + bias, atol=1e-5)


def test_attention_equals_numpy():
    layer = layers.MultiHeadSelfAttention(2)
    x = rng_array(2, 5, 8)
    layer.build(x.shape)
    layer.set_weights([rng_array(*w.shape) for w in layer.get_weights()])
    y, scores = layer(x, return_attention_scores=True)
    qkv_kernel, qkv_bias, out_kernel, out_bias = layer.get_weights()
    query, key, value = np.split(x @ qkv_kernel + qkv_bias, 3, axis=-1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        logits = query[..., part] @ key[..., part].transpose(0, 2, 1) / 2
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(scores[:, h], weights, atol=1e-5)
        heads.append(weights @ value[..., part])
    np.testing.assert_allclose(y, np.concatenate(heads, -1) @ out_kernel + out_bias, rtol=1e-4, atol=1e-4)


def test_block_is_pre_norm_with_residuals():
    block = layers.TransformerBlock(2, 16)
    x = rng_array(2, 5, 8)
    y = block(x)
    z = x + block.attention(block.attention_norm(x))
    np.testing.assert_allclose(y, z + block.mlp(block.mlp_norm(z)), atol=1e-5)


def test_block_scores_match_its_attention():
    block = layers.TransformerBlock(2, 16)
    x = rng_array(2, 5, 8)
    y, scores = block(x, return_attention_scores=True)
    np.testing.assert_allclose(y, block(x), atol=1e-6)
    assert scores.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(np.asarray(scores).sum(-1), 1, atol=1e-5)


def test_mlp_uses_exact_gelu():
    from math import erf

    layer = layers.MLP(8)
    x = rng_array(1, 3, 8)
    layer.build(x.shape)
    eye, zero = np.eye(8, dtype="float32"), np.zeros(8, "float32")
    layer.set_weights([eye, zero, eye, zero])
    expected = np.vectorize(lambda v: 0.5 * v * (1 + erf(v / 2**0.5)))(x)
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)


def test_stochastic_depth_keeps_the_mean_and_drops_whole_pictures():
    x = np.ones((4000, 2, 3), "float32")
    y = keras.ops.convert_to_numpy(layers.StochasticDepth(0.25, seed=0)(x, training=True))
    per_picture = y.reshape(4000, -1)
    assert (per_picture.min(1) == per_picture.max(1)).all()
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    assert abs(y.mean() - 1) < 0.05


def test_stochastic_depth_is_identity_at_inference():
    x = rng_array(3, 4, 5)
    np.testing.assert_array_equal(layers.StochasticDepth(0.9)(x), x)


def test_prefix_comes_first_and_is_learned():
    layer = layers.PrefixTokens(1)
    x = rng_array(2, 3, 4)
    layer.build(x.shape)
    layer.set_weights([np.full((1, 1, 4), 7.0)])
    y = layer(x)
    np.testing.assert_array_equal(y[:, 0], np.full((2, 4), 7.0))
    np.testing.assert_array_equal(y[:, 1:], x)


def test_sincos_positions_equal_the_reference_formula():
    y = np.asarray(layers.Sincos2DPositionEmbedding((3, 2), 1)(np.zeros((1, 7, 8), "float32")))[0]
    assert (y[0] == 0).all()
    for token in range(6):
        row, column = divmod(token, 2)
        omega = [1.0, 1e-4]
        expected = [f(column * o) for f in (np.sin, np.cos) for o in omega]
        expected += [f(row * o) for f in (np.sin, np.cos) for o in omega]
        np.testing.assert_allclose(y[1 + token], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (lambda: layers.MultiHeadSelfAttention(3), (1, 4, 8), "num_heads=3"),
        (lambda: layers.MultiHeadSelfAttention(0), (1, 4, 8), "num_heads=0"),
        (lambda: layers.PatchEmbedding(5, 8), (1, 8, 10, 3), r"image_size=\(8, 10\)"),
        (lambda: layers.PatchEmbedding(0, 8), (1, 8, 8, 3), "patch_size=0"),
        (lambda: layers.StochasticDepth(1.0), (1, 4, 8), "rate=1.0"),
        (lambda: layers.LayerNormalization(0.0), (1, 4, 8), "epsilon=0.0"),
        (lambda: layers.PrefixTokens(0), (1, 4, 8), "num_tokens=0"),
        (lambda: layers.Sincos2DPositionEmbedding((2, 2)), (1, 5, 8), "tokens=5"),
        (lambda: layers.Sincos2DPositionEmbedding((2, 2)), (1, 4, 6), "dim=6"),
    ],
)
def test_wrong_arguments_are_named(make, shape, words):
    with pytest.raises(ValueError, match=words):
        make()(np.zeros(shape, "float32"))
