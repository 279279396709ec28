"""Merging patches that are alike: which ones, what becomes of them, and files that do it."""

import keras
import numpy as np
import pytest
from test_rewriting import MODELS, SMALL, assert_same, pixels, randomise, with_pixels

import vit_keras
from vit_keras.export import Classifier, measure_sensitivity, to_tflite, to_tflite_files
from vit_keras.export.attention_rows import patch_grid
from vit_keras.export.merging import TokenMerging, TokenUnmerging, merged_after
from vit_keras.export.rewriting import REWRITES, rewrite
from vit_keras.heads import classifier
from vit_keras.layers import LayerNormalization, PatchEmbedding, PrefixTokens, TokenSlice, TransformerBlock
from vit_keras.models import vit
from vit_keras.pipelines.config import ExportConfig


def arrays(*tensors) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(tensor) for tensor in tensors]


def merged_by_hand(x: np.ndarray, num_merged: int, num_prefix: int) -> np.ndarray:
    """Gives each token of one picture, `(N, D)`, the mean of those that it is merged with."""
    tokens = x.astype("float64").copy()
    centred = tokens - tokens.mean(axis=1, keepdims=True)
    own, others = range(num_prefix, len(x), 2), range(num_prefix + 1, len(x), 2)
    partner = {i: min(others, key=lambda j: np.linalg.norm(centred[i] - centred[j])) for i in own}
    joining = sorted(own, key=lambda i: np.linalg.norm(centred[i] - centred[partner[i]]))[:num_merged]
    for j in others:
        group = [j, *(i for i in joining if partner[i] == j)]
        tokens[group] = x[group].mean(axis=0)
    return tokens


@pytest.mark.parametrize(("patches", "num_merged", "num_prefix"), [(9, 4, 1), (16, 8, 0), (25, 3, 2)])
def test_the_most_alike_become_their_mean(patches, num_merged, num_prefix):
    x = np.random.default_rng(0).normal(size=(5, num_prefix + patches, 6)).astype("float32")
    tokens, log_counts, places = arrays(*TokenMerging(num_merged, num_prefix)(x))
    assert tokens.shape == (5, num_prefix + patches - num_merged, 6)
    again = TokenUnmerging()(tokens, places)
    np.testing.assert_allclose(again, [merged_by_hand(one, num_merged, num_prefix) for one in x], atol=1e-5)
    counts = [np.bincount(one, minlength=tokens.shape[1]) for one in places]
    np.testing.assert_allclose(np.exp(log_counts), counts, atol=1e-5)
    np.testing.assert_array_equal(tokens[:, :num_prefix], x[:, :num_prefix])


def test_the_layers_are_saved_and_compute_in_mixed_precision(tmp_path):
    inputs = keras.Input((9, 4))
    tokens, log_counts, places = TokenMerging(3, 1)(inputs)
    model = keras.Model(inputs, [tokens, log_counts, TokenUnmerging()(tokens, places)])
    assert model.output_shape == [(None, 6, 4), (None, 6), (None, 9, 4)]
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype("float32")
    model.save(tmp_path / "model.keras")
    for a, b in zip(arrays(*model(x)), arrays(*vit_keras.load_model(tmp_path / "model.keras")(x)), strict=True):
        np.testing.assert_array_equal(a, b)
    mixed = TokenMerging(3, 1, dtype="mixed_bfloat16")(x)
    assert [keras.backend.standardize_dtype(part.dtype) for part in mixed] == ["bfloat16", "bfloat16", "int32"]


def test_half_of_an_odd_number_of_patches():
    inputs = keras.Input((40, 56, 3))  # 35 patches: half of them, rounded, are one too many.
    model = classifier(vit(**{**SMALL, "image_size": (40, 56)}, input_tensor=inputs), 5)
    assert rewrite(model, merge_tokens=0.5).get_layer("token_merging").num_merged == 17


def test_patches_behind_a_resizing():
    """The grid is that of the pictures that are cut, not of those that the model takes."""
    inputs = keras.Input((48, 48, 3))
    resized = keras.layers.Resizing(24, 24)(inputs)
    model = keras.Model(inputs, classifier(vit(**SMALL, pooling="average"), 5)(resized))
    rewritten = rewrite(model, merge_tokens=0.25)
    assert rewritten.get_layer("token_merging").num_merged == 2
    assert patch_grid(rewrite(model, with_attention=True)) == (3, 3)


@pytest.mark.parametrize("num_merged", [0, 5])
def test_no_more_than_half_can_be_merged(num_merged):
    with pytest.raises(ValueError, match="num_merged must be 1 to 4, half of the 8 patches"):
        TokenMerging(num_merged, 1)(np.zeros((1, 9, 4)))


def test_a_sixth_of_the_blocks_run_before():
    assert [merged_after(n) for n in (2, 6, 11, 12, 24, 32)] == [1, 1, 1, 2, 4, 5]


def with_replicas(model: keras.Model, share: float, x: np.ndarray) -> np.ndarray:
    """What the model itself gives if the tokens behind its first blocks are those of the merged patches."""
    blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
    last_before = blocks[merged_after(len(blocks)) - 1]
    (tokens,) = arrays(keras.Model(model.input, last_before.output)(x, training=False))
    merged = round(share * 9)
    tokens = np.stack([merged_by_hand(one, merged, tokens.shape[1] - 9) for one in tokens]).astype("float32")
    rest = keras.Model(last_before.output, model.output)
    return keras.ops.convert_to_numpy(rest(tokens, training=False))


@pytest.mark.parametrize("rewrites", [list(REWRITES), []], ids=["all", "none"])
@pytest.mark.parametrize("name", ["token", "average", "attention", "registers", "registers_average", "distilled"])
def test_a_merged_token_counts_as_often_as_it_stands_for_others(name, rewrites):
    """A token and its replicas go through a model alike, so a model with replicas says what merging should."""
    model, x = with_pixels(MODELS[name]), pixels((8, 24, 24, 3))
    expected = with_replicas(model, 0.4, x)
    lean = rewrite(model, rewrites, merge_tokens=0.4)
    found = keras.ops.convert_to_numpy(lean(x, training=False))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    plain = keras.ops.convert_to_numpy(model(x, training=False))
    assert np.abs(found - plain).max() > 1e-2 * np.abs(plain).max()


@pytest.mark.parametrize("rewrites", [list(REWRITES), []], ids=["all", "none"])
@pytest.mark.parametrize(("read", "unmerged"), [((0, 1), False), ((0, 4), True), ((2, 5), True)])
def test_patches_that_are_read_one_by_one_stand_where_they_stood(rewrites, read, unmerged):
    inputs = keras.Input((24, 24, 3))
    tokens = LayerNormalization()(classifier(vit(**SMALL, input_tensor=inputs), 5).get_layer("block_1").output)
    model = randomise(keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(TokenSlice(*read)(tokens)))))
    x = pixels((8, 24, 24, 3))
    lean = rewrite(model, rewrites, merge_tokens=0.4)
    expected = with_replicas(model, 0.4, x)
    assert np.abs(lean.predict(x, verbose=0) - expected).max() < 1e-4 * np.abs(expected).max()
    assert any(isinstance(layer, TokenUnmerging) for layer in lean.layers) == unmerged


def test_prompts_stand_for_themselves():
    model = vit_keras.adapt(with_pixels(MODELS["token"]), "prompt_deep", num_prompts=3)
    x = pixels()
    for weight in model.trainable_variables:
        weight.assign(np.random.default_rng(0).normal(0, 0.5, weight.shape))
    assert model.get_layer("block_1").input.shape[1] == 1 + 3 + 9
    a, b = (arrays(rewrite(model, names, merge_tokens=0.4)(x)) for names in (list(REWRITES), []))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_behind_the_merge_there_is_less_to_compute():
    lean = rewrite(with_pixels(MODELS["average"]), merge_tokens=0.4)
    assert lean.get_layer("block_0_mlp").output.shape == (None, 9, 32)
    assert lean.get_layer("block_1_mlp").output.shape == (None, 5, 32)
    assert lean.get_layer("token_unmerging").output.shape == (None, 9, 32)
    assert not any(isinstance(layer, TokenUnmerging) for layer in rewrite(with_pixels(MODELS["token"])).layers)


def test_patches_that_are_all_alike_lose_nothing():
    model = with_pixels(lambda **kw: classifier(vit(**SMALL, position_embedding="none", **kw), 5))
    x = np.full((1, 24, 24, 3), [[[[200, 30, 90]]]], "float32")
    (found, expected) = arrays(rewrite(model, merge_tokens=0.4)(x), model(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["token", "average"])
def test_files_say_what_the_merged_model_says(name, tmp_path):
    model, x = with_pixels(MODELS[name]), pixels((16, 24, 24, 3))
    expected = rewrite(model, merge_tokens=0.4).predict(x, verbose=0)
    kinds = ("float32", "float16", "dynamic_int8", "static_int8")
    paths = {kind: tmp_path / f"{kind}.tflite" for kind in kinds}
    options = {"merge_tokens": 0.4, "batch_size": 2, "image_sizes": (32,)}
    for kind, path in to_tflite_files(model, paths, [x], **options).items():
        file = Classifier(path)
        found = np.concatenate([file.logits(x[i : i + 2]) for i in range(0, 16, 2)])
        errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert np.median(errors) < (1e-4 if kind == "float32" else 0.1), kind  # A near tie may go the other way.
        assert file.operators().names["TOPK_V2"] >= 2
    single = Classifier(to_tflite(model, tmp_path / "one.tflite", merge_tokens=0.4))
    np.testing.assert_allclose(single.logits(x), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_sensitivity_is_measured_on_the_merged_model():
    errors = measure_sensitivity(with_pixels(MODELS["token"]), ["static_int8"], [pixels()], merge_tokens=0.4)
    assert any(error.layer == "block_1_attention" for error in errors["static_int8"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_tokens": 0.6}, "merge_tokens must be 0 to 0.5. Received: merge_tokens=0.6"),
        ({"merge_tokens": -0.1}, "merge_tokens must be 0 to 0.5"),
        ({"merge_tokens": float("nan")}, "merge_tokens must be 0 to 0.5"),
        ({"merge_tokens": 0.2, "with_attention": True}, "merge_tokens must be 0 with with_attention"),
        ({"merge_tokens": 0.2, "kind": "full_int8"}, "it must be 0 for full_int8. Received: merge_tokens=0.2"),
    ],
)
def test_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_tflite(with_pixels(MODELS["token"]), tmp_path / "model.tflite", calibration=[pixels()], **options)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path):
    inputs = keras.Input((24, 24, 3))
    foreign = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(inputs)))
    single = with_pixels(lambda **kw: classifier(vit(**{**SMALL, "num_layers": 1}, **kw), 5))
    for model in (foreign, single):
        with pytest.raises(ValueError, match="merge_tokens needs a model of one PatchEmbedding, at least 2 Transf"):
            to_tflite(model, tmp_path / "model.tflite", merge_tokens=0.2)


@pytest.mark.parametrize("option", [{"merge_tokens": 0.2}, {"with_attention": True}])
def test_tokens_that_join_between_blocks_are_refused(option):
    inputs = keras.Input((24, 24, 3))
    x = PrefixTokens()(TransformerBlock(2, 32)(PatchEmbedding(8, 16)(inputs)))
    x = TokenSlice(0, 1)(LayerNormalization()(TransformerBlock(2, 32)(x)))
    model = randomise(keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x))))
    assert_same(model, rewrite(model), pixels())
    with pytest.raises(ValueError, match=f"{next(iter(option))} needs a model of .* all on the same tokens"):
        rewrite(model, **option)


def test_a_run_leaves_out_integer_kinds():
    assert ExportConfig(merge_tokens=0.25).kinds == ("float32", "float16", "dynamic_int8", "static_int8")
    with pytest.raises(ValueError, match="it must be 0 for int16x8"):
        ExportConfig("float32,int16x8", merge_tokens=0.25)
    with pytest.raises(ValueError, match="merge_tokens must be 0 with with_attention"):
        ExportConfig(with_attention=True, merge_tokens=0.25)
