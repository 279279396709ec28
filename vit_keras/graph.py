"""Walking through a functional model, nested ones included, and copying it, into a flat one or without its softmax."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from .layers.dense import plain_config, take_weights
from .precision import precision


def is_functional(model: Any) -> bool:
    """Whether a model's layers and their order are known: it is functional or sequential, with no `call` of its own."""
    return getattr(type(model), "call", None) in (keras.Sequential.call, keras.src.models.Functional.call)


def as_functional(model: keras.Model) -> keras.Model:
    """Returns a model itself if it is functional, else a functional one of its name that calls it.

    Raises:
        ValueError: it was not built yet, or is of a class of its own and was not built on one batch of pictures.
    """
    if is_functional(model):
        if not model.built:
            raise ValueError(
                "model must know what it takes: build it, or give it keras.Input((H, W, 3)) as its first layer. "
                f"Received: model={model.name!r}, which is not built"
            )
        return model
    if isinstance(model, (keras.Sequential, keras.src.models.Functional)) and len(model.inputs or ()) == 1:
        shapes = [tuple(model.inputs[0].shape)]
    else:
        shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if len(shapes) != 1 or not isinstance(shapes[0], tuple) or len(shapes[0]) != 4:
        raise ValueError(
            "model must have been called on one batch of pictures, (B, H, W, 3): of a class of its own it does not "
            f"tell its shapes before. Received: model={model.name!r}, a {type(model).__name__} built on {shapes}"
        )
    inputs = keras.Input(shapes[0][1:], dtype="float32", name="images")
    return keras.Model(inputs, model(inputs), name=model.name)


def as_classifier(model: keras.Model) -> keras.Model:
    """Returns the functional model from pictures to logits that a model is, or is behind its last softmax.

    A softmax, as a layer or as the last Dense layer's activation, is left out: files and proofs are of logits, and of
    probabilities where they are asked for.

    Raises:
        ValueError: it does not take pictures, `(None, H, W, 3)`, or give scores, `(None, num_classes)`, a weight is
            no number, or Keras has quantised a layer.
    """
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                "model must be as it was before Keras's `quantize`: files are quantised here. "
                f"Received: model={model.name!r} with {layer.quantization_mode} in {layer.name!r}"
            )
    model = without_softmax(as_functional(model))
    shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    given = shapes[0] if len(shapes) == 2 and list(map(len, shapes)) == [4, 2] else ()
    if not given or given[3] != 3 or None in (*given[1:], shapes[1][1]):
        raise ValueError(
            "model must take pictures, (None, H, W, 3), and give scores, (None, num_classes). "
            f"Received: model={model.name!r} of shapes {', '.join(map(str, shapes))}"
        )
    for variable in model.weights:
        values = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
        if not np.isfinite(values).all():
            raise ValueError(f"model must have finite weights. Received: NaN or infinity in {variable.path}")
    return model


def without_softmax(model: keras.Model) -> keras.Model:
    """Returns a functional model without the softmax that it ends in; one that ends in none as it is."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return model
    inputs = model.inputs[0]
    last, index, _ = model.outputs[0]._keras_history
    taken = last._inbound_nodes[index].input_tensors
    if len(taken) != 1:
        return model
    if is_functional(last):
        inner = without_softmax(last)
        return model if inner is last else _ended(model, taken[0], inner)
    activation = getattr(last, "activation", None)
    if isinstance(last, keras.layers.Activation) and activation is keras.activations.linear:
        before = keras.Model(inputs, taken[0], name=model.name)
        inner = without_softmax(before)
        return model if inner is before else inner
    if _is_softmax(last) or (isinstance(last, keras.layers.Activation) and _is_softmax(activation)):
        return keras.Model(inputs, taken[0], name=model.name)
    if not isinstance(last, keras.layers.Dense) or not _is_softmax(activation):
        return model
    head = type(last).from_config({**plain_config(last), "activation": "linear"})
    head.build(taken[0].shape)
    take_weights(head, last)
    return _ended(model, taken[0], head)


def _is_softmax(function: Any) -> bool:
    """Whether a layer, operation or activation is a softmax over the classes."""
    if isinstance(function, (keras.layers.Softmax, keras.src.ops.nn.Softmax)):
        return function.axis in (-1, 1)
    return function in (keras.activations.softmax, keras.ops.softmax)


def _ended(model: keras.Model, tensor: keras.KerasTensor, end: keras.layers.Layer) -> keras.Model:
    """Returns a model up to one of its tensors, with another end; the model itself is not told of it."""
    operation = tensor._keras_history.operation
    outputs = end(tensor)
    operation._outbound_nodes.pop()  # Else it would keep the end alive.
    return keras.Model(model.inputs[0], outputs, name=model.name)


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields a model's layers, and those of nested models in their place."""
    for layer in model.layers:
        if is_functional(layer):
            yield from layers_of(layer)
        else:
            yield layer


def inline(model: keras.Model, inputs, call: Callable[..., Any]):
    """Runs symbolic inputs through a model with `call` in place of each layer's call."""
    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            inputs = call(layer, inputs)
        return inputs
    inputs = keras.tree.pack_sequence_as(model.input, keras.tree.flatten(inputs))
    # What `clone_model` itself calls; its result, a model, would cut a nested model off from the layers before it.
    return model._run_through_graph(inputs, operation_fn=lambda layer: layer, call_fn=call)


def float32_copy(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    """Returns a layer of the same configuration in float32, with all that is nested in it, and without LoRA."""
    return type(layer).from_config({**_in_float32(plain_config(layer)), "name": name})


_HALF = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def _in_float32(config: Any) -> Any:
    """A configuration with every dtype policy in it replaced."""
    if isinstance(config, dict):
        if str(config.get("class_name", "")).endswith("DTypePolicy"):
            return "float32"
        return {
            key: "float32" if key == "dtype" and value in _HALF else _in_float32(value) for key, value in config.items()
        }
    return [_in_float32(value) for value in config] if isinstance(config, list) else config


class Copies:
    """Calls float32 copies in place of what a model calls: one of each layer and operation, under a name of its own.

    The given model stays as it is, and keeps nothing of the copy alive. What cannot be made a second time, as a model
    of a class of its own, is called itself, in float32.

    Args:
        make: Makes the copy of a layer, under a name.
        fill: Called as `fill(copy, layer)` once the copy is built; gives it its weights.
        visit: Called as `visit(copy, *args, **kwargs)` with each copied layer and what it is given; returns what takes
            the place of its output. Calls the layer if `None`.
    """

    def __init__(
        self,
        make: Callable[[Any, str], keras.layers.Layer] = float32_copy,
        fill: Callable[[Any, Any], None] = take_weights,
        visit: Callable[..., Any] | None = None,
    ) -> None:
        self._make = make
        self._fill = fill
        self._visit = visit or (lambda copy, *args, **kwargs: copy(*args, **kwargs))
        self._copies: dict[int, Any] = {}
        self._names = {"images"}  # What the input of a copy is called.

    def __call__(self, layer, *args, **kwargs):
        """Returns what the copy of a layer gives; of a functional model, what the copies of its layers give."""
        if is_functional(layer):
            return inline(layer, given(args, kwargs), self)
        fresh = id(layer) not in self._copies
        if fresh:
            self._copies[id(layer)] = self._copy(layer, self._name(layer.name))
        copy = self._copies[id(layer)]
        if not isinstance(layer, keras.layers.Layer):
            return copy(*args, **kwargs)
        output = self._visit(copy, *args, **kwargs)
        if fresh and not isinstance(copy, _Itself):
            self._fill(copy, layer)
        return output

    def _copy(self, layer, name: str):
        if isinstance(layer, keras.Model):
            return _Itself(layer, name)
        try:
            if isinstance(layer, keras.layers.Layer):
                return self._make(layer, name)
            config = _in_float32(layer.get_config())
            return type(layer).from_config({**config, "name": name} if "name" in config else config)
        except (TypeError, NotImplementedError):  # Its configuration does not say how it is made.
            return _Itself(layer, name)

    def _name(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


class _Itself(keras.layers.Layer):
    """Calls a layer in float32, whatever its policy, from a graph that the layer is not told of."""

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.layer = layer

    def call(self, *args, **kwargs):
        with in_float32(self.layer):
            return self.layer(*args, **kwargs)


@contextmanager
def in_float32(layer: Any) -> Iterator[None]:
    """Lets a layer, with all that is nested in it, compute in float32 meanwhile, where its weights are float32."""
    parts = layer._flatten_layers() if isinstance(layer, keras.layers.Layer) else []
    policies = [(part, part.dtype_policy) for part in parts if part.variable_dtype == "float32"]
    try:
        for part, _ in policies:
            part.dtype_policy = "float32"
        yield
    finally:
        for part, policy in policies:
            part.dtype_policy = policy


def given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Returns what a layer is called on, by position or by name."""
    return next(iter((*args, *kwargs.values())))


@precision("float32")
def flat_copy(model: keras.Model, visit: Callable[..., Any] | None = None) -> tuple[keras.KerasTensor, Any]:
    """Copies a model, layer by layer, into one flat float32 graph with the same weights.

    Args:
        model: A functional or sequential model of one input; nested ones are laid flat.
        visit: As in `Copies`.

    Returns:
        The input and the output of the copy.

    Raises:
        ValueError: a subclassed model, or one of several inputs.
    """
    if not is_functional(model) or len(model.inputs) != 1:
        raise ValueError(
            "model must be functional or sequential, of one input: of others the order of the layers is not known. "
            f"Received: model={getattr(model, 'name', model)!r}, a {type(model).__name__}"
        )
    inputs = keras.Input(batch_shape=(None, *model.inputs[0].shape[1:]), dtype="float32", name="images")
    return inputs, inline(model, inputs, Copies(visit=visit))
