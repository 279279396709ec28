"""Layers of the Vision Transformer family. Importing this module registers all of them for loading."""

from .attention import MultiHeadSelfAttention
from .blocks import MLP, TransformerBlock
from .dense import AdaptableDense
from .embeddings import PatchEmbedding, PrefixTokens, TokenSlice
from .normalization import LayerNormalization
from .pooling import AttentionPooling
from .positions import LearnedPositionEmbedding, Sincos1DPositionEmbedding, Sincos2DPositionEmbedding
from .prompts import PromptTokens, TokenRemoval
from .regularization import LayerScale, StochasticDepth, TokenDropout

__all__ = [
    "MLP",
    "AdaptableDense",
    "AttentionPooling",
    "LayerNormalization",
    "LayerScale",
    "LearnedPositionEmbedding",
    "MultiHeadSelfAttention",
    "PatchEmbedding",
    "PrefixTokens",
    "PromptTokens",
    "Sincos1DPositionEmbedding",
    "Sincos2DPositionEmbedding",
    "StochasticDepth",
    "TokenDropout",
    "TokenRemoval",
    "TokenSlice",
    "TransformerBlock",
]
