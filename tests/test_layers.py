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
    "AdaptableDense": (lambda: layers.AdaptableDense(7, "tanh"), (2, 5, 8), (2, 5, 7)),
    "TokenDropout": (lambda: layers.TokenDropout(0.1, seed=1), (2, 5, 8), (2, 5, 8)),
    "PromptTokens": (lambda: layers.PromptTokens(3, 1, True, 0.1, seed=1), (2, 5, 8), (2, 5, 8)),
    "TokenRemoval": (lambda: layers.TokenRemoval(1, 4), (2, 5, 8), (2, 2, 8)),
    "TokenSlice": (lambda: layers.TokenSlice(1, 4), (2, 5, 8), (2, 3, 8)),
    "AttentionPooling": (lambda: layers.AttentionPooling(2, 16), (2, 5, 8), (2, 8)),
    "LearnedPositionEmbedding": (lambda: layers.LearnedPositionEmbedding((2, 3), 1), (2, 7, 8), (2, 7, 8)),
    "Sincos1DPositionEmbedding": (layers.Sincos1DPositionEmbedding, (2, 5, 8), (2, 5, 8)),
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


def test_layer_normalization_learns_as_keras():
    x, y, after = 3 + 2 * rng_array(16, 5, 8), rng_array(16, 5, 4)[::-1], []
    for norm in (layers.LayerNormalization(1e-6), keras.layers.LayerNormalization(epsilon=1e-6)):
        model = keras.Sequential([keras.Input((5, 8)), keras.layers.Dense(8), norm, keras.layers.Dense(4)])
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        model.compile(keras.optimizers.SGD(0.5), "mse")
        model.fit(x, y, batch_size=16, epochs=3, verbose=0)
        after.append(model.get_weights())
    for own, other in zip(*after, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("training", [False, True])
def test_mlp_uses_exact_gelu(training):
    from math import erf

    layer = layers.MLP(8)
    x = rng_array(1, 3, 8)
    layer.build(x.shape)
    eye, zero = np.eye(8, dtype="float32"), np.zeros(8, "float32")
    layer.set_weights([eye, zero, eye, zero])
    expected = np.vectorize(lambda v: 0.5 * v * (1 + erf(v / 2**0.5)))(x)
    np.testing.assert_allclose(layer(x, training=training), expected, atol=1e-6)


def test_mlp_approximates_gelu_as_flax_does():
    layer = layers.MLP(8, approximate_gelu=True)
    x = rng_array(1, 3, 8)
    layer.build(x.shape)
    eye, zero = np.eye(8, dtype="float32"), np.zeros(8, "float32")
    layer.set_weights([eye, zero, eye, zero])
    expected = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)


def test_products_start_as_told():
    block = layers.TransformerBlock(2, 16, kernel_initializer=keras.initializers.Constant(0.5))
    block.build((None, 5, 8))
    kernels = [w for w in block.weights if w.name == "kernel"]
    assert len(kernels) == 4
    assert all((keras.ops.convert_to_numpy(kernel) == 0.5).all() for kernel in kernels)


@pytest.mark.parametrize("initializer", [None, keras.initializers.TruncatedNormal(stddev=0.02)])
def test_no_two_products_start_alike(initializer):
    """Keras's initialisers draw the same numbers each time they are called."""
    blocks = [layers.TransformerBlock(2, 24, kernel_initializer=initializer) for _ in range(2)]
    for block in blocks:
        block.build((None, 5, 8))
    kernels = [keras.ops.convert_to_numpy(w).ravel() for block in blocks for w in block.weights if w.name == "kernel"]
    assert len(kernels) == 8
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            n = min(len(a), len(b))
            assert not np.isclose(a[:n] / a[:n].std(), b[:n] / b[:n].std(), atol=1e-3).mean() > 0.1


def test_fused_product_starts_as_three():
    """Xavier's limit is that of a (D, D) product, sqrt(3 / D), not of the fused (D, 3D) one."""
    layer = layers.MultiHeadSelfAttention(2)
    layer.build((None, 5, 64))
    kernel = keras.ops.convert_to_numpy(layer.qkv.kernel)
    limit = (3 / 64) ** 0.5
    assert 0.98 * limit < np.abs(kernel).max() <= limit


def test_attention_pooling_equals_numpy():
    layer = layers.AttentionPooling(2, 16)
    x = rng_array(2, 5, 8)
    layer.build(x.shape)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    y, scores = layer(x, return_attention_scores=True)
    weights = {w.path.partition("/")[2]: keras.ops.convert_to_numpy(w) for w in layer.weights}
    query = (weights["probe"] @ weights["query/kernel"] + weights["query/bias"])[0, 0]
    key, value = np.split(x @ weights["key_value/kernel"] + weights["key_value/bias"], 2, axis=-1)
    pooled = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        logits = key[..., part] @ query[part] / 2  # (B, N)
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        np.testing.assert_allclose(scores[:, h, 0], share, atol=1e-5)
        pooled.append(np.einsum("bn,bnd->bd", share, value[..., part]))
    z = np.concatenate(pooled, -1) @ weights["out/kernel"] + weights["out/bias"]
    expected = z + keras.ops.convert_to_numpy(layer.mlp(layer.norm(z[:, None])))[:, 0]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_sincos_positions_of_a_sequence():
    """Equation of section 3.5 in "Attention Is All You Need", channel by channel."""
    y = np.asarray(layers.Sincos1DPositionEmbedding()(np.zeros((1, 6, 8), "float32")))[0]
    for position in range(6):
        for channel in range(8):
            angle = position / 10_000 ** (2 * (channel // 2) / 8)
            assert abs(y[position, channel] - (np.cos(angle) if channel % 2 else np.sin(angle))) < 1e-6


def test_token_slice_keeps_the_axis():
    x = rng_array(2, 5, 8)
    np.testing.assert_array_equal(layers.TokenSlice(0, 1)(x), x[:, :1])
    np.testing.assert_array_equal(layers.TokenSlice(2)(x), x[:, 2:])


def test_remat_changes_no_gradient():
    """The block with its intermediate results thrown away and computed again learns what the other one learns."""
    x, after = rng_array(4, 5, 8), []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        block = layers.TransformerBlock(2, 16, drop_path_rate=0.3, layer_scale_init=0.5, remat=remat)
        inputs = keras.Input((5, 8))
        model = keras.Model(inputs, block(inputs))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, np.ones_like(x), batch_size=2, shuffle=False, epochs=2, verbose=0)
        after.append(block.get_weights())
    for a, b in zip(*after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


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
        (lambda: layers.AttentionPooling(3, 8), (1, 4, 8), "num_heads=3"),
        (lambda: layers.AttentionPooling(0, 8), (1, 4, 8), "num_heads=0"),
        (lambda: layers.TransformerBlock(2, 8, dropout_rate=0.1, remat=True), (1, 4, 8), "dropout_rate=0.1"),
        (lambda: layers.LearnedPositionEmbedding((2, 2), 1), (1, 4, 8), "tokens=4, num_prefix=1"),
        (layers.Sincos1DPositionEmbedding, (1, 4, 7), "dim=7"),
        (lambda: layers.PrefixTokens(0), (1, 4, 8), "num_tokens=0"),
        (lambda: layers.Sincos2DPositionEmbedding((2, 2)), (1, 5, 8), "tokens=5"),
        (lambda: layers.Sincos2DPositionEmbedding((2, 2)), (1, 4, 6), "dim=6"),
    ],
)
def test_wrong_arguments_are_named(make, shape, words):
    with pytest.raises(ValueError, match=words):
        make()(np.zeros(shape, "float32"))
