"""Vary one thing and train from scratch, differential beside plain attention: a row a finished run, a table, a picture.

    python recipes/ablate.py --study pos_embed                                                    # CIFAR-10, 3 seeds
    python recipes/ablate.py --study attention --dataset FOLDER --model diffvit_nano --epochs 5 --max-train-samples 9000

Runs lie in --output, one folder each; what is finished there is not run again, what was killed goes on. How to train is
said by train_cifar.py's options, but for those that the study varies. Results: recipes/README.md.
"""

import dataclasses
import itertools
import json
from typing import Any, Literal

from studies import StudyConfig, require_whole, trained
from train_cifar import CifarConfig, named_dataset

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0
from diffvit_timm.errors import InputError
from diffvit_timm.files import write_atomically

Study = Literal[
    "patch_size", "pos_embed", "augmentation", "size", "dropout", "batch_size", "attention", "lambda", "noise"
]

# Of each study: what a setting is called, its options, and its arguments of the model.
STUDIES: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "patch_size": {f"{side} x {side}": ({}, {"patch_size": side}) for side in (2, 4, 8)},
    "pos_embed": {name: ({}, {"pos_embed": name}) for name in ("none", "learn", "learn_2d", "sincos")},
    "augmentation": {
        **{name: ({"augment": name}, {}) for name in ("none", "flip", "shift+flip", "shift+flip+cutout")},
        "shift+flip+randaugment": ({"augment": "shift+flip+randaugment"}, {}),
        "shift+flip+autoaugment": ({"augment": "shift+flip+autoaugment"}, {}),
        "shift+flip, mixup and CutMix": ({"augment": "shift+flip", "mixup": 0.2, "cutmix": 1.0}, {}),
    },
    "size": {f"depth {depth}": ({}, {"depth": depth}) for depth in (2, 4, 6, 8)},
    "dropout": {
        **{f"drop path {rate}": ({"drop_path": rate}, {}) for rate in (0.0, 0.1, 0.2)},
        **{f"dropout {rate}": ({}, {"proj_drop_rate": rate}) for rate in (0.1, 0.2)},
    },
    "batch_size": {f"batch {size}": ({"batch_size": size}, {}) for size in (32, 64, 128, 256)},
    "attention": {
        "plain": ({"attn": "plain"}, {}),
        "the paper's": ({}, {}),
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
# Where a setting is a kind of attention it has no plain twin, and is compared with the runs of this one.
BASELINE = {"attention": "plain", "lambda": "schedule"}


@dataclasses.dataclass(frozen=True)
class AblateConfig(StudyConfig):
    study: Study = "pos_embed"
    """What to vary."""
    output: str = "auto"
    """Folder of the runs, the table and the picture, new or of the same study; auto: runs/ablate-STUDY."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = STUDIES[self.study].values()
        for name in {name for options, _ in settings for name in options}:
            self.leave_out(name, f"is what --study {self.study} varies")
        for name in self.model_arguments.keys() & {name for _, arguments in settings for name in arguments}:
            raise InputError(f"--model-kwargs {name}=... is what --study {self.study} varies: leave it out")
        if self.study in BASELINE:
            for name in ("attn", "lambda_warmup"):
                self.leave_out(name, f"is not for --study {self.study}, which varies the layer")
            for name in self.model_arguments.keys() & {"head_norm", "lambda_init", "branch_dims"}:
                raise InputError(f"--model-kwargs {name}=... is not for --study {self.study}, which varies the layer")
            _require_papers_layer(self)
        if self.study == "patch_size":
            _require_whole_patches(self)
        own = "|".join(_folder_name(name) for name in STUDIES[self.study])
        self.require_own_folder(f"ablate-{self.study}", rf"({own})-\w+-\d+")


def _folder_name(setting: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in setting).split())


def _require_papers_layer(config: AblateConfig) -> None:
    from diffvit_timm.models.diffvit import FROM_SCRATCH  # not above: --help need not wait for torch

    if config.model not in FROM_SCRATCH:
        raise InputError(
            f"--model {config.model} is one for pretrained weights, whose layer is not the paper's: --study "
            f"{config.study} takes {', '.join(FROM_SCRATCH)}"
        )


def _require_whole_patches(config: AblateConfig) -> None:
    import timm  # not above: --help need not wait for torch
    from timm.layers import to_2tuple

    from diffvit_timm.models.pretrained import check_model

    check_model(config.model, pretrained=False)
    size = config.model_arguments.get("img_size") or timm.get_pretrained_cfg(config.model).input_size[1:]
    sides = to_2tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise InputError(f"--model-kwargs img_size={size} is no size: pass one number of pixels, or (height, width)")
    for side, (name, (_, arguments)) in itertools.product(sides, STUDIES["patch_size"].items()):
        if side % arguments["patch_size"]:
            raise InputError(
                f"--study patch_size: {name} pixels do not divide the {side} of --model {config.model}: pass "
                "--model-kwargs img_size=32, or another multiple of 8"
            )


def planned(config: AblateConfig) -> list[tuple[str, CifarConfig]]:
    """The name of the setting and the options of every run, all settings of a seed before the next seed."""
    kinds = [config.attn] if config.study in BASELINE else [config.attn, "plain"]
    plan = []
    for seed, (name, (options, arguments)), attn in itertools.product(
        range(config.seeds), STUDIES[config.study].items(), kinds
    ):
        given = tuple(f"{key}={value}" for key, value in arguments.items())
        own = {"attn": attn, **options, "seed": seed, "model_kwargs": config.model_kwargs + given}
        place = f"{_folder_name(name)}-{own['attn']}-{seed}"
        plan.append((name, config.single(f"ablate-{config.study}", place, **own)))
    return plan


def differences(config: AblateConfig, runs: list) -> dict[str, tuple[float, float | None, int]]:
    """Of each setting how much more accurate it is than its plain twin, or than the study's baseline."""
    from diffvit_timm.studies.results import difference  # not above: --help is first

    baseline, gains = BASELINE.get(config.study), {}
    log0(f"\nless {baseline or 'its plain twin'}, in pairs of seeds (95 % interval):")
    for name in STUDIES[config.study]:
        if name == baseline:
            continue
        own = [run for run in runs if run.setting == name and (baseline or run.attn != "plain")]
        others = [run for run in runs if run.setting == (baseline or name) and (baseline or run.attn == "plain")]
        if not {run.seed for run in own} & {run.seed for run in others}:
            log0(f"{name:30s} no seed of both")
            continue
        gain, half, n = gains[name] = difference(own, others)
        log0(f"{name:30s} {gain:+.2%}" + ("" if half is None else f" ± {half:.2%}") + f"   n = {n}")
    return gains


def main() -> dict:
    config = named_dataset(parse_config(AblateConfig, description=__doc__))
    from diffvit_timm.studies.results import Run, plot_study, summarise, write_csv  # --help is first

    runs, plan, folder = [], planned(config), config.folder(f"ablate-{config.study}")
    for name, single, result, model in trained(plan):
        parameters = sum(p.numel() for p in model.parameters())
        runs.append(Run(name, result["attn"], single.seed, result["test_accuracy"], parameters, result["seconds"]))
        write_csv(runs, folder / "study.csv")
    log0(f"\n{config.study:30s} attention   seeds   test accuracy        parameters   seconds")
    for row in (rows := summarise(runs)):
        spread = "" if row.deviation is None else f" ± {row.deviation:.2%}"
        accuracy = f"{row.mean:.2%}{spread}"
        size = f"{row.parameters:12,d} {row.seconds:9.0f}"
        log0(f"{row.setting:30s} {row.attn:9s} {row.seeds:7d}   {accuracy:18s} {size}")
    gains = differences(config, runs)
    plot_study(runs, folder / "study.png", f"{config.study}: {config.model}, {config.title}")
    summary = {"study": config.study, "rows": [dataclasses.asdict(row) for row in rows], "differences": gains}
    write_atomically(folder / "study.json", json.dumps(summary, indent=1) + "\n")
    require_whole(plan, len(runs))
    return summary


if __name__ == "__main__":
    run(main)
