"""Other people's Vision Transformers with random weights: what they write to a file, and what they say of pictures."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0


@dataclass(frozen=True)
class Outputs:
    """What a model says of pictures: logits, `(B, classes)`, and the tokens after every block, `(B, P + N, D)`."""

    logits: np.ndarray
    blocks: list[np.ndarray]


def timm_reference(folder: Path, pictures: np.ndarray, sizes: dict, name: str, **options):
    import safetensors.torch
    import torch
    from torchvision_stand_in import torchvision_stand_in

    with torchvision_stand_in():
        import timm

    torch.manual_seed(SEED)
    grid = {"img_size": sizes["pretrained_size"], "patch_size": sizes["patch_size"]}
    width = {"embed_dim": sizes["hidden_dim"], "num_heads": sizes["num_heads"], "depth": sizes["num_layers"]}
    ratio = {"mlp_ratio": sizes["mlp_dim"] / sizes["hidden_dim"], "num_classes": sizes["num_classes"]}
    theirs = timm.create_model(name, **grid, **width, **ratio, **options).eval()
    randomise(theirs)
    file = folder / "timm.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), file)
    if pictures.shape[1:3] != sizes["pretrained_size"]:
        theirs.set_input_size(pictures.shape[1:3])
    return file, _run_torch(theirs, theirs.blocks, pictures)


def hugging_face_reference(folder: Path, pictures: np.ndarray, sizes: dict, name: str, **options):
    import torch
    import transformers

    torch.manual_seed(SEED)
    config = getattr(transformers, name.partition("For")[0] + "Config")(
        image_size=sizes["pretrained_size"][0],
        patch_size=sizes["patch_size"],
        hidden_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["mlp_dim"],
        num_labels=sizes["num_classes"],
        **options,
    )
    theirs = getattr(transformers, name)(config).eval()
    randomise(theirs)
    theirs.save_pretrained(folder)
    blocks = next(module for n, module in theirs.named_modules() if n.endswith((".layer", ".layers")))
    return folder / "model.safetensors", _run_torch(theirs, blocks, pictures)


def randomise(model: Any) -> None:
    """Gives what starts constant (biases, norms, heads, LayerScale) random values too, or they would hide errors."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-5:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def _run_torch(model: Any, blocks: Any, pictures: np.ndarray) -> Outputs:
    import torch

    found = []
    for block in blocks:
        block.register_forward_hook(lambda _module, _input, y: found.append(y[0] if isinstance(y, tuple) else y))
    with torch.no_grad():
        y = model(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
    return Outputs(getattr(y, "logits", y).numpy(), [block.numpy() for block in found])


def google_reference(folder: Path, pictures: np.ndarray, sizes: dict, naming: str, **options):
    """Google's formats: `naming` is "vit" (original and AugReg) or "big_vision"."""
    rng = np.random.default_rng(SEED)
    tensors = google_tensors(rng, sizes, naming, **options)
    stored = stack_blocks(tensors, sizes["num_layers"]) if options.get("scan") else tensors
    stored = {f"params/{name}": value for name, value in stored.items()} if naming == "big_vision" else stored
    file = folder / "google.npz"
    np.savez(file, **stored)
    return file, google_forward(tensors, pictures, naming, **options)


def google_tensors(rng, sizes: dict, naming: str, pooling: str, representation: bool = False, **_: Any) -> dict:
    """Returns random weights under Google's names."""
    dim, heads, patch, mlp = (sizes[k] for k in ("hidden_dim", "num_heads", "patch_size", "mlp_dim"))
    height, width = sizes["pretrained_size"]
    patches = (height // patch) * (width // patch)
    attention, norm, dense = (1, 2, 3) if naming == "vit" else (0, 1, 0)
    shapes: dict[str, tuple[int, ...]] = {"embedding/kernel": (patch, patch, 3, dim), "embedding/bias": (dim,)}

    def add_norm(name: str) -> None:
        shapes.update({f"{name}/scale": (dim,), f"{name}/bias": (dim,)})

    def add_dense(name: str, before: int, after: int) -> None:
        shapes.update({f"{name}/kernel": (before, after), f"{name}/bias": (after,)})

    def add_heads(name: str) -> None:
        for part in ("query", "key", "value"):
            shapes[f"{name}/{part}/kernel"] = (dim, heads, dim // heads)
            shapes[f"{name}/{part}/bias"] = (heads, dim // heads)
        shapes.update({f"{name}/out/kernel": (heads, dim // heads, dim), f"{name}/out/bias": (dim,)})

    if pooling == "token":
        shapes["cls"] = (1, 1, dim)
    if naming == "vit":
        shapes["Transformer/posembed_input/pos_embedding"] = (1, patches + (pooling == "token"), dim)
    elif pooling != "average":  # big_vision's average-pooled models here have fixed positions.
        shapes["pos_embedding"] = (1, patches, dim)
    for i in range(sizes["num_layers"]):
        block = f"Transformer/encoderblock_{i}"
        add_norm(f"{block}/LayerNorm_0")
        add_heads(f"{block}/MultiHeadDotProductAttention_{attention}")
        add_norm(f"{block}/LayerNorm_{norm}")
        add_dense(f"{block}/MlpBlock_{dense}/Dense_0", dim, mlp)
        add_dense(f"{block}/MlpBlock_{dense}/Dense_1", mlp, dim)
    add_norm("Transformer/encoder_norm")
    if pooling == "attention":
        shapes["MAPHead_0/probe"] = (1, 1, dim)
        add_heads("MAPHead_0/MultiHeadDotProductAttention_0")
        add_norm("MAPHead_0/LayerNorm_0")
        add_dense("MAPHead_0/MlpBlock_0/Dense_0", dim, mlp)
        add_dense("MAPHead_0/MlpBlock_0/Dense_1", mlp, dim)
    if representation:
        add_dense("pre_logits", dim, dim)
    add_dense("head", dim, sizes["num_classes"])

    def start(name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = rng.normal(size=shape)
        if name.endswith("scale"):
            return 1 + 0.1 * value
        if name.endswith("kernel"):
            fan_in = shape[0] * shape[1] if name.endswith("out/kernel") else int(np.prod(shape)) // shape[-1]
            fan_in = dim if "/query/" in name or "/key/" in name or "/value/" in name else fan_in
            return value / fan_in**0.5
        return 0.1 * value

    return {name: start(name, shape).astype("float32") for name, shape in shapes.items()}


def google_forward(t: dict, pictures: np.ndarray, naming: str, pooling: str, **_: Any) -> Outputs:
    """A ViT in float64 NumPy, straight from the paper's equations and Flax's names."""
    t = {name: value.astype("float64") for name, value in t.items()}
    attention, norm, dense = (1, 2, 3) if naming == "vit" else (0, 1, 0)

    def layer_norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * t[f"{name}/scale"] + t[f"{name}/bias"]

    def gelu(x):  # Flax's default is the tanh approximation.
        return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def mlp(x, name):
        x = gelu(x @ t[f"{name}/Dense_0/kernel"] + t[f"{name}/Dense_0/bias"])
        return x @ t[f"{name}/Dense_1/kernel"] + t[f"{name}/Dense_1/bias"]

    def attend(asking, asked, name):
        q = np.einsum("bnd,dhk->bhnk", asking, t[f"{name}/query/kernel"]) + t[f"{name}/query/bias"][:, None]
        k, v = (
            np.einsum("bnd,dhk->bhnk", asked, t[f"{name}/{part}/kernel"]) + t[f"{name}/{part}/bias"][:, None]
            for part in ("key", "value")
        )
        scores = np.einsum("bhnk,bhmk->bhnm", q, k) / q.shape[-1] ** 0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("bhnm,bhmk->bnhk", weights, v)
        return np.einsum("bnhk,hkd->bnd", y, t[f"{name}/out/kernel"]) + t[f"{name}/out/bias"]

    kernel = t["embedding/kernel"]
    side, (b, h, w, c) = kernel.shape[0], pictures.shape
    cut = pictures.astype("float64").reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    x = cut.reshape(b, -1, side * side * c) @ kernel.reshape(side * side * c, -1) + t["embedding/bias"]
    token = np.broadcast_to(t["cls"], (b, 1, x.shape[-1])) if pooling == "token" else x[:, :0]
    if naming == "vit":
        x = np.concatenate([token, x], 1) + t["Transformer/posembed_input/pos_embedding"]
    else:
        position = t["pos_embedding"] if "pos_embedding" in t else moco_positions(h // side, w // side, x.shape[-1])
        x = np.concatenate([token, x + position], 1)
    blocks = []
    while f"Transformer/encoderblock_{len(blocks)}/LayerNorm_0/scale" in t:
        block = f"Transformer/encoderblock_{len(blocks)}"
        y = layer_norm(x, f"{block}/LayerNorm_0")
        x = x + attend(y, y, f"{block}/MultiHeadDotProductAttention_{attention}")
        x = x + mlp(layer_norm(x, f"{block}/LayerNorm_{norm}"), f"{block}/MlpBlock_{dense}")
        blocks.append(x)
    x = layer_norm(x, "Transformer/encoder_norm")
    if pooling == "attention":
        probe = np.broadcast_to(t["MAPHead_0/probe"], (b, 1, x.shape[-1]))
        y = attend(probe, x, "MAPHead_0/MultiHeadDotProductAttention_0")
        x = (y + mlp(layer_norm(y, "MAPHead_0/LayerNorm_0"), "MAPHead_0/MlpBlock_0"))[:, 0]
    else:
        x = x[:, 0] if pooling == "token" else x.mean(1)
    if "pre_logits/kernel" in t:
        x = np.tanh(x @ t["pre_logits/kernel"] + t["pre_logits/bias"])
    return Outputs(x @ t["head/kernel"] + t["head/bias"], blocks)


def moco_positions(height: int, width: int, dim: int) -> np.ndarray:
    """2-D sine and cosine positions, `(height * width, dim)`, written down once more."""
    omega = 10_000.0 ** -np.linspace(0, 1, dim // 4)
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = [np.outer(columns, omega), np.outer(rows, omega)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)


def flax_reference(folder: Path, pictures: np.ndarray, sizes: dict, naming: str, checkouts: dict, **options):
    """The Flax models themselves, from a checkout of google-research/vision_transformer or .../big_vision."""
    import flax
    import jax

    rng = np.random.default_rng(SEED)
    shared = {"num_classes": sizes["num_classes"]}
    if naming == "vit":
        sys.path.insert(0, str(checkouts["vision_transformer"]))
        from vit_jax.models_vit import VisionTransformer

        transformer = {"num_layers": sizes["num_layers"], "num_heads": sizes["num_heads"], "mlp_dim": sizes["mlp_dim"]}
        model = VisionTransformer(
            patches=type("Patches", (), {"size": (sizes["patch_size"],) * 2})(),
            transformer=transformer | {"dropout_rate": 0.0, "attention_dropout_rate": 0.0},
            hidden_size=sizes["hidden_dim"],
            representation_size=sizes["hidden_dim"] if options.get("representation") else None,
            classifier={"token": "token", "average": "gap"}[options["pooling"]],
            **shared,
        )
    else:
        sys.path.insert(0, str(checkouts["big_vision"]))
        from big_vision.models.vit import _Model

        model = _Model(
            patch_size=(sizes["patch_size"],) * 2,
            width=sizes["hidden_dim"],
            depth=sizes["num_layers"],
            mlp_dim=sizes["mlp_dim"],
            num_heads=sizes["num_heads"],
            posemb="sincos2d" if options["pooling"] == "average" else "learn",
            pool_type={"token": "tok", "average": "gap", "attention": "map"}[options["pooling"]],
            scan=options.get("scan", False),
            **shared,
        )
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), pictures, train=False))["params"]
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    drawn = google_tensors(rng, sizes, naming, **options)
    if options.get("scan"):
        drawn = stack_blocks(drawn, sizes["num_layers"])
    # Google's published files have numbers that its code no longer gives.
    older = (("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"), ("LayerNorm_2", "LayerNorm_1"))
    named = {}
    for name, value in drawn.items():
        for old, new in (*older, ("MlpBlock_3", "MlpBlock_0")):
            name = name.replace(old, new)
        named[name] = value
    if {name: value.shape for name, value in named.items()} != {name: value.shape for name, value in flat.items()}:
        raise ValueError(f"Names or shapes differ from Flax's: {sorted(set(named) ^ set(flat))}")
    params = flax.traverse_util.unflatten_dict(named, sep="/")
    file = folder / "flax.npz"
    np.savez(file, **drawn)
    with jax.default_matmul_precision("highest"):
        y, state = model.apply({"params": params}, pictures, train=False, capture_intermediates=True)
    logits = y if naming == "vit" else y[0]
    if naming == "vit":
        steps = state["intermediates"]["Transformer"]
        blocks = [steps[f"encoderblock_{i}"]["__call__"][0] for i in range(sizes["num_layers"])]
    else:
        blocks = [y[1]["encoder"][f"block{i:02d}"]["+mlp"] for i in range(sizes["num_layers"])]
    return file, Outputs(np.asarray(logits), [np.asarray(block) for block in blocks])


def stack_blocks(tensors: dict, num_layers: int) -> dict:
    """Returns the tensors as a scan over layers keeps them: blocks stacked on a first axis."""
    marker = "Transformer/encoderblock_0/"
    stacked = {name: value for name, value in tensors.items() if "encoderblock_" not in name}
    for name in (name for name in tensors if name.startswith(marker)):
        rest = name.removeprefix(marker)
        parts = [tensors[f"Transformer/encoderblock_{i}/{rest}"] for i in range(num_layers)]
        stacked[f"Transformer/encoderblock/{rest}"] = np.stack(parts)
    return stacked
