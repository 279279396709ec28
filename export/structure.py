"""The structure of a model: laid flat, and where its residual stream runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from vit_keras.layers import (
    AttentionPooling,
    LayerNormalization,
    LearnedPositionEmbedding,
    PatchEmbedding,
    PrefixTokens,
    Sincos1DPositionEmbedding,
    Sincos2DPositionEmbedding,
    StochasticDepth,
    TokenSlice,
    TransformerBlock,
)

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


def flatten(model: keras.Model, own_norms: bool = True) -> keras.Model:
    """Copies a model into one flat functional float32 model, without layers that only training needs.

    Args:
        model: A functional or sequential model.
        own_norms: Whether Keras's LayerNorms over the last axis become ours, which have no NEG operator.
    """
    copies: dict[int, keras.layers.Layer] = {}
    names: set[str] = set()

    def call(layer, *args, **kwargs):
        if isinstance(layer, (keras.Sequential, keras.src.models.Functional)):
            return inline(layer, args[0] if args else kwargs["inputs"], call)
        if isinstance(layer, _TRAINING_ONLY):
            return args[0]
        if not isinstance(layer, keras.layers.Layer):
            return layer(*args, **kwargs)
        fresh = id(layer) not in copies
        if fresh:
            name = layer.name
            while name in names:
                name += "_"
            names.add(name)
            copies[id(layer)] = _norm_of(layer, name) if own_norms and _is_plain_norm(layer) else _copy_of(layer, name)
        outputs = copies[id(layer)](*args, **kwargs)
        if fresh:
            copies[id(layer)].set_weights(_merged_weights(layer))
        return outputs

    inputs = keras.Input(batch_shape=model.inputs[0].shape, dtype="float32", name="images")
    return keras.Model(inputs, inline(model, inputs, call), name=model.name)


def _copy_of(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    config = {key: value for key, value in layer.get_config().items() if key not in ("lora_rank", "lora_alpha")}
    return layer.__class__.from_config({**config, "dtype": "float32", "name": name})


def _merged_weights(layer: keras.layers.Layer) -> list[np.ndarray]:
    """Returns a layer's weights with those of LoRA added to the kernels that they adapt.

    Reference:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), equation 3.
    """
    merged, adapters = {}, set()
    for part in layer._flatten_layers():
        if getattr(part, "lora_enabled", False) and hasattr(part, "lora_kernel_a"):
            a, b = (np.asarray(ops.convert_to_numpy(v)) for v in (part.lora_kernel_a, part.lora_kernel_b))
            merged[id(part._kernel)] = part.lora_alpha / part.lora_rank * (a @ b)
            adapters |= {id(part.lora_kernel_a), id(part.lora_kernel_b)}
    pairs = zip(layer.weights, layer.get_weights(), strict=True)
    return [value + merged.get(id(weight), 0) for weight, value in pairs if id(weight) not in adapters]


def _is_plain_norm(layer: keras.layers.Layer) -> bool:
    """Whether a layer is Keras's LayerNormalization over the last axis, with gamma and beta."""
    if type(layer) is not keras.layers.LayerNormalization or getattr(layer, "rms_scaling", False):
        return False
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    return axes in ([-1], [len(layer.input.shape) - 1]) and layer.scale and layer.center


def _norm_of(layer: keras.layers.LayerNormalization, name: str) -> InferenceNormalization:
    return InferenceNormalization(layer.epsilon, name=name)


def inline(model: keras.Model, inputs, call: Callable[..., Any]):
    """Runs symbolic inputs through a model with `call` in place of each layer's call."""
    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            inputs = call(layer, inputs)
        return inputs
    inputs = keras.tree.pack_sequence_as(model.input, keras.tree.flatten(inputs))
    # What `clone_model` itself calls; its result, a model, would cut a nested model off from the layers before it.
    return model._run_through_graph(inputs, operation_fn=lambda layer: layer, call_fn=call)


@dataclass(frozen=True)
class Stream:
    """The residual stream of a flat model, found from its layers.

    Attributes:
        layers: Names of the layers on it, from the patch embedding to the last block.
        norm: Name of the LayerNorm at its end.
        readers: Names of the dense and pooling layers that read what the last LayerNorm gives; empty if others do too.
        num_read: How many tokens, from the first, are read after the last block; `None` for all.
        rescaling: Name of the layer that normalises pictures before the patch embedding, if there is one.
    """

    layers: tuple[str, ...]
    norm: str
    readers: tuple[str, ...]
    num_read: int | None
    rescaling: str | None

    @classmethod
    def of(cls, model: keras.Model) -> "Stream | None":
        """Finds the stream, or returns `None` where a model has none, or other layers read from the middle of it."""
        graph = _Graph(model)
        starts = [layer for layer in model.layers if isinstance(layer, PatchEmbedding)]
        if len(starts) != 1:
            return None
        names, layer = [], starts[0]
        while isinstance(layer, (PatchEmbedding, PrefixTokens, TransformerBlock, *POSITIONS)):
            names.append(layer.name)
            readers = graph.readers(layer)
            if len(readers) != 1:
                return None
            layer = readers[0]
        if not isinstance(layer, LayerNormalization) or not any(
            isinstance(model.get_layer(name), TransformerBlock) for name in names
        ):
            return None
        before = graph.writer(starts[0])
        alone = isinstance(before, keras.layers.Rescaling) and len(graph.readers(before)) == 1
        return cls(
            tuple(names), layer.name, graph.linear_readers(layer), graph.num_read(layer), before.name if alone else None
        )


class _Graph:
    """Who reads from whom in a flat model."""

    def __init__(self, model: keras.Model) -> None:
        self._writers: dict[int, Any] = {}
        self._readers: dict[int, list[Any]] = {}
        self._outputs = {id(tensor) for tensor in model.outputs}
        for operation in model.operations:
            node = operation._inbound_nodes[-1] if operation._inbound_nodes else None
            for tensor in keras.tree.flatten(operation.output):
                self._writers[id(tensor)] = operation
            for tensor in node.input_tensors if node else ():
                self._readers.setdefault(id(tensor), []).append(operation)

    def readers(self, layer) -> list[Any]:
        """The layers that take what a layer gives; `None` stands for the model's own output."""
        tensor = layer.output
        return self._readers.get(id(tensor), []) + [None] * (id(tensor) in self._outputs)

    def writer(self, layer) -> Any:
        return self._writers.get(id(layer.input))

    def linear_readers(self, norm) -> tuple[str, ...]:
        """Names of the products that a LayerNorm ends in through layers that commute with its gamma and beta."""
        found, stack = [], self.readers(norm)
        while stack:
            layer = stack.pop()
            if isinstance(layer, (TokenSlice, keras.layers.Reshape, keras.layers.GlobalAveragePooling1D)):
                stack += self.readers(layer)
            elif isinstance(layer, (keras.layers.Dense, AttentionPooling)):
                found.append(layer.name)
            else:
                return ()
        return tuple(found)

    def num_read(self, norm) -> int | None:
        slices = self.readers(norm)
        if all(isinstance(s, TokenSlice) and s.stop for s in slices):
            return max(s.stop for s in slices)
        return None
