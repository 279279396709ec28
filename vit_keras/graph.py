"""Walking through a functional model, nested ones included, and copying it into a flat one."""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from .layers.dense import merged_weights, plain_config


def is_functional(model: Any) -> bool:
    """Whether a model's layers and their order are known: it is functional or sequential, not subclassed."""
    return isinstance(model, (keras.Sequential, keras.src.models.Functional))


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


def flat_copy(model: keras.Model, visit: Callable[..., Any] | None = None) -> tuple[keras.KerasTensor, Any]:
    """Copies a model, layer by layer, into one flat float32 graph with the same weights.

    Args:
        model: A functional or sequential model of one input; nested ones are laid flat.
        visit: Called as `visit(copy, *args, **kwargs)` with each copied layer and what it is given; returns what takes
            the place of its output. Calls the layer if `None`.

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
    copies: dict[int, keras.layers.Layer] = {}
    names: set[str] = set()

    def call(layer, *args, **kwargs):
        if is_functional(layer):
            return inline(layer, args[0] if args else kwargs["inputs"], call)
        if not isinstance(layer, keras.layers.Layer):
            return layer(*args, **kwargs)
        fresh = id(layer) not in copies
        if fresh:
            name = layer.name
            while name in names:
                name += "_"
            names.add(name)
            config = {**plain_config(layer), "dtype": "float32", "name": name}
            copies[id(layer)] = type(layer).from_config(config)
        copy = copies[id(layer)]
        output = visit(copy, *args, **kwargs) if visit else copy(*args, **kwargs)
        if fresh:
            copy.set_weights(merged_weights(layer))
        return output

    inputs = keras.Input(batch_shape=(None, *model.inputs[0].shape[1:]), dtype="float32", name="images")
    return inputs, inline(model, inputs, call)
