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
from vit_keras.export import Classifier, rewrite, to_saved_model, to_tflite, verify
from vit_keras.export.exactness import scores_of
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


class Told(Unnamed):
    """A layer that tells its policy by name."""

    def __init__(self, **kwargs):
        super().__init__(2)
        self.dtype_policy = kwargs.get("dtype", self.dtype_policy)

    def get_config(self):
        return {"dtype": self.dtype_policy.name}


def adapted(wrap) -> keras.Model:
    """LoRA inside a wrapper, and in a layer that asks for it when it is built."""
    dense = keras.layers.Dense(16)
    inputs = keras.Input((8, 8, 3))
    x = wrap(dense)(keras.layers.Reshape((8, 24))(inputs))
    if not dense.lora_enabled:
        dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.random.default_rng(0).normal(size=dense.lora_kernel_b.shape))
    return keras.Model(inputs, keras.layers.Dense(4)(mean(x)))


class Asking(keras.layers.Layer):
    def __init__(self, dense=None, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense or keras.layers.Dense(16)

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.dense.enable_lora(2)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return super().get_config()


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
    "lora_in_a_wrapper": lambda: adapted(keras.layers.TimeDistributed),
    "lora_when_built": lambda: adapted(Asking),
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


@pytest.mark.parametrize("floatx", ["float16", "float64"])
def test_files_do_not_depend_on_the_type_of_numbers_that_is_set(floatx, pictures, tmp_path):
    keras.config.set_floatx(floatx)
    try:
        with precision(floatx):
            model = normalized(pictures)
        expected = model.predict(pictures, verbose=0).astype("float32")
        file = to_tflite(model, tmp_path / "m.tflite", "full_int8", [pictures])
    finally:
        keras.config.set_floatx("float32")
    assert Classifier(file).operators().float == 0
    assert relative_error(Classifier(file).logits(pictures), expected) < 0.2


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_that_is_asked_for_by_name_becomes_float32(policy, pictures, tmp_path):
    with precision(policy):
        inputs = keras.Input((8, 8, 3))
        x = ops.cast(mean(keras.layers.Reshape((64, 3))(Told()(inputs))), policy.removeprefix("mixed_")) / 16
        model = keras.Model(inputs, keras.layers.Dense(4, dtype="float32")(x))
    file = to_tflite(model, tmp_path / "m.tflite")
    assert "CAST" not in Classifier(file).operators().names
    expected = np.asarray(ops.cast(model(pictures), "float32"))
    assert relative_error(Classifier(file).logits(pictures), expected) < 0.01


def test_what_keras_has_quantised_is_refused(tmp_path):
    model = foreign()
    model.layers[-1].quantize("int8")
    with pytest.raises(ValueError, match=r"as it was before Keras's `quantize`.* with int8 in 'dense"):
        to_tflite(model, tmp_path / "m.tflite")


class Chances(keras.Model):
    """A model of a class of its own, the softmax of which nobody sees."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4, activation="softmax")
        self.flatten = keras.layers.Flatten()

    def call(self, x):
        return self.dense(self.flatten(x / 255))


def ending(behind, activation="linear") -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, behind(keras.layers.Dense(4, activation=activation)(x)))


SOFTMAXES = {
    "activation": lambda: ending(lambda x: x, "softmax"),
    "operation": lambda: ending(lambda x: x, ops.softmax),
    "layer_as_activation": lambda: ending(lambda x: x, keras.layers.Softmax()),
    "layer": lambda: ending(keras.layers.Softmax()),
    "in_float32": lambda: ending(keras.layers.Activation("linear", dtype="float32"), "softmax"),
    "nested": lambda: keras.Sequential([keras.Input((8, 8, 3)), ending(lambda x: x, "softmax")]),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_is_taken_off_and_nothing_stays_of_it(name, pictures):
    model = SOFTMAXES[name]()
    logits = as_classifier(model).predict(pictures, verbose=0)
    np.testing.assert_allclose(ops.softmax(logits), model.predict(pictures, verbose=0), atol=1e-6)
    assert logits.min() < 0
    copy = as_classifier(model)
    head = weakref.ref(copy.layers[-1])
    mine = [layer.name for layer in model.layers]
    del copy
    gc.collect()
    assert head() is None or head().name in mine


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_a_softmax_that_nobody_sees_is_not_taken_twice(output, pictures, tmp_path, caplog):
    import tensorflow as tf

    model = Chances()
    expected = np.asarray(model(pictures))
    file = to_tflite(model, tmp_path / "m.tflite", output=output)
    np.testing.assert_allclose(Classifier(file).logits(pictures), expected, atol=1e-5)
    assert ("files give probabilities" in caplog.text) == (output == "logits")
    assert b"probabilities" in file.read_bytes()
    proof = verify(model, {"m": file}, [(pictures, expected.argmax(axis=1))])["m"]
    assert proof.agreement.max_abs_logit_error < 1e-5
    serve = tf.saved_model.load(str(to_saved_model(model, tmp_path / "saved"))).signatures["serving_default"]
    served = serve(images=tf.constant(pictures))
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(tf.nn.softmax(served["logits"]), expected, atol=1e-5)


def test_files_of_probabilities_are_held_against_probabilities(model, pictures, tmp_path):
    file = to_tflite(model, tmp_path / "m.tflite", output="probabilities")
    labels = model.predict(pictures, verbose=0).argmax(axis=1)
    assert verify(model, {"m": file}, [(pictures, labels)])["m"].agreement.max_abs_logit_error < 1e-5


def test_whole_pixels_are_compared_where_a_model_takes_integers(pictures, tmp_path):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 8, -4)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    file = to_tflite(model, tmp_path / "m.tflite", "full_int8", [pictures * 0.987])
    expected = model.predict(pictures, verbose=0)
    assert relative_error(Classifier(file).logits(pictures), expected) < 0.05


def test_copies_are_compared_in_all_digits(model, monkeypatch):
    """GPUs multiply with ten bits of each number unless they are told; a copy then differs by more than is allowed."""
    from tensorflow import config

    seen = []
    monkeypatch.setattr(type(model), "call", lambda self, *args, **kwargs: seen.append(_all_digits()) or 0.0)

    def _all_digits() -> bool:
        return config.experimental.tensor_float_32_execution_enabled()

    before = _all_digits()
    scores_of(model)
    assert seen == [False]
    assert _all_digits() == before


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match=r"model must know what it takes: build it.* Received: model='unbuilt'"):
        as_classifier(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)], name="unbuilt"))
