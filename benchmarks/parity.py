"""Do our models say what timm's, Hugging Face's and Google's say, given their weights?

Each case makes a model of the other library with random weights, writes them in that library's own format, opens
the file with `vit_keras.weights`, and compares logits and the output of every block, in float32, on two random
pictures. Google's files are compared with a forward pass in NumPy (float64) that knows nothing of our code, and
with the Flax models themselves where their code is at hand.

    python -m venv peers
    peers/bin/pip install -e . torch==2.13.0 transformers safetensors jax flax einops
    peers/bin/pip install --no-deps timm huggingface_hub
    peers/bin/python benchmarks/parity.py --out docs/parity.md
    peers/bin/python benchmarks/parity.py --cases "flax*" --big-vision CHECKOUT --vision-transformer CHECKOUT

Two cores, about 5 minutes, at most 12 GB. `--golden tests/golden` writes the small fixtures of the tests instead.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from references import Outputs, flax_reference, google_reference, hugging_face_reference, timm_reference

import vit_keras

VERSIONS = ("keras", "tensorflow", "torch", "timm", "transformers")


@dataclass(frozen=True)
class Case:
    """A model of theirs and the preset of ours that should open its weights.

    Attributes:
        preset: Our preset.
        reference: Writes theirs to a folder and returns the file and its outputs.
        theirs: What the reference needs to know of it.
        image_size: Height and width that both run at; the preset's if `None`, where the weights are from.
        overrides: Arguments of our builder.
    """

    preset: str
    reference: Callable[..., tuple[Path, Outputs]]
    theirs: dict[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


NO_TOKEN = {"class_token": False}
TANH = {"approximate_gelu": True}
HF = {"norm_epsilon": 1e-12}  # Hugging Face's own default.
TOKEN, AVERAGE, ATTENTION = ({"pooling": pooling} for pooling in ("token", "average", "attention"))
CASES = {
    **{
        f"timm {name}": Case(name, timm_reference, {"name": name})
        for name in (
            "vit_tiny_patch16_224",
            "vit_small_patch16_224",
            "vit_base_patch16_224",
            "vit_large_patch16_224",
            "vit_base_patch32_224",
            "vit_small_patch8_224",
            "deit_tiny_patch16_224",
            "deit_base_distilled_patch16_224",
            "deit3_small_patch16_224",
        )
    },
    "timm vit_huge_patch14_224, 8 blocks": Case(
        "vit_huge_patch14_224", timm_reference, {"name": "vit_huge_patch14_224"}, overrides={"num_layers": 8}
    ),
    "timm vit_base_patch16, 224 to 384": Case(
        "vit_base_patch16_224", timm_reference, {"name": "vit_base_patch16_224"}, (384, 384)
    ),
    "timm deit_small_distilled, 224 to 384": Case(
        "deit_small_distilled_patch16_224", timm_reference, {"name": "deit_small_distilled_patch16_224"}, (384, 384)
    ),
    "timm vit_tiny_patch16, 224 to 160x256": Case(
        "vit_tiny_patch16_224", timm_reference, {"name": "vit_tiny_patch16_224"}, (160, 256)
    ),
    "timm vit_tiny, 4 registers, LayerScale": Case(
        "vit_tiny_patch16_224",
        timm_reference,
        {"name": "vit_tiny_patch16_224", "reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
        overrides={"num_register_tokens": 4, "layer_scale_init": 1e-5},
    ),
    "timm vit_tiny, attention pooling": Case(
        "vit_tiny_patch16_224",
        timm_reference,
        {"name": "vit_tiny_patch16_224", **NO_TOKEN, "global_pool": "map"},
        overrides=ATTENTION,
    ),
    "timm vit_tiny, average pooling, no qkv bias": Case(
        "vit_tiny_patch16_224",
        timm_reference,
        {
            "name": "vit_tiny_patch16_224",
            "class_token": False,
            "global_pool": "avg",
            "fc_norm": False,
            "qkv_bias": False,
        },
        overrides={**AVERAGE, "use_qkv_bias": False},
    ),
    "transformers ViT-B/16": Case(
        "vit_base_patch16_224", hugging_face_reference, {"name": "ViTForImageClassification"}, overrides=HF
    ),
    "transformers ViT-S/16": Case(
        "vit_small_patch16_224", hugging_face_reference, {"name": "ViTForImageClassification"}, overrides=HF
    ),
    "transformers DeiT-Ti/16 distilled": Case(
        "deit_tiny_distilled_patch16_224",
        hugging_face_reference,
        {"name": "DeiTForImageClassificationWithTeacher"},
        overrides=HF,
    ),
    "numpy Google ViT-B/16": Case("vit_base_patch16_224", google_reference, {"naming": "vit", **TOKEN}, None, TANH),
    "numpy Google ViT-B/32 in21k": Case(
        "vit_base_patch32_224_in21k", google_reference, {"naming": "vit", "representation": True, **TOKEN}, None, TANH
    ),
    "numpy big_vision ViT-S/16, class token, scan": Case(
        "vit_small_patch16_224", google_reference, {"naming": "big_vision", "scan": True, **TOKEN}, None, TANH
    ),
    "numpy big_vision ViT-S/16, attention pooling": Case(
        "vit_small_patch16_224", google_reference, {"naming": "big_vision", **ATTENTION}, None, TANH | ATTENTION
    ),
    "numpy big_vision simple ViT-S/16": Case(
        "simple_vit_small_patch16_224", google_reference, {"naming": "big_vision", **AVERAGE}, None, TANH
    ),
}
CASES |= {
    name.replace("numpy", "flax"): dataclasses.replace(case, reference=flax_reference)
    for name, case in CASES.items()
    if name.startswith("numpy")
}
# Fixtures: one of each naming and of each way of pooling and of placing tokens and positions.
GOLDEN = {
    "timm_vit": "timm vit_tiny_patch16_224",
    "timm_deit_distilled": "timm deit_base_distilled_patch16_224",
    "timm_deit3": "timm deit3_small_patch16_224",
    "timm_registers": "timm vit_tiny, 4 registers, LayerScale",
    "timm_attention": "timm vit_tiny, attention pooling",
    "timm_average": "timm vit_tiny, average pooling, no qkv bias",
    "timm_larger": "timm deit_small_distilled, 224 to 384",
    "timm_not_square": "timm vit_tiny_patch16, 224 to 160x256",
    "hugging_face_vit": "transformers ViT-S/16",
    "hugging_face_deit": "transformers DeiT-Ti/16 distilled",
    "google_vit": "numpy Google ViT-B/16",
    "google_in21k": "numpy Google ViT-B/32 in21k",
    "big_vision_token": "numpy big_vision ViT-S/16, class token, scan",
    "big_vision_attention": "numpy big_vision ViT-S/16, attention pooling",
    "big_vision_simple": "numpy big_vision simple ViT-S/16",
}
TINY = {"patch_size": 4, "hidden_dim": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 16}
TINY_SIZES = {None: (12, 12), (384, 384): (20, 20), (160, 256): (8, 16)}
TINY_PRETRAINED = (12, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="[!f]*", help="shell pattern; by default all but flax")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--golden", type=Path, help="write the tests' fixtures to this folder instead")
    parser.add_argument("--big-vision", type=Path, help="checkout of google-research/big_vision")
    parser.add_argument("--vision-transformer", type=Path, help="checkout of google-research/vision_transformer")
    arguments = parser.parse_args()
    if arguments.golden:
        return write_golden(arguments.golden)
    checkouts = {"big_vision": arguments.big_vision, "vision_transformer": arguments.vision_transformer}
    rows = []
    for name in fnmatch.filter(CASES, arguments.cases):
        case = CASES[name]
        if case.reference is flax_reference:
            case = dataclasses.replace(case, theirs={**case.theirs, "checkouts": checkouts})
        rows.append((name, *compare(case)))
        print("| {} | {} | {:.1e} | {:.1e} | {:.1e} |".format(*rows[-1]), flush=True)
        keras.backend.clear_session()
    if arguments.out:
        arguments.out.write_text(page(rows), encoding="utf-8")
    failed = [row[0] for row in rows if row[2] >= 1e-4 or row[3] >= 1e-5 or row[4] >= 1e-5]
    if failed:
        sys.exit(f"Too far from the reference: {', '.join(failed)}")


def compare(case: Case) -> tuple[int, float, float, float]:
    """Returns the number of blocks, the largest logit error, its relative error, the largest relative block error."""
    with tempfile.TemporaryDirectory() as folder:
        file, pictures, expected = reference_of(case, Path(folder), {}, 1000)
        model = vit_keras.create_model(
            case.preset,
            1000,
            case.image_size,
            include_preprocessing=False,
            weights=file,
            **case.overrides,
        )
    found = run(model, pictures)
    blocks = [relative(a, b) for a, b in zip(found.blocks, expected.blocks, strict=True)]
    error = float(np.abs(found.logits - expected.logits).max())
    return len(blocks), error, relative(found.logits, expected.logits), max(blocks)


def reference_of(case: Case, folder: Path, tiny: dict, num_classes: int) -> tuple[Path, np.ndarray, Outputs]:
    """Makes the reference, and returns its weight file, random normalised pictures, and what it says of them."""
    preset = vit_keras.get_preset(case.preset)
    sizes = {**preset.arguments, **case.overrides, **tiny, "num_classes": num_classes}
    sizes["pretrained_size"] = TINY_PRETRAINED if tiny else preset.image_size
    image_size = TINY_SIZES[case.image_size] if tiny else case.image_size or preset.image_size
    pictures = np.random.default_rng(1).normal(size=(2, *image_size, 3)).astype("float32")
    file, outputs = case.reference(folder, pictures, sizes, **case.theirs)
    return file, pictures, outputs


def run(model: keras.Model, pictures: np.ndarray) -> Outputs:
    """Returns our outputs, in float32."""
    blocks = [layer.output for layer in model.layers if isinstance(layer, vit_keras.layers.TransformerBlock)]
    logits, *blocks = keras.Model(model.input, [model.output, *blocks]).predict(pictures, verbose=0)
    return Outputs(logits, blocks)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the norm of the difference over that of what was expected."""
    expected = np.asarray(expected, "float64")
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def page(rows: list[tuple]) -> str:
    """Returns `docs/parity.md`."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS)
    lines = [
        "# The same weights say the same",
        "",
        "Random weights made by timm, transformers and in Google's format, opened by `vit_keras.weights`; both models",
        "run in float32 on two random pictures, every block compared. Relative: norm of the difference over the norm.",
        "`numpy`: an independent forward pass in float64; `flax`: Google's own model code.",
        "",
        f"`python benchmarks/parity.py --out docs/parity.md` with {versions}, on a CPU.",
        "",
        "| reference | blocks | largest logit error | logits, relative | worst block, relative |",
        "| --- | --- | --- | --- | --- |",
        *("| {} | {} | {:.1e} | {:.1e} | {:.1e} |".format(*row) for row in rows),
        "",
        "Bounds: logit error 1e-4, relative errors 1e-5. The program exits with an error where one is passed.",
    ]
    return "\n".join(lines) + "\n"


def write_golden(folder: Path) -> None:
    """Writes tiny weight files, and beside each what its own library says of two pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, title in GOLDEN.items():
        case = CASES[title]
        with tempfile.TemporaryDirectory() as temporary:
            file, pictures, outputs = reference_of(case, Path(temporary), TINY, 3)
            golden = folder / f"{name}{file.suffix}"
            shutil.copyfile(file, golden)
        overrides = {**case.overrides, **TINY}
        expected = {"logits": outputs.logits, **{f"block_{i}": block for i, block in enumerate(outputs.blocks)}}
        call = {"name": case.preset, "image_size": pictures.shape[1:3], "overrides": overrides}
        np.savez_compressed(
            folder / f"{name}.expected.npz",
            pictures=pictures,
            call=np.array(json.dumps(call)),
            **{key: value.astype("float32") for key, value in expected.items()},
        )
        print(golden, golden.stat().st_size)


if __name__ == "__main__":
    main()
