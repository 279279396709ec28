"""ViT: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale"
(arXiv:2010.11929), section 3.1 and table 1; Ti and S from Touvron et al. (arXiv:2012.12877), table 1, and Steiner et
al., "How to train your ViT?" (arXiv:2106.10270), table 2."""

import keras

from ..layers import (
    AttentionPooling,
    LearnedPositionEmbedding,
    PrefixTokens,
    Sincos1DPositionEmbedding,
    Sincos2DPositionEmbedding,
    TokenSlice,
)
from .encoder import encode, patch_tokens
from .preset import IMAGENET_MEAN, IMAGENET_STD, Preset, size_arguments

POOLINGS = ("token", "average", "attention")
POSITION_EMBEDDINGS = ("learned", "sincos_2d", "sincos_1d", "none")


def vit(
    image_size: int | tuple[int, int] = (224, 224),
    patch_size: int = 16,
    hidden_dim: int = 768,
    num_layers: int = 12,
    num_heads: int = 12,
    mlp_dim: int = 3072,
    pooling: str = "token",
    position_embedding: str = "learned",
    num_register_tokens: int = 0,
    use_qkv_bias: bool = True,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    layer_scale_init: float | None = None,
    norm_epsilon: float = 1e-6,
    approximate_gelu: bool = False,
    remat: bool = False,
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
        pooling: `"token"` (a class token, whose last state is the result), `"average"` (no class token, the mean of
            the patch tokens) or `"attention"` (no class token, a learned probe asks the tokens).
        position_embedding: `"learned"`, `"sincos_2d"` or `"sincos_1d"` (both fixed), or `"none"`.
        num_register_tokens: Number R of further learned tokens that nobody reads at the end.
        use_qkv_bias: Whether queries, keys and values have a bias.
        dropout_rate: Dropout after the position embedding, the attention and the MLP layers, in [0, 1).
        attention_dropout_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); rises linearly from 0 at the first.
        layer_scale_init: Start of LayerScale's factors; `None` for no LayerScale.
        norm_epsilon: Added to the variance in the LayerNorms; 1e-6 as in the reference code, Hugging Face has 1e-12.
        approximate_gelu: Whether GELU is approximated by a tanh, as Google's code does; timm and Hugging Face run
            the same weights with the exact one.
        remat: Whether training computes blocks twice to save memory, for long sequences; see `TransformerBlock`.
        input_tensor: Normalised pictures that come out of other layers, `(B, H, W, 3)`; a new input if `None`.
        name: Name of the model.

    Returns:
        A functional model from normalised pictures, float `(B, H, W, 3)`, to a dictionary: `"tokens"`, patches only
        and row by row, `(B, N, D)`; `"prefix"`, class token and registers, `(B, P, D)`, absent where P = 0;
        `"pooled"`, `(B, D)`.

    Raises:
        ValueError: an argument outside its range, `image_size` that `patch_size` does not divide, `hidden_dim` that
            `num_heads` does not divide.

    Reference:
        Dosovitskiy et al. (arXiv:2010.11929), equations 1 to 4. Attention pooling: Zhai et al. (arXiv:2106.04560).
        Registers: Darcet et al. (arXiv:2309.16588); with them positions belong to patches only, as in timm.
    """
    _check("pooling", pooling, POOLINGS)
    _check("position_embedding", position_embedding, POSITION_EMBEDDINGS)
    if num_register_tokens < 0:
        raise ValueError(f"num_register_tokens must be >= 0. Received: num_register_tokens={num_register_tokens}")
    inputs, x, grid_size = patch_tokens(image_size, patch_size, hidden_dim, input_tensor)
    num_class = 1 if pooling == "token" else 0
    if num_register_tokens:
        x = _add_positions(x, position_embedding, grid_size, 0)
        x = PrefixTokens(num_register_tokens, name="register_tokens")(x)  # (B, R + N, D)
    if num_class:
        x = PrefixTokens(name="class_token")(x)  # (B, P + N, D)
    if not num_register_tokens:
        x = _add_positions(x, position_embedding, grid_size, num_class)
    x = encode(
        x,
        num_layers,
        num_heads,
        mlp_dim,
        dropout_rate,
        attention_dropout_rate,
        drop_path_rate,
        norm_epsilon,
        use_qkv_bias=use_qkv_bias,
        layer_scale_init=layer_scale_init,
        approximate_gelu=approximate_gelu,
        remat=remat,
    )

    num_prefix = num_class + num_register_tokens
    outputs = {"tokens": TokenSlice(num_prefix, name="tokens")(x) if num_prefix else x}
    if num_prefix:
        outputs["prefix"] = TokenSlice(0, num_prefix, name="prefix")(x)
    if pooling == "token":
        token = TokenSlice(0, 1, name="class_state")(x) if num_prefix > 1 else outputs["prefix"]
        outputs["pooled"] = keras.layers.Reshape((hidden_dim,), name="pooled")(token)  # (B, D)
    elif pooling == "average":
        outputs["pooled"] = keras.layers.GlobalAveragePooling1D(name="pooled")(outputs["tokens"])
    else:
        pool = AttentionPooling(num_heads, mlp_dim, norm_epsilon, approximate_gelu, name="pooled")
        outputs["pooled"] = pool(x)
    return keras.Model(inputs, outputs, name=name)


def _add_positions(x: keras.KerasTensor, kind: str, grid_size: tuple[int, int], num_prefix: int) -> keras.KerasTensor:
    """Adds position embeddings of a kind to tokens, `(B, P + N, D)`."""
    name = "position_embedding"
    if kind == "learned":
        return LearnedPositionEmbedding(grid_size, num_prefix, name=name)(x)
    if kind == "sincos_2d":
        return Sincos2DPositionEmbedding(grid_size, num_prefix, name=name)(x)
    return Sincos1DPositionEmbedding(name=name)(x) if kind == "sincos_1d" else x


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}. Received: {name}={value!r}")


def _preset(size: str, patch_size: int, image_size: int, source: str, parameters: int | None, **facts) -> Preset:
    return Preset(
        builder=vit,
        arguments=size_arguments(size, patch_size, image_size),
        source=source,
        parameters=parameters,
        licence="Apache-2.0",
        interpolation="bicubic",
        crop_fraction=0.9 if image_size == 224 else 1.0,
        **facts,
    )


def _small(size: str, patch_size: int, image_size: int, purpose: str) -> Preset:
    """Fixed positions and average pooling, as in "Better plain ViT baselines" (arXiv:2205.01580): they learn from few
    pictures, and no class token, far smaller than the patch tokens beside it, is rounded away in int8."""
    return Preset(vit, size_arguments(size, patch_size, image_size) | _SIMPLE, purpose)


_TABLE_1 = "Dosovitskiy et al. (arXiv:2010.11929), table 1"
_AUGREG = "Steiner et al. (arXiv:2106.10270), table 2"
_DINO = "Caron et al. (arXiv:2104.14294), table 1"
_SIMPLE = {"position_embedding": "sincos_2d", "pooling": "average"}
PRESETS: dict[str, Preset] = {
    "vit_tiny_patch16_224": _preset("tiny", 16, 224, _AUGREG, 5_717_416),
    "vit_tiny_patch16_384": _preset("tiny", 16, 384, _AUGREG, 5_790_376),
    "vit_small_patch8_224": _preset("small", 8, 224, _DINO, 22_055_272, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "vit_small_patch16_224": _preset("small", 16, 224, _AUGREG, 22_050_664),
    "vit_small_patch16_384": _preset("small", 16, 384, _AUGREG, 22_196_584),
    "vit_small_patch32_224": _preset("small", 32, 224, _AUGREG, 22_878_952),
    "vit_small_patch32_384": _preset("small", 32, 384, _AUGREG, 22_915_432),
    "vit_base_patch8_224": _preset("base", 8, 224, _AUGREG, 86_576_872),
    "vit_base_patch16_224": _preset("base", 16, 224, _TABLE_1, 86_567_656),
    "vit_base_patch16_384": _preset("base", 16, 384, _TABLE_1, 86_859_496),
    "vit_base_patch32_224": _preset("base", 32, 224, _TABLE_1, 88_224_232),
    "vit_base_patch32_384": _preset("base", 32, 384, _TABLE_1, 88_297_192),
    "vit_large_patch14_224": _preset("large", 14, 224, "Radford et al. (arXiv:2103.00020), table 20", 304_203_752),
    "vit_large_patch16_224": _preset("large", 16, 224, _TABLE_1, 304_326_632),
    "vit_large_patch16_384": _preset("large", 16, 384, _TABLE_1, 304_715_752),
    "vit_large_patch32_224": _preset("large", 32, 224, _TABLE_1, 306_535_400),
    "vit_large_patch32_384": _preset("large", 32, 384, _TABLE_1, 306_632_680),
    "vit_huge_patch14_224": _preset("huge", 14, 224, _TABLE_1, 632_045_800),
    # As published after pretraining on ImageNet-21k: a representation layer before the head of 21843 classes.
    **{
        f"vit_{size}_patch{patch}_224_in21k": _preset(
            size, patch, 224, _TABLE_1, None, head_arguments={"representation": True}
        )
        for size, patch in (("base", 16), ("base", 32), ("large", 16), ("large", 32), ("huge", 14))
    },
    "simple_vit_small_patch16_224": Preset(
        vit,
        size_arguments("small", 16, 224) | _SIMPLE,
        "Beyer, Zhai, Kolesnikov (arXiv:2205.01580), section 2",
        crop_fraction=0.875,
    ),
    "vit_micro_patch2_8": _small("micro", 2, 8, "for 8x8 digits"),
    "vit_micro_patch4_28": _small("micro", 4, 28, "for MNIST-sized pictures"),
    "vit_micro_patch4_32": _small("micro", 4, 32, "for CIFAR-sized pictures"),
    "vit_mini_patch4_28": _small("mini", 4, 28, "for MNIST-sized pictures"),
    "vit_mini_patch4_32": _small("mini", 4, 32, "for CIFAR-sized pictures"),
    "vit_mini_patch8_64": _small("mini", 8, 64, "for photographs on a CPU"),
}
