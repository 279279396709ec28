"""Ways to adapt a pretrained classifier: what of it trains, and what is put into it for that."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import keras
import numpy as np

from .layers import PatchEmbedding, PromptTokens, TokenRemoval, TransformerBlock
from .layers.dense import plain_config, take_weights
from .messages import nearest
from .weights.formats import HEADS

METHODS: dict[str, str] = {
    "full": "everything trains",
    "head": "the head alone trains: a linear probe",
    "bitfit": "biases and the head train",
    "lora": "low-rank updates of the products and the head train",
    "prompt_shallow": "prompts before the first block and the head train",
    "prompt_deep": "prompts before every block and the head train",
}
"""The ways to adapt a model, and what trains in each."""

LORA_TARGETS = ("qkv", "out", "expand", "contract")
"""The products of a block that LoRA may adapt: two of the attention, two of the MLP."""


def adapt(
    model: keras.Model,
    method: str,
    rank: int = 8,
    alpha: float | None = None,
    targets: Collection[str] = ("qkv", "out"),
    num_prompts: int = 10,
    prompt_dropout_rate: float = 0.0,
    seed: int | None = None,
) -> keras.Model:
    """Copies a pretrained classifier so that a chosen part of it trains.

    In short: `full` trains everything; `head` the one or two linear layers at the end and nothing else, no LayerNorm
    and no representation layer; `bitfit` the head and every vector that is added, `bias` of the products and of the
    patch projection and `beta` of the LayerNorms, but neither positions nor tokens; `lora` the head and a low-rank
    update of each target's kernel; the two of prompt tuning the head and the prompts.

    A backbone that is wholly frozen (`head` and prompts) drops nothing in training, neither by dropout nor by
    stochastic depth, as in the code of Jia et al.; where weights inside it train (`bitfit`, `lora`) both go on, as in
    the code of Ben Zaken et al. and Hu et al.

    A saved file holds a plain model, LoRA merged, that runs, resizes and exports as any other. It keeps which whole
    layers are frozen (`head` and prompts), not which single weights (`bitfit`, `lora`): `adapt` once more to train on.
    The weight file of a model with LoRA holds the low-rank matrices too, so that an interrupted training goes on.

    Args:
        model: A classifier from `create_model` or `load_model`. It is left as it is; LoRA in it is merged into the
            copy.
        method: One of `METHODS`.
        rank: Rank r of LoRA's updates, >= 1.
        alpha: LoRA's updates are multiplied by `alpha / rank`; `rank` if `None`, for a factor of 1.
        targets: Names in `LORA_TARGETS`: which products of the blocks LoRA adapts. `qkv` is one product of width 3D,
            whose queries, keys and values share A.
        num_prompts: Number of prompts P, >= 1, before each block that has some; the paper tries 1 to 200.
        prompt_dropout_rate: Dropout on the prompts, in [0, 1); the paper's code has 0 unless told otherwise.
        seed: Seed of what starts at random, LoRA's A and the prompts; `None` for a random one.

    Returns:
        A new functional model, not compiled, with the input and output of `model`.

    Raises:
        ValueError: an unknown method or target, an argument outside its range, a model that is no flat classifier
            with transformer blocks and a head, or, for prompts, one that has prompts already or whose tokens other
            layers read between the blocks.

    Reference:
        LoRA: Hu et al. (arXiv:2106.09685), equation 3. BitFit: Ben Zaken, Ravfogel, Goldberg (arXiv:2106.10199),
        section 3. Prompts: Jia et al., "Visual Prompt Tuning" (arXiv:2203.12119), equations 4 to 8; they start uniform
        in `+-sqrt(6 / (3 * patch_size**2 + D))` and have no positions, as in their code (github.com/KMnP/vpt).
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}.{nearest(method, METHODS)} Received: {method=}")
    heads = _check_classifier(model)
    if method == "lora":
        _check_lora(rank, alpha, targets)
    if method.startswith("prompt"):
        insert = _Prompts(model, num_prompts, method == "prompt_deep", prompt_dropout_rate, seed)
        copy = _plain_copy(model, insert)
        _train_only(copy, [*heads, *insert.names])
        return copy
    copy = _plain_copy(model)
    if method == "head":
        _train_only(copy, heads)
    elif method == "bitfit":
        _train_variables(copy, heads, ("bias", "beta"))
    elif method == "lora":
        _train_variables(copy, heads, ())
        _enable_lora(copy, rank, alpha, targets, seed)
    return copy


def merge_lora(model: keras.Model, dtype: str | None = None) -> keras.Model:
    """Copies a model into a plain one, in which everything trains, with LoRA's updates added to the kernels.

    Args:
        model: A functional model, adapted or not. It is left as it is.
        dtype: Data type or policy of the copy's layers, such as `"float32"` of a model that trained in mixed
            precision; as they are if `None`.

    Returns:
        A new model, not compiled, that computes the same. Prompts stay: they are tokens like others.

    Raises:
        ValueError: the model is not functional.

    Reference:
        Hu et al. (arXiv:2106.09685), section 4.1, "No Additional Inference Latency".
    """
    if not isinstance(model, keras.src.models.Functional):
        raise ValueError(f"model must be a functional model. Received: model={model}")
    return _plain_copy(model, dtype=dtype)


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has.

    Attributes:
        trainable: Those that train.
        total: All, without the state of random generators.
    """

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.trainable / max(self.total, 1):.2%})"


def count_parameters(model: keras.Model) -> ParameterCount:
    """Counts the parameters of a built model."""
    trainable, total = (sum(int(np.prod(v.shape)) for v in vs) for vs in (model.trainable_weights, model.weights))
    return ParameterCount(trainable, total)


def _check_classifier(model: keras.Model) -> list[str]:
    """Returns the names of the heads."""
    layers = model.layers if isinstance(model, keras.src.models.Functional) else []
    heads = [layer.name for layer in layers if layer.name in HEADS and isinstance(layer, keras.layers.Dense)]
    for needed, found in (
        (PatchEmbedding.__name__, any(isinstance(layer, PatchEmbedding) for layer in layers)),
        (TransformerBlock.__name__, any(isinstance(layer, TransformerBlock) for layer in layers)),
        ("Dense layer named 'head'", heads),
    ):
        if not found:
            raise ValueError(
                f"model must be a flat classifier as create_model makes it; it has no {needed}. Received: model={model}"
            )
    return heads


def _check_lora(rank: int, alpha: float | None, targets: Collection[str]) -> None:
    if rank < 1:
        raise ValueError(f"rank must be >= 1. Received: rank={rank}")
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be > 0 or None. Received: alpha={alpha}")
    if isinstance(targets, str) or not targets or not set(targets) <= set(LORA_TARGETS):
        raise ValueError(f"targets must be some of {', '.join(LORA_TARGETS)}. Received: targets={targets!r}")


def _plain_copy(model: keras.Model, call: Callable | None = None, dtype: str | None = None) -> keras.Model:
    """Copies a model with its weights, LoRA merged and everything trainable; `call` may put layers in between."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = {**plain_config(layer), "trainable": True}
        return type(layer).from_config(config if dtype is None else {**config, "dtype": dtype})

    copy = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in model.layers:
        if layer.weights:  # An input that nobody named has another name in the copy.
            take_weights(copy.get_layer(layer.name), layer)
    return copy


def _train_only(model: keras.Model, names: Iterable[str]) -> None:
    """Freezes whole layers, but for some."""
    for layer in model.layers:
        layer.trainable = layer.name in names


def _train_variables(model: keras.Model, heads: Iterable[str], names: Collection[str]) -> None:
    """Freezes variables, but for those of some names and of the heads; to layers, dropout that is, nothing changes."""
    for layer in model.layers:
        for variable in layer.weights:
            variable.trainable = layer.name in heads or variable.name in names


def _enable_lora(
    model: keras.Model, rank: int, alpha: float | None, targets: Collection[str], seed: int | None
) -> None:
    blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
    for i, block in enumerate(blocks):
        products = (block.attention.qkv, block.attention.out, block.mlp.expand, block.mlp.contract)
        for j, (name, product) in enumerate(zip(LORA_TARGETS, products, strict=True)):
            if name in targets:
                start = keras.initializers.HeUniform(_seed(seed, len(products) * i + j))
                product.enable_lora(rank, alpha, a_initializer=start)


def _seed(seed: int | None, i: int) -> int | None:
    """A seed of its own for the i-th of many: initialisers of one seed draw the same numbers."""
    return None if seed is None else int(np.random.SeedSequence((seed, i)).generate_state(1)[0] >> 1)


class _Prompts:
    """Calls a model's layers, and puts prompts before its blocks.

    Args:
        model: The model.
        num_prompts: Number of prompts P, >= 1.
        deep: Whether every block has its own; the first alone otherwise.
        dropout_rate: Dropout on the prompts, in [0, 1).
        seed: Seed of prompts and dropout.
    """

    def __init__(self, model: keras.Model, num_prompts: int, deep: bool, dropout_rate: float, seed: int | None) -> None:
        if num_prompts < 1:
            raise ValueError(f"num_prompts must be >= 1. Received: num_prompts={num_prompts}")
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"prompt_dropout_rate must be in [0, 1). Received: prompt_dropout_rate={dropout_rate}")
        if any(isinstance(layer, PromptTokens) for layer in model.layers):
            raise ValueError(f"model must have no prompts yet. Received: model={model.name!r}, which has some")
        patches = next(layer for layer in model.layers if isinstance(layer, PatchEmbedding))
        blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
        self.blocks = {layer.name: i for i, layer in enumerate(blocks)}
        self.num_prompts = num_prompts
        self.num_prefix = blocks[0].input.shape[1] - patches.output.shape[1]
        self.deep = deep
        self.dropout_rate = dropout_rate
        self.limit = (6 / (3 * patches.patch_size**2 + patches.hidden_dim)) ** 0.5
        self.seed = seed
        self.names: list[str] = []
        self._prompted: set[int] = set()  # Tensors that hold prompts.
        self._kept: list[keras.KerasTensor] = []  # So that no other tensor takes the number of one of them.

    def __call__(self, layer, *args, **kwargs):
        i = self.blocks.get(layer.name)
        if i is None:
            if any(id(x) in self._prompted for x in keras.tree.flatten((args, kwargs))):
                raise ValueError(f"Tokens between blocks must be read by blocks alone. Received: layer={layer.name!r}")
            return layer(*args, **kwargs)
        (x,) = args
        if (i > 0) != (id(x) in self._prompted):
            raise ValueError(f"Each block must read the one before it. Received: layer={layer.name!r}")
        if i == 0 or self.deep:
            x = self._prompts(i, layer.dtype_policy)(x)  # (B, P' + P + N, D), P' tokens of the prefix
        y = layer(x, **kwargs)
        if i == len(self.blocks) - 1:
            stop = self.num_prefix + self.num_prompts
            return TokenRemoval(self.num_prefix, stop, dtype=layer.dtype_policy, name="without_prompts")(y)
        self._prompted.add(id(y))
        self._kept.append(y)
        return y

    def _prompts(self, i: int, dtype: keras.DTypePolicy) -> PromptTokens:
        self.names.append(f"prompts_{i}")
        return PromptTokens(
            self.num_prompts,
            self.num_prefix,
            replace=i > 0,
            dropout_rate=self.dropout_rate,
            initializer=keras.initializers.RandomUniform(-self.limit, self.limit, seed=_seed(self.seed, 2 * i)),
            seed=_seed(self.seed, 2 * i + 1),
            dtype=dtype,
            name=self.names[-1],
        )
