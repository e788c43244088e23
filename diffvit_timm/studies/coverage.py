"""Which pretrained transformers of the installed timm convert, and how exactly, on random weights."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from timm.models.gemma4_vit import Gemma4ClippableLinear
from torch import nn

from ..conversion.surgery import channel_freedom, is_rotary
from ..layers.adapters import check_layers
from ..models.from_vit import from_vit

__all__ = ["FAMILIES", "Coverage", "family_rows", "measure_coverage", "small_random_network"]

# timm's modules of transformers. The first group has tokens of one size in all blocks.
FAMILIES = {
    "isotropic": (
        "vision_transformer", "deit", "eva", "beit", "naflexvit", "qwen3_vit", "deepseek_vit", "gemma4_vit", "vitamin",
        "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam",
    ),
    "windowed and hierarchical": (
        "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "hiera", "mvitv2", "twins", "tiny_vit",
        "nest", "pit", "gcvit", "davit",
    ),
    "other": ("cait", "xcit", "volo", "levit", "crossvit", "tnt", "convit", "visformer", "coat"),
}  # fmt: skip

FREEDOMS = ("rotation", "pairs", "channels")  # what version 1 may choose from: see `channel_freedom`

LAMBDA = 0.3  # of version 2; with 0.5 the factor of the values would be a power of two, and nothing would be rounded

BLOCKS = 2  # blocks that are kept of each list of blocks: all blocks of a list are alike


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Whether an architecture converts.

    Attributes:
        group, family: key of FAMILIES, and timm's module.
        name: name of the architecture.
        tags: number of its pretrained tags.
        reason: why it does not convert; None if it does.
        freedom: what version 1 may do with the channels of its heads, as in `channel_freedom`.
        difference: ||version 2 - plain|| / ||plain|| of the outputs for random weights, in float32.
    """

    group: str
    family: str
    name: str
    tags: int
    reason: str | None = None
    freedom: str | None = None
    difference: float | None = None


def measure_coverage(pattern: str = "*", families: tuple[str, ...] = ()) -> Iterator[Coverage]:
    """Convert every transformer of timm that has pretrained tags, with random weights and two blocks per stage.

    Args:
        pattern: pattern of the names, as in timm.list_models.
        families: timm's modules to measure; empty: all.

    Yields:
        One row per architecture.
    """
    names = timm.list_models(pattern)
    tags = dict.fromkeys(names, 0)
    for tagged in timm.list_pretrained():
        if (name := tagged.split(".")[0]) in tags:
            tags[name] += 1
    for group, members in FAMILIES.items():
        for family in (family for family in members if not families or family in families):
            for name in names:
                if tags[name] and model_entrypoint(name).__module__ == f"timm.models.{family}":
                    yield _measure(Coverage(group, family, name, tags[name]))


def family_rows(rows: list[Coverage]) -> list[dict[str, Any]]:
    """Sum the architectures of each family, and of each group.

    Returns:
        One row per family, and one per group after its families: its name, the number of its pretrained tags and of
        those that convert, the number of tags for each freedom of version 1, and the largest difference of version 2.
    """
    table = []
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        for family in dict.fromkeys(row.family for row in members):
            table.append(_sum(family, [row for row in members if row.family == family]))
        table.append(_sum(group, members))
    return table


def _sum(name: str, rows: list[Coverage]) -> dict[str, Any]:
    converted = [row for row in rows if row.reason is None]
    return {
        "family": name,
        "tags": sum(row.tags for row in rows),
        "convertible": sum(row.tags for row in converted),
        **{kind: sum(row.tags for row in converted if row.freedom == kind) for kind in FREEDOMS},
        "difference": max((row.difference for row in converted if row.difference is not None), default=None),
    }


def _measure(row: Coverage) -> Coverage:
    plain = small_random_network(row.name)
    try:
        layers = check_layers(plain)
        freedoms = sorted({channel_freedom(layer, is_rotary(plain)) for layer in layers.values()})
        from_vit(plain, "slice")  # version 1
        model = from_vit(plain, attn="diff_v2", lambda_init=LAMBDA)
    except ValueError as error:
        return dataclasses.replace(row, reason=str(error))
    images = torch.randn(1, *plain.pretrained_cfg["input_size"])
    with torch.inference_mode():
        expected, actual = plain.forward_features(images), model.forward_features(images)
    return dataclasses.replace(row, freedom=" and ".join(freedoms), difference=_relative_difference(actual, expected))


def _relative_difference(actual: Any, expected: Any) -> float:
    """||actual - expected|| / ||expected|| of two outputs, which may be nested, over their tensors of floats."""
    if torch.is_tensor(expected):
        if not expected.is_floating_point():
            return 0.0
        return ((actual - expected).norm() / expected.norm()).item()
    pairs = zip(actual.values(), expected.values(), strict=True) if isinstance(expected, dict) else zip(
        actual, expected, strict=True
    )  # fmt: skip
    return max(_relative_difference(*pair) for pair in pairs if pair[0] is not None)


def small_random_network(name: str, **kwargs) -> Any:
    """Create an architecture with two blocks per stage, random weights, and attention that is far from uniform.

    It is made without memory, so that the largest architectures fit.

    Args:
        name: name of the architecture.
        **kwargs: arguments of timm.create_model.
    """
    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = timm.create_model(name, **kwargs)
    for module in model.modules():
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks) > BLOCKS:
            module.blocks = blocks[:BLOCKS]
    model = model.to_empty(device="cpu").eval()
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    for key, parameter in model.named_parameters():
        if parameter.ndim < 2:  # biases, and weights of norms and layer scales
            nn.init.constant_(parameter, 0.0 if key.endswith("bias") else 1.0)
        else:
            # Queries and keys of variance 4 have logits with a standard deviation of 4.
            nn.init.normal_(parameter, std=2 / math.sqrt(parameter[0].numel()))
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, Gemma4ClippableLinear)):
            module.reset_parameters()  # they have buffers
    return model
