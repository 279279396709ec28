"""Layer normalisation that lowers to integer-only TensorFlow Lite."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("vit_keras")
class LayerNormalization(keras.layers.Layer):
    """Layer normalisation over the last axis, free of the NEG operator.

    `keras.layers.LayerNormalization` computes `x * inv + (beta - mean * inv)`, whose negation has neither an int8
    nor an int16 kernel in TensorFlow Lite. Here the mean is subtracted first, which is the same function in seven
    builtin operators (MEAN, SUB, MUL, MEAN, ADD, RSQRT, MUL + affine), all of which have integer kernels.
    The statistics are computed in float32 whatever the compute dtype.

    Args:
        epsilon: Added to the variance, > 0. 1e-6 as in the ViT reference code.

    Call arguments:
        x: `(..., D)`.

    Returns:
        `(..., D)`, the same dtype as the layer's compute dtype.

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization" (arXiv:1607.06450), equation 4.
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs) -> None:
        super().__init__(**kwargs)
        if epsilon <= 0:
            raise ValueError(f"epsilon must be > 0. Received: epsilon={epsilon}")
        self.epsilon = epsilon
        self.supports_masking = True

    def build(self, input_shape) -> None:
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")

    def call(self, x):
        if keras.backend.backend() == "torch":  # PyTorch has it in one pass, with statistics in float32.
            x = ops.cast(x, self.compute_dtype)
            return ops.layer_normalization(x, self.gamma, self.beta, epsilon=self.epsilon)
        x = ops.cast(x, keras.backend.result_type(self.compute_dtype, "float32"))
        mean = ops.mean(x, axis=-1, keepdims=True)
        # The variance does not change with the mean to first order: without that path, which is zero, the gradient's
        # two sums do not wait for one another.
        variance = ops.mean(ops.square(x - ops.stop_gradient(mean)), axis=-1, keepdims=True)
        y = (x - mean) * ops.rsqrt(variance + self.epsilon)
        return ops.cast(y * ops.cast(self.gamma, y.dtype) + ops.cast(self.beta, y.dtype), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "epsilon": self.epsilon}
