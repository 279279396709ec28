"""Prompts: learned tokens that are put among the others to adapt a frozen model, and how to take them out again."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("vit_keras")
class PromptTokens(keras.layers.Layer):
    """Puts learned prompts between the prefix tokens and the patch tokens, or in the place of prompts there.

    Args:
        num_tokens: Number of prompts P, >= 1.
        num_prefix: Number of prefix tokens, such as the class token, that stay before the prompts, >= 0.
        replace: Whether the P tokens behind the prefix, prompts themselves, are replaced; otherwise prompts are added.
        dropout_rate: Dropout on the prompts, in [0, 1), drawn for each picture.
        initializer: Initialiser of the prompts; in the paper's code uniform in `+-sqrt(6 / (3 * patch_size**2 + D))`.
        seed: Seed of the dropout; `None` for a random one.

    Call arguments:
        tokens: `(B, N, D)`.
        training: Whether dropout is active.

    Returns:
        `(B, N + P, D)`, or with `replace` `(B, N, D)`.

    Raises:
        ValueError: an argument outside its range, or fewer tokens than prefix and prompts to replace.

    Reference:
        Jia et al., "Visual Prompt Tuning" (arXiv:2203.12119), equations 4 (added) and 7 (replaced); their code,
        github.com/KMnP/vpt, src/models/vit_prompt/vit.py, has the prompts' dropout.
    """

    def __init__(
        self,
        num_tokens: int,
        num_prefix: int = 0,
        replace: bool = False,
        dropout_rate: float = 0.0,
        initializer="glorot_uniform",
        seed: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be >= 1. Received: num_tokens={num_tokens}")
        if num_prefix < 0:
            raise ValueError(f"num_prefix must be >= 0. Received: num_prefix={num_prefix}")
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1). Received: dropout_rate={dropout_rate}")
        self.num_tokens = num_tokens
        self.num_prefix = num_prefix
        self.replace = replace
        self.dropout_rate = dropout_rate
        self.initializer = keras.initializers.get(initializer)
        self.seed = seed

    def build(self, input_shape) -> None:
        _, tokens, dim = input_shape
        needed = self.num_prefix + self.num_tokens * self.replace
        if tokens < needed:
            raise ValueError(f"tokens must number at least {needed}, prefix and prompts. Received: tokens={tokens}")
        self.prompts = self.add_weight(name="prompts", shape=(1, self.num_tokens, dim), initializer=self.initializer)
        self.dropout = keras.layers.Dropout(self.dropout_rate, seed=self.seed, dtype=self.dtype_policy, name="dropout")

    def call(self, tokens, training: bool = False):
        prompts = ops.cast(self.prompts, tokens.dtype)
        prompts = ops.broadcast_to(prompts, (ops.shape(tokens)[0], self.num_tokens, tokens.shape[-1]))  # (B, P, D)
        if self.dropout_rate:
            prompts = self.dropout(prompts, training=training and self.trainable)
        others = tokens[:, self.num_prefix + self.num_tokens * self.replace :]
        prefix = [tokens[:, : self.num_prefix]] if self.num_prefix else []
        return ops.concatenate([*prefix, prompts, others], axis=1)

    def compute_output_shape(self, input_shape):
        batch, tokens, dim = input_shape
        return batch, tokens if self.replace else tokens + self.num_tokens, dim

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "num_prefix": self.num_prefix,
            "replace": self.replace,
            "dropout_rate": self.dropout_rate,
            "initializer": keras.initializers.serialize(self.initializer),
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable("vit_keras")
class TokenRemoval(keras.layers.Layer):
    """Leaves a run of tokens out.

    Args:
        start: First token that is left out, >= 0.
        stop: Token after the last, > `start`.

    Call arguments:
        tokens: `(B, N, D)`.

    Returns:
        `(B, N - (stop - start), D)`.

    Raises:
        ValueError: a run of no tokens.
    """

    def __init__(self, start: int, stop: int, **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 <= start < stop:
            raise ValueError(f"start must be >= 0 and stop above it. Received: start={start}, stop={stop}")
        self.start = start
        self.stop = stop

    def call(self, tokens):
        if not self.start:
            return tokens[:, self.stop :]
        return ops.concatenate([tokens[:, : self.start], tokens[:, self.stop :]], axis=1)

    def compute_output_shape(self, input_shape):
        batch, tokens, dim = input_shape
        return batch, tokens - len(range(tokens)[self.start : self.stop]), dim

    def get_config(self) -> dict:
        return {**super().get_config(), "start": self.start, "stop": self.stop}
