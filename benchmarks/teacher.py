"""Trains a small residual network, to teach a Vision Transformer: the teacher of the recipe `distillation`.

    KERAS_BACKEND=torch python benchmarks/teacher.py --out runs/teacher --precision mixed_bfloat16
    KERAS_BACKEND=torch vit-keras train --config distillation --distill.teacher runs/teacher/model.keras

Convolutions learn from few pictures what a Vision Transformer needs many for, and hand it on (DeiT, arXiv:2012.12877,
section 5.2). It shows too that a teacher is any Keras classifier of the same pixels, trained by anyone's code; here by
`vit_keras.pipelines.training.fit`. What was trained goes on after an interruption.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np

from vit_keras.export.files import replacing
from vit_keras.pipelines.augment_config import AugmentConfig
from vit_keras.pipelines.config import FitConfig
from vit_keras.pipelines.datasets import load_data
from vit_keras.pipelines.preprocessing import batches, training_batches
from vit_keras.pipelines.training import FitData, fit


def convolution(x, width: int):
    """3x3, batch-normalised, rectified."""
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))


def residual_network(image_size: tuple[int, int], num_classes: int, width: int = 32) -> keras.Model:
    """A network of eight convolutions for small pictures, two of its stages residual, from pixels to logits.

    The shape is that of David Page's "How to train your ResNet", with half of its channels by default.
    """
    inputs = keras.Input((*image_size, 3))
    x = convolution(keras.layers.Rescaling(1 / 64, -2)(inputs), width)
    for stage, factor in enumerate((2, 4, 8)):
        x = keras.layers.MaxPooling2D()(convolution(x, factor * width))
        if stage != 1:
            x = keras.layers.Add()([x, convolution(convolution(x, factor * width), factor * width)])
    x = keras.layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, dtype="float32", name="head")(x), name="teacher")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a small residual network.")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--dir", help="Folder of a prepared TFDS data set.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of the model and of the training's state.")
    parser.add_argument("--size", type=int, default=32, help="Of the pictures, in pixels.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(options.precision)
    data, size, batch = load_data(options.data, options.dir), (options.size, options.size), 128
    model = residual_network(size, len(data.classes))
    augment = AugmentConfig("none", shift=0.125, fill=128, flip=True)
    config = FitConfig(
        epochs=options.epochs, optimizer="sgd", learning_rate=0.1, weight_decay=5e-3, warmup_epochs=2, clip_norm=None
    )

    def train(epoch: int, step: int):
        return training_batches(data.train, size, batch, augment, 0, epoch, step, num_classes=len(data.classes))

    source = FitData(train, len(data.train) // batch, batches(data.validation, size, 256))
    start = time.monotonic()
    fit(model, source, config, options.out / "state", on_epoch=lambda rows: print(rows[-1], flush=True))
    with replacing(options.out / "model.keras") as temporary:
        model.save(temporary)
    logits = model.predict(batches(data.test, size, 256), verbose=0)
    right = float(np.mean(logits.argmax(-1) == data.test.labels))
    print(f"{right:.2%} of {len(data.test):,} test pictures, {model.count_params():,} parameters, ", end="")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
