"""Keras's optimisers with a learning rate and a weight decay of its own for every weight. Keras only."""

import re

import keras

from .config import FitConfig


class Lamb(keras.optimizers.Lamb):
    """LAMB with a weight decay where its paper has it, in the update whose length is brought to that of the weight.

    Keras's decays outside: there the decay shrinks a weight whatever the trust ratio makes of the gradient.

    Reference:
        You et al. (arXiv:1904.00962), algorithm 2, with the identity as its function phi.
    """

    def update_step(self, gradient, variable, learning_rate, decay: float = 0.0):
        ops, index = keras.ops, self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        self.assign_add(m, (gradient - m) * (1 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1 - self.beta_2))
        step = ops.cast(self.iterations + 1, variable.dtype)
        mean, square = m / (1 - ops.power(self.beta_1, step)), v / (1 - ops.power(self.beta_2, step))
        update = mean / (ops.sqrt(square) + self.epsilon) + decay * variable
        weight_norm, update_norm = (ops.sqrt(ops.sum(ops.square(x))) for x in (variable, update))
        ratio = ops.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
        self.assign_sub(variable, learning_rate * ratio * update)


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
            if issubclass(base, Lamb):
                super().update_step(gradient, variable, rate, decay)
                return
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
    "lamb": _with_rules(Lamb),
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
    only; that of LAMB goes through its trust ratio, see `Lamb`. With `config.layer_decay` below 1 the learning rate
    falls from the head to the embeddings, block by block.

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

    Embeddings have `layer_decay` to the power of the number of blocks plus one, the last block and the prompts before
    it have `layer_decay`, what comes behind it has 1. Blocks count whether they train or not.
    """
    blocks = {match[0] for variable in model.variables if (match := _BLOCK.search(variable.path))}
    places = {name: place for place, name in enumerate(sorted(blocks, key=_numbers), start=1)}
    top = len(blocks) + 1

    def depth(path: str) -> int:
        if match := _PROMPTS.search(path):
            return int(match[1]) + 1
        if match := _BLOCK.search(path):
            return places[match[0]]
        return 0 if "embedding" in path or "token" in path else top

    return {v.path: layer_decay ** (top - depth(v.path)) for v in model.trainable_variables}


_BLOCK = re.compile(r"(^|.*/)\w*block_\d+(?=/)")
_PROMPTS = re.compile(r"(?:^|/)prompts_(\d+)(?=/)")
"""As `vit_keras.adapt` names the prompts before each block."""


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
