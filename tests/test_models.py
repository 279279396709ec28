"""Every preset: parameters as published at full depth, everything else at depth 2."""

import zipfile

import keras
import numpy as np
import pytest
from harness import check_classifier, randomise_zeros

from vit_keras import create_model, get_preset, list_models, load_model
from vit_keras.heads import classifier
from vit_keras.models import deit, deit3, vit

PUBLISHED = {
    "vit_base_patch16_224": 86_567_656,
    "vit_small_patch16_224": 22_050_664,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_large_patch16_224": 304_326_632,
    "vit_huge_patch14_224": 632_045_800,
}


@pytest.mark.parametrize("name", [name for name in list_models() if get_preset(name).parameters])
def test_parameter_count(name):
    """Extrapolated from depths 1 and 2, which is exact: all blocks are alike."""
    preset = get_preset(name)
    one, two = (create_model(name, num_layers=n).count_params() for n in (1, 2))
    assert one + (preset.arguments["num_layers"] - 1) * (two - one) == preset.parameters
    assert preset.parameters == PUBLISHED.get(name, preset.parameters)


def test_full_depth_count():
    assert create_model("vit_tiny_patch16_224").count_params() == 5_717_416


QUICK = [
    "vit_tiny_patch16_224",
    "vit_micro_patch2_8",
    "vit_mini_patch4_32",
    "vit_mini_patch8_64",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
]


@pytest.mark.parametrize("name", QUICK)
def test_preset(name, tmp_path):
    check_classifier(create_model(name, num_classes=5, num_layers=2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in list_models() if n not in QUICK])
def test_other_preset(name, tmp_path):
    check_classifier(create_model(name, num_classes=5, num_layers=2), tmp_path)


OPTIONS = {
    "average": {"pooling": "average"},
    "sincos": {"position_embedding": "sincos_2d"},
    "regularised": {"dropout_rate": 0.1, "attention_dropout_rate": 0.1, "drop_path_rate": 0.2, "layer_scale_init": 0.1},
    "no bias": {"use_qkv_bias": False},
    "not square": {"image_size": (16, 24)},
    "attention": {"pooling": "attention"},
    "sincos 1-D": {"position_embedding": "sincos_1d"},
    "no positions": {"position_embedding": "none"},
    "registers": {"pooling": "token", "position_embedding": "learned", "num_register_tokens": 4},
    "registers, average": {"num_register_tokens": 4},
    "tanh": {"approximate_gelu": True, "norm_epsilon": 1e-5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, tmp_path):
    options = {"image_size": 16, **OPTIONS[name]}
    check_classifier(create_model("vit_micro_patch2_8", 3, num_layers=2, patch_size=4, **options), tmp_path)


def test_backbone_outputs():
    outputs = vit(16, 4, 8, 1, 2, 16)(np.zeros((2, 16, 16, 3)))
    assert {k: tuple(v.shape) for k, v in outputs.items()} == {
        "tokens": (2, 16, 8),
        "prefix": (2, 1, 8),
        "pooled": (2, 8),
    }
    outputs = vit(16, 4, 8, 1, 2, 16, pooling="average")(np.ones((2, 16, 16, 3)))
    assert set(outputs) == {"tokens", "pooled"}
    np.testing.assert_allclose(outputs["pooled"], np.mean(outputs["tokens"], axis=1), atol=1e-5)


def test_distilled_outputs():
    outputs = deit(16, 4, 8, 1, 2, 16, distilled=True)(np.zeros((2, 16, 16, 3)))
    shapes = {k: tuple(v.shape) for k, v in outputs.items()}
    assert shapes == {"tokens": (2, 16, 8), "prefix": (2, 2, 8), "pooled": (2, 8), "pooled_distillation": (2, 8)}
    np.testing.assert_array_equal(outputs["pooled"], outputs["prefix"][:, 0])
    np.testing.assert_array_equal(outputs["pooled_distillation"], outputs["prefix"][:, 1])


def test_distilled_logits_are_the_mean_of_both_heads():
    model = classifier(deit(16, 4, 8, 1, 2, 16, distilled=True), 3)
    randomise_zeros(model)
    both = keras.Model(model.input, [model.get_layer(name).output for name in ("head", "head_distillation")])
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    first, second = (keras.ops.convert_to_numpy(y) for y in both(x))
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_allclose(model(x), (first + second) / 2, atol=1e-6)


@pytest.mark.parametrize("distilled", [False, True])
def test_deit_starts_as_its_code_does(distilled):
    model = deit(32, 4, 64, 2, 2, 128, distilled=distilled)
    kernels = [w for w in model.trainable_weights if w.name in ("kernel", "prefix") and "patch" not in w.path]
    assert len(kernels) == 8 + 1 + distilled
    for kernel in kernels:
        value = keras.ops.convert_to_numpy(kernel)
        assert np.abs(value).max() <= 0.04001  # Cut at two standard deviations.
        # The cut makes 0.0176 of 0.02; a sample of n has a relative spread of 0.6 / sqrt(n).
        assert abs(value.std() / 0.0176 - 1) < 4 * 0.6 / np.sqrt(value.size)


def test_positions_belong_to_patches_only_in_deit3_and_beside_registers():
    assert deit3(16, 4, 8, 1, 2, 16).get_layer("position_embedding").num_prefix == 0
    assert vit(16, 4, 8, 1, 2, 16, num_register_tokens=4).get_layer("position_embedding").num_prefix == 0
    assert deit(16, 4, 8, 1, 2, 16, distilled=True).get_layer("position_embedding").num_prefix == 2
    assert vit(16, 4, 8, 1, 2, 16).get_layer("position_embedding").num_prefix == 1


def test_registers_stand_between_class_token_and_patches():
    model = vit(16, 4, 8, 1, 2, 16, num_register_tokens=3)
    model.get_layer("class_token").set_weights([np.full((1, 1, 8), 7.0)])
    model.get_layer("register_tokens").set_weights([np.full((1, 3, 8), 5.0)])
    tokens = keras.Model(model.input, model.get_layer("block_0").input)(np.zeros((1, 16, 16, 3)))
    assert tokens.shape == (1, 20, 8)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tokens)[0, :4, 0], [7, 5, 5, 5])
    outputs = model(np.zeros((1, 16, 16, 3)))
    assert outputs["prefix"].shape == (1, 4, 8)
    np.testing.assert_array_equal(outputs["pooled"], outputs["prefix"][:, 0])


def test_representation_layer():
    model = create_model("vit_base_patch16_224_in21k", 5, 16, num_layers=1, hidden_dim=24, num_heads=2, mlp_dim=16)
    layer = model.get_layer("representation")
    assert layer.kernel.shape == (24, 24)
    assert layer.activation is keras.activations.tanh


@pytest.mark.parametrize(("policy", "jit_compile"), [("mixed_float16", False), ("mixed_bfloat16", True)])
def test_mixed_precision(policy, jit_compile):
    """Weights and logits stay float32, and two separable classes are learnt."""
    jit_compile = jit_compile or keras.backend.backend() == "jax"  # Which is always compiled for training.
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        model = create_model(
            "deit_tiny_distilled_patch16_224", 2, 16, patch_size=4, hidden_dim=32, num_layers=2, mlp_dim=64, num_heads=2
        )
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("block_0").compute_dtype == policy.removeprefix("mixed_")
    assert {w.dtype for w in model.weights} == {"float32"}
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64)
    images = (rng.uniform(0, 100, (64, 16, 16, 3)) + 150 * labels[:, None, None, None]).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=jit_compile)
    losses = model.fit(images, labels, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    logits = model.predict(images, verbose=0)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_presets_say_what_their_weights_expect():
    facts = {
        name: (preset.mean[0], preset.interpolation, preset.crop_fraction)
        for name, preset in ((name, get_preset(name)) for name in list_models())
    }
    assert facts["vit_base_patch16_224"] == (127.5, "bicubic", 0.9)
    assert facts["vit_base_patch16_384"] == (127.5, "bicubic", 1.0)
    assert facts["deit_base_patch16_224"] == (123.675, "bicubic", 0.9)
    assert facts["deit3_large_patch16_384"] == (123.675, "bicubic", 1.0)
    assert facts["vit_micro_patch4_32"] == (127.5, "bilinear", 1.0)


def test_pooled_is_the_normalised_class_token():
    model = vit(16, 4, 8, 2, 2, 16)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    normed = keras.Model(model.input, model.get_layer("norm").output)(x)
    np.testing.assert_allclose(model(x)["pooled"], normed[:, 0], atol=1e-6)


def test_preprocessing_normalises_pixels():
    with_pixels = create_model("vit_micro_patch2_8", 4)
    without = create_model("vit_micro_patch2_8", 4, include_preprocessing=False)
    randomise_zeros(with_pixels)
    without.set_weights(with_pixels.get_weights())
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3))
    np.testing.assert_allclose(with_pixels(pixels), without(pixels / 127.5 - 1), atol=1e-5)
    assert with_pixels.layers[1].name == "normalization"


def test_drop_path_rises_linearly():
    model = vit(16, 4, 8, 5, 2, 16, drop_path_rate=0.4)
    np.testing.assert_allclose(
        [model.get_layer(f"block_{i}").drop_path_rate for i in range(5)], [0, 0.1, 0.2, 0.3, 0.4]
    )


def test_model_is_flat_and_loads_with_plain_keras(tmp_path):
    model = create_model("vit_micro_patch2_8", 4)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    model.save(tmp_path / "m.keras")
    assert keras.models.load_model(tmp_path / "m.keras").count_params() == model.count_params()


def test_a_file_of_endless_brackets_is_refused(tmp_path):
    create_model("vit_micro_patch2_8", 4).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as model, zipfile.ZipFile(tmp_path / "deep.keras", "w") as deep:
        for name in model.namelist():
            deep.writestr(name, "[" * 100_000 if name == "config.json" else model.read(name))
    with pytest.raises(ValueError, match=r"deep\.keras cannot be loaded as a Keras model: "):
        load_model(tmp_path / "deep.keras")


def test_fit_on_arrays():
    """Inside a user's own program: two separable classes are learnt."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 256)
    images = rng.uniform(0, 100, (256, 8, 8, 3)) + 150 * labels[:, None, None, None] * (np.arange(8) < 4)[:, None, None]
    model = create_model("vit_micro_patch2_8", 2, num_layers=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, metrics=["accuracy"])
    model.fit(images, labels, epochs=3, verbose=0)
    assert model.evaluate(images, labels, verbose=0)[1] > 0.95


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: create_model("vit_base_patch16_225"), "Did you mean 'vit_base_patch16_224'"),
        (lambda: create_model("vit_micro_patch2_8", num_layer=2), "Did you mean 'num_layers'"),
        (lambda: create_model("vit_micro_patch2_8", image_size=9), r"image_size=\(9, 9\), patch_size=2"),
        (lambda: create_model("vit_micro_patch2_8", num_classes=1), "num_classes=1"),
        (lambda: create_model("vit_micro_patch2_8", pooling="max"), "pooling='max'"),
        (lambda: create_model("vit_micro_patch2_8", position_embedding="x"), "position_embedding='x'"),
        (lambda: create_model("vit_micro_patch2_8", num_layers=0), "num_layers=0"),
        (lambda: create_model("vit_micro_patch2_8", num_register_tokens=-1), "num_register_tokens=-1"),
        (lambda: create_model("deit_tiny_patch16_224", drop_path_rate=1.0), "drop_path_rate=1.0"),
        (lambda: classifier(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), 3), "pooled"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
