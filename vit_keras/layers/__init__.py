"""Layers of the Vision Transformer family. Importing this module registers all of them for loading."""

from .attention import MultiHeadSelfAttention
from .blocks import MLP, TransformerBlock
from .embeddings import PatchEmbedding, PrefixTokens, TokenSlice
from .normalization import LayerNormalization
from .pooling import AttentionPooling
from .positions import LearnedPositionEmbedding, Sincos1DPositionEmbedding, Sincos2DPositionEmbedding
from .regularization import LayerScale, StochasticDepth

__all__ = [
    "MLP",
    "AttentionPooling",
    "LayerNormalization",
    "LayerScale",
    "LearnedPositionEmbedding",
    "MultiHeadSelfAttention",
    "PatchEmbedding",
    "PrefixTokens",
    "Sincos1DPositionEmbedding",
    "Sincos2DPositionEmbedding",
    "StochasticDepth",
    "TokenSlice",
    "TransformerBlock",
]
