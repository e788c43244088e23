"""Ablations: vary one thing over trainings from scratch, with differential attention and with its plain twin."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import timm
from timm.layers import to_2tuple

from ..errors import InputError
from ..models.diffvit import FROM_SCRATCH
from ..models.pretrained import build_model_on_meta, check_name
from ..options import merged_by_name, named
from ..output import new_folder
from ..training.config import TrainConfig
from ..training.model_config import ModelConfig
from .results import Run, difference
from .runs import HEAD_WIDTH, Plan, StudyConfig, require_study_folder

__all__ = ["BASELINE", "STUDIES", "AblationConfig", "differences", "plan_ablation"]

Study = Literal[
    "patch_size", "pos_embed", "augmentation", "depth", "width", "heads", "mlp_ratio", "dropout", "batch_size",
    "attention", "lambda", "noise"
]  # fmt: skip


def widened_mlp(model: ModelConfig) -> float:
    """Return the MLP ratio that gives a plain network as many parameters as version 2 has.

    Version 2 has one more matrix of width x width per block. An MLP that is half a width wider has it, too.
    """
    network: Any = build_model_on_meta(model.model, **model.keyword_arguments)
    return network.blocks[0].mlp.fc1.out_features / network.embed_dim + 0.5


# For each study: name of each setting -> its options, and its arguments of the model, or functions that choose them.
STUDIES: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "patch_size": {f"{side} x {side}": ({}, {"patch_size": side}) for side in (2, 4, 8)},
    "pos_embed": {name: ({}, {"pos_embed": name}) for name in ("none", "learn", "learn_2d", "sincos")},
    "augmentation": {
        **{name: ({"augment": name}, {}) for name in ("none", "flip", "shift+flip", "shift+flip+cutout")},
        "shift+flip+randaugment": ({"augment": "shift+flip+randaugment"}, {}),
        "shift+flip+autoaugment": ({"augment": "shift+flip+autoaugment"}, {}),
        "shift+flip, mixup and CutMix": ({"augment": "shift+flip", "mixup": 0.2, "cutmix": 1.0}, {}),
    },
    "depth": {f"depth {depth}": ({}, {"depth": depth}) for depth in (2, 4, 6, 8)},
    "width": {
        f"width {width}": ({}, {"embed_dim": width, "num_heads": width // HEAD_WIDTH}) for width in (32, 64, 128, 192)
    },
    "heads": {f"{count} head{'s' if count > 1 else ''}": ({}, {"num_heads": count}) for count in (1, 2, 4, 8)},
    "mlp_ratio": {f"MLP ratio {ratio}": ({}, {"mlp_ratio": ratio}) for ratio in (1, 2, 4)},
    "dropout": {
        **{f"drop path {rate}": ({"drop_path": rate}, {}) for rate in (0.0, 0.1, 0.2)},
        **{f"dropout {rate}": ({}, {"proj_drop_rate": rate}) for rate in (0.1, 0.2)},
    },
    "batch_size": {f"batch {size}": ({"batch_size": size}, {}) for size in (32, 64, 128, 256)},
    "attention": {
        "plain": ({"attn": "plain"}, {}),
        "plain, widened": ({"attn": "plain"}, {"mlp_ratio": widened_mlp}),
        "the paper's": ({}, {"head_norm": True}),
        "without head norm": ({}, {"head_norm": False}),
        "version 2": ({"attn": "diff_v2"}, {}),
    },
    "lambda": {
        "schedule": ({}, {"lambda_init": "schedule"}),
        **{str(value): ({}, {"lambda_init": value}) for value in (0.0, 0.05, 0.2, 0.5, 0.8)},
    },
    "noise": {
        "clean": ({}, {}),
        **{f"{rate:.0%} wrong labels": ({"label_noise": rate}, {}) for rate in (0.2, 0.4)},
        **{f"pixel noise {deviation}": ({"input_noise": deviation}, {}) for deviation in (0.2, 0.4)},
    },
}
# In these studies a setting is a kind of attention. It has no plain twin, and is compared with this setting.
BASELINE = {"attention": "plain", "lambda": "schedule"}


@dataclasses.dataclass(frozen=True)
class AblationConfig(StudyConfig):
    """Trainings that differ in one setting. Each setting is trained with differential and with plain attention."""

    study: tuple[Study, ...] = ("pos_embed",)
    """Settings to vary, one after the other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.study or len(set(self.study)) < len(self.study):
            raise InputError(f"{named('study', self.study)}: give one or more studies, each once")
        for study in self.study:
            self._check_study(study)
        if not any(self.study_folder(study).is_dir() for study in STUDIES):
            new_folder(self.folder("ablation"))
        for study in self.study:
            own = "|".join(_folder_name(name) for name in STUDIES[study])
            require_study_folder(self.study_folder(study), rf"({own})-\w+-\d+")

    def study_folder(self, study: str) -> Path:
        """Return the folder of the trainings of a study, with their table and picture."""
        return self.folder("ablation") / study

    def _check_study(self, study: str) -> None:
        """Check that the options leave room for what a study varies."""
        settings = STUDIES[study].values()
        for name in {name for options, _ in settings for name in options}:
            self.require_unset(name, f"is what `study={study}` varies")
        given = self.train.model.keyword_arguments.keys()
        fixed = {name for _, arguments in settings for name, value in arguments.items() if not callable(value)}
        for name in given & fixed:
            raise InputError(
                f"`model_kwargs={name}=...` is what `study={study}` varies: leave it out, or pass "
                f"`model_kwargs={name}=null` to remove the preset's value"
            )
        if study in BASELINE:
            for name in ("attn", "lambda_warmup"):
                self.require_unset(name, f"has no place in `study={study}`, which varies the layer")
            self._require_scratch_layer(study)
        if study == "attention":
            for name in given & {"lambda_init", "branch_dims"}:
                raise InputError(
                    f"`model_kwargs={name}=...` has no place in `study={study}`, which varies the layer: leave it out"
                )
        if study == "patch_size":
            self._require_whole_patches()

    def _require_scratch_layer(self, study: str) -> None:
        model = self.train.model.model
        if model not in FROM_SCRATCH:
            raise InputError(
                f"`model={model}` is made for pretrained weights and does not have the paper's branches: "
                f"`study={study}` takes {', '.join(FROM_SCRATCH)}"
            )

    def _require_whole_patches(self) -> None:
        model = self.train.model
        check_name(model.model)
        sides = model.img_size or timm.get_pretrained_cfg(model.model).input_size[1:]
        for side, (name, (_, arguments)) in itertools.product(
            to_2tuple(sides) if len(sides) == 2 else to_2tuple(sides[0]), STUDIES["patch_size"].items()
        ):
            if side % arguments["patch_size"]:
                raise InputError(
                    f"`study=patch_size`: patches of {name} pixels do not divide the {side} pixels of "
                    f"`model={model.model}`: pass `img_size=32`, or another multiple of 8"
                )


def _folder_name(setting: str) -> str:
    """Return a setting with only letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in setting).split())


def plan_ablation(config: AblationConfig, study: str) -> Plan:
    """Return the setting and the options of every training of a study, all settings of a seed before the next seed."""
    model = config.train.model
    kinds = [model.attn] if study in BASELINE else [model.attn, "plain"]
    plan: list[tuple[str, TrainConfig]] = []
    for seed, (name, (options, arguments)), kind in itertools.product(
        range(config.seeds), STUDIES[study].items(), kinds
    ):
        chosen = {key: value(model) if callable(value) else value for key, value in arguments.items()}
        model_kwargs = merged_by_name([*model.model_kwargs, *(f"{key}={value}" for key, value in chosen.items())])
        own = {"attn": kind, **options, "seed": seed, "model_kwargs": model_kwargs}
        place = f"{study}/{_folder_name(name)}-{own['attn']}-{seed}"
        plan.append((name, config.single("ablation", place, **own)))
    return plan


def differences(study: str, runs: list[Run]) -> dict[str, tuple[float, float | None, int] | None]:
    """Compare each setting with its plain twin, or with the baseline of the study, in pairs of equal seeds.

    Args:
        study: name of the study.
        runs: its finished trainings.

    Returns:
        Per setting the mean difference of the test accuracies, half of its 95 % interval (None for a single pair) and
        the number of pairs; None if no seed has both trainings.
    """
    baseline, found = BASELINE.get(study), {}
    for name in STUDIES[study]:
        if name == baseline:
            continue
        own = [run for run in runs if run.setting == name and (baseline or run.attn != "plain")]
        others = [run for run in runs if run.setting == (baseline or name) and (baseline or run.attn == "plain")]
        paired = {run.seed for run in own} & {run.seed for run in others}
        found[name] = difference(own, others) if paired else None
    return found
