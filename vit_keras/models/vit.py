"""ViT: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale"
(arXiv:2010.11929), section 3.1 and table 1; Ti and S from Touvron et al. (arXiv:2012.12877), table 1, and Steiner et
al., "How to train your ViT?" (arXiv:2106.10270), table 2."""

import keras

from ..layers import (
    LayerNormalization,
    LearnedPositionEmbedding,
    PatchEmbedding,
    PrefixTokens,
    Sincos2DPositionEmbedding,
    TransformerBlock,
)
from .preset import Preset

POOLINGS = ("token", "average")
POSITION_EMBEDDINGS = ("learned", "sincos_2d")


def vit(
    image_size: int | tuple[int, int] = (224, 224),
    patch_size: int = 16,
    hidden_dim: int = 768,
    num_layers: int = 12,
    num_heads: int = 12,
    mlp_dim: int = 3072,
    pooling: str = "token",
    position_embedding: str = "learned",
    use_qkv_bias: bool = True,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    layer_scale_init: float | None = None,
    input_tensor: keras.KerasTensor | None = None,
    name: str = "vit",
) -> keras.Model:
    """Builds a ViT backbone: patches to tokens, `num_layers` encoder blocks, a last LayerNorm.

    Args:
        image_size: Height and width in pixels, or one number for both; `patch_size` must divide them.
        patch_size: Side of a patch in pixels.
        hidden_dim: Width D of a token.
        num_layers: Number L of encoder blocks, >= 1.
        num_heads: Attention heads per block; must divide `hidden_dim`.
        mlp_dim: Hidden width of the MLPs.
        pooling: `"token"` (a class token, whose last state is the result) or `"average"` (no class token, the mean
            of the patch tokens).
        position_embedding: `"learned"` or `"sincos_2d"` (fixed).
        use_qkv_bias: Whether queries, keys and values have a bias.
        dropout_rate: Dropout after the position embedding, the attention and the MLP layers, in [0, 1).
        attention_dropout_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); rises linearly from 0 at the first.
        layer_scale_init: Start of LayerScale's factors; `None` for no LayerScale.
        input_tensor: Normalised pictures that come out of other layers, `(B, H, W, 3)`; a new input if `None`.
        name: Name of the model.

    Returns:
        A functional model from normalised pictures, float `(B, H, W, 3)`, to a dictionary: `"tokens"`, patches only
        and row by row, `(B, N, D)`; `"prefix"`, the class token, `(B, 1, D)`, absent under average pooling;
        `"pooled"`, `(B, D)`.

    Raises:
        ValueError: an argument outside its range, `image_size` that `patch_size` does not divide, `hidden_dim` that
            `num_heads` does not divide.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), equations 1 to 4.
    """
    for rate_name, rate in (
        ("dropout_rate", dropout_rate),
        ("attention_dropout_rate", attention_dropout_rate),
        ("drop_path_rate", drop_path_rate),
    ):
        if not 0 <= rate < 1:
            raise ValueError(f"{rate_name} must be in [0, 1). Received: {rate_name}={rate}")
    _check("pooling", pooling, POOLINGS)
    _check("position_embedding", position_embedding, POSITION_EMBEDDINGS)
    if num_layers < 1:
        raise ValueError(f"num_layers must be >= 1. Received: num_layers={num_layers}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    num_prefix = 1 if pooling == "token" else 0

    images = keras.Input((height, width, 3), name="images") if input_tensor is None else input_tensor
    inputs = keras.utils.get_source_inputs(images)[0]
    x = PatchEmbedding(patch_size, hidden_dim, name="patch_embedding")(images)  # (B, N, D)
    if num_prefix:
        x = PrefixTokens(num_prefix, name="class_token")(x)  # (B, P + N, D)
    if position_embedding == "learned":
        x = LearnedPositionEmbedding(name="position_embedding")(x)
    else:
        grid_size = (height // patch_size, width // patch_size)
        x = Sincos2DPositionEmbedding(grid_size, num_prefix, name="position_embedding")(x)
    x = keras.layers.Dropout(dropout_rate, name="dropout")(x)
    for i in range(num_layers):
        x = TransformerBlock(
            num_heads,
            mlp_dim,
            use_qkv_bias=use_qkv_bias,
            dropout_rate=dropout_rate,
            attention_dropout_rate=attention_dropout_rate,
            drop_path_rate=drop_path_rate * i / max(num_layers - 1, 1),
            layer_scale_init=layer_scale_init,
            name=f"block_{i}",
        )(x)
    x = LayerNormalization(name="norm")(x)

    # Slices that keep their axis: a shrinking one (`x[:, 0]`) leaves the fast path on every device.
    if not num_prefix:
        pooled = keras.layers.GlobalAveragePooling1D(name="pooled")(x)  # (B, D)
        return keras.Model(inputs, {"tokens": x, "pooled": pooled}, name=name)
    num_patches = x.shape[1] - num_prefix
    prefix = keras.layers.Cropping1D((0, num_patches), name="prefix")(x)  # (B, 1, D)
    outputs = {
        "tokens": keras.layers.Cropping1D((num_prefix, 0), name="tokens")(x),
        "prefix": prefix,
        "pooled": keras.layers.Reshape((hidden_dim,), name="pooled")(prefix),  # (B, D)
    }
    return keras.Model(inputs, outputs, name=name)


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}. Received: {name}={value!r}")


_TABLE_1 = "Dosovitskiy et al. (arXiv:2010.11929), table 1"
_SIZES = {
    # name: hidden_dim, num_layers, num_heads, mlp_dim
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    # Ours, for small pictures and small devices.
    "micro": (96, 4, 6, 192),
    "mini": (192, 6, 3, 384),
}


def _preset(size: str, patch_size: int, image_size: int, source: str, parameters: int | None, **arguments) -> Preset:
    hidden_dim, num_layers, num_heads, mlp_dim = _SIZES[size]
    return Preset(
        builder=vit,
        arguments={
            "image_size": (image_size, image_size),
            "patch_size": patch_size,
            "hidden_dim": hidden_dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            **arguments,
        },
        source=source,
        parameters=parameters,
        licence="Apache-2.0" if parameters else None,
    )


_AUGREG = "Steiner et al. (arXiv:2106.10270), table 2"
_SIMPLE = {"position_embedding": "sincos_2d", "pooling": "average"}
PRESETS: dict[str, Preset] = {
    "vit_tiny_patch16_224": _preset("tiny", 16, 224, _AUGREG, 5_717_416),
    "vit_small_patch16_224": _preset("small", 16, 224, _AUGREG, 22_050_664),
    "vit_small_patch32_224": _preset("small", 32, 224, _AUGREG, 22_878_952),
    "vit_base_patch16_224": _preset("base", 16, 224, _TABLE_1, 86_567_656),
    "vit_base_patch32_224": _preset("base", 32, 224, _TABLE_1, 88_224_232),
    "vit_large_patch16_224": _preset("large", 16, 224, _TABLE_1, 304_326_632),
    "vit_large_patch32_224": _preset("large", 32, 224, _TABLE_1, 306_535_400),
    "vit_huge_patch14_224": _preset("huge", 14, 224, _TABLE_1, 632_045_800),
    # Fixed positions and average pooling, as in "Better plain ViT baselines" (arXiv:2205.01580): they learn from few
    # pictures, and no class token, far smaller than the patch tokens beside it, is rounded away in int8.
    "vit_micro_patch2_8": _preset("micro", 2, 8, "for 8x8 digits", None, **_SIMPLE),
    "vit_micro_patch4_28": _preset("micro", 4, 28, "for MNIST-sized pictures", None, **_SIMPLE),
    "vit_micro_patch4_32": _preset("micro", 4, 32, "for CIFAR-sized pictures", None, **_SIMPLE),
    "vit_mini_patch4_28": _preset("mini", 4, 28, "for MNIST-sized pictures", None, **_SIMPLE),
    "vit_mini_patch4_32": _preset("mini", 4, 32, "for CIFAR-sized pictures", None, **_SIMPLE),
    "vit_mini_patch8_64": _preset("mini", 8, 64, "for photographs on a CPU", None, **_SIMPLE),
}
