"""Gradient-weighted rollout: attention counts where the class's score hangs on it."""

import keras
import numpy as np

from ..graph import flat_copy
from ..layers import PromptTokens, TransformerBlock
from .attention import attention_model
from .layout import TokenLayout


class _Offset(keras.layers.Layer):
    """Adds a variable of zeros, `(B, H, N, N)`, to attention weights, so that a gradient can be taken for them."""

    def build(self, input_shape) -> None:
        self.offset = self.add_weight(name="offset", shape=input_shape, initializer="zeros")

    def call(self, scores, training: bool = False):
        return scores + self.offset


class _Still(keras.Model):
    """A functional model that drops nothing while it is trained."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


class AttentionGradients:
    """Gradients of a class's score with respect to the attention weights, on every backend.

    Keras has no gradients of its own, but trains: the copy's only trainable variables are zeros that are added to the
    attention weights, and a step of plain gradient descent at rate 1 leaves the gradients in them.

    Args:
        model: A functional classifier with transformer blocks and without learned prompts.
        batch_size: Pictures at a time.

    Raises:
        ValueError: the model is subclassed, has no transformer block, or has learned prompts.
    """

    def __init__(self, model: keras.Model, batch_size: int) -> None:
        self.batch_size = batch_size
        blocks: list[TransformerBlock] = []

        def visit(layer, *args, **kwargs):
            if isinstance(layer, PromptTokens):
                raise ValueError(f"model must have no learned prompts. Received: model={model.name!r}")
            if isinstance(layer, TransformerBlock):
                blocks.append(layer)
            return layer(*args, **kwargs)

        inputs, outputs = flat_copy(model, visit)
        if not blocks:
            raise ValueError(f"model must have transformer blocks to show attention. Received: model={model.name!r}")
        self._model = _Still(inputs, outputs, name="gradients")
        self._model.trainable = True
        for variable in self._model.variables:
            variable.trainable = False
        self._offsets = [self._add_offset(block) for block in blocks]
        self._model.compile(keras.optimizers.SGD(1.0), loss=_ChosenScores(reduction="sum"))

    def _add_offset(self, block: TransformerBlock):
        attention, tokens = block.attention, block.output.shape[1]
        offset = _Offset(name="offset", dtype="float32")
        offset.build((self.batch_size, block.num_heads, tokens, tokens))
        attention._tracker.unlock()
        attention.dropout = offset  # It is called with the attention weights.
        attention._tracker.lock()
        return offset.offset

    def __call__(self, images: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
        """Returns the gradients block by block, `(n, H, N, N)`, of `n <= batch_size` pictures and a class of each."""
        for offset in self._offsets:
            offset.assign(np.zeros(offset.shape, "float32"))
        count = len(images)
        filled = np.take(np.asarray(images, "float32"), range(self.batch_size), axis=0, mode="wrap")
        chosen = np.zeros((self.batch_size, self._model.output_shape[-1]), "float32")
        chosen[range(count), classes] = 1
        self._model.train_on_batch(filled, chosen)
        return [-keras.ops.convert_to_numpy(offset)[:count] for offset in self._offsets]


class _ChosenScores(keras.losses.Loss):
    """The scores of the chosen classes, `y_true` being 1 there and 0 elsewhere."""

    def call(self, y_true, y_pred):
        return keras.ops.sum(y_true * y_pred, axis=-1)


def gradient_rollout_maps(
    model: keras.Model, images: np.ndarray, classes: np.ndarray | int | None = None, batch_size: int = 8
) -> np.ndarray:
    """Shows which patches speak for a class: the rollout of attention weights times their gradients.

    Args:
        model: A functional classifier from `create_model`, without learned prompts.
        images: Pictures as the model takes them, `(n, H, W, 3)`.
        classes: Index of the class to explain, for all or for each picture, `(n,)`; the predicted one if `None`.
        batch_size: Pictures at a time; memory grows with it, not with n.

    Returns:
        `(n, height, width)` in patches, >= 0, each map scaled to a sum of 1; all 0 where no patch speaks for the class.

    Raises:
        ValueError: the model is subclassed, or lacks transformer blocks or a patch embedding, or a class index out of
            range.

    Reference:
        Chefer, Gur, Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
        Transformers" (arXiv:2103.15679), equations 5 and 6: `A' = mean over heads of max(0, dA * A)`, `R = R + A' R`.
        With attention pooling the probe's own weights are the row to start with.
    """
    images = np.asarray(images, "float32")
    return GradientRollout(model, batch_size)(images, check_classes(model, images, classes, batch_size))


class GradientRollout:
    """What `gradient_rollout_maps` does, ready for pictures that come in parts.

    Args:
        model: As there.
        batch_size: Pictures at a time.
    """

    def __init__(self, model: keras.Model, batch_size: int = 8) -> None:
        self.layout = TokenLayout.of(model)
        self.batch_size = batch_size
        self._gradients, self._attention = AttentionGradients(model, batch_size), attention_model(model)

    def __call__(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Returns the maps, `(n, height, width)`, of pictures, `(n, H, W, 3)`, and a class of each, `(n,)`."""
        parts = (slice(i, i + self.batch_size) for i in range(0, len(images), self.batch_size))
        maps = np.concatenate([self._batch(images[part], classes[part]) for part in parts])
        return maps / np.maximum(maps.sum(axis=(1, 2), keepdims=True), 1e-30)

    def _batch(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        scores = self._attention.predict_on_batch(images)
        scores = [np.asarray(s) for s in (scores if isinstance(scores, list) else [scores])]
        probed = self.layout.pooling == "attention"
        row = scores.pop().mean(axis=1) if probed else self.layout.read_row()  # (B, 1, N)
        start_row = 0 if probed else row  # Under average pooling it says the same of every patch: it is taken off.
        for weights, slopes in zip(scores[::-1], self._gradients(images, classes)[::-1], strict=True):
            row = row + row @ np.maximum(weights * slopes, 0).mean(axis=1)
        return self.layout.on_grid((row - start_row)[:, 0])


def check_classes(
    model: keras.Model, images: np.ndarray, classes: np.ndarray | int | None, batch_size: int
) -> np.ndarray:
    """Returns a class index for each picture, `(n,)`: those given, or the predicted ones.

    Raises:
        ValueError: an index out of range, or another number of them than of pictures.
    """
    count = model.output_shape[-1]
    if classes is None:
        return np.asarray(model.predict(images, batch_size=batch_size, verbose=0)).argmax(axis=1)
    chosen = np.asarray(classes)
    if chosen.dtype.kind not in "iu" or chosen.shape not in ((), (len(images),)):
        raise ValueError(f"classes must be one index, or one for each of {len(images)} pictures. Received: {classes=}")
    if chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(f"classes must be 0 to {count - 1}. Received: classes={classes}")
    return np.broadcast_to(chosen, (len(images),))
