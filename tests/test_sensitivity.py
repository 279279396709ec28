"""Accuracy budgets: which layers lose most, and how few of them are relaxed."""

import re

import keras
import numpy as np
import pytest

from vit_keras.export import KINDS, Classifier, to_tflite, to_tflite_within
from vit_keras.export.calibrate import observe
from vit_keras.export.conversion import Graph, quantize
from vit_keras.export.exactness import accuracy_of
from vit_keras.export.quantize import layer_of, layer_pattern
from vit_keras.export.sensitivity import Relaxation, layer_errors, layers_of, relative_error, relax


@pytest.fixture(scope="module")
def observed(float32, pictures):
    return observe(float32, (p[None] for p in pictures[:16]))


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("vit_1/block_0_attention_1/qkv_1/MatMul;vit_1/block_0_attention_1/qkv_1/BiasAdd", "block_0_attention"),
        (";vit_1/block_0_mlp_1/add", "block_0_mlp"),
        ("vit/dense_1/MatMul", "dense_1"),
        ("vit_1/dense_1_1/MatMul", "dense_1"),
        ("PartitionedCall:0", "output"),
    ],
)
def test_layer_of_a_tensor(tensor, layer):
    assert layer_of(tensor) == layer
    assert re.search(layer_pattern(layer), tensor + ";")
    assert not re.search(layer_pattern("block_0"), tensor + ";")


def test_layers_are_found_in_order(float32):
    block = ("attention_norm", "attention", "attention_add", "mlp_norm", "mlp", "mlp_add")
    blocks = [f"block_{i}_{part}" for i in range(2) for part in block]
    assert layers_of(float32) == ("patch_embedding", "position_embedding", *blocks, "norm", "pooled", "output")


@pytest.mark.parametrize("kind", ["static_int8", "full_int8"])
def test_errors_of_layers(float32, observed, pictures, kind):
    errors = {
        error.layer: error
        for error in layer_errors(float32, KINDS[kind], pictures[:8], Graph(float32, observed, None).make)
    }
    if kind == "full_int8":
        assert set(errors) == set(layers_of(float32))
    else:
        products = {"patch_embedding", "output"} | {
            f"block_{i}_{part}" for i in range(2) for part in ("attention", "mlp")
        }
        assert set(errors) == products
    assert all(0 < error.alone < 0.2 and 0 < error.own < 0.5 for error in errors.values())
    everything = Classifier(quantize(float32, KINDS[kind], observed)).logits(pictures[:8])
    together = relative_error(everything, Classifier(float32).logits(pictures[:8]))
    alone = np.array([error.alone for error in errors.values()])
    # Errors of different layers are nearly independent, so that their squares add up.
    assert 0.4 < together / np.sqrt((alone**2).sum()) < 2.5


@pytest.mark.parametrize(
    ("reference", "error"), [([[1, 3], [5, 7]], 0.1), ([[2, 2], [2, 2]], 0.05), ([[0, 0], [0, 0]], 0.1)]
)
def test_relative_errors_of_logits_without_a_spread(reference, error):
    reference = np.array(reference, float)
    assert relative_error(reference, reference) == 0
    assert relative_error(reference + 0.1, reference) == pytest.approx(error)


def test_relaxed_layers_are_computed_more_finely(float32, observed, pictures):
    layers = ["block_0_attention", "block_1_mlp"]
    exact = Classifier(float32).logits(pictures)

    def made(kind):
        classifier = Classifier(quantize(float32, kind, observed))
        return relative_error(classifier.logits(pictures), exact), classifier.operators()

    for name in ("static_int8", "full_int8"):
        error, _ = made(KINDS[name])
        relaxed_error, census = made(KINDS[name].relaxed(layers))
        all_error, _ = made(KINDS[name].relaxed(layers_of(float32)))
        assert all_error < 0.95 * error
        assert all_error < relaxed_error < 1.1 * error
        assert (census.float == 0) == (name == "full_int8")  # int16 keeps a file integer throughout.
    assert KINDS["full_int8"].relaxed([]) is KINDS["full_int8"]


@pytest.mark.parametrize(
    ("needed", "tried", "relaxed"),
    [
        (0, [0], 0),
        (1, [0, 1], 1),
        (3, [0, 1, 2, 4, 3], 3),
        (6, [0, 1, 2, 4, 8, 6, 5], 6),
        (9, [0, 1, 2, 4, 8, 9], 9),
    ],
)
def test_as_few_layers_as_needed_are_relaxed(needed, tried, relaxed):
    layers = [f"layer_{i}" for i in range(9)]
    calls = []

    def drop_of(chosen):
        assert list(chosen) == layers[: len(chosen)]
        calls.append(len(chosen))
        return 0.4 if len(chosen) >= needed else 0.7

    found = relax(lambda: layers, drop_of, 0.5)
    assert calls == tried
    assert found == Relaxation(0.4, 0.7 if needed else 0.4, tuple(layers[:relaxed]), True)


def test_a_budget_that_cannot_be_kept():
    found = relax(lambda: ["a", "b", "c"], lambda chosen: 9.0 - len(chosen), 0.5)
    assert found == Relaxation(6.0, 9.0, ("a", "b", "c"), False)


def test_files_within_a_budget(model, pictures, tmp_path):
    labels = model.predict(pictures, verbose=0).argmax(axis=1)
    paths = {kind: tmp_path / f"{kind}.tflite" for kind in ("float32", "static_int8", "int4")}
    held = pictures, labels[:, None]  # A column of labels is as good.
    found = to_tflite_within(model, paths, [pictures[:16]], held, {"static_int8": 100, "int4": 0})
    assert set(found) == {"static_int8", "int4"}  # float32 has nothing to relax.
    assert found["static_int8"].layers == ()
    int4 = found["int4"]
    drop = 100 * (1 - np.mean(Classifier(paths["int4"]).logits(pictures).argmax(axis=1) == labels))
    assert int4.drop == pytest.approx(drop)
    assert int4.within == (int4.drop <= 0)
    assert int4.first_drop > 0 and int4.layers
    assert paths["int4"].stat().st_size < paths["float32"].stat().st_size / 2


def test_what_merged_patches_lose_counts(model, pictures, tmp_path):
    labels = model.predict(pictures, verbose=0).argmax(axis=1)
    paths = {kind: tmp_path / f"{kind}.tflite" for kind in ("float32", "dynamic_int8")}
    found = to_tflite_within(model, paths, [pictures[:16]], (pictures, labels), 0, merge_tokens=0.5)
    for kind, path in paths.items():
        drop = 100 * (1 - np.mean(Classifier(path).logits(pictures).argmax(axis=1) == labels))
        assert found[kind].drop == pytest.approx(drop)
        assert found[kind].within == (drop <= 0)
        assert found[kind].layers == ()  # No layer can win back what is lost by merging alone.
    assert found["float32"].drop > 0


def test_pictures_are_not_rounded_before_a_model_is_held_to_its_own_accuracy(model):
    inputs = keras.Input((8, 8, 3))
    mean = keras.layers.GlobalAveragePooling2D()(inputs)[:, :1]
    dark = keras.Model(inputs, keras.ops.concatenate([keras.ops.zeros_like(mean) + 0.45, mean], axis=1))
    pictures = np.random.default_rng(0).uniform(0, 1, (200, 8, 8, 3)).astype("float32")
    assert accuracy_of(dark, pictures, dark.predict(pictures, verbose=0).argmax(axis=1)) == 100


@pytest.mark.parametrize("batch", [None, 5])
def test_accuracy_of_a_model_whatever_its_batch(model, pictures, batch):
    inputs = keras.Input(batch_shape=(batch, 8, 8, 3))
    right = model.predict(pictures, verbose=0).argmax(axis=1)
    right[:16] += 1
    assert accuracy_of(keras.Model(inputs, model(inputs)), pictures, right) == 75


@pytest.mark.parametrize(
    ("images", "max_drop", "words"),
    [
        (np.zeros((0, 8, 8, 3)), 1, "0 and 0"),
        (np.zeros((2, 8, 8, 3)), -1, "max_drop=-1"),
        (np.zeros((2, 9, 8, 3)), 1, r"\(8, 8, 3\)\. Received: shape=\(2, 9, 8, 3\)"),
    ],
)
def test_wrong_budgets(model, tmp_path, images, max_drop, words):
    with pytest.raises(ValueError, match=words):
        held = images, np.zeros(len(images), int)
        to_tflite_within(model, {"static_int8": tmp_path / "m"}, [images], held, max_drop)
    assert not list(tmp_path.iterdir())


def test_lambda_layers_are_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.Sequential([keras.layers.Lambda(lambda x: x / 255, name="mine")])(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    with pytest.raises(ValueError, match="'mine'"):
        to_tflite(model, tmp_path / "m.tflite")
