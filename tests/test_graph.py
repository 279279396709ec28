"""Copies of models: what they compute, what stays alive of them, and layers that cannot be made a second time."""

import gc
import weakref

import keras
import numpy as np
import pytest
from harness import randomise_zeros
from keras import ops

from vit_keras import load_model
from vit_keras.adaptation import adapt, merge_lora
from vit_keras.export import Classifier, rewrite, to_saved_model, to_tflite
from vit_keras.export.sensitivity import relative_error
from vit_keras.graph import as_classifier, flat_copy
from vit_keras.heads import classifier
from vit_keras.layers import LayerNormalization, PatchEmbedding, PrefixTokens, TransformerBlock
from vit_keras.models import vit
from vit_keras.precision import precision
from vit_keras.weights import resize


class Unnamed(keras.layers.Layer):
    """A layer without a configuration that it can be made of."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def build(self, input_shape):
        self.offset = self.add_weight(name="offset", shape=(input_shape[-1],), initializer="normal")

    def call(self, x):
        return x * self.factor + self.offset


class Projection(keras.Model):
    """A model of a class of its own."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(16)

    def call(self, x):
        return self.dense(x)


def on_tokens(before=lambda x: x, between=lambda x: x, behind=lambda x: x[:, 0]) -> keras.Model:
    """A classifier of one block with something before the patches, before the last LayerNorm and behind it."""
    inputs = keras.Input((8, 8, 3))
    x = PrefixTokens(initializer="glorot_uniform")(PatchEmbedding(4, 16)(before(inputs)))
    x = LayerNormalization()(between(TransformerBlock(2, 32)(x=x)))
    return keras.Model(inputs, keras.layers.Dense(4)(inputs=behind(x)))


def mean(x):
    return keras.layers.GlobalAveragePooling1D()(x)


def foreign() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, keras.layers.Dense(4)(ops.mean(Projection()(Unnamed(2)(inputs)), axis=(1, 2))))


def named_as_the_input() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="pixels")
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten(name="images")(inputs)))


def twins() -> keras.Model:
    """Two loaded models whose operations have the same names."""
    inputs = keras.Input((8, 8, 3))
    one = keras.Model(inputs, keras.layers.Dense(4)(ops.mean(inputs / 255, axis=(1, 2))), name="one")
    other = keras.models.model_from_json(one.to_json())
    other.name = "other"
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, one(inputs) + other(inputs))


MODELS = {
    "operations": lambda: on_tokens(lambda x: x / 255, behind=lambda x: x[:, 0] + ops.mean(x, axis=1)),
    "own_model": lambda: on_tokens(behind=lambda x: mean(Projection()(x))),
    "own_layer": lambda: on_tokens(Unnamed(0.01), behind=lambda x: Unnamed(3)(mean(x))),
    "by_name": lambda: on_tokens(between=lambda x: keras.layers.Dropout(0.1)(inputs=x), behind=mean),
    "offset_of_rank_4": lambda: on_tokens(
        keras.layers.Rescaling([1 / 60, 1 / 55, 1 / 50], np.reshape([1.0, 2.0, 3.0], (1, 1, 1, 3))), behind=mean
    ),
    "offset_per_row": lambda: on_tokens(
        keras.layers.Rescaling(1 / 60, np.linspace(0, 1, 8).reshape(8, 1, 1)), behind=mean
    ),
    "foreign": foreign,
    "named_as_the_input": named_as_the_input,
    "twins": twins,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("copied", [rewrite, lambda model: keras.Model(*flat_copy(model))], ids=["rewrite", "flat"])
def test_a_copy_computes_the_same_and_is_freed(name, copied, pictures):
    model = MODELS[name]()
    calls = [len(operation._inbound_nodes) for operation in model.operations]
    expected = model.predict(pictures, verbose=0)
    copy = copied(model)
    assert relative_error(copy.predict(pictures, verbose=0), expected) < 1e-5
    assert [len(operation._inbound_nodes) for operation in model.operations] == calls
    alive = weakref.ref(copy)
    del copy
    gc.collect()
    assert alive() is None


def normalized(pictures) -> keras.Model:
    """A classifier with a layer that computes with what Keras makes of its weights when it loads them."""
    normalization = keras.layers.Normalization(name="normalization")
    normalization.adapt(pictures / 2)
    inputs = keras.Input((8, 8, 3))
    sizes = {"image_size": 8, "patch_size": 4, "hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
    model = classifier(vit(**sizes, input_tensor=normalization(inputs)), 4)
    randomise_zeros(model)
    return model


def test_what_was_adapted_stays_so_in_copies_that_train_or_take_other_sizes(pictures, tmp_path):
    model = normalized(pictures)
    expected = model.predict(pictures, verbose=0)
    lora = adapt(model, "lora", rank=2)
    model.save(tmp_path / "m.keras")
    for copy in (lora, merge_lora(lora), resize(model, 8)):
        np.testing.assert_allclose(copy.predict(pictures, verbose=0), expected, atol=1e-5)
    large = load_model(tmp_path / "m.keras", image_size=16).get_layer("normalization")
    np.testing.assert_array_equal(large(pictures), model.get_layer("normalization")(pictures))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_models_of_their_own_class_leave_mixed_precision(policy, pictures, tmp_path):
    class Whole(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), Projection()])

        def call(self, x):
            return self.parts(x)

    import tensorflow as tf

    with precision(policy):
        whole, inputs = Whole(), keras.Input((8, 8, 3))
        whole(pictures[:1])
        nested = keras.Model(inputs, Projection()(keras.layers.Flatten()(inputs)))
    for model in (whole, nested):
        expected = np.asarray(ops.cast(model(pictures), "float32"))
        for path in (tmp_path / "saved_model", tmp_path / "m.tflite"):
            (to_tflite if path.suffix else to_saved_model)(model, path, overwrite=True)
        assert relative_error(Classifier(path).logits(pictures), expected) < 0.01
        serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
        logits = serve(images=tf.constant(pictures))["logits"]
        assert logits.dtype == tf.float32
        assert relative_error(logits.numpy(), expected) < 0.01
        assert {part.compute_dtype for part in model._flatten_layers()} <= {policy.removeprefix("mixed_"), "float32"}
        assert model.dtype_policy.name == policy


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match=r"model must know what it takes: build it.* Received: model='unbuilt'"):
        as_classifier(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)], name="unbuilt"))
