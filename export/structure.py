"""The structure of a model: laid flat, and where its residual stream runs."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from vit_keras.graph import Copies, float32_copy, given, inline, is_functional
from vit_keras.layers import (
    AttentionPooling,
    LayerNormalization,
    LearnedPositionEmbedding,
    PatchEmbedding,
    PrefixTokens,
    PromptTokens,
    Sincos1DPositionEmbedding,
    Sincos2DPositionEmbedding,
    StochasticDepth,
    TokenRemoval,
    TokenSlice,
    TransformerBlock,
)
from vit_keras.precision import precision

from .inference_layers import InferenceNormalization

POSITIONS = (LearnedPositionEmbedding, Sincos1DPositionEmbedding, Sincos2DPositionEmbedding)
_TRAINING_ONLY = (
    StochasticDepth,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.RandomBrightness,
    keras.layers.RandomContrast,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
)


# Of exactly these classes what they compute is known; a subclass may compute something else.
_ON_THE_STREAM = (PatchEmbedding, PrefixTokens, PromptTokens, TransformerBlock, TokenRemoval, *POSITIONS)
_PRODUCTS = (keras.layers.Dense, AttentionPooling)


def is_for_training(layer: Any) -> bool:
    """Whether a layer does nothing when a model predicts."""
    return isinstance(layer, _TRAINING_ONLY)


@precision("float32")
def flatten(model: keras.Model, own_norms: bool = True) -> keras.Model:
    """Copies a model into one flat functional float32 model, without layers that only training needs.

    Nested models of classes of their own stay what they are.

    Args:
        model: A functional or sequential model.
        own_norms: Whether Keras's LayerNorms over the last axis become ours, which have no NEG operator.
    """

    def make(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
        return (_norm_of if own_norms and _is_plain_norm(layer) else float32_copy)(layer, name)

    copies = Copies(make)

    def call(layer, *args, **kwargs):
        if is_functional(layer):
            return inline(layer, given(args, kwargs), call)
        return given(args, kwargs) if is_for_training(layer) else copies(layer, *args, **kwargs)

    inputs = keras.Input(batch_shape=model.inputs[0].shape, dtype="float32", name="images")
    return keras.Model(inputs, inline(model, inputs, call), name=model.name)


def _is_plain_norm(layer: keras.layers.Layer) -> bool:
    """Whether a layer is Keras's LayerNormalization over the last axis, with gamma and beta."""
    if type(layer) is not keras.layers.LayerNormalization or getattr(layer, "rms_scaling", False):
        return False
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    return axes in ([-1], [len(layer.input.shape) - 1]) and layer.scale and layer.center


def _norm_of(layer: keras.layers.LayerNormalization, name: str) -> InferenceNormalization:
    return InferenceNormalization(layer.epsilon, name=name)


@dataclass(frozen=True)
class Stream:
    """The residual stream of a flat model, found from its layers.

    Attributes:
        layers: Names of the layers on it, from the patch embedding to the last block.
        norm: Name of the LayerNorm at its end.
        readers: Names of the dense and pooling layers that read what the last LayerNorm gives; empty if others do too.
        num_prefix: How many tokens stand before the patches there.
        num_read: How many tokens, from the first, are read after the last block; `None` for all.
        rescaling: Name of the layer that normalises pictures before the patch embedding, if there is one.
        own_prompts: Whether every block has prompts of its own: what it makes of them, nobody reads.
        steady: Whether all blocks take equally many tokens.
    """

    layers: tuple[str, ...]
    norm: str
    readers: tuple[str, ...]
    num_prefix: int
    num_read: int | None
    rescaling: str | None
    own_prompts: bool
    steady: bool

    @classmethod
    def of(cls, model: keras.Model) -> "Stream | None":
        """Finds the stream, or returns `None` where a model has none, or other layers read from the middle of it."""
        graph = _Graph(model)
        starts = [layer for layer in model.layers if type(layer) is PatchEmbedding]
        if len(starts) != 1:
            return None
        names, layer = [], starts[0]
        while type(layer) in _ON_THE_STREAM:
            names.append(layer.name)
            readers = graph.readers(layer)
            if len(readers) != 1 or graph.results(layer) != 1:
                return None
            layer = readers[0]
        if type(layer) is not LayerNormalization or graph.results(layer) != 1:
            return None
        on_it = [model.get_layer(name) for name in names]
        blocks = [on for on in on_it if isinstance(on, TransformerBlock)]
        # What joins the stream behind the last block would have to be put before what is read.
        if not blocks or not isinstance(on_it[-1], (TransformerBlock, TokenRemoval)):
            return None
        before = graph.writer(starts[0])
        alone = _scales_channels(before) and len(graph.readers(before)) == 1
        return cls(
            tuple(names),
            layer.name,
            graph.linear_readers(layer),
            graph.num_tokens(layer) - graph.num_tokens(starts[0]),
            graph.num_read(layer),
            before.name if alone else None,
            _own_prompts(on_it),
            len({graph.num_tokens(block) for block in blocks}) == 1,
        )


def _scales_channels(layer: Any) -> bool:
    """Whether a layer is a Rescaling with one factor and one summand for all channels, or for each."""
    return type(layer) is keras.layers.Rescaling and all(
        np.size(values) == 1 or np.shape(values)[-1] == np.size(values) for values in (layer.scale, layer.offset)
    )


def _own_prompts(layers: list[keras.layers.Layer]) -> bool:
    """Whether layers of a stream end in pairs of prompts and a block, and the removal of the prompts."""
    prompts = [layer for layer in layers if isinstance(layer, PromptTokens)]
    if not prompts or not isinstance(layers[-1], TokenRemoval):
        return False
    start, count, removal = prompts[0].num_prefix, prompts[0].num_tokens, layers[-1]
    pairs = layers[layers.index(prompts[0]) : -1]
    return (
        all(isinstance(layer, TransformerBlock) for layer in pairs[1::2])
        and pairs[::2] == prompts
        and len(pairs) == 2 * len(prompts)
        and not any(isinstance(layer, TransformerBlock) for layer in layers[: -1 - len(pairs)])
        and all((p.num_prefix, p.num_tokens, p.replace) == (start, count, p is not prompts[0]) for p in prompts)
        and (removal.start, removal.stop) == (start, start + count)
    )


def as_flat(model: keras.Model, own_norms: bool = True) -> keras.Model:
    """Returns a model itself if it has a residual stream and is flat and float32 already, else what `flatten` gives.

    A copy of a large model takes as much memory again, of which TensorFlow's allocator gives nothing back. Layers that
    only training needs may still stand in it.
    """

    def plain(layer: Any) -> bool:
        return (
            isinstance(layer, keras.layers.Layer)
            and not isinstance(layer, keras.Model)
            and not (own_norms and _is_plain_norm(layer))
            and all(part.dtype_policy.name == "float32" for part in layer._flatten_layers())
            and not any(getattr(part, "lora_enabled", False) for part in layer._flatten_layers())
        )

    functional = isinstance(model, keras.src.models.Functional)
    as_it_is = functional and len(model.inputs) == 1 and all(map(plain, model.operations)) and Stream.of(model)
    return model if as_it_is else flatten(model, own_norms)


class _Graph:
    """Who reads from whom in a flat model; layers that only training needs are looked through.

    A layer may be called more than once, in the model and outside: what counts are the model's own calls.
    """

    def __init__(self, model: keras.Model) -> None:
        self._calls: dict[int, list[Any]] = {}  # Of an operation, from the inputs on.
        self._writers: dict[int, Any] = {}
        self._readers: dict[int, list[Any]] = {}
        self._same: dict[int, int] = {}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if is_for_training(node.operation):
                    self._same[id(node.output_tensors[0])] = self._key(node.input_tensors[0])
                    continue
                self._calls.setdefault(id(node.operation), []).append(node)
                for tensor in node.output_tensors:
                    self._writers[id(tensor)] = node.operation
                for tensor in node.input_tensors:
                    self._readers.setdefault(self._key(tensor), []).append(node)
        self._outputs = [self._key(tensor) for tensor in model.outputs]

    def _key(self, tensor) -> int:
        return self._same.get(id(tensor), id(tensor))

    def results(self, layer) -> int:
        """How many tensors a layer gives, in all of the model's calls."""
        return sum(len(call.output_tensors) for call in self._calls[id(layer)])

    def num_tokens(self, layer) -> int:
        """How many tokens a layer gives, where it gives `(B, N, D)`."""
        return self._calls[id(layer)][0].output_tensors[0].shape[1]

    def readers(self, layer) -> list[Any]:
        """The layers that take what a layer gives; `None` stands for the model's own output."""
        return [node and node.operation for call in self._calls[id(layer)] for node in self._reading(call)]

    def _reading(self, call) -> list[Any]:
        """The calls that take what a call gives; `None` stands for the model's own output."""
        keys = [id(tensor) for tensor in call.output_tensors]
        found = [node for key in keys for node in self._readers.get(key, [])]
        return found + [None for key in keys if key in self._outputs]

    def writer(self, layer) -> Any:
        return self._writers.get(self._key(self._calls[id(layer)][0].input_tensors[0]))

    def linear_readers(self, norm) -> tuple[str, ...]:
        """Names of the products that a LayerNorm ends in through layers that commute with its gamma and beta."""
        reached: dict[int, int] = {}
        stack = self._reading(self._calls[id(norm)][0])
        while stack:
            call = stack.pop()
            layer = call and call.operation
            if _keeps_channels(call):
                stack += self._reading(call)
            elif type(layer) in _PRODUCTS and len(call.output_tensors) == 1:
                reached[id(layer)] = reached.get(id(layer), 0) + 1
            else:
                return ()
        if any(count < len(self._calls[key]) for key, count in reached.items()):  # One also reads something else.
            return ()
        return tuple(self._calls[key][0].operation.name for key in reached)

    def num_read(self, norm) -> int | None:
        slices = self.readers(norm)
        if slices and all(type(s) is TokenSlice and s.start >= 0 and (s.stop or 0) > 0 for s in slices):
            return max(s.stop for s in slices)
        return None


def _keeps_channels(call: Any) -> bool:
    """Whether a call commutes with factors and summands of the channels, its last axis."""
    if call is None:
        return False
    layer, channels = call.operation, call.input_tensors[0].shape[-1]
    if type(layer) is keras.layers.GlobalAveragePooling1D:
        return layer.data_format == "channels_last"
    return type(layer) in (TokenSlice, keras.layers.Reshape) and call.output_tensors[0].shape[-1] == channels


def check_chain(model: keras.Model, option: str, at_least: int = 1) -> None:
    """Refuses a model whose tokens cannot be followed from block to block.

    Args:
        model: A model.
        option: What needs that, for the error.
        at_least: Number of blocks that it takes.

    Raises:
        ValueError: it is no chain of a patch embedding, enough of our transformer blocks and a LayerNorm, or tokens
            join or leave between the blocks.
    """
    blocks = 0
    if is_functional(model) and (stream := Stream.of(flat := as_flat(model))) and stream.steady:
        blocks = sum(isinstance(flat.get_layer(name), TransformerBlock) for name in stream.layers)
    if blocks < at_least:
        needed = f"at least {at_least} TransformerBlocks" if at_least > 1 else "TransformerBlocks"
        raise ValueError(
            f"{option} needs a model of one PatchEmbedding, {needed} one after another, all on the same tokens, and a "
            "LayerNorm behind them. "
            f"Received: model={model.name!r}"
        )
