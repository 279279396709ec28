"""A linear classifier on any backbone."""

import keras


def classifier(
    backbone: keras.Model, num_classes: int, dropout_rate: float = 0.0, name: str | None = None
) -> keras.Model:
    """Joins a backbone with a linear head into one flat functional model.

    Args:
        backbone: A functional model whose output is a dictionary with `"pooled"`, `(B, D)`.
        num_classes: Number of classes, >= 2.
        dropout_rate: Dropout before the head, in [0, 1).
        name: Name of the model; the backbone's if `None`.

    Returns:
        A functional model from the backbone's input to float32 logits, `(B, num_classes)`. The head starts at zero,
        as in the ViT reference code: the first predictions are uniform.

    Raises:
        ValueError: `num_classes` below 2, or a backbone without a `"pooled"` output.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2. Received: num_classes={num_classes}")
    outputs = getattr(backbone, "output", None)
    if not isinstance(outputs, dict) or "pooled" not in outputs:
        raise ValueError(f'backbone must have an output named "pooled". Received: outputs={outputs}')
    x = outputs["pooled"]
    if dropout_rate:
        x = keras.layers.Dropout(dropout_rate, name="head_dropout")(x)
    logits = keras.layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32", name="head")(x)
    return keras.Model(backbone.input, logits, name=name or backbone.name)
