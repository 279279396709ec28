"""A linear classifier on any backbone."""

import keras


def classifier(
    backbone: keras.Model,
    num_classes: int,
    dropout_rate: float = 0.0,
    representation: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Joins a backbone with a linear head into one flat functional model.

    A backbone with a distillation token gets a second linear layer for it, `head_distillation`; the result is the
    mean of both. Whoever distils takes the two apart: `model.get_layer("head").output`, and likewise the other.

    Args:
        backbone: A functional model whose output is a dictionary with `"pooled"`, `(B, D)`, and perhaps
            `"pooled_distillation"`, `(B, D)`.
        num_classes: Number of classes, >= 2.
        dropout_rate: Dropout before the head, in [0, 1).
        representation: Whether a dense layer with tanh, as wide as the backbone, stands before the head, as in ViTs
            published for ImageNet-21k.
        name: Name of the model; the backbone's if `None`.

    Returns:
        A functional model from the backbone's input to float32 logits, `(B, num_classes)`. The head starts at zero,
        as in the ViT reference code: the first predictions are uniform.

    Raises:
        ValueError: `num_classes` below 2, or a backbone without a `"pooled"` output.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), section 3.2 and appendix D.3; Touvron et al. (arXiv:2012.12877),
        section 4, "Classification with our approach".
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2. Received: num_classes={num_classes}")
    outputs = getattr(backbone, "output", None)
    if not isinstance(outputs, dict) or "pooled" not in outputs:
        raise ValueError(f'backbone must have an output named "pooled". Received: outputs={outputs}')
    dropout = keras.layers.Dropout(dropout_rate, name="head_dropout") if dropout_rate else lambda x: x
    x = outputs["pooled"]
    if representation:
        x = keras.layers.Dense(x.shape[-1], activation="tanh", name="representation")(x)
    logits = _linear(num_classes, "head")(dropout(x))
    if "pooled_distillation" in outputs:
        distilled = _linear(num_classes, "head_distillation")(dropout(outputs["pooled_distillation"]))
        logits = keras.layers.Average(dtype="float32", name="mean_of_heads")([logits, distilled])
    return keras.Model(backbone.input, logits, name=name or backbone.name)


def _linear(num_classes: int, name: str) -> keras.layers.Dense:
    return keras.layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32", name=name)
