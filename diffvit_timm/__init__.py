"""Differential Vision Transformers for timm: importing this package registers the `diffvit_*` models.

import timm, diffvit_timm
model = timm.create_model('diffvit_small_patch16', pretrained=True, num_classes=37)
"""

from .conversion.distillation import distill_layers
from .conversion.report import ConversionReport, conversion_report
from .conversion.weights import convert_state_dict, logit_rotation
from .inspection.attention_maps import capture_attention
from .layers.attention import DifferentialAttention, lambda_init_schedule
from .layers.attention_v2 import DifferentialAttentionV2
from .layers.base import differential_layers
from .layers.functional import differential_attention, differential_maps
from .models import diffvit, generic  # noqa: F401 (they register the models)
from .models.diff_vision_transformer import DiffVisionTransformer
from .models.from_vit import from_vit

__version__ = "0.1.0"

__all__ = [
    "ConversionReport",
    "DiffVisionTransformer",
    "DifferentialAttention",
    "DifferentialAttentionV2",
    "capture_attention",
    "conversion_report",
    "convert_state_dict",
    "differential_attention",
    "differential_layers",
    "differential_maps",
    "distill_layers",
    "from_vit",
    "lambda_init_schedule",
    "logit_rotation",
]
