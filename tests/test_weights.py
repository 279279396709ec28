"""Other people's weights in our models. `golden/` holds tiny files and what their own libraries said of two pictures;
`benchmarks/parity.py` made them, and compares the published sizes."""

import json
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from harness import randomise_zeros

import vit_keras
from vit_keras import create_model, weights
from vit_keras.layers import TransformerBlock
from vit_keras.models import deit, vit
from vit_keras.weights.resample import resample_filter
from vit_keras.weights.tensors import open_tensors

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(file for file in GOLDEN.iterdir() if ".expected" not in file.name)
FORMATS = {"timm": "timm", "hugging": "Hugging Face", "google": "Google's ViT", "big": "big_vision"}
SMALL = {"patch_size": 4, "hidden_dim": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 16}


def small(name: str = "vit_tiny_patch16_224", num_classes: int = 3, image_size=12, **arguments) -> keras.Model:
    return create_model(name, num_classes, image_size, include_preprocessing=False, **{**SMALL, **arguments})


def distance(found, expected) -> float:
    found, expected = (np.asarray(keras.ops.convert_to_numpy(x), "float64") for x in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def values(model: keras.Model) -> dict[str, np.ndarray]:
    return {weight.path: keras.ops.convert_to_numpy(weight).copy() for weight in model.weights}


# Parity


def test_there_are_fixtures_of_every_format():
    assert {FORMATS[file.name.split("_")[0]] for file in FILES} == set(FORMATS.values())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden(file):
    expected = np.load(GOLDEN / f"{file.stem}.expected.npz")
    call = json.loads(str(expected["call"]))
    model = create_model(call["name"], 3, tuple(call["image_size"]), False, **call["overrides"])
    report = weights.load(model, file)
    blocks = [layer.output for layer in model.layers if isinstance(layer, TransformerBlock)]
    logits, *blocks = keras.Model(model.input, [model.output, *blocks])(expected["pictures"])

    assert np.abs(keras.ops.convert_to_numpy(logits) - expected["logits"]).max() < 1e-5
    assert distance(logits, expected["logits"]) < 1e-5
    for i, block in enumerate(blocks):
        assert distance(block, expected[f"block_{i}"]) < 1e-5
    assert report.format == FORMATS[file.name.split("_")[0]]
    assert report.head == "kept"
    assert report.parameters == model.count_params()
    grids = {"timm_larger": "3x3 to 5x5", "timm_not_square": "3x3 to 2x4"}
    assert report.resampled == grids.get(file.stem)


def test_preprocessing_comes_before_the_loaded_weights():
    model = create_model(
        "deit_tiny_distilled_patch16_224", 3, 12, **SMALL, weights=GOLDEN / "timm_deit_distilled.safetensors"
    )
    expected = np.load(GOLDEN / "timm_deit_distilled.expected.npz")
    pixels = expected["pictures"] * [58.395, 57.12, 57.375] + [123.675, 116.28, 103.53]
    assert distance(model(pixels), expected["logits"]) < 1e-5


def test_checkpoint_of_a_training(tmp_path):
    """Optimiser state beside the parameters, the parameters as bfloat16, which NumPy writes as two raw bytes."""
    tensors = np.load(GOLDEN / "big_vision_simple.npz")
    halves = {name: tensors[name].astype(ml_dtypes.bfloat16) for name in tensors}
    np.savez(tmp_path / "checkpoint.npz", **halves, **{"opt/0/step": np.zeros((), "int32")})
    model = small("simple_vit_small_patch16_224")
    weights.load(model, tmp_path / "checkpoint.npz")
    head = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    np.testing.assert_array_equal(head, tensors["params/head/kernel"].astype(ml_dtypes.bfloat16).astype("float32"))


def test_layer_scale_as_the_deit_repository_names_it(tmp_path):
    model = small("deit3_small_patch16_224")
    weights.load(model, GOLDEN / "timm_deit3.safetensors")
    with open_tensors(GOLDEN / "timm_deit3.safetensors") as file:
        tensors = {name: tensor.read() for name, tensor in file.tensors.items()}
    renamed = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for name, t in tensors.items()}
    assert renamed.keys() != tensors.keys()
    weights.save._write(tmp_path / "facebook.safetensors", renamed)
    other = small("deit3_small_patch16_224")
    weights.load(other, tmp_path / "facebook.safetensors")
    for path, value in values(model).items():
        np.testing.assert_array_equal(values(other)[path], value)


def test_a_folder_as_hugging_face_writes_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "hugging_face_vit.safetensors").read_bytes())
    assert weights.load(small("vit_small_patch16_224"), tmp_path).format == "Hugging Face"


# Heads


def test_a_head_with_other_classes_is_left_fresh(caplog):
    caplog.set_level("INFO", "vit_keras")
    model = small(num_classes=7)
    report = weights.load(model, GOLDEN / "timm_vit.safetensors")
    assert report.head == "dropped: 3 classes in the file, 7 in the model"
    assert report.head in caplog.text
    assert (values(model)["head/kernel"] == 0).all()
    assert report.parameters == model.count_params() - model.get_layer("head").count_params()


def test_both_heads_are_dropped_together():
    report = weights.load(small("deit_base_distilled_patch16_224", 5), GOLDEN / "timm_deit_distilled.safetensors")
    assert report.head == "dropped: 3 classes in the file, 5 in the model"


def test_a_backbone_takes_no_head():
    backbone = vit(12, **SMALL)
    assert weights.load(backbone, GOLDEN / "timm_vit.safetensors").head == "dropped: the model has none"
    whole = small()
    weights.load(whole, GOLDEN / "timm_vit.safetensors")
    for path, value in values(backbone).items():
        np.testing.assert_array_equal(values(whole)[path], value)


def test_a_file_without_a_head_leaves_it_fresh(tmp_path):
    backbone = vit(12, **SMALL)
    randomise_zeros(backbone)
    weights.save_timm(backbone, tmp_path / "backbone.safetensors")
    model = small()
    assert weights.load(model, tmp_path / "backbone.safetensors").head == "fresh: none in the file"
    np.testing.assert_array_equal(values(model)["class_token/prefix"], values(backbone)["class_token/prefix"])


def test_the_representation_layer_goes_with_the_head():
    """It is part of what a plain model has not; but without it the kept head would say something else."""
    report = weights.load(small("vit_base_patch32_224", 7), GOLDEN / "google_in21k.npz")
    assert report.head == "dropped: 3 classes in the file, 7 in the model"
    with pytest.raises(ValueError, match=r"left over in the file \(2\): pre_logits/kernel \(8, 8\)"):
        weights.load(small("vit_base_patch32_224", 3), GOLDEN / "google_in21k.npz")
    in21k = create_model("vit_base_patch32_224_in21k", 7, 12, False, **SMALL)
    assert weights.load(in21k, GOLDEN / "google_in21k.npz").head == report.head
    assert np.abs(values(in21k)["representation/kernel"]).sum() > 1


# What does not fit

MISFITS = {
    "more blocks": (
        {"num_layers": 3},
        "timm_vit.safetensors",
        [r"missing in the file \(12\)", r"blocks\.2\.attn\.qkv\.weight \(24, 8\)"],
    ),
    "fewer blocks": (
        {"num_layers": 1},
        "timm_vit.safetensors",
        [r"left over in the file \(12\)", r"blocks\.1\.norm1\.bias \(8,\)"],
    ),
    "another width": (
        {"hidden_dim": 16},
        "timm_vit.safetensors",
        [r"of a wrong shape", r"cls_token \(1, 1, 8\), vit_tiny_patch16_224 needs \(1, 1, 16\)"],
    ),
    "other heads in Flax": (
        {"num_heads": 4},
        "google_vit.npz",
        [r"query/kernel \(8, 2, 4\), vit_tiny_patch16_224 needs \(8, 4, 2\)"],
    ),
    "distilled": (
        {},
        "timm_deit_distilled.safetensors",
        [r"pos_embed \(1, 11, 8\), .* not a square grid", r"left over in the file \(3\):.* dist_token \(1, 1, 8\)"],
    ),
    "no bias": ({"use_qkv_bias": False}, "timm_vit.safetensors", [r"left over.*blocks\.0\.attn\.qkv\.bias \(24,\)"]),
    "bias": ({"pooling": "average"}, "timm_average.safetensors", [r"missing.*blocks\.0\.attn\.qkv\.bias \(24,\)"]),
    "fixed positions": (
        {"position_embedding": "sincos_2d"},
        "timm_vit.safetensors",
        [r"left over in the file \(1\): pos_embed \(1, 10, 8\)"],
    ),
    "layer scale": (
        {"layer_scale_init": 1.0},
        "hugging_face_vit.safetensors",
        [r"block_0/attention_scale/gamma \(8,\) \(this naming has none\)"],
    ),
    "registers": ({"num_register_tokens": 2}, "timm_registers.safetensors", [r"reg_token \(1, 4, 8\).*\(1, 2, 8\)"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_are_listed_and_change_nothing(name):
    arguments, file, words = MISFITS[name]
    model = small(**arguments)
    before = values(model)
    for word in words:
        with pytest.raises(ValueError, match=word) as error:
            weights.load(model, GOLDEN / file)
        assert file in str(error.value)
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_a_checkpoint_of_another_architecture(tmp_path):
    np.savez(tmp_path / "resnet.npz", **{"conv1/kernel": np.zeros((7, 7, 3, 64), "float32")})
    with pytest.raises(ValueError, match=r"resnet\.npz must hold a ViT.*Received tensors: conv1/kernel"):
        weights.load(small(), tmp_path / "resnet.npz")


# Our own files


@pytest.mark.parametrize("suffix", ["keras", "weights.h5"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_micro_patch4_32"])
def test_our_own_files(name, suffix, tmp_path):
    model = small(name, dropout_rate=0.1, drop_path_rate=0.1)
    randomise_zeros(model)
    model.compile("adamw", "mse")
    file = tmp_path / f"model.{suffix}"
    model.save(file) if suffix == "keras" else model.save_weights(file)
    again = small(name)
    assert weights.load(again, file).format == "Keras"
    for path, value in values(model).items():
        np.testing.assert_array_equal(values(again)[path], value)

    larger = small(name, 5, (16, 24))
    report = weights.load(larger, file)
    assert report.head == "dropped: 3 classes in the file, 5 in the model"
    assert report.resampled == (None if name == "vit_micro_patch4_32" else "3x3 to 4x6")
    with pytest.raises(ValueError, match=r"block_2/|transformer_block_2/"):
        weights.load(small(name, num_layers=3), file)


@pytest.mark.parametrize("size", [2, 6, 8])
def test_patches_of_another_size(size, tmp_path):
    """Larger ones see in an enlarged picture what the file's see in the picture; smaller ones come near it."""
    model = small(pooling="average")
    randomise_zeros(model)
    model.save(tmp_path / "model.keras")
    weights.save_timm(model, tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(2, 3, 4, 3, 4, 3)) + 3 * rng.normal(size=(2, 3, 1, 3, 1, 3))
    enlarge = resample_filter(4, size)  # Every patch by itself.
    enlarged = np.einsum("Hh,Ww,nrhcwd->nrHcWd", enlarge, enlarge, pictures).reshape(2, 3 * size, 3 * size, 3)
    expected = model(pictures.reshape(2, 12, 12, 3))
    for file in ("model.keras", "model.safetensors"):
        other = small(pooling="average", image_size=3 * size, patch_size=size)
        report = weights.load(other, tmp_path / file)
        assert (report.patches, report.resampled) == (f"4x4 to {size}x{size}", None)
        assert report.parameters == other.count_params()
        assert distance(other(enlarged), expected) < (1e-5 if size > 4 else 0.5)


def test_patches_may_not_be_of_any_size(tmp_path):
    """A file from elsewhere shall not ask for matrices that fill the memory."""
    for size in (64, 72):
        model = small(image_size=size, patch_size=size, num_layers=1)
        weights.save_timm(model, tmp_path / f"{size}.safetensors")
    other = small(image_size=4, num_layers=1)
    assert weights.load(other, tmp_path / "64.safetensors").patches == "64x64 to 4x4"
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight \(8, 3, 72, 72\), .* needs \(8, 3, 4, 4\)"):
        weights.load(other, tmp_path / "72.safetensors")


def test_grids_that_are_not_square(tmp_path):
    """A `.keras` file says its grid; of others it must be told, and an equal number of patches proves nothing."""
    model = small(image_size=(8, 24))
    pictures = np.random.default_rng(0).normal(size=(2, 24, 8, 3))
    randomise_zeros(model)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    weights.save_timm(model, tmp_path / "model.safetensors")
    expected = weights.resize(model, (24, 8))(pictures)
    for file, told in (("model.keras", None), ("model.weights.h5", (2, 6)), ("model.safetensors", (2, 6))):
        turned = small(image_size=(24, 8))
        report = weights.load(turned, tmp_path / file, grid_size=told)
        assert report.resampled == "2x6 to 6x2"
        assert distance(turned(pictures), expected) < 1e-6
    for wrong in (None, (3, 5)):
        with pytest.raises(ValueError, match=r"pos_embed \(1, 13, 8\), which after 1 prefix tokens are 12 positions"):
            weights.load(small(image_size=16), tmp_path / "model.safetensors", grid_size=wrong)
    again = small(image_size=(8, 24))
    assert weights.load(again, tmp_path / "model.weights.h5").resampled is None


# Other sizes


def test_resampling_keeps_what_it_must():
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(20, 3)).astype("float32")
    np.testing.assert_array_equal(weights.resample_grid(grid, (4, 5), (4, 5)), grid)
    flat = weights.resample_grid(np.full((20, 3), 2.5), (4, 5), (7, 3))
    np.testing.assert_allclose(flat, np.full((21, 3), 2.5), rtol=1e-6)
    columns = np.tile(np.arange(8.0), (6, 1)).reshape(48, 1)
    finer = weights.resample_grid(columns, (6, 8), (6, 16)).reshape(6, 16)
    np.testing.assert_allclose(finer[:, 4:12], np.tile((np.arange(4, 12) + 0.5) / 2 - 0.5, (6, 1)), atol=1e-6)
    turned = weights.resample_grid(grid.reshape(4, 5, 3).transpose(1, 0, 2).reshape(20, 3), (5, 4), (2, 9))
    np.testing.assert_allclose(
        turned.reshape(2, 9, 3).transpose(1, 0, 2).reshape(18, 3),
        weights.resample_grid(grid, (4, 5), (9, 2)),
        atol=1e-6,
    )


def test_resampling_is_what_pillow_does():
    from PIL import Image

    grid = np.random.default_rng(0).normal(size=(14, 14)).astype("float32")
    for size in ((24, 24), (7, 9), (10, 16)):
        expected = np.asarray(Image.fromarray(grid).resize(size[::-1], Image.Resampling.BICUBIC))
        found = weights.resample_grid(grid.reshape(-1, 1), (14, 14), size).reshape(size)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_micro_patch4_32"])
def test_resize(name, tmp_path):
    model = create_model(name, 3, 12, **SMALL)
    randomise_zeros(model)
    before = values(model)
    pictures = np.random.default_rng(0).uniform(0, 255, (2, 16, 24, 3)).astype("float32")
    resized = weights.resize(model, (16, 24))
    model.save(tmp_path / "model.keras")
    loaded = vit_keras.load_model(tmp_path / "model.keras", image_size=(16, 24))
    built = create_model(name, 3, (16, 24), weights=tmp_path / "model.keras", **SMALL)
    for other in (loaded, built):
        np.testing.assert_allclose(other(pictures), resized(pictures), atol=1e-6)
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path])
        if path != "position_embedding/position":
            np.testing.assert_array_equal(values(resized)[path], value)
    if name != "vit_micro_patch4_32":
        prefix = model.get_layer("position_embedding").num_prefix
        old, new = (values(m)["position_embedding/position"] for m in (model, resized))
        assert new.shape == (1, prefix + 24, 8)
        np.testing.assert_array_equal(new[:, :prefix], old[:, :prefix])
    resized.save(tmp_path / "resized.keras")
    np.testing.assert_allclose(vit_keras.load_model(tmp_path / "resized.keras")(pictures), resized(pictures), atol=1e-6)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"image_size=\(18, 12\), patch_size=4"):
        weights.resize(small(), (18, 12))
    other = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="PatchEmbedding"):
        weights.resize(other, 8)


# The way back


@pytest.mark.parametrize("file", [file for file in FILES if file.name.startswith("timm")], ids=lambda file: file.stem)
def test_save_timm_gives_back_what_was_loaded(file, tmp_path):
    call = json.loads(str(np.load(GOLDEN / f"{file.stem}.expected.npz")["call"]))
    model = create_model(call["name"], 3, 12, **call["overrides"], weights=file)
    weights.save_timm(model, tmp_path / "back.safetensors")
    with open_tensors(file) as theirs, open_tensors(tmp_path / "back.safetensors") as ours:
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, tensor in theirs.tensors.items():
            np.testing.assert_array_equal(ours.tensors[name].read(), tensor.read())


def test_save_timm_writes_fixed_positions(tmp_path):
    model = small(position_embedding="sincos_2d")
    weights.save_timm(model, tmp_path / "a.safetensors")
    learned = small()
    weights.load(learned, tmp_path / "a.safetensors")
    pictures = np.random.default_rng(0).normal(size=(2, 12, 12, 3))
    np.testing.assert_allclose(learned(pictures), model(pictures), atol=1e-6)


def test_save_timm_refuses_what_would_be_lost(tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"no place for representation/kernel, \(8, 8\)"):
        weights.save_timm(create_model("vit_base_patch16_224_in21k", 3, 12, **SMALL), file)
    with pytest.raises(ValueError, match="must be a Vision Transformer"):
        weights.save_timm(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="other"), file)
    assert not list(tmp_path.iterdir())
    weights.save_timm(small(), file)
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.safetensors"):
        weights.save_timm(small(), file)
    assert file.read_bytes() == before
    weights.save_timm(deit(12, **SMALL), file, overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_timm_opens_our_file(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed; `benchmarks/parity.py` says how to compare")
    torch = pytest.importorskip("torch")
    model = small("deit_tiny_distilled_patch16_224")
    randomise_zeros(model)
    weights.save_timm(model, tmp_path / "ours.safetensors")
    theirs = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=12,
        patch_size=4,
        embed_dim=8,
        num_heads=2,
        depth=2,
        mlp_ratio=2,
        num_classes=3,
        checkpoint_path=str(tmp_path / "ours.safetensors"),
    ).eval()
    pictures = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype("float32")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())).numpy()
    assert distance(model(pictures), expected) < 1e-5
