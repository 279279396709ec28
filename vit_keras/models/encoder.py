"""What all plain Vision Transformers share: from pictures to patch tokens, and from tokens through the blocks."""

import keras

from ..layers import LayerNormalization, PatchEmbedding, TokenDropout, TransformerBlock


def patch_tokens(
    image_size: int | tuple[int, int], patch_size: int, hidden_dim: int, input_tensor: keras.KerasTensor | None
) -> tuple[keras.KerasTensor, keras.KerasTensor, tuple[int, int]]:
    """Returns the model's input, the patch tokens, `(B, N, D)`, and the grid, `(height, width)` in patches."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = keras.Input((height, width, 3), name="images") if input_tensor is None else input_tensor
    embed = PatchEmbedding(patch_size, hidden_dim, name="patch_embedding")
    return keras.utils.get_source_inputs(images)[0], embed(images), embed.grid_size(images.shape)


def encode(
    x: keras.KerasTensor,
    num_layers: int,
    num_heads: int,
    mlp_dim: int,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    norm_epsilon: float = 1e-6,
    **options,
) -> keras.KerasTensor:
    """Sends tokens through dropout, `num_layers` encoder blocks and a last LayerNorm.

    Args:
        x: Tokens, `(B, P + N, D)`.
        num_layers: Number of blocks, >= 1.
        num_heads: Attention heads per block; must divide D.
        mlp_dim: Hidden width of the MLPs.
        dropout_rate: Dropout on the tokens, after the attention and in the MLPs, in [0, 1).
        attention_dropout_rate: Dropout on the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); rises linearly from 0 at the first.
        norm_epsilon: Added to the variance in the LayerNorms.
        **options: Further arguments of `TransformerBlock`.

    Returns:
        `(B, P + N, D)`.

    Raises:
        ValueError: an argument outside its range.
    """
    for rate_name, rate in (
        ("dropout_rate", dropout_rate),
        ("attention_dropout_rate", attention_dropout_rate),
        ("drop_path_rate", drop_path_rate),
    ):
        if not 0 <= rate < 1:
            raise ValueError(f"{rate_name} must be in [0, 1). Received: {rate_name}={rate}")
    if num_layers < 1:
        raise ValueError(f"num_layers must be >= 1. Received: num_layers={num_layers}")
    x = TokenDropout(dropout_rate, name="dropout")(x)
    for i in range(num_layers):
        x = TransformerBlock(
            num_heads,
            mlp_dim,
            dropout_rate=dropout_rate,
            attention_dropout_rate=attention_dropout_rate,
            drop_path_rate=drop_path_rate * i / max(num_layers - 1, 1),
            norm_epsilon=norm_epsilon,
            name=f"block_{i}",
            **options,
        )(x)
    return LayerNormalization(norm_epsilon, name="norm")(x)
