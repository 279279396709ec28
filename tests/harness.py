"""Checks that every layer and every preset passes, so that a new one's own test is short."""

import inspect
from pathlib import Path

import keras
import numpy as np

import vit_keras


def check_layer(layer: keras.layers.Layer, shape: tuple[int, ...], output_shape: tuple[int, ...], folder: Path) -> None:
    """Builds, calls, saves and loads a layer; trains one step if it has weights.

    Args:
        layer: A fresh layer.
        shape: Of one batch of its input.
        output_shape: Expected, of the same batch.
        folder: Where a file may be written.
    """
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    inherited = {"args", *inspect.signature(keras.layers.Layer.__init__).parameters}
    own = set(inspect.signature(type(layer).__init__).parameters) - inherited
    assert set(config) - inherited == own

    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, *output_shape[1:])
    y = keras.ops.convert_to_numpy(model(x))
    assert y.shape == output_shape
    assert np.isfinite(y).all()

    file = folder / "layer.keras"
    model.save(file)
    np.testing.assert_allclose(vit_keras.load_model(file)(x), y, atol=1e-6)

    mixed = type(layer).from_config({**config, "dtype": "mixed_bfloat16"})
    z = mixed(x)
    assert keras.backend.standardize_dtype(z.dtype) == "bfloat16"
    assert z.shape == y.shape

    if model.trainable_weights:
        before = [w.copy() for w in layer.get_weights()]
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, np.zeros_like(y) + 2, verbose=0)
        assert any((a != b).any() for a, b in zip(before, layer.get_weights(), strict=True))


def check_classifier(model: keras.Model, folder: Path) -> None:
    """Checks shapes, saving, one train step, and that the float32 TensorFlow Lite file says the same."""
    num_classes = model.output_shape[-1]
    x = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [w.copy() for w in model.get_weights()]
    model.fit(x, np.array([0, num_classes - 1]), verbose=0)
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    randomise_zeros(model)

    logits = model.predict(x, verbose=0)
    assert logits.shape == (2, num_classes)
    file = folder / "model.keras"
    model.save(file)
    np.testing.assert_allclose(vit_keras.load_model(file).predict(x, verbose=0), logits, atol=1e-5)

    if keras.backend.backend() != "tensorflow":
        return  # TensorFlow's is the backend that exports.
    from vit_keras.export import Classifier, to_tflite

    classifier = Classifier(to_tflite(model, folder / "model.tflite"))
    np.testing.assert_allclose(classifier.logits(x), logits, atol=1e-4)
    assert classifier.operators().delegate_partitions == 1
    assert not {"NEG", "FlexTranspose", "SHAPE", "PACK", "GATHER"} & set(classifier.operators().names)


def randomise_zeros(model: keras.Model) -> None:
    """Gives what starts at zero, heads and the class token, random weights: logits say something then."""
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if variable.name == "prefix" or (variable.name == "kernel" and variable.path.startswith("head")):
            variable.assign(rng.normal(0, 0.5 if variable.name == "prefix" else 0.1, variable.shape))


def packed(model) -> bytes:
    """Returns a `schema.ModelT` as the content of a TensorFlow Lite file."""
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def without_ends(content: bytes) -> bytes:
    """Returns a TensorFlow Lite file that takes nothing, does nothing and gives nothing, of one that does."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    model.signatureDefs = []
    for graph in model.subgraphs:
        graph.inputs, graph.operators, graph.outputs = [], [], []
    return packed(model)
