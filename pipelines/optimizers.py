"""Keras's optimisers with a learning rate and a weight decay of its own for every weight. Keras only."""

import re

import keras

from .config import FitConfig


def _with_rules(base: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Returns an optimiser class whose `scales`, by path, multiply the learning rate, and whose `decay` is of kernels.

    Keras has one learning rate for all weights, and its weight decay does not follow another one.
    """

    class WithRules(base):
        def __init__(self, *args, decay: float = 0.0, scales: dict[str, float] | None = None, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.decay = decay
            self.scales = scales or {}

        def build(self, variables):
            if not self.built:
                scales = (self.scales.get(v.path, 1.0) for v in variables)
                decays = (self.decay if v.name == "kernel" else 0.0 for v in variables)
                self._rules = list(zip(scales, decays, strict=True))
            super().build(variables)

        def update_step(self, gradient, variable, learning_rate):
            scale, decay = self._rules[self._get_variable_index(variable)]
            rate = keras.ops.cast(learning_rate, variable.dtype) * scale
            if decay:
                self.assign_sub(variable, variable * rate * decay)
            super().update_step(gradient, variable, rate)

        def get_config(self) -> dict:
            return {**super().get_config(), "decay": self.decay, "scales": dict(self.scales)}

    WithRules.__name__ = WithRules.__qualname__ = f"{base.__name__}WithRules"
    return keras.saving.register_keras_serializable("vit_keras")(WithRules)


_CLASSES = {
    "adamw": _with_rules(keras.optimizers.Adam),  # With the decoupled decay above it is AdamW.
    "muon": _with_rules(keras.optimizers.Muon),
    "lion": _with_rules(keras.optimizers.Lion),
    "lamb": _with_rules(keras.optimizers.Lamb),
    "sgd": _with_rules(keras.optimizers.SGD),
}
_ARGUMENTS = {
    # Embeddings are excluded by Muon itself; heads as its authors say.
    "muon": {"exclude_layers": ["head", "representation"], "weight_decay": None, "adam_weight_decay": None},
    "sgd": {"momentum": 0.9, "nesterov": True},
}


def make_optimizer(model: keras.Model, config: FitConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Returns the optimiser with linear warm-up and cosine decay to zero within `config.epochs`.

    Weight decay is decoupled, proportional to the learning rate, and of the kernels of dense layers and convolutions
    only. With `config.layer_decay` below 1 the learning rate falls from the head to the embeddings, block by block.

    Reference:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (arXiv:1711.05101); layer-wise decay as in BEiT,
        Bao et al. (arXiv:2106.08254), appendix G.
    """
    steps = (config.epochs or 1) * steps_per_epoch
    warmup = min(config.warmup_epochs * steps_per_epoch, steps // 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else config.learning_rate,
        decay_steps=max(1, steps - warmup),
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return _CLASSES[config.optimizer](
        learning_rate=schedule,
        global_clipnorm=config.clip_norm,
        use_ema=bool(config.ema),
        # Keras averages after every batch, also where several of them make one step.
        ema_momentum=config.ema ** (1 / config.accumulate) if config.ema else 0.99,
        gradient_accumulation_steps=config.accumulate if config.accumulate > 1 else None,
        name=config.optimizer,
        decay=config.weight_decay,
        scales=learning_rate_scales(model, config.layer_decay) if config.layer_decay < 1 else None,
        **_ARGUMENTS.get(config.optimizer, {}),
    )


def learning_rate_scales(model: keras.Model, layer_decay: float) -> dict[str, float]:
    """Returns the factor of the learning rate for every trainable variable, by its path.

    Embeddings have `layer_decay` to the power of the number of blocks plus one, the last block has `layer_decay`, what
    comes behind it has 1.
    """
    paths = [variable.path for variable in model.trainable_variables]
    blocks = {path: match[0] for path in paths if (match := re.search(r"(^|.*/)\w*block_\d+(?=/)", path))}
    places = {name: depth for depth, name in enumerate(sorted(set(blocks.values()), key=_numbers), start=1)}
    top = len(places) + 1
    depths = {path: places[blocks[path]] if path in blocks else 0 if _is_embedding(path) else top for path in paths}
    return {path: layer_decay ** (top - depth) for path, depth in depths.items()}


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _is_embedding(path: str) -> bool:
    return any(word in path for word in ("embedding", "token", "prompt"))
