"""DeiT: Touvron et al., "Training data-efficient image transformers & distillation through attention"
(arXiv:2012.12877), section 4 and table 1, and DeiT III: Touvron et al., "DeiT III: Revenge of the ViT"
(arXiv:2204.07118), section 3."""

import keras

from ..layers import LearnedPositionEmbedding, PrefixTokens, TokenSlice
from .encoder import encode, patch_tokens
from .preset import IMAGENET_MEAN, IMAGENET_STD, Preset, size_arguments


def deit(
    image_size: int | tuple[int, int] = (224, 224),
    patch_size: int = 16,
    hidden_dim: int = 768,
    num_layers: int = 12,
    num_heads: int = 12,
    mlp_dim: int = 3072,
    distilled: bool = False,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    norm_epsilon: float = 1e-6,
    remat: bool = False,
    input_tensor: keras.KerasTensor | None = None,
    name: str = "deit",
) -> keras.Model:
    """Builds a DeiT backbone: a ViT that starts otherwise, with a distillation token if wanted.

    Args:
        image_size: Height and width in pixels, or one number for both; `patch_size` must divide them.
        patch_size: Side of a patch in pixels.
        hidden_dim: Width D of a token.
        num_layers: Number L of encoder blocks, >= 1.
        num_heads: Attention heads per block; must divide `hidden_dim`.
        mlp_dim: Hidden width of the MLPs.
        distilled: Whether a distillation token stands beside the class token. The classification head then has a
            second part for it, and the mean of both parts' logits is the result.
        dropout_rate: Dropout after the position embedding, the attention and the MLP layers, in [0, 1).
        attention_dropout_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); the paper trains with 0.1.
        norm_epsilon: Added to the variance in the LayerNorms.
        remat: Whether training computes blocks twice to save memory, for long sequences; see `TransformerBlock`.
        input_tensor: Normalised pictures that come out of other layers, `(B, H, W, 3)`; a new input if `None`.
        name: Name of the model.

    Returns:
        A functional model from normalised pictures, float `(B, H, W, 3)`, to a dictionary: `"tokens"`, `(B, N, D)`;
        `"prefix"`, class and distillation token, `(B, P, D)`; `"pooled"`, the class token, `(B, D)`; if distilled
        `"pooled_distillation"`, `(B, D)`.

    Raises:
        ValueError: an argument outside its range, `image_size` that `patch_size` does not divide, `hidden_dim` that
            `num_heads` does not divide.

    Reference:
        Touvron et al. (arXiv:2012.12877), section 4; weights start truncated normal(0.02), as in their code.
    """
    inputs, x, grid_size = patch_tokens(image_size, patch_size, hidden_dim, input_tensor)
    num_prefix = 1 + distilled
    if distilled:
        x = PrefixTokens(initializer=_start(), name="distillation_token")(x)
    x = PrefixTokens(initializer=_start(), name="class_token")(x)  # (B, P + N, D)
    x = LearnedPositionEmbedding(grid_size, num_prefix, name="position_embedding")(x)
    x = encode(
        x,
        num_layers,
        num_heads,
        mlp_dim,
        dropout_rate,
        attention_dropout_rate,
        drop_path_rate,
        norm_epsilon,
        kernel_initializer=_start(),
        remat=remat,
    )
    return keras.Model(inputs, _outputs(x, num_prefix), name=name)


def deit3(
    image_size: int | tuple[int, int] = (224, 224),
    patch_size: int = 16,
    hidden_dim: int = 768,
    num_layers: int = 12,
    num_heads: int = 12,
    mlp_dim: int = 3072,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    layer_scale_init: float = 1e-6,
    norm_epsilon: float = 1e-6,
    remat: bool = False,
    input_tensor: keras.KerasTensor | None = None,
    name: str = "deit3",
) -> keras.Model:
    """Builds a DeiT III backbone: LayerScale on every branch, positions on the patches only.

    Args:
        image_size: Height and width in pixels, or one number for both; `patch_size` must divide them.
        patch_size: Side of a patch in pixels.
        hidden_dim: Width D of a token.
        num_layers: Number L of encoder blocks, >= 1.
        num_heads: Attention heads per block; must divide `hidden_dim`.
        mlp_dim: Hidden width of the MLPs.
        dropout_rate: Dropout after the position embedding, the attention and the MLP layers, in [0, 1).
        attention_dropout_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1).
        layer_scale_init: Start of LayerScale's factors; 1e-6 as in the published code.
        norm_epsilon: Added to the variance in the LayerNorms.
        remat: Whether training computes blocks twice to save memory, for long sequences; see `TransformerBlock`.
        input_tensor: Normalised pictures that come out of other layers, `(B, H, W, 3)`; a new input if `None`.
        name: Name of the model.

    Returns:
        A functional model from normalised pictures, float `(B, H, W, 3)`, to a dictionary: `"tokens"`, `(B, N, D)`;
        `"prefix"`, the class token, `(B, 1, D)`; `"pooled"`, `(B, D)`.

    Raises:
        ValueError: an argument outside its range, `image_size` that `patch_size` does not divide, `hidden_dim` that
            `num_heads` does not divide.

    Reference:
        Touvron et al. (arXiv:2204.07118), section 3.
    """
    inputs, x, grid_size = patch_tokens(image_size, patch_size, hidden_dim, input_tensor)
    x = LearnedPositionEmbedding(grid_size, name="position_embedding")(x)
    x = PrefixTokens(initializer=_start(), name="class_token")(x)  # (B, 1 + N, D)
    x = encode(
        x,
        num_layers,
        num_heads,
        mlp_dim,
        dropout_rate,
        attention_dropout_rate,
        drop_path_rate,
        norm_epsilon,
        layer_scale_init=layer_scale_init,
        kernel_initializer=_start(),
        remat=remat,
    )
    return keras.Model(inputs, _outputs(x, 1), name=name)


def _start() -> keras.Initializer:
    return keras.initializers.TruncatedNormal(stddev=0.02)


def _outputs(x: keras.KerasTensor, num_prefix: int) -> dict[str, keras.KerasTensor]:
    """Names the parts of the last tokens, `(B, P + N, D)`."""
    dim = x.shape[-1]
    prefix = TokenSlice(0, num_prefix, name="prefix")(x)  # (B, P, D)
    outputs = {"tokens": TokenSlice(num_prefix, name="tokens")(x), "prefix": prefix}
    if num_prefix == 1:
        return outputs | {"pooled": keras.layers.Reshape((dim,), name="pooled")(prefix)}
    for i, pooled in enumerate(("pooled", "pooled_distillation")):
        token = TokenSlice(i, i + 1, name=f"{pooled}_token")(x)  # (B, 1, D)
        outputs[pooled] = keras.layers.Reshape((dim,), name=pooled)(token)
    return outputs


def _preset(builder, size: str, patch_size: int, image_size: int, source: str, parameters: int, **arguments) -> Preset:
    return Preset(
        builder=builder,
        arguments=size_arguments(size, patch_size, image_size) | arguments,
        source=source,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
        crop_fraction=0.9 if image_size == 224 else 1.0,
        parameters=parameters,
        licence="Apache-2.0",
    )


_TABLE_1 = "Touvron et al. (arXiv:2012.12877), table 1"
_DISTILLED = "Touvron et al. (arXiv:2012.12877), section 4"
_DEIT_3 = "Touvron et al. (arXiv:2204.07118), section 3"
PRESETS: dict[str, Preset] = {
    "deit_tiny_patch16_224": _preset(deit, "tiny", 16, 224, _TABLE_1, 5_717_416),
    "deit_tiny_patch16_384": _preset(deit, "tiny", 16, 384, _TABLE_1, 5_790_376),
    "deit_small_patch16_224": _preset(deit, "small", 16, 224, _TABLE_1, 22_050_664),
    "deit_small_patch16_384": _preset(deit, "small", 16, 384, _TABLE_1, 22_196_584),
    "deit_base_patch16_224": _preset(deit, "base", 16, 224, _TABLE_1, 86_567_656),
    "deit_base_patch16_384": _preset(deit, "base", 16, 384, _TABLE_1, 86_859_496),
    "deit_tiny_distilled_patch16_224": _preset(deit, "tiny", 16, 224, _DISTILLED, 5_910_800, distilled=True),
    "deit_tiny_distilled_patch16_384": _preset(deit, "tiny", 16, 384, _DISTILLED, 5_983_760, distilled=True),
    "deit_small_distilled_patch16_224": _preset(deit, "small", 16, 224, _DISTILLED, 22_436_432, distilled=True),
    "deit_small_distilled_patch16_384": _preset(deit, "small", 16, 384, _DISTILLED, 22_582_352, distilled=True),
    "deit_base_distilled_patch16_224": _preset(deit, "base", 16, 224, _DISTILLED, 87_338_192, distilled=True),
    "deit_base_distilled_patch16_384": _preset(deit, "base", 16, 384, _DISTILLED, 87_630_032, distilled=True),
    "deit3_small_patch16_224": _preset(deit3, "small", 16, 224, _DEIT_3, 22_059_496),
    "deit3_small_patch16_384": _preset(deit3, "small", 16, 384, _DEIT_3, 22_205_416),
    "deit3_medium_patch16_224": _preset(deit3, "medium", 16, 224, _DEIT_3, 38_849_512),
    "deit3_base_patch16_224": _preset(deit3, "base", 16, 224, _DEIT_3, 86_585_320),
    "deit3_base_patch16_384": _preset(deit3, "base", 16, 384, _DEIT_3, 86_877_160),
    "deit3_large_patch16_224": _preset(deit3, "large", 16, 224, _DEIT_3, 304_374_760),
    "deit3_large_patch16_384": _preset(deit3, "large", 16, 384, _DEIT_3, 304_763_880),
    "deit3_huge_patch14_224": _preset(deit3, "huge", 14, 224, _DEIT_3, 632_126_440),
}
