"""Vary one thing and train from scratch, differential beside plain attention: a row a finished run, a table, a picture.

    python recipes/ablate.py --study pos_embed                                                    # CIFAR-10, 3 seeds
    python recipes/ablate.py --study attention --dataset FOLDER --model diffvit_nano --epochs 5 --max-train-samples 9000

Runs lie in --output, one folder each; what is finished there is not run again, what was killed goes on. Everything else
is an option of train_cifar.py. Results: recipes/README.md.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, Literal

from train_cifar import CifarConfig, StudyConfig, named_dataset, trained

from diffvit_timm.training import parse_config, run, say

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
# Where a setting is a kind of attention, it has no plain twin of its own.
WITHOUT_TWIN = ("attention", "lambda")


@dataclasses.dataclass(frozen=True)
class AblateConfig(StudyConfig):
    study: Study = "pos_embed"
    """What to vary."""
    output: str = "auto"
    """Folder of the runs, the table and the picture, new or of the same study; auto: runs/ablate-STUDY."""


def planned(config: AblateConfig) -> list[tuple[str, CifarConfig]]:
    """The name of the setting and the options of every run, all settings of a seed before the next seed."""
    kinds = ["model"] if config.study in WITHOUT_TWIN else ["model", "plain"]
    plan = []
    for seed, (name, (options, arguments)), attn in itertools.product(
        range(config.seeds), STUDIES[config.study].items(), kinds
    ):
        given = tuple(f"{key}={value}" for key, value in arguments.items())
        own = {"attn": attn, **options, "seed": seed, "model_kwargs": config.model_kwargs + given}
        place = "-".join([*"".join(c if c.isalnum() else " " for c in name).split(), own["attn"], str(seed)])
        plan.append((name, config.single(f"ablate-{config.study}", place, **own)))
    return plan


def main() -> dict:
    config = named_dataset(parse_config(AblateConfig, description=__doc__))
    from diffvit_timm.analysis.studies import Run, difference, plot_study, summarise, write_csv  # --help is first

    runs = []
    for name, single, result, model in trained(planned(config)):
        parameters = sum(p.numel() for p in model.parameters())
        runs.append(Run(name, result["attn"], single.seed, result["test_accuracy"], parameters, result["seconds"]))
    folder = config.folder(f"ablate-{config.study}")
    write_csv(runs, folder / "study.csv")
    say(f"\n{config.study:30s} attention   seeds   test accuracy        parameters   seconds")
    for row in (rows := summarise(runs)):
        spread = "" if row.deviation is None else f" ± {row.deviation:.2%}"
        accuracy = f"{row.mean:.2%}{spread}"
        say(f"{row.setting:30s} {row.attn:9s} {row.seeds:7d}   {accuracy:18s} {row.parameters:12,d} {row.seconds:9.0f}")
    gains = {}
    if config.study not in WITHOUT_TWIN:
        say("\ndifferential less plain, in pairs of seeds (95 % interval):")
        for name in STUDIES[config.study]:
            gain, half, n = gains[name] = difference(runs, name, "diff")
            say(f"{name:30s} {gain:+.2%}" + ("" if half is None else f" ± {half:.2%}") + f"   n = {n}")
    where = f"{Path(config.dataset).name}, {config.model}, {config.epochs} epochs"
    part = f" of {config.max_train_samples:,} images" if config.max_train_samples else ""
    plot_study(runs, folder / "study.png", f"{config.study} on {where}{part}")
    summary = {"study": config.study, "rows": [dataclasses.asdict(row) for row in rows], "diff_less_plain": gains}
    (folder / "study.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


if __name__ == "__main__":
    run(main)
