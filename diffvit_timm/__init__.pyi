"""Differential Vision Transformers for timm: importing this package registers the `diffvit_*` models."""

from .attention import (
    DifferentialAttention,
    DifferentialAttentionV2,
    differential_attention,
    differential_maps,
    lambda_init_schedule,
)
from .conversion import convert_state_dict, from_vit, logit_rotation
from .diffvit import DiffVisionTransformer
from .distill import distill_layers
from .report import ConversionReport, conversion_report

__version__: str

__all__ = [
    "ConversionReport",
    "DiffVisionTransformer",
    "DifferentialAttention",
    "DifferentialAttentionV2",
    "conversion_report",
    "convert_state_dict",
    "differential_attention",
    "differential_maps",
    "distill_layers",
    "from_vit",
    "lambda_init_schedule",
    "logit_rotation",
]
