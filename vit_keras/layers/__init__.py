"""Layers of the Vision Transformer family. Importing this module registers all of them for loading."""

from .attention import MultiHeadSelfAttention
from .blocks import MLP, TransformerBlock
from .embeddings import PatchEmbedding, PrefixTokens
from .normalization import LayerNormalization
from .positions import LearnedPositionEmbedding, Sincos2DPositionEmbedding
from .regularization import LayerScale, StochasticDepth

__all__ = [
    "MLP",
    "LayerNormalization",
    "LayerScale",
    "LearnedPositionEmbedding",
    "MultiHeadSelfAttention",
    "PatchEmbedding",
    "PrefixTokens",
    "Sincos2DPositionEmbedding",
    "StochasticDepth",
    "TransformerBlock",
]
