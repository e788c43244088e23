"""Scaling: trainings from scratch of several sizes, and how the test loss falls with parameters and FLOPs."""

import dataclasses
import itertools
import re
from typing import Any

from ..errors import InputError
from ..models.pretrained import check_name
from ..options import LIMITS, merged_by_name, named
from ..training.config import TrainConfig
from .power_law import Point, fit_power_law, loss_ratio
from .runs import HEAD_WIDTH, Plan, StudyConfig, require_study_folder, require_twin

__all__ = ["ScalingConfig", "fit_points", "plan_scaling"]


@dataclasses.dataclass(frozen=True)
class ScalingConfig(StudyConfig):
    """Trainings of several sizes of one model, or of several models."""

    sizes: tuple[str, ...] = ("32x2", "64x3", "96x4", "128x6")
    """WIDTHxDEPTH of the model, in heads of 32 channels; or names of models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise InputError(f"{named('sizes', self.sizes)}: give one or more sizes, each once")
        for size in self.sizes:
            if (shape := _parse_size(size)) is None:
                check_name(size, "sizes")
                require_twin(size, "sizes")
                continue
            if shape[0] > LIMITS["embed_dim"] or shape[1] > LIMITS["depth"]:
                raise InputError(f"`sizes={size}` must be at most {LIMITS['embed_dim']}x{LIMITS['depth']}")
            if shape[0] % HEAD_WIDTH:
                raise InputError(f"`sizes={size}`: the width must be a multiple of {HEAD_WIDTH}, the width of a head")
        if not any(map(_parse_size, self.sizes)):
            self.require_unset("model", "has no effect if all `sizes` are models")
        for name in self.train.model.keyword_arguments.keys() & {"embed_dim", "depth", "num_heads"}:
            raise InputError(
                f"`model_kwargs={name}=...` is what `sizes` varies: leave it out, or pass `model_kwargs={name}=null` "
                "to remove the preset's value"
            )
        require_study_folder(self.folder("scaling"), r"(\d+x\d+|diffvit\w*)-\w+-\d+")


def _parse_size(size: str) -> tuple[int, int] | None:
    """Return width and depth of WIDTHxDEPTH, or None for the name of a model."""
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", size)
    return (int(match[1]), int(match[2])) if match else None


def plan_scaling(config: ScalingConfig) -> Plan:
    """Return the size and the options of every training, with all sizes of a seed before the next seed."""
    plan: list[tuple[str, TrainConfig]] = []
    kinds = (config.train.model.attn, "plain")
    for seed, size, attn in itertools.product(range(config.seeds), config.sizes, kinds):
        if (shape := _parse_size(size)) is None:
            own: dict[str, Any] = {"model": size}
        else:
            sides = f"embed_dim={shape[0]}", f"depth={shape[1]}", f"num_heads={shape[0] // HEAD_WIDTH}"
            own = {"model_kwargs": merged_by_name([*config.train.model.model_kwargs, *sides])}
        plan.append((size, config.single("scaling", f"{size}-{attn}-{seed}", seed=seed, attn=attn, **own)))
    return plan


def fit_points(points: list[Point]) -> dict[str, dict]:
    """Fit a power law per kind of attention, and compare each kind with plain attention at equal size.

    Args:
        points: one point per training.

    Returns:
        "laws": attention -> axis -> fields of its `PowerLaw`; "over_plain": attention -> axis -> fields of its
        `LossRatio`. The axes are parameters and flops. Too few sizes for a fit leave both empty.
    """
    laws: dict[str, dict] = {}
    ratios: dict[str, dict] = {}
    for axis, attn in itertools.product(("parameters", "flops"), dict.fromkeys(p.attn for p in points)):
        if law := fit_power_law([p for p in points if p.attn == attn], axis):
            laws.setdefault(attn, {})[axis] = dataclasses.asdict(law)
        if attn != "plain" and (ratio := loss_ratio(points, axis, attn)):
            ratios.setdefault(attn, {})[axis] = dataclasses.asdict(ratio)
    return {"laws": laws, "over_plain": ratios}
