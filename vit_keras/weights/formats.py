"""How checkpoints name and shape what our layers hold, as tables.

On the left is our layer, on the right theirs; `{}` is the number of the block. Several names on the right are parts
of one fused weight of ours, side by side on its last axis.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

HEADS = ("head", "head_distillation")
POSITION = "position_embedding/position"
PATCHES = "patch_embedding/projection/kernel"


@dataclass(frozen=True)
class Source:
    """Where one of our weights comes from.

    Attributes:
        names: Tensors in the file.
        shapes: The shape that each must have there.
        assemble: From those tensors to our weight.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    assemble: Callable[[list[np.ndarray]], np.ndarray]

    def needs(self) -> dict[str, tuple[int, ...]]:
        """Returns the tensors with their shapes."""
        return dict(zip(self.names, self.shapes, strict=True))


@dataclass(frozen=True)
class Format:
    """A naming of tensors.

    Attributes:
        title: For messages.
        mark: Tensor, of the first block where `{}` stands, by which the naming is recognised; the first that fits.
        layers: From our layers, and our weights that stand alone, to theirs.
        weights: From our names of a layer's weights to theirs, separator included.
        flax: Whether products are `(in, out)` as ours with heads as an axis of their own; `(out, in)` otherwise.
        renames: Patterns that are replaced in a file's names beforehand: one spelling for what has several.
        prefix_positions: Whether prefix tokens have positions in the file; `None` if it is as in the model.
    """

    title: str
    mark: str
    layers: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, str]
    flax: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    prefix_positions: bool | None = None

    def rename(self, name: str) -> str:
        """Returns the one spelling of a file's name that the tables know."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def source(self, path: str, shape: tuple[int, ...], num_heads: int) -> Source | None:
        """Returns where our weight comes from; `None` if the naming has no place for it."""
        layer, _, weight = path.rpartition("/")
        number = re.match(r"block_(\d+)/", layer)
        key = re.sub(r"^block_\d+/", "block_{}/", path)
        if key in self.layers:
            theirs, suffix = self.layers[key], ""
        else:
            theirs, suffix = self.layers.get(key.rpartition("/")[0], ()), self.weights.get(weight)
        if not theirs or suffix is None:
            return None
        names = tuple(name.format(number[1] if number else "") + suffix for name in theirs)
        part = (*shape[:-1], shape[-1] // len(theirs))
        their_shape = self._shape(layer, weight, part, num_heads)

        def assemble(arrays: list[np.ndarray]) -> np.ndarray:
            return np.concatenate([self._to_ours(array, part) for array in arrays], axis=-1)

        return Source(names, (their_shape,) * len(names), assemble)

    def head_tensors(self, names: Iterable[str], layers: tuple[str, ...] = HEADS) -> set[str]:
        """Returns those of the names that belong to heads."""
        starts = tuple(f"{theirs}{mark}" for layer in layers for theirs in self.layers.get(layer, ()) for mark in "./")
        return {name for name in names if starts and name.startswith(starts)}

    def _shape(self, layer: str, weight: str, shape: tuple[int, ...], num_heads: int) -> tuple[int, ...]:
        """Returns the shape in the file of what is `shape` here."""
        if not self.flax:
            return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        end = layer.rpartition("/")[2]
        if end in ("qkv", "query", "key_value"):
            return (*shape[:-1], num_heads, shape[-1] // num_heads)
        if end == "out" and weight == "kernel":
            return (num_heads, shape[0] // num_heads, shape[1])
        return shape

    def _to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if self.flax:
            return array.reshape(shape)
        return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0) if array.ndim == 4 else array

    def from_ours(self, array: np.ndarray, parts: int) -> list[np.ndarray]:
        """Returns the tensors of a file, `(out, in)`, that our weight becomes."""
        return [
            part.T if part.ndim == 2 else part.transpose(3, 2, 0, 1) if part.ndim == 4 else part
            for part in np.split(array, parts, axis=-1)
        ]


_TORCH_WEIGHTS = {"kernel": ".weight", "bias": ".bias", "gamma": ".weight", "beta": ".bias"}
_FLAX_WEIGHTS = {"kernel": "/kernel", "bias": "/bias", "gamma": "/scale", "beta": "/bias"}

TIMM = Format(
    title="timm",
    mark="blocks.{}.attn.qkv.weight",
    weights=_TORCH_WEIGHTS,
    layers={
        "patch_embedding/projection": ("patch_embed.proj",),
        "class_token/prefix": ("cls_token",),
        "distillation_token/prefix": ("dist_token",),
        "register_tokens/prefix": ("reg_token",),
        POSITION: ("pos_embed",),
        "block_{}/attention_norm": ("blocks.{}.norm1",),
        "block_{}/attention/qkv": ("blocks.{}.attn.qkv",),
        "block_{}/attention/out": ("blocks.{}.attn.proj",),
        "block_{}/attention_scale/gamma": ("blocks.{}.ls1.gamma",),
        "block_{}/mlp_norm": ("blocks.{}.norm2",),
        "block_{}/mlp/expand": ("blocks.{}.mlp.fc1",),
        "block_{}/mlp/contract": ("blocks.{}.mlp.fc2",),
        "block_{}/mlp_scale/gamma": ("blocks.{}.ls2.gamma",),
        "norm": ("norm",),
        "pooled/probe": ("attn_pool.latent",),
        "pooled/query": ("attn_pool.q",),
        "pooled/key_value": ("attn_pool.kv",),
        "pooled/out": ("attn_pool.proj",),
        "pooled/norm": ("attn_pool.norm",),
        "pooled/mlp/expand": ("attn_pool.mlp.fc1",),
        "pooled/mlp/contract": ("attn_pool.mlp.fc2",),
        "representation": ("pre_logits.fc",),
        "head": ("head",),
        "head_distillation": ("head_dist",),
    },
    # The DeiT repository's own names of LayerScale.
    renames=((r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),),
)

_HF_BLOCK = "encoder.layer.{}."
HUGGING_FACE = Format(
    title="Hugging Face",
    mark=_HF_BLOCK + "attention.attention.query.weight",
    weights=_TORCH_WEIGHTS,
    layers={
        "patch_embedding/projection": ("embeddings.patch_embeddings.projection",),
        "class_token/prefix": ("embeddings.cls_token",),
        "distillation_token/prefix": ("embeddings.distillation_token",),
        POSITION: ("embeddings.position_embeddings",),
        "block_{}/attention_norm": (_HF_BLOCK + "layernorm_before",),
        "block_{}/attention/qkv": tuple(f"{_HF_BLOCK}attention.attention.{p}" for p in ("query", "key", "value")),
        "block_{}/attention/out": (_HF_BLOCK + "attention.output.dense",),
        "block_{}/mlp_norm": (_HF_BLOCK + "layernorm_after",),
        "block_{}/mlp/expand": (_HF_BLOCK + "intermediate.dense",),
        "block_{}/mlp/contract": (_HF_BLOCK + "output.dense",),
        "norm": ("layernorm",),
        "representation": ("pooler.dense",),
        "head": ("classifier",),
        "head_distillation": ("distillation_classifier",),
    },
    renames=((r"^(vit|deit)\.", ""), (r"^cls_classifier\.", "classifier.")),
)


def _flax(
    title: str, attention: int, norm: int, mlp: int, prefix_positions: bool | None = None, mark: str | None = None
) -> Format:
    """Flax numbers the layers of a block in the order in which the code makes them; the code changed."""
    block = "Transformer/encoderblock_{}/"
    heads, pool = f"{block}MultiHeadDotProductAttention_{attention}/", "MAPHead_0/"
    return Format(
        title=title,
        mark=mark or heads + "query/kernel",
        weights=_FLAX_WEIGHTS,
        flax=True,
        prefix_positions=prefix_positions,
        layers={
            "patch_embedding/projection": ("embedding",),
            "class_token/prefix": ("cls",),
            POSITION: ("pos_embedding",),
            "block_{}/attention_norm": (f"{block}LayerNorm_0",),
            "block_{}/attention/qkv": tuple(heads + part for part in ("query", "key", "value")),
            "block_{}/attention/out": (heads + "out",),
            "block_{}/mlp_norm": (f"{block}LayerNorm_{norm}",),
            "block_{}/mlp/expand": (f"{block}MlpBlock_{mlp}/Dense_0",),
            "block_{}/mlp/contract": (f"{block}MlpBlock_{mlp}/Dense_1",),
            "norm": ("Transformer/encoder_norm",),
            "pooled/probe": (f"{pool}probe",),
            "pooled/query": (f"{pool}MultiHeadDotProductAttention_0/query",),
            "pooled/key_value": tuple(f"{pool}MultiHeadDotProductAttention_0/{part}" for part in ("key", "value")),
            "pooled/out": (f"{pool}MultiHeadDotProductAttention_0/out",),
            "pooled/norm": (f"{pool}LayerNorm_0",),
            "pooled/mlp/expand": (f"{pool}MlpBlock_0/Dense_0",),
            "pooled/mlp/contract": (f"{pool}MlpBlock_0/Dense_1",),
            "representation": ("pre_logits",),
            "head": ("head",),
        },
        renames=((r"^Transformer/(posembed_input/)?pos_embedding$", "pos_embedding"),),
    )


GOOGLE = _flax("Google's ViT", attention=1, norm=2, mlp=3)
# What Google's code writes today; its published files, above, are older than the code's present numbering.
GOOGLE_LINEN = _flax("Google's ViT", attention=0, norm=1, mlp=0, mark="Transformer/posembed_input/pos_embedding")
BIG_VISION = _flax("big_vision", attention=0, norm=1, mlp=0, prefix_positions=False)
FORMATS = (TIMM, HUGGING_FACE, GOOGLE, GOOGLE_LINEN, BIG_VISION)


@dataclass(frozen=True)
class KerasFormat:
    """The naming inside `.weights.h5`: layers by class and number, weights by number.

    Attributes:
        containers: From our layers to the groups in the file.
    """

    containers: Mapping[str, str]
    title: str = "Keras"
    prefix_positions: bool | None = None

    def source(self, path: str, shape: tuple[int, ...], num_heads: int) -> Source | None:
        layer, _, rest = path.partition("/")
        inner, _, weight = rest.rpartition("/")
        number = {"bias": 1, "beta": 1}.get(weight, 0)
        if layer not in self.containers:
            return None
        name = "/".join(part for part in ("layers", self.containers[layer], inner, "vars", str(number)) if part)
        return Source((name,), (shape,), lambda arrays: arrays[0])

    def head_tensors(self, names: Iterable[str], layers: tuple[str, ...] = HEADS) -> set[str]:
        starts = tuple(f"layers/{self.containers[layer]}/" for layer in layers if layer in self.containers)
        return {name for name in names if starts and name.startswith(starts)}
