"""The dense layer of our blocks, weights with those of LoRA merged into them, and what is frozen."""

from typing import Any

import keras
import numpy as np
from keras import ops

LORA_WEIGHTS = _A, _B = "lora_kernel_a", "lora_kernel_b"
"""What Keras names the matrices of LoRA."""


@keras.saving.register_keras_serializable("vit_keras")
class AdaptableDense(keras.layers.Dense):
    """Keras's dense layer, except that a weight file holds what `enable_lora` has added.

    Keras writes the merged kernel alone, in the compute dtype, and fills both LoRA matrices with zeros on loading, from
    where no gradient leads away. Here a file holds the merged kernel where that of a plain layer stands, and the
    matrices beside it: a plain layer loads the merged kernel, one with LoRA of the same rank goes on training.

    Args:
        units: Width of the result.
        **kwargs: As in `keras.layers.Dense`.

    Call arguments:
        inputs: `(..., D)`.

    Returns:
        `(..., units)`.

    Reference:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), equation 3.
    """

    def enable_lora(self, rank, lora_alpha=None, **kwargs) -> None:
        """Adds `lora_alpha / rank * A @ B` to the kernel, of which only A and B train; see `keras.layers.Dense`."""
        # A layer built from a configuration is not told its factor by Keras.
        super().enable_lora(rank, self.lora_alpha if lora_alpha is None else lora_alpha, **kwargs)

    def save_own_variables(self, store) -> None:
        if not self.lora_enabled or self.quantization_mode:
            super().save_own_variables(store)
            return
        store["0"] = ops.convert_to_numpy(self._kernel) + lora_update(self)
        if self.bias is not None:
            store["1"] = self.bias
        store[_A], store[_B] = self.lora_kernel_a, self.lora_kernel_b

    def load_own_variables(self, store) -> None:
        if self.quantization_mode:
            super().load_own_variables(store)
            return
        adapters = {name: np.asarray(store[name]) for name in (_A, _B) if name in store.keys()}  # noqa: SIM118
        plain = {name: store[name] for name in store.keys() if name not in adapters}  # noqa: SIM118
        if not self.lora_enabled:
            super().load_own_variables(plain)
            return
        shapes = {_A: tuple(self.lora_kernel_a.shape), _B: tuple(self.lora_kernel_b.shape)}
        if adapters and {name: value.shape for name, value in adapters.items()} != shapes:
            raise ValueError(
                f"LoRA of {self.path} must have the rank of the file's. Received: rank={self.lora_rank}, the file has "
                f"{adapters[_A].shape[-1]}"
            )
        if adapters:
            self.lora_kernel_a.assign(adapters[_A])
            self.lora_kernel_b.assign(adapters[_B])
        else:  # B alone: with A at zero too, nothing would ever change.
            self.lora_kernel_b.assign(np.zeros(shapes[_B]))
        self._kernel.assign(np.asarray(plain["0"]) - lora_update(self))
        if self.bias is not None:
            self.bias.assign(plain["1"])

    def get_config(self) -> dict:
        return {**super().get_config(), "lora_rank": self.lora_rank, "lora_alpha": self.lora_alpha}


def lora_update(dense: keras.layers.Layer) -> np.ndarray:
    """Returns what LoRA adds to the kernel of a layer, of the kernel's shape."""
    a, b = (np.asarray(ops.convert_to_numpy(v)) for v in (dense.lora_kernel_a, dense.lora_kernel_b))
    return dense.lora_alpha / dense.lora_rank * (a @ b)


def plain_config(layer: keras.layers.Layer) -> dict:
    """Returns a layer's configuration without LoRA: what is built from it takes the layer's `merged_weights`."""
    return _without_lora(layer.get_config())


def _without_lora(config: Any) -> Any:
    """A configuration without LoRA, in what is nested in it too."""
    if isinstance(config, dict):
        return {key: _without_lora(value) for key, value in config.items() if key not in ("lora_rank", "lora_alpha")}
    return [_without_lora(value) for value in config] if isinstance(config, list) else config


def take_weights(copy: keras.layers.Layer, layer: keras.layers.Layer) -> None:
    """Gives a copy of a layer its weights, those of LoRA merged unless the copy has LoRA itself, and what Keras
    computes of them beforehand."""
    has_lora = len(copy.weights) == len(layer.weights)
    copy.set_weights(layer.get_weights() if has_lora else merged_weights(layer))
    for part in copy._flatten_layers():
        if isinstance(part, keras.layers.Normalization):
            part.finalize_state()


def merged_weights(layer: keras.layers.Layer) -> list[np.ndarray]:
    """Returns a layer's weights with those of LoRA added to the kernels that they adapt, and left out themselves.

    Reference:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), equation 3.
    """
    updates, adapters = {}, set()
    for part in layer._flatten_layers():
        if getattr(part, "lora_enabled", False) and hasattr(part, _A):
            updates[id(part._kernel)] = lora_update(part)
            adapters |= {id(part.lora_kernel_a), id(part.lora_kernel_b)}
    pairs = zip(layer.weights, layer.get_weights(), strict=True)
    return [value + updates.get(id(weight), 0) for weight, value in pairs if id(weight) not in adapters]


def freeze_parts(layer: keras.layers.Layer) -> None:
    """Freezes what a frozen layer has made in `build`: from a configuration, Keras freezes the layer's own weights."""
    if not layer.trainable:
        for part in layer._flatten_layers(include_self=False):
            part.trainable = False
