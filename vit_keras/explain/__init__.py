"""What a trained Vision Transformer looks at and what it has learnt, as arrays: on every backend of Keras."""

from .attention import attention_model, class_attention
from .gradients import gradient_rollout_maps
from .layout import TokenLayout
from .representation import feature_maps, feature_names, layer_similarity, linear_cka, token_norms
from .rollout import attention_rollout, rollout_maps, rollout_model
from .statistics import AttentionStatistics, attention_statistics
from .weights import convolution_filters, patch_filters, position_similarity, principal_components

__all__ = [
    "AttentionStatistics",
    "TokenLayout",
    "attention_model",
    "attention_rollout",
    "attention_statistics",
    "class_attention",
    "convolution_filters",
    "feature_maps",
    "feature_names",
    "gradient_rollout_maps",
    "layer_similarity",
    "linear_cka",
    "patch_filters",
    "position_similarity",
    "principal_components",
    "rollout_maps",
    "rollout_model",
    "token_norms",
]
