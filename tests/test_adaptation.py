"""Ways to adapt a model: what trains, what prompts and LoRA compute, and that files, sizes and export go on working."""

import keras
import numpy as np
import pytest
from harness import randomise_zeros

import vit_keras
from vit_keras import adapt, count_parameters, create_model, merge_lora
from vit_keras.adaptation import METHODS
from vit_keras.explain import attention_model, rollout_maps
from vit_keras.layers import LearnedPositionEmbedding, PromptTokens, TransformerBlock
from vit_keras.layers.dense import LORA_WEIGHTS
from vit_keras.models import deit, deit3
from vit_keras.weights import load, resize, save_timm

D, MLP, LAYERS, CLASSES = 96, 192, 2, 4
SMALL = {"image_size": 8, "patch_size": 2, "hidden_dim": 24, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
PROMPTS = ("prompt_shallow", "prompt_deep")


def small(**overrides) -> keras.Model:
    """A pretrained model, as far as a test needs one: its head says something."""
    model = create_model("vit_micro_patch2_8", CLASSES, num_layers=LAYERS, **overrides)
    randomise_zeros(model)
    return model


def built(builder, **arguments) -> keras.Model:
    """The same of a builder whose small first weights would hide what prompts do."""
    pictures = keras.layers.Rescaling(1 / 127.5, -1, name="normalization")(keras.Input((8, 8, 3), name="images"))
    model = vit_keras.heads.classifier(builder(**SMALL, input_tensor=pictures, **arguments), CLASSES)
    rng = np.random.default_rng(2)
    for weight in model.trainable_variables:
        if weight.name == "kernel":
            weight.assign(rng.normal(0, np.prod(weight.shape[:-1]) ** -0.5, weight.shape))
    randomise_zeros(model)
    return model


MODELS = {
    "token": lambda: small(pooling="token", position_embedding="learned"),
    "average": lambda: small(),
    "attention": lambda: small(pooling="attention"),
    "registers": lambda: small(pooling="token", num_register_tokens=3),
    "registers, average": lambda: small(num_register_tokens=3),
    "deit": lambda: built(deit),
    "distilled": lambda: built(deit, distilled=True),
    "deit3": lambda: built(deit3, layer_scale_init=0.5),
}


def pixels(count: int = 4, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype("float32")


def logits(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x, training=False)).astype("float32")


def values(model: keras.Model) -> dict[str, np.ndarray]:
    return {weight.path: keras.ops.convert_to_numpy(weight).copy() for weight in model.weights}


def step(model: keras.Model, x: np.ndarray, steps: int = 2) -> None:
    if not model.compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss)
    for _ in range(steps):
        model.train_on_batch(x, np.arange(len(x)) % CLASSES)


def strengthen(model: keras.Model) -> keras.Model:
    """Gives what adaptation has added large random numbers, as a long training would: it does a lot then."""
    rng = np.random.default_rng(3)
    for weight in model.trainable_variables:
        if weight.name in ("prompts", "lora_kernel_b"):
            weight.assign(rng.normal(0.1, 0.7, weight.shape))
    return model


# What trains


def trains(method: str, path: str) -> bool:
    layer, name = path.partition("/")[0], path.rpartition("/")[2]
    return (
        method == "full"
        or layer == "head"
        or (method == "bitfit" and name in ("bias", "beta"))
        or (method == "lora" and name in LORA_WEIGHTS)
        or name == "prompts"
    )


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_meant_changes(method):
    original = small(pooling="token", position_embedding="learned")
    before_original = values(original)
    model = adapt(original, method)
    expected = {w.path for w in model.weights if trains(method, w.path)}
    assert {w.path for w in model.trainable_weights} == expected
    before = values(model)
    step(model, pixels(), 3)
    after = values(model)
    assert {path for path in after if (after[path] != before[path]).any()} == expected
    for path, value in values(original).items():
        np.testing.assert_array_equal(value, before_original[path])


def test_counts_equal_the_formulas():
    model = small()
    total = sum(int(np.prod(w.shape)) for w in model.weights)
    head = (D + 1) * CLASSES
    per_block = {"qkv": 3 * D, "out": D, "expand": MLP, "contract": D}
    assert model.get_layer("block_0").mlp_dim == MLP

    def counted(method, **options):
        return count_parameters(adapt(model, method, **options))

    assert counted("full") == vit_keras.adaptation.ParameterCount(total, total)
    assert counted("head").trainable == head
    # The products' biases and the two betas of each block, the patch projection's bias, the last beta.
    assert counted("bitfit").trainable == head + LAYERS * (sum(per_block.values()) + 2 * D) + 2 * D
    lora = LAYERS * 5 * ((D + 3 * D) + (D + D))
    assert counted("lora", rank=5) == vit_keras.adaptation.ParameterCount(head + lora, total + lora)
    mlp = LAYERS * 3 * ((D + MLP) + (MLP + D))
    assert counted("lora", rank=3, targets=("contract", "expand")).trainable == head + mlp
    assert counted("prompt_shallow", num_prompts=7).trainable == head + 7 * D
    deep = counted("prompt_deep", num_prompts=7)
    assert (deep.trainable, deep.total) == (head + LAYERS * 7 * D, total + LAYERS * 7 * D)
    assert str(counted("head")) == f"{head:,} of {total:,} parameters train ({head / total:.2%})"


def test_both_heads_of_a_distilled_model_train():
    model = adapt(MODELS["distilled"](), "head")
    assert {w.path.partition("/")[0] for w in model.trainable_weights} == {"head", "head_distillation"}


def test_the_representation_layer_is_no_head():
    model = small(pooling="token")
    backbone = vit_keras.models.vit(**SMALL)
    model = vit_keras.heads.classifier(backbone, CLASSES, representation=True)
    assert {w.path for w in adapt(model, "head").trainable_weights} == {"head/kernel", "head/bias"}
    assert "representation/bias" in {w.path for w in adapt(model, "bitfit").trainable_weights}


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_backbone_drops_nothing(method):
    model = adapt(small(dropout_rate=0.3, drop_path_rate=0.5, attention_dropout_rate=0.3), method, seed=0)
    randomise_zeros(model)
    x = pixels(8)
    runs = [keras.ops.convert_to_numpy(model(x, training=True)) for _ in range(2)]
    still = method == "head" or method in PROMPTS
    assert (np.abs(runs[0] - runs[1]).max() == 0) == still
    if still:
        np.testing.assert_allclose(runs[0], logits(model, x), rtol=1e-4, atol=1e-4)
        thawed = adapt(model, "full")
        assert np.abs(keras.ops.convert_to_numpy(thawed(x, training=True)) - runs[0]).max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["token", "distilled"])
def test_adapting_starts_from_the_same_function(name, method):
    """All but prompts, which take some of the attention from the first step on."""
    model, x = MODELS[name](), pixels()
    difference = np.abs(logits(adapt(model, method), x) - logits(model, x)).max()
    assert difference < 1e-5 if method not in PROMPTS else difference > 1e-5


def test_seeds_decide_what_is_random():
    model = small()
    for method, name in (("lora", "lora_kernel_a"), ("prompt_deep", "prompts")):
        starts = [
            [v for path, v in values(adapt(model, method, seed=seed)).items() if path.endswith(name)]
            for seed in (1, 1, 2)
        ]
        assert len(starts[0]) >= 2
        for same, again, other in zip(*starts, strict=True):
            np.testing.assert_array_equal(same, again)
            assert (same != other).any()
        assert all((a != b).any() for a, b in zip(starts[0][:-1], starts[0][1:], strict=True) if a.shape == b.shape)


# LoRA


@pytest.mark.parametrize("targets", [("qkv", "out"), ("expand", "contract"), ("qkv",)])
def test_lora_is_merged_into_a_plain_model(targets, tmp_path):
    model, x = small(position_embedding="learned"), pixels()
    adapted = adapt(model, "lora", rank=3, alpha=5, targets=targets)
    step(adapted, x)
    strengthen(adapted)
    expected = logits(adapted, x)
    assert np.abs(expected - logits(model, x)).max() > 0.1
    block, plain = adapted.get_layer("block_1"), merge_lora(adapted)
    assert not any(name in weight.path for weight in plain.weights for name in LORA_WEIGHTS)
    assert "lora" not in plain.to_json()
    assert [w.path for w in plain.weights] == [w.path for w in model.weights]
    assert count_parameters(plain).trainable == count_parameters(model).total
    np.testing.assert_allclose(logits(plain, x), expected, atol=1e-5)
    dense = {"qkv": block.attention.qkv, "out": block.attention.out, "expand": block.mlp.expand}.get(targets[0])
    a, b = (keras.ops.convert_to_numpy(v) for v in (dense.lora_kernel_a, dense.lora_kernel_b))
    merged = values(plain)[dense._kernel.path]
    np.testing.assert_allclose(merged, keras.ops.convert_to_numpy(dense._kernel) + 5 / 3 * a @ b, atol=1e-6)

    plain.save(tmp_path / "plain.keras")
    np.testing.assert_allclose(logits(vit_keras.load_model(tmp_path / "plain.keras"), x), expected, atol=1e-5)
    for saved in (plain, adapted):  # Whether or not somebody has merged it.
        save_timm(saved, tmp_path / "timm.safetensors", overwrite=True)
        again = small(position_embedding="learned")
        load(again, tmp_path / "timm.safetensors")
        np.testing.assert_allclose(logits(again, x), expected, atol=1e-5)


def test_a_saved_model_with_lora_loads_as_a_plain_one(tmp_path):
    x = pixels()
    adapted = strengthen(adapt(small(), "lora", rank=2, alpha=4))
    step(adapted, x)
    adapted.save(tmp_path / "lora.keras")
    adapted.save_weights(tmp_path / "lora.weights.h5")
    plain = vit_keras.load_model(tmp_path / "lora.keras")
    assert not any(name in weight.path for weight in plain.weights for name in LORA_WEIGHTS)
    np.testing.assert_allclose(logits(plain, x), logits(adapted, x), atol=1e-5)
    for file in ("lora.keras", "lora.weights.h5"):
        other = small()
        load(other, tmp_path / file)
        np.testing.assert_allclose(logits(other, x), logits(adapted, x), atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_training_with_lora_goes_on_from_a_checkpoint(policy, tmp_path):
    """Keras's own files hold the merged kernel alone: both matrices would be zero for ever."""
    x = pixels()
    keras.config.set_dtype_policy(policy)
    try:
        pretrained = small()
        models = [adapt(pretrained, "lora", rank=2, alpha=6, seed=seed) for seed in (1, 2)]
    finally:
        keras.config.set_dtype_policy("float32")
    step(models[0], x, 3)
    models[0].save_weights(tmp_path / "state.weights.h5")
    step(models[1], x, 1)  # Its optimiser has its variables then.
    models[1].load_weights(tmp_path / "state.weights.h5")
    for path, value in values(models[0]).items():
        np.testing.assert_allclose(values(models[1])[path], value, atol=1e-6, err_msg=path)
    # A kernel that is merged and taken apart again differs by 1e-8, which bfloat16 may round the other way.
    models[1].set_weights(models[0].get_weights())
    for model in models:
        step(model, x, 2)
    for path, value in values(models[0]).items():
        np.testing.assert_allclose(values(models[1])[path], value, atol=1e-5, err_msg=path)


def test_lora_takes_plain_weights_and_can_still_train(tmp_path):
    x, other = pixels(), small()
    other.save_weights(tmp_path / "plain.weights.h5")
    adapted = strengthen(adapt(small(), "lora", rank=2))
    adapted.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_allclose(logits(adapted, x), logits(other, x), atol=1e-5)
    assert all((v != 0).any() for path, v in values(adapted).items() if path.endswith("lora_kernel_a"))
    strengthen(adapted).save_weights(tmp_path / "lora.weights.h5")
    with pytest.raises(ValueError, match="rank=3, the file has 2"):
        adapt(other, "lora", rank=3).load_weights(tmp_path / "lora.weights.h5")


def test_lora_again_starts_from_the_merged_model():
    x, model = pixels(), strengthen(adapt(small(), "lora"))
    for method in ("lora", "head"):
        np.testing.assert_allclose(logits(adapt(model, method), x), logits(model, x), atol=1e-5)


# Prompts


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_prompts_follow_the_equations(name, deep):
    """Equations 4 and 5 (shallow) and 7 (deep), with the model's own blocks as L_i."""
    model, x, p = MODELS[name](), pixels(), 3
    adapted = strengthen(adapt(model, PROMPTS[deep], num_prompts=p))
    blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
    embedded = keras.Model(model.input, blocks[0].input)(x)  # x_0 and E_0
    num_prefix = embedded.shape[1] - 16
    x_i, e_i = embedded[:, :num_prefix], embedded[:, num_prefix:]
    for i, block in enumerate(blocks):
        if i == 0 or deep:
            [p_i] = adapted.get_layer(f"prompts_{i}").get_weights()
            assert p_i.shape == (1, p, embedded.shape[-1])
            z_i = np.repeat(p_i, len(x), axis=0)
        tokens = block(keras.ops.concatenate([x_i, z_i, e_i], axis=1))
        x_i, z_i, e_i = tokens[:, :num_prefix], tokens[:, num_prefix : num_prefix + p], tokens[:, num_prefix + p :]
    last = keras.ops.concatenate([x_i, e_i], axis=1)
    norm = model.get_layer("norm")
    expected = keras.Model(norm.input, model.output)(last)
    np.testing.assert_allclose(logits(adapted, x), expected, atol=1e-4)
    assert np.abs(logits(adapted, x) - logits(model, x)).max() > 1e-2


@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_start_as_in_the_paper(method):
    model = adapt(small(), method, num_prompts=50)
    prompts = [layer for layer in model.layers if isinstance(layer, PromptTokens)]
    assert len(prompts) == (LAYERS if method == "prompt_deep" else 1)
    limit = (6 / (3 * 2 * 2 + D)) ** 0.5
    for layer in prompts:
        [value] = layer.get_weights()
        assert 0.97 * limit < np.abs(value).max() <= limit
        assert abs(value.mean()) < 0.1 * limit
        np.testing.assert_allclose(value.std(), limit / 3**0.5, rtol=0.05)


def test_prompts_are_dropped_in_training_alone():
    layer = PromptTokens(200, 1, dropout_rate=0.25, initializer="ones", seed=0)
    x = np.full((2, 3, 8), 5, "float32")
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    assert (y[:, [0, 201, 202]] == 5).all()
    np.testing.assert_allclose(np.unique(y[:, 1:201]), [0, 1 / 0.75], rtol=1e-6)
    assert abs((y[:, 1:201] == 0).mean() - 0.25) < 0.03
    assert (y[0] != y[1]).any()  # Drawn for each picture.
    assert (keras.ops.convert_to_numpy(layer(x))[:, 1:201] == 1).all()
    layer.trainable = False
    assert (keras.ops.convert_to_numpy(layer(x, training=True))[:, 1:201] == 1).all()


@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_survive_precision_remat_and_depth(method):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = adapt(small(remat=True, drop_path_rate=0.4), method)
    finally:
        keras.config.set_dtype_policy("float32")
    block = mixed.get_layer("block_1")
    assert (block.remat, block.drop_path_rate, block.compute_dtype) == (True, 0.4, "bfloat16")
    assert mixed.get_layer("prompts_0").compute_dtype == "bfloat16"
    assert mixed.get_layer("prompts_0").prompts.dtype == "float32"
    before = values(mixed)
    step(mixed, pixels(), 2)
    changed = {path for path, value in values(mixed).items() if (value != before[path]).any()}
    assert changed == {w.path for w in mixed.trainable_weights}


@pytest.mark.parametrize("method", ["lora", *PROMPTS])
def test_remat_changes_no_gradient(method):
    after = []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        model = adapt(small(remat=remat), method, seed=4)
        step(model, pixels(), 2)
        after.append(values(model))
    for path, value in after[0].items():
        np.testing.assert_allclose(after[1][path], value, atol=1e-5, err_msg=path)


# Afterwards


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["token", "distilled"])
def test_adapted_models_are_saved_and_resized(name, method, tmp_path):
    model, x = strengthen(adapt(MODELS[name](), method)), pixels()
    step(model, x)
    model.save(tmp_path / "model.keras")
    again = vit_keras.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(logits(again, x), logits(model, x), atol=1e-5)
    if method == "head" or method in PROMPTS:  # Whole layers stay frozen.
        assert count_parameters(again) == count_parameters(model)
        assert not any(layer.trainable for layer in again.layers if isinstance(layer, TransformerBlock))
    larger = vit_keras.load_model(tmp_path / "model.keras", image_size=12)
    both = resize(model, 12)
    np.testing.assert_allclose(logits(larger, pixels(2, 12)), logits(both, pixels(2, 12)), atol=1e-5)
    assert both.get_layer("block_0").input.shape[1] - model.get_layer("block_0").input.shape[1] == 36 - 16
    for layer in both.layers:
        if not isinstance(layer, LearnedPositionEmbedding):
            for mine, theirs in zip(layer.get_weights(), again.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", *PROMPTS])
@pytest.mark.parametrize("name", ["registers", "average", "attention"])
def test_attention_of_adapted_models(name, method):
    """Prompts are no part of the picture: rows of attention sum to one without them."""
    model, x = strengthen(adapt(MODELS[name](), method, num_prompts=5)), pixels(2)
    num_tokens = 16 + {"registers": 4}.get(name, 0)
    scores = attention_model(model).predict(x, verbose=0)
    assert [s.shape for s in scores[:LAYERS]] == [(2, 6, num_tokens, num_tokens)] * LAYERS
    assert len(scores) == LAYERS + (name == "attention")
    for s in scores:
        np.testing.assert_allclose(s.sum(axis=-1), 1, atol=1e-5)
    block = model.get_layer("block_1")
    full = block(keras.Model(model.input, block.input)(x), return_attention_scores=True)[1]
    full = keras.ops.convert_to_numpy(full)
    if method in PROMPTS:
        prefix = num_tokens - 16
        kept = [*range(prefix), *range(prefix + 5, num_tokens + 5)]
        full = full[:, :, kept][..., kept]
        full = full / full.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(scores[1], full, atol=1e-5)
    maps = rollout_maps(model, x)
    assert maps.shape == (2, 4, 4)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, atol=1e-6)


def test_a_prompted_model_may_be_adapted_further():
    prompted, x = strengthen(adapt(small(), "prompt_deep")), pixels()
    for method in ("full", "head", "bitfit", "lora"):
        model = adapt(prompted, method)
        np.testing.assert_allclose(logits(model, x), logits(prompted, x), atol=1e-5)
        paths = {w.path for w in model.trainable_weights}
        assert ("prompts_1/prompts" in paths) == (method == "full")
    with pytest.raises(ValueError, match="no prompts yet"):
        adapt(prompted, "prompt_deep")


# What is refused


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lorra", {}, r"method must be one of .* Did you mean 'lora'\? Received: method='lorra'"),
        ("lora", {"rank": 0}, "rank must be >= 1"),
        ("lora", {"alpha": 0}, "alpha must be > 0"),
        ("lora", {"targets": ("query",)}, "targets must be some of qkv, out, expand, contract"),
        ("lora", {"targets": "qkv"}, "targets must be some of"),
        ("lora", {"targets": ()}, "targets must be some of"),
        ("prompt_deep", {"num_prompts": 0}, "num_prompts must be >= 1"),
        ("prompt_shallow", {"prompt_dropout_rate": 1.0}, r"prompt_dropout_rate must be in \[0, 1\)"),
    ],
)
def test_wrong_arguments_are_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        adapt(small(), method, **options)


def test_other_models_are_refused():
    inputs = keras.Input((8, 8, 3))
    plain = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="it has no PatchEmbedding"):
        adapt(plain, "head")
    backbone = vit_keras.models.vit(**SMALL)
    with pytest.raises(ValueError, match="it has no Dense layer named 'head'"):
        adapt(backbone, "full")
    with pytest.raises(ValueError, match="it has no PatchEmbedding"):
        adapt(keras.Sequential([inputs, backbone]), "lora")
    middle = keras.layers.GlobalAveragePooling1D(name="middle")(backbone.get_layer("block_0").output)
    outputs = keras.layers.Dense(3, name="head")(keras.layers.Concatenate()([backbone.output["pooled"], middle]))
    tapped = keras.Model(backbone.input, outputs)
    assert count_parameters(adapt(tapped, "head")).trainable == 49 * 3
    with pytest.raises(ValueError, match=r"read by blocks alone\. Received: layer='middle'"):
        adapt(tapped, "prompt_deep")


# Export

exports = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's is the backend that exports")


def strong(name: str, method: str) -> keras.Model:
    """An adapted model in which what was added does a lot, with the prompts smaller than other tokens, as they are."""
    model = adapt(MODELS[name](), method, num_prompts=5, seed=0)
    rng = np.random.default_rng(5)
    for weight in model.trainable_variables:
        if weight.name in ("prompts", "lora_kernel_b"):
            weight.assign(rng.normal(0.02, 0.1, weight.shape))
    return model


@exports
@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize("name", ["token", "average", "distilled", "registers, average", "attention", "deit3"])
def test_rewrites_of_prompts_are_exact(name, method):
    from vit_keras.export.rewriting import REWRITES, rewrite

    model, x = strengthen(adapt(MODELS[name](), method, num_prompts=5)), pixels()
    expected = logits(model, x)
    for rewrites in ([], ["prompts"], ["prefix"], [r for r in REWRITES if r != "prompts"], list(REWRITES)):
        lean = rewrite(model, rewrites)
        assert np.abs(logits(lean, x) - expected).max() < 1e-5 * np.abs(expected).max(), rewrites
    tokens = lean.get_layer("block_0_mlp").output.shape[1]
    assert tokens == model.get_layer("norm").output.shape[1] + 5 * (method == "prompt_shallow")


@exports
@pytest.mark.parametrize("method", ["lora", *PROMPTS])
def test_adapted_models_export(method, tmp_path):
    from vit_keras.export import Classifier, to_tflite

    model, x = strong("token", method), pixels(32)
    expected = logits(model, x)
    for kind, least in (("float32", 1.0), ("static_int8", 0.9), ("full_int8", 0.9)):
        classifier = Classifier(to_tflite(model, tmp_path / f"{kind}.tflite", kind, [x]))
        found = classifier.logits(x)
        names = classifier.operators().names
        assert not {"NEG", "FlexTranspose", "SHAPE", "PACK", "GATHER", "BROADCAST_TO"} & set(names)
        if kind == "float32":
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert classifier.operators().delegate_partitions == 1
        if kind == "full_int8":
            assert classifier.operators().float == 0
        assert (found.argmax(1) == expected.argmax(1)).mean() >= least, kind
        spread = np.abs(expected - expected.mean(axis=0)).mean()
        assert np.abs(found - expected).mean() < 0.25 * spread, kind


@exports
def test_deep_prompts_without_rewrites_are_slices_and_concatenations(tmp_path):
    from vit_keras.export import Classifier, to_tflite

    operators = {}
    for name, model in (("plain", MODELS["token"]()), ("deep", strong("token", "prompt_deep"))):
        classifier = Classifier(to_tflite(model, tmp_path / name, rewrites=[]))
        operators[name] = classifier.operators().names
        assert classifier.operators().delegate_partitions == 1
    more = {name for name in operators["deep"] if operators["deep"][name] > operators["plain"].get(name, 0)}
    assert more <= {"SLICE", "STRIDED_SLICE", "CONCATENATION"}
    assert "CONCATENATION" in more
    np.testing.assert_allclose(classifier.logits(pixels()), logits(model, pixels()), atol=1e-4)
