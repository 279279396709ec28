"""Dropout, stochastic depth and LayerScale."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("vit_keras")
class StochasticDepth(keras.layers.Layer):
    """Drops a residual branch for whole pictures while training, and rescales the others.

    Args:
        rate: Probability of dropping the branch, in [0, 1). 0 is the identity.
        seed: Seed of the draws; `None` for a random one.

    Call arguments:
        x: `(B, ...)`, the branch before it is added to the residual stream.
        training: Whether to drop. Outside training `x` is returned unchanged.

    Returns:
        `(B, ...)`: `x * mask / (1 - rate)` with one Bernoulli draw per picture.

    Raises:
        ValueError: `rate` outside [0, 1).

    Reference:
        Huang et al., "Deep Networks with Stochastic Depth" (arXiv:1603.09382), equation 2, in the rescaled form that
        leaves inference unchanged.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1). Received: rate={rate}")
        self.rate = rate
        self.seed = seed
        self.supports_masking = True
        if rate > 0:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, x, training: bool = False):
        if not training or self.rate == 0:
            return x
        keep = 1.0 - self.rate
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        draws = keras.random.uniform(shape, seed=self.seed_generator)
        return x * ops.cast(draws < keep, x.dtype) / keep

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable("vit_keras")
class LayerScale(keras.layers.Layer):
    """Multiplies every channel of a residual branch by a learned factor that starts small.

    Args:
        initial_value: Start of every factor. 1e-5 is DeiT III's and CaiT's choice for deep models.

    Call arguments:
        x: `(..., D)`.

    Returns:
        `(..., D)`.

    Reference:
        Touvron et al., "Going deeper with Image Transformers" (arXiv:2103.17239), equation 4.
    """

    def __init__(self, initial_value: float = 1e-5, **kwargs) -> None:
        super().__init__(**kwargs)
        self.initial_value = initial_value
        self.supports_masking = True

    def build(self, input_shape) -> None:
        self.gamma = self.add_weight(
            name="gamma",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
        )

    def call(self, x):
        return x * self.gamma

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "initial_value": self.initial_value}


@keras.saving.register_keras_serializable("vit_keras")
class TokenDropout(keras.layers.Dropout):
    """Dropout that is left out where the layer is frozen (`trainable = False`), as in a frozen `TransformerBlock`.

    Args:
        rate: Share of the numbers that are dropped, in [0, 1).
        **kwargs: As in `keras.layers.Dropout`.

    Call arguments:
        inputs: `(B, N, D)`.
        training: Whether dropout is active.

    Returns:
        `(B, N, D)`.
    """

    def call(self, inputs, training: bool = False):
        return super().call(inputs, training=training and self.trainable)
