"""Exact rewrites: each alone and all together compute what the model computes, with fewer operators."""

import keras
import numpy as np
import pytest
from harness import check_layer

import vit_keras
from vit_keras.export import KINDS, Classifier, to_tflite, to_tflite_files
from vit_keras.export.inference_layers import (
    InferenceAttention,
    InferenceMLP,
    InferenceNormalization,
    InferencePatches,
    InferenceReadout,
)
from vit_keras.export.inference_pooling import InferencePooling
from vit_keras.export.rewriting import REWRITES, check_rewrites, rewrite
from vit_keras.export.rounding import products
from vit_keras.export.sensitivity import relative_error
from vit_keras.export.smoothing import smoothed_channels
from vit_keras.export.structure import Stream, as_flat, flatten
from vit_keras.graph import flat_copy
from vit_keras.heads import classifier
from vit_keras.layers import (
    AttentionPooling,
    LayerNormalization,
    PatchEmbedding,
    PrefixTokens,
    PromptTokens,
    TokenRemoval,
    TokenSlice,
    TransformerBlock,
)
from vit_keras.models import deit, deit3, vit
from vit_keras.precision import precision

SMALL = {"image_size": 24, "patch_size": 8, "hidden_dim": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 48}
MODELS = {
    "token": lambda **kw: classifier(vit(**SMALL, **kw), 5),
    "average": lambda **kw: classifier(vit(**SMALL, pooling="average", position_embedding="sincos_2d", **kw), 5),
    "attention": lambda **kw: classifier(vit(**SMALL, pooling="attention", position_embedding="sincos_1d", **kw), 5),
    "registers": lambda **kw: classifier(vit(**SMALL, num_register_tokens=2, **kw), 5),
    "registers_average": lambda **kw: classifier(vit(**SMALL, num_register_tokens=2, pooling="average", **kw), 5),
    "layer_scale": lambda **kw: classifier(deit3(**SMALL, **kw), 5),
    "distilled": lambda **kw: classifier(deit(**SMALL, distilled=True, **kw), 5),
    "representation": lambda **kw: classifier(vit(**SMALL, use_qkv_bias=False, **kw), 5, 0.5, representation=True),
    "tanh_gelu": lambda **kw: classifier(
        vit(**SMALL, approximate_gelu=True, dropout_rate=0.1, drop_path_rate=0.2, **kw), 5
    ),
}


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives every weight numbers as training leaves them: none is zero, one or free of a mean."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_variables:
        if weight.name == "gamma":
            weight.assign(rng.uniform(0.3, 2.5, weight.shape) * rng.choice([-1, 1, 1, 1], weight.shape))
        elif weight.name in ("bias", "beta", "prefix", "position", "probe"):
            weight.assign(rng.normal(0.1, 0.5, weight.shape))
        else:
            fan_in = int(np.prod(weight.shape[:-1]))
            weight.assign(rng.normal(0.2 / fan_in, fan_in**-0.5, weight.shape))
    return model


def pixels(shape: tuple[int, ...] = (4, 24, 24, 3)) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, shape).astype("float32")


def with_pixels(build, **kwargs) -> keras.Model:
    """A model that takes pixels, as `create_model` makes it."""
    inputs = keras.Input((24, 24, 3), name="images")
    scaled = keras.layers.Rescaling([1 / 60, 1 / 55, 1 / 50], [-2.0, -2.1, -1.7], name="normalization")(inputs)
    return randomise(build(input_tensor=scaled, **kwargs))


def assert_same(model: keras.Model, other: keras.Model, x: np.ndarray) -> None:
    expected, found = (keras.ops.convert_to_numpy(m(x, training=False)) for m in (model, other))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_all_rewrites_together_are_exact(name):
    model = with_pixels(MODELS[name])
    before = [w.copy() for w in model.get_weights()]
    lean = rewrite(model)
    assert_same(model, lean, pixels())
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not any(isinstance(layer, (TransformerBlock, keras.layers.Dropout)) for layer in lean.layers)


@pytest.mark.parametrize("left_out", [None, *REWRITES])
@pytest.mark.parametrize("name", ["token", "layer_scale", "attention", "distilled"])
def test_every_rewrite_is_exact_alone_and_can_be_left_out(name, left_out):
    model = with_pixels(MODELS[name])
    assert_same(model, rewrite(model, [left_out] if left_out else []), pixels())
    assert_same(model, rewrite(model, [r for r in REWRITES if r != left_out]), pixels())


@pytest.mark.parametrize("shape", [(8, 12, 3), (12, 8, 1)])
def test_rows_of_patches_are_projected_as_patches_are(shape, tmp_path):
    check_layer(InferencePatches(4, 6), (2, *shape), (2, 6, 6), tmp_path)
    pictures = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    layer, copy = PatchEmbedding(4, 6), InferencePatches(4, 6)
    expected, _ = layer(pictures), copy(pictures)
    kernel, bias = layer.get_weights()
    copy.set_weights([copy.rows(kernel), bias + 1])
    np.testing.assert_allclose(copy(pictures), expected + 1, atol=1e-5)
    higher = np.concatenate([pictures, pictures], axis=1)
    np.testing.assert_allclose(copy(higher), layer(higher) + 1, atol=1e-5)


def test_filters_of_a_rewritten_model_can_be_shown():
    model = with_pixels(MODELS["token"])
    filters = vit_keras.explain.patch_filters(model)
    found = vit_keras.explain.patch_filters(rewrite(model, ["patches"]))
    np.testing.assert_allclose(found, filters, atol=1e-6)


def test_patches_are_projected_with_a_row_of_pixels_as_channels(tmp_path):
    model = with_pixels(MODELS["token"])
    channels = {}
    for rewrites in ([], ["patches"]):
        file = to_tflite(model, tmp_path / "model.tflite", rewrites=rewrites, overwrite=True)
        (product,) = (p for p in products(file.read_bytes()) if p.operator == "CONV_2D")
        size = model.get_layer("patch_embedding").patch_size
        channels[product.window] = product.weights.shape[1] // np.prod(product.window)
    assert channels == {(size, size): 3, (size, 1): 3 * size}


def test_each_rewrite_takes_operators_out(tmp_path):
    model = with_pixels(MODELS["layer_scale"])

    def census(rewrites) -> dict[str, int]:
        path = tmp_path / "model.tflite"
        names = Classifier(to_tflite(model, path, rewrites=rewrites, overwrite=True)).operators().names
        return {**dict.fromkeys(("MUL", "ADD", "SUB", "MEAN"), 0), **names}

    none, every = census([]), census(list(REWRITES))
    # What each one takes away in two blocks and a last LayerNorm. The factors of LayerScale and of the queries, which
    # stand alone behind a product, the converter folds as well.
    for rewrites, gone in {
        ("normalisation",): {"MUL": 1},
        ("affine",): {"MUL": 1, "ADD": 1},  # The converter folds those that stand right before a product.
        ("layer_scale", "centring"): {"SUB": 5, "MEAN": 5},
    }.items():
        some = census(rewrites)
        for operator, count in gone.items():
            assert none[operator] - some[operator] >= count, (rewrites, operator)
    assert every["SUB"] == 0
    assert every["MEAN"] == 5
    assert sum(every.values()) < 0.86 * sum(none.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_flat_float32_model_is_rewritten_without_a_copy_of_it(name):
    model = with_pixels(MODELS[name])
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    assert as_flat(model) is model
    assert Stream.of(model) == Stream.of(flatten(model))
    rewrite(model)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes


def test_any_other_model_is_copied_flat():
    inputs = keras.Input((24, 24, 3))
    token = with_pixels(MODELS["token"])
    normed = keras.Model(inputs, keras.layers.LayerNormalization()(token(inputs)))
    adapted = vit_keras.adapt(token, "lora", rank=2)
    foreign = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
    for model in (
        keras.Sequential([keras.Input((24, 24, 3)), token]),
        keras.Model(inputs, token(inputs)),
        normed,
        adapted,
        foreign,
    ):
        assert as_flat(model) is not model


def test_the_last_block_computes_what_is_read():
    lean = rewrite(with_pixels(MODELS["distilled"]))
    assert lean.get_layer("block_0_mlp").output.shape == (None, 11, 32)
    assert lean.get_layer("block_1_mlp").output.shape == (None, 2, 32)
    assert rewrite(with_pixels(MODELS["average"])).get_layer("block_1_mlp").output.shape == (None, 9, 32)


@pytest.mark.parametrize("kind", ["full_int8", "int16x8"])
def test_a_small_class_token_survives_integers(kind, tmp_path):
    """Beside large patches, the square of a small token has few integers left: its norm is computed beforehand."""
    model = with_pixels(MODELS["token"])
    prefix = model.get_layer("class_token")
    prefix.set_weights([0.02 * weight for weight in prefix.get_weights()])
    position = model.get_layer("position_embedding").position
    value = keras.ops.convert_to_numpy(position).copy()
    value[:, 0] *= 0.02
    position.assign(value)
    pictures = pixels((24, 24, 24, 3))
    exact = model.predict(pictures, verbose=0)

    def error(name: str, rewrites) -> float:
        path = to_tflite(model, tmp_path / name, kind, [pictures], rewrites=rewrites)
        return np.abs(Classifier(path).logits(pictures) - exact).mean()

    assert error("with", list(REWRITES)) < 0.25 * error("without", [n for n in REWRITES if n != "prefix"])


def test_the_last_block_needs_no_keys_and_values():
    lean = rewrite(with_pixels(MODELS["distilled"]))
    readout = lean.get_layer("block_1_attention")
    assert isinstance(readout, InferenceReadout)
    assert isinstance(lean.get_layer("block_0_attention"), InferenceAttention)
    kernels = [product.kernel.shape for product in (readout.query, readout.key, readout.value, readout.out)]
    assert kernels == [(32, 32)] * 4


def test_attention_pooling_survives_every_kind(tmp_path):
    """LiteRT has no int16 kernel for a product whose left side is constant, as the pooling's query is."""
    model, pictures = with_pixels(MODELS["attention"]), pixels((24, 24, 24, 3))
    expected = model.predict(pictures, verbose=0)
    files = to_tflite_files(model, {kind: tmp_path / kind for kind in KINDS}, [pictures])
    for kind, file in files.items():
        error = relative_error(Classifier(file).logits(pictures), expected)
        assert error < {"float32": 1e-5, "float16": 0.002, "int16x8": 0.015, "int4": 0.3}.get(kind, 0.08), kind


def test_attention_pooling_in_other_models_is_rewritten_too(pictures):
    inputs = keras.Input((8, 8, 3))
    pool = AttentionPooling(2, 32, name="pool")
    tokens = keras.layers.Reshape((4, 32))(keras.layers.Conv2D(32, 4, 4)(inputs))
    one, other = pool(tokens), pool(keras.layers.Dense(32)(tokens))
    model = randomise(keras.Model(inputs, keras.layers.Dense(4)(one + other)))
    assert_same(model, lean := rewrite(model), pictures)
    assert isinstance(lean.get_layer("pool"), InferencePooling)
    assert isinstance(rewrite(model, []).get_layer("pool"), AttentionPooling)
    y, weights = AttentionPooling(2, 32, name="asked")(tokens, return_attention_scores=True)
    both = randomise(keras.Model(inputs, keras.layers.Dense(4)(y + keras.layers.Dense(32)(weights[:, 1, 0]))))
    assert_same(both, rewrite(both), pictures)


def test_mixed_precision_becomes_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = with_pixels(MODELS["token"])
    finally:
        keras.config.set_dtype_policy("float32")
    lean = rewrite(model)
    assert {layer.compute_dtype for layer in lean.layers} == {"float32"}
    expected, found = (keras.ops.convert_to_numpy(m(pixels())) for m in (model, lean))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_lora_is_merged():
    model = with_pixels(MODELS["token"])
    block, head = model.get_layer("block_1"), model.layers[-1]
    before = rewrite(model)
    for dense in (block.attention.qkv, block.attention.out, block.mlp.expand, head):
        dense.enable_lora(2, lora_alpha=3)
        dense.lora_kernel_b.assign(np.random.default_rng(0).normal(0, 0.5, dense.lora_kernel_b.shape))
    assert_same(model, rewrite(model), pixels())
    assert_same(model, rewrite(model, []), pixels())
    assert rewrite(model).count_params() == before.count_params()
    changed = keras.ops.convert_to_numpy(before(pixels()) - model(pixels()))
    assert np.abs(changed).max() > 0.1


def test_nested_and_sequential_models_are_laid_flat():
    backbone = vit(**SMALL)
    inner = classifier(backbone, 5)
    model = keras.Sequential(
        [
            keras.Input((24, 24, 3)),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.Rescaling(1 / 127.5, -1),
            keras.Sequential([keras.layers.GaussianNoise(0.1), inner]),
            keras.layers.Dense(3),
        ]
    )
    randomise(model)
    lean = rewrite(model)
    assert_same(model, lean, pixels())
    assert {"normalization", "rescaling"}.isdisjoint(layer.name for layer in lean.layers)
    assert not any(isinstance(layer, (keras.Model, keras.layers.RandomFlip)) for layer in lean.layers)
    assert Stream.of(flatten(model)).num_read == 1


def test_a_stream_that_others_read_is_left_alone():
    backbone = vit(**SMALL)
    middle = keras.layers.GlobalAveragePooling1D()(backbone.get_layer("block_0").output)
    outputs = keras.layers.Dense(3, name="head")(keras.layers.Concatenate()([backbone.output["pooled"], middle]))
    model = randomise(keras.Model(backbone.input, outputs))
    assert Stream.of(flatten(model)) is None
    assert_same(model, rewrite(model), pixels() / 100)


def test_a_norm_whose_tokens_are_given_out_keeps_its_affine():
    backbone = randomise(vit(**SMALL))
    model = keras.Model(backbone.input, backbone.output["tokens"])
    stream = Stream.of(flatten(model))
    assert (stream.readers, stream.num_read) == ((), None)
    assert_same(model, rewrite(model), pixels() / 100)


class CosineHead(keras.layers.Dense):
    """A product of its own kind."""

    def call(self, inputs):
        return 10 * super().call(keras.ops.normalize(inputs, axis=-1))


def head_of(kind: str, tokens, images):
    """Ways to read the tokens behind the last LayerNorm that are not that of our classifiers."""
    pooled = keras.layers.GlobalAveragePooling1D()(tokens)
    if kind == "no bias":
        return keras.layers.Dense(3, use_bias=False)(pooled)
    if kind == "of a subclass":
        return CosineHead(3)(pooled)
    if kind == "all tokens at once":
        return keras.layers.Dense(3)(keras.layers.Reshape((9 * 32,))(tokens))
    if kind == "channels first":
        return keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D(data_format="channels_first")(tokens))
    head, first = keras.layers.Dense(3), keras.layers.Reshape((32,))(TokenSlice(0, 1)(tokens))
    if kind == "used twice":
        return keras.layers.Add()([head(pooled), head(first)])
    other = keras.layers.Dense(32)(keras.layers.GlobalAveragePooling2D()(images))
    return keras.layers.Add()([head(pooled), head(other)])


@pytest.mark.parametrize(
    "kind", ["no bias", "of a subclass", "all tokens at once", "channels first", "used twice", "used elsewhere too"]
)
def test_heads_of_all_sorts(kind):
    backbone = vit(**SMALL)
    outputs = head_of(kind, backbone.output["tokens"], backbone.input)
    model = randomise(keras.Model(backbone.input, outputs))
    assert_same(model, rewrite(model), pixels() / 100)


def test_one_dropout_before_two_heads():
    model = with_pixels(lambda **kw: classifier(deit(**SMALL, distilled=True, **kw), 5, 0.1))
    assert set(Stream.of(flatten(model)).readers) == {"head", "head_distillation"}
    assert_same(model, rewrite(model), pixels())


@pytest.mark.parametrize("name", ["token", "distilled", "attention"])
def test_calls_outside_the_model_do_not_count(name):
    model = with_pixels(MODELS[name])
    before = rewrite(model).count_params()
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            layer(keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype), layer.input))
    lean = rewrite(model)
    assert lean.count_params() == before
    assert_same(model, lean, pixels())


def test_tokens_that_leave_early():
    """A TokenRemoval in the middle of the stream is no part of what the last block does not compute."""
    inputs = keras.Input((24, 24, 3))
    x = PrefixTokens(3)(PatchEmbedding(8, 32)(inputs))
    x = TokenRemoval(1, 2)(TransformerBlock(4, 48)(x))
    x = LayerNormalization()(TransformerBlock(4, 48)(x))
    outputs = keras.layers.Dense(3)(keras.layers.Reshape((32,))(TokenSlice(0, 1)(x)))
    model = randomise(keras.Model(inputs, outputs))
    assert Stream.of(model).num_read == 1
    assert_same(model, rewrite(model), pixels() / 100)
    early = TokenRemoval(1, 2)(PrefixTokens(3)(PatchEmbedding(8, 32)(inputs)))
    x = LayerNormalization()(TransformerBlock(4, 48)(early))
    model = randomise(keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x))))
    assert_same(model, rewrite(model), pixels() / 100)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_the_policy_of_the_moment_does_not_matter(policy, tmp_path):
    model = with_pixels(MODELS["layer_scale"])
    expected = model.predict(pixels(), verbose=0)
    with precision(policy):
        lean = rewrite(model, with_attention=True)
        file = to_tflite(model, tmp_path / "m.tflite")
        assert keras.config.dtype_policy().name == policy
    assert {part.dtype_policy.name for layer in lean.layers for part in layer._flatten_layers()} == {"float32"}
    np.testing.assert_allclose(Classifier(file).logits(pixels()), expected, atol=1e-5 * np.abs(expected).max())


def test_nested_layers_become_float32():
    with precision("mixed_bfloat16"):
        inputs = keras.Input((24, 24, 3))
        x = keras.layers.TimeDistributed(keras.layers.Dense(4))(inputs)
        model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    parts = [part for layer in rewrite(model).layers for part in layer._flatten_layers()]
    assert {part.dtype_policy.name for part in parts} == {"float32"}


def test_other_models_pass():
    inputs = keras.Input((24, 24, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = x + keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    assert_same(model, rewrite(model), pixels() / 100)


def with_outliers(gain: float) -> keras.Model:
    """A model with channels that stand out: in the LayerNorms' gamma, and in the residual stream."""
    model = with_pixels(MODELS["token"])
    rng = np.random.default_rng(3)
    for weight in model.trainable_variables:
        value = keras.ops.convert_to_numpy(weight).copy()
        channels = rng.choice(value.shape[-1], 2, replace=False)
        if weight.name == "gamma":
            value[channels] *= gain
        elif weight.name == "position":
            value[..., channels] += [30, -30]
        weight.assign(value)
    return model


@pytest.fixture(scope="module")
def outliers():
    return with_outliers(12)


@pytest.mark.parametrize("pictures", [None, pixels()])
def test_smoothing_is_exact(outliers, pictures):
    lean = rewrite(outliers, pictures=pictures)
    assert smoothed_channels(lean)
    assert_same(outliers, lean, pixels())
    norm = keras.Model(lean.inputs, lean.get_layer("block_0_mlp_norm").output)
    plain = rewrite(outliers, [name for name in REWRITES if name != "smoothing"])
    assert not smoothed_channels(plain)
    if pictures is not None:
        before = keras.Model(plain.inputs, plain.get_layer("block_0_mlp_norm").output)
        sizes = [np.abs(m.predict(pictures, verbose=0)).max(axis=(0, 1)) for m in (before, norm)]
        largest = [size.max() / np.median(size) for size in sizes]
        assert largest[1] < 0.7 * largest[0]
    assert not smoothed_channels(rewrite(with_pixels(MODELS["token"]), pictures=pictures))


@pytest.mark.parametrize(("kind", "share"), [("dynamic_int8", 0.5), ("static_int8", 0.75), ("full_int8", 0.75)])
def test_outliers_cost_less_when_smoothed(tmp_path, kind, share):
    outliers = with_outliers(60)
    pictures = pixels((24, 24, 24, 3))
    exact = outliers.predict(pictures, verbose=0)

    def error(name: str, rewrites) -> float:
        classifier = Classifier(to_tflite(outliers, tmp_path / name, kind, [pictures[:8]], rewrites=rewrites))
        assert (classifier.operators().float == 0) == (kind == "full_int8")
        return np.abs(classifier.logits(pictures) - exact).mean()

    assert error("with", list(REWRITES)) < share * error("without", [n for n in REWRITES if n != "smoothing"])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (InferenceNormalization(1e-5, False, False, True), (2, 5, 8)),
        (InferenceNormalization(), (2, 5, 8)),
        (InferenceAttention(2), (2, 5, 8)),
        (InferenceReadout(4, num_queries=1, scale_queries=False), (2, 1, 8)),
        (InferenceReadout(2, num_queries=3), (2, 3, 8)),
        (InferenceAttention(2, num_prompts=3), (2, 5, 8)),
        (InferenceReadout(2, num_queries=2, num_prompts=3), (2, 2, 8)),
        (InferenceMLP(12, approximate_gelu=True), (2, 5, 8)),
        (InferencePooling(4, 12, approximate_gelu=True), (2, 8)),
    ],
)
def test_layers_for_prediction(layer, shape, tmp_path):
    check_layer(layer, (2, 5, 8), shape, tmp_path)


def transformer(**norm) -> keras.Model:
    """A small transformer of Keras's own layers."""
    inputs = keras.Input((24, 24, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.Reshape((9, 16))(keras.layers.Conv2D(16, 8, 8)(x))
    y = keras.layers.LayerNormalization(epsilon=1e-5, **norm)(x)
    x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 8)(y, y)])
    return randomise(keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x))))


@pytest.mark.parametrize("norm", [{}, {"axis": 2}, {"center": False}, {"axis": [1, 2]}])
def test_norms_of_keras(norm):
    model = transformer(**norm)
    lean = rewrite(model)
    assert_same(model, lean, pixels())
    kept = any(type(layer) is keras.layers.LayerNormalization for layer in lean.layers)
    assert kept == (norm not in ({}, {"axis": 2}))


def test_what_stays_in_float_is_named(tmp_path, caplog):
    model = transformer()
    classifier = Classifier(to_tflite(model, tmp_path / "a", "full_int8", [pixels()]))
    assert classifier.operators().float == 0
    assert "its layers are left as they are" in caplog.text and "not integer throughout" not in caplog.text
    classifier = Classifier(to_tflite(model, tmp_path / "b", "full_int8", [pixels()], rewrites=[]))
    assert "NEG" in classifier.float_operators()
    assert "full_int8 is not integer throughout: NEG of layer_normalization" in caplog.text


def test_unknown_rewrite():
    with pytest.raises(ValueError, match=r"Unknown rewrite 'afine'\. Did you mean 'affine'"):
        check_rewrites(["afine"])
    assert check_rewrites(reversed(REWRITES)) == tuple(REWRITES)


def test_normalisation_by_what_was_seen_is_copied_whole(model, pictures):
    """Keras computes with a mean that it sets when weights are loaded from a file, and not when they are set."""
    normalization = keras.layers.Normalization()
    normalization.adapt(pictures / 2)
    inputs = keras.Input((8, 8, 3))
    nested = keras.Model(inputs, model(normalization(inputs)))
    flat = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(normalization(inputs))))
    for given in (nested, flat):
        expected = given.predict(pictures, verbose=0)
        for copy in (rewrite(given), keras.Model(*flat_copy(given))):
            assert relative_error(expected, copy.predict(pictures, verbose=0)) < 1e-5


def test_a_call_of_its_own_is_kept(model, pictures):
    class Calibrated(keras.Model):
        def __init__(self):
            super().__init__(model.input, model.output)

        def call(self, inputs, training=None):
            return super().call(inputs, training=training) / 3

    expected = model.predict(pictures, verbose=0) / 3
    assert relative_error(expected, rewrite(Calibrated()).predict(pictures, verbose=0)) < 1e-5


def test_tokens_that_join_behind_the_last_block_are_left_where_they_are(pictures):
    inputs = keras.Input((8, 8, 3))
    x = TransformerBlock(2, 32)(PatchEmbedding(4, 16)(inputs))
    late = PrefixTokens(1, initializer="glorot_uniform")(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(LayerNormalization()(late))))
    expected = model.predict(pictures, verbose=0)
    assert relative_error(expected, rewrite(model).predict(pictures, verbose=0)) < 1e-5


@pytest.mark.parametrize("left_out", [None, "prefix"])
@pytest.mark.parametrize("num_prefix", [0, 1, 2])
def test_prompts_may_stand_among_prefix_tokens(num_prefix, left_out, pictures):
    inputs = keras.Input((8, 8, 3))
    x = PrefixTokens(2, initializer="glorot_uniform")(PatchEmbedding(4, 16)(inputs))
    x = PromptTokens(3, num_prefix)(x)
    x = TransformerBlock(2, 32)(TransformerBlock(2, 32)(x))
    x = keras.layers.Flatten()(LayerNormalization()(TokenRemoval(num_prefix, num_prefix + 3)(x)))
    model = randomise(keras.Model(inputs, keras.layers.Dense(4)(x)))
    assert_same(model, rewrite(model, [name for name in REWRITES if name != left_out]), pictures)


def test_pruned_channels_are_not_smoothed_away(pictures):
    model = vit_keras.create_model("vit_micro_patch2_8", 4, num_layers=1)
    kernel = np.array(model.get_layer("block_0").mlp.expand.kernel)
    kernel[: len(kernel) * 2 // 3] = 0
    model.get_layer("block_0").mlp.expand.kernel.assign(kernel)
    factors = smoothed_channels(rewrite(model, pictures=pictures))
    assert all(f.min() > 0.01 and f.max() < 100 for f in factors.values())


def test_names_do_not_depend_on_the_scope_that_a_model_was_built_in():
    plain = [layer.name for layer in rewrite(with_pixels(MODELS["token"])).layers]
    with keras.name_scope("encoder"):
        model = with_pixels(MODELS["token"])
    assert [layer.name for layer in rewrite(model).layers] == plain
