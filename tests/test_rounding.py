"""Rounding of weights: errors that cancel, on the grids that the quantiser finds, and nothing else changed."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from vit_keras.export import KINDS, Classifier, to_tflite
from vit_keras.export.calibrate import Observed, observe
from vit_keras.export.conversion import quantize
from vit_keras.export.quantize import Kind, Rule
from vit_keras.export.rounding import Gram, Rounding, compensated, dequantized, products
from vit_keras.export.sensitivity import relative_error


@pytest.fixture(scope="module")
def pictures():
    """Smooth pictures: neighbouring pixels are alike, so that errors can cancel."""
    coarse = np.random.default_rng(0).uniform(0, 255, (64, 3, 3, 3)).astype("float32")
    return np.asarray(tf.image.resize(coarse, (8, 8), "bilinear"))


@pytest.fixture(scope="module")
def seen(float32, pictures):
    """Ranges, and what the products of the file took."""
    rounding = Rounding(float32)
    return observe(float32, (p[None] for p in pictures), see=rounding.see), rounding


def correlated(count: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 6)) @ rng.normal(size=(6, size)) + 0.1 * rng.normal(size=(count, size))).astype(
        "f4"
    )


def nearest(weights: np.ndarray, bits: int, block: int | None) -> np.ndarray:
    groups = weights.reshape(len(weights), -1, block or weights.shape[1])
    scale = np.abs(groups).max(axis=2, keepdims=True) / (2 ** (bits - 1) - 1)
    scale = scale.astype("f2").astype("f4") if block else scale
    return (np.rint(groups / scale) * scale).reshape(weights.shape)


@pytest.mark.parametrize(("bits", "block"), [(8, None), (4, None), (4, 32)])
def test_errors_cancel(bits, block):
    rng = np.random.default_rng(1)
    weights, x, other = rng.normal(size=(7, 160)).astype("f4"), correlated(500, 160), correlated(500, 160, seed=0)[::-1]
    found = dequantized(*compensated(weights, x.T @ x, bits, block))
    top = 2 ** (bits - 1) - 1
    groups = found.reshape(7, -1, block or 160)
    scale = np.abs(groups).max(axis=2, keepdims=True) / top
    np.testing.assert_allclose(groups / scale, np.rint(groups / scale), atol=2e-3 * top)  # On a grid.
    assert np.abs(found - weights).max() < 3 * scale.max()
    if block is None:
        largest = np.abs(weights).argmax(axis=1)
        np.testing.assert_allclose(found[range(7), largest], weights[range(7), largest], rtol=1e-6)

    def error(rounded, inputs):
        return np.square(inputs @ (rounded - weights).T).sum()

    assert error(found, other) < 0.2 * error(nearest(weights, bits, block), other)


def test_inputs_that_are_never_there():
    weights = np.random.default_rng(1).normal(size=(3, 40)).astype("f4")
    x = correlated(100, 40)
    x[:, 5:20] = 0
    found = dequantized(*compensated(weights, x.T @ x, 8))
    np.testing.assert_allclose(found[:, 5:20], nearest(weights, 8, None)[:, 5:20], atol=1e-6)
    np.testing.assert_allclose(
        dequantized(*compensated(weights, np.zeros((40, 40), "f4"), 8)), nearest(weights, 8, None), atol=1e-6
    )
    assert not dequantized(*compensated(np.zeros((3, 40), "f4"), x.T @ x, 8)).any()


def test_sums_over_samples():
    x, gram = correlated(3000, 12), Gram(12)
    for start in range(0, 3000, 30):
        if not gram.full:
            gram.add(x[start : start + 30])
    np.testing.assert_allclose(gram.sum(), x[:120].T @ x[:120], rtol=1e-4)  # Eight times the weights, in whole batches.


def constants(content: bytes) -> dict[str, np.ndarray]:
    """The weights of a file's products as real numbers, by the name of the product's result."""
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    found = {}
    for operator in interpreter._get_ops_details():
        if operator["op_name"] in ("FULLY_CONNECTED", "CONV_2D"):
            weights = details[int(operator["inputs"][1])]
            values = interpreter.get_tensor(weights["index"]).astype("f4")
            scales = weights["quantization_parameters"]["scales"]
            result = details[int(operator["outputs"][0])]["name"]
            found[result] = (values.reshape(len(values), -1) * scales[:, None]) if len(scales) else values
    return found


@pytest.mark.parametrize("kind", ["dynamic_int8", "static_int8", "full_int8", "int16x8"])
def test_the_quantiser_finds_the_same_integers(float32, seen, kind):
    observed, rounding = seen
    rounded = {product.result: product.weights for product in products(rounding(float32, KINDS[kind]))}
    original = {product.result: product.weights for product in products(float32)}
    found = constants(quantize(float32, KINDS[kind], observed, rounding))
    assert len(found) == len(rounded) == 14
    for name, weights in rounded.items():
        names = [other for other in found if other.split("_requant")[0].split("_quant")[0].split("_dequant")[0] == name]
        np.testing.assert_allclose(found[names[0] if names else name], weights, atol=1e-6)
        assert np.abs(weights - original[name]).max() > 0


def test_products_of_the_same_inputs_share_what_was_seen(float32, seen):
    _, rounding = seen
    found = list(products(float32))
    # Queries, keys and values of two blocks.
    assert (len(found), len(rounding._grams)) == (14, 10)


def test_only_what_a_kind_rounds_is_changed(float32, seen):
    _, rounding = seen
    assert rounding(float32, KINDS["float16"]) == float32
    assert rounding(float32, KINDS["float32"]) == float32
    one = Kind("one", "", "", (Rule(("FULLY_CONNECTED",), layers="block_0_mlp"),))
    changed = [
        new.result
        for old, new in zip(products(float32), products(rounding(float32, one)), strict=True)
        if (old.weights != new.weights).any()
    ]
    assert len(changed) == 2
    assert all("block_0_mlp" in name for name in changed)


@pytest.mark.parametrize(("kind", "share"), [("int16x8", 0.7), ("int4", 0.5), ("dynamic_int8", 0.9)])
def test_files_are_nearer_to_the_model(model, float32, seen, pictures, kind, share):
    observed, rounding = seen
    exact = model.predict(pictures, verbose=0)

    def error(rounding: Rounding | None) -> float:
        logits = Classifier(quantize(float32, KINDS[kind], observed, rounding)).logits(pictures)
        return float(np.square(logits - exact).mean() ** 0.5)

    assert error(rounding) < share * error(None)


def test_pictures_decide_the_rounding_of_files(model, pictures, float32, seen, tmp_path):
    exact = model.predict(pictures, verbose=0)
    file = Classifier(to_tflite(model, tmp_path / "m.tflite", "dynamic_int8", [pictures]))
    nearest = Classifier(quantize(float32, KINDS["dynamic_int8"], seen[0]))
    errors = [np.square(classifier.logits(pictures) - exact).mean() for classifier in (file, nearest)]
    assert errors[0] < 0.81 * errors[1]


def test_without_pictures_weights_are_rounded_to_the_nearest(model, tmp_path):
    first = to_tflite(model, tmp_path / "a", "dynamic_int8").read_bytes()
    assert first == to_tflite(model, tmp_path / "b", "dynamic_int8", rounding="nearest").read_bytes()
    with pytest.raises(ValueError, match="rounding must be one of compensated, nearest"):
        to_tflite(model, tmp_path / "c", "dynamic_int8", rounding="up")


@pytest.mark.parametrize(("strides", "padding", "seen"), [(2, "valid", 1), (2, "same", 0), (1, "valid", 0)])
def test_convolutions_whose_windows_overlap_are_left(tmp_path, strides, padding, seen):
    inputs = keras.Input((9, 9, 3))
    x = keras.layers.Conv2D(4, 2, strides, padding)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    file = to_tflite(model, tmp_path / "m.tflite").read_bytes()
    found = [product for product in products(file) if product.operator == "CONV_2D"]
    assert len(found) == seen
    picture = np.random.default_rng(0).uniform(0, 255, (1, 9, 9, 3)).astype("float32")
    for product in found:
        _, bias = model.layers[1].get_weights()
        rows = product.rows(picture)
        assert rows.shape == (16, 12)
        expected = model.layers[1](picture).numpy().reshape(16, 4)
        np.testing.assert_allclose(rows @ product.weights.T + bias, expected, rtol=1e-4, atol=1e-3)
    to_tflite(model, tmp_path / "q.tflite", "full_int8", [np.repeat(picture, 4, axis=0)])


def test_convolutions_of_some_channels_are_left(tmp_path, pictures):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 2, 2)(inputs)
    x = keras.layers.Conv2D(8, 1, groups=4)(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    file = to_tflite(model, tmp_path / "m.tflite", "dynamic_int8", [pictures[:8]])
    exact = model.predict(pictures, verbose=0)
    assert np.abs(Classifier(file).logits(pictures) - exact).max() < 0.05 * np.abs(exact).max()


def test_weights_that_are_used_twice(tmp_path, pictures):
    """The first use decides how they are rounded; that their rows are no whole blocks is seen for both."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dense(40)(keras.layers.Flatten()(inputs))
    shared = keras.layers.Dense(40, "relu")
    model = keras.Model(inputs, keras.layers.Dense(3)(shared(shared(x))))
    exact = model.predict(pictures, verbose=0)
    for kind in ("int4", "static_int8"):
        file = to_tflite(model, tmp_path / kind, kind, [pictures[:32]])
        assert np.abs(Classifier(file).logits(pictures) - exact).max() < 0.1 * np.abs(exact).max()


def test_products_of_very_many_inputs_are_left(pictures, tmp_path, monkeypatch):
    from vit_keras.export import rounding

    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs / 255)))
    content = to_tflite(model, tmp_path / "m").read_bytes()
    assert rounding.Rounding(content)._grams
    monkeypatch.setattr(rounding, "MOST_INPUTS", 100)
    assert not rounding.Rounding(content)._grams


def calibrated(model: keras.Model, pictures: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    """What files of the calibrated kinds give of the pictures, rounded to the nearest, with whole ranges."""
    float32 = to_tflite(model, folder / "m.tflite").read_bytes()
    observed = observe(float32, (picture[None] for picture in pictures))
    kinds = {name: replace(kind, ranges="minmax") for name, kind in KINDS.items() if kind.calibrated}
    return {name: Classifier(quantize(float32, kind, observed)).logits(pictures) for name, kind in kinds.items()}


def changed(model: keras.Model, names: Collection[str], change: Callable[[list], list]) -> keras.Model:
    """A copy of a model, parts of some names with other weights."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for part in copy._flatten_layers():
        if part.name in names:
            part.set_weights(change(part.get_weights()))
    return copy


@pytest.mark.parametrize("share", [0, 1e-6])
def test_channels_of_tiny_weights_keep_their_bias(model, pictures, share, tmp_path):
    """A bias is an int32 in steps of its channel's scale: pruned channels have next to none."""

    def pruned(weights):
        kernel, bias = weights
        kernel[:, ::3] *= share
        bias[::3] += 1
        return [kernel, bias]

    model = changed(model, ["expand", "contract"], pruned)
    exact = model.predict(pictures, verbose=0)
    for kind, found in calibrated(model, pictures, tmp_path).items():
        assert relative_error(found, exact) < 0.03, kind


@pytest.mark.parametrize("zeroed", ["qkv", "expand", "attention_norm"])
def test_activations_that_are_zero_throughout_have_a_range(model, pictures, zeroed, tmp_path):
    """The quantiser's own would be so small that no runtime takes it, and biases would be lost."""
    model = changed(model, [zeroed], lambda weights: [0 * part for part in weights])
    exact = model.predict(pictures, verbose=0)
    for kind, found in calibrated(model, pictures, tmp_path).items():
        assert relative_error(found, exact) < 0.05, kind


def test_a_dead_layer_leaves_the_bias_behind_it(pictures, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    dead = keras.layers.Dense(8, activation="relu", bias_initializer=keras.initializers.Constant(-100.0))(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(dead))
    model.layers[-1].bias.assign([0.0, 1.0, 2.0, 3.0])
    for kind, found in calibrated(model, pictures, tmp_path).items():
        np.testing.assert_allclose(found, [[0, 1, 2, 3]] * len(pictures), atol=0.05, err_msg=kind)


def test_what_is_there_at_all_is_not_cut_to_nothing():
    few = Observed(np.zeros((1, 1), "f4"), np.full((1, 1), 7, "f4"), np.zeros(1000, "f4"))
    assert [float(end.item()) for end in few.cut("percentile")] == [0, 7]
    none = Observed(np.zeros((1, 1), "f4"), np.zeros((1, 1), "f4"), np.zeros(1000, "f4"))
    assert [float(end.item()) for end in none.cut("percentile")] == [0, 1]
