"""Vary one setting of trainings from scratch, with differential and plain attention, and draw a table and a picture.

    diffvit study ablation --study pos_embed                                           # CIFAR-10, 3 seeds
    diffvit study ablation --study attention --dataset mnist --model diffvit_nano --epochs 5 --max-train-samples 9000

Each training has its own folder below --output (auto: runs/ablate-STUDY). Finished trainings do not run again, and the
same command continues a study that was killed. The other options are those of diffvit train, except for what the study
varies.
"""

import dataclasses
import json
from typing import Annotated

import tyro

from ...console import log0
from ...files import write_atomically
from ...studies.ablation import BASELINE, AblationConfig, differences, plan_ablation
from ...studies.results import Run, plot_study, summarise, write_csv
from ...studies.runs import SCRATCH, check_complete, train_all
from ...training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Options(AblationConfig):
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = SCRATCH


def main(options: Options) -> dict:
    runs: list[Run] = []
    plan, folder = plan_ablation(options), options.folder(f"ablate-{options.study}")
    for setting, config, result, model in train_all(plan):
        parameters = sum(p.numel() for p in model.parameters())
        figures = result["test_accuracy"], parameters, result["seconds"]
        runs.append(Run(setting, result["attn"], config.run.seed, *figures))
        write_csv(runs, folder / "study.csv")
    log0("\nTest accuracy: mean over the seeds ± standard deviation. Seconds: mean time of a training.")
    log0(f"{options.study:30s} attention   seeds   test accuracy        parameters   seconds")
    for row in (rows := summarise(runs)):
        spread = "" if row.deviation is None else f" ± {row.deviation:.2%}"
        accuracy = f"{row.mean:.2%}{spread}"
        size = f"{row.parameters:12,d} {row.seconds:9.0f}"
        log0(f"{row.setting:30s} {row.attn:9s} {row.seeds:7d}   {accuracy:18s} {size}")
    found = differences(options.study, runs)
    _print_differences(options.study, found)
    plot_study(runs, folder / "study.png", f"{options.study}: {options.train.model.model}, {options.title}")
    gains = {name: gain for name, gain in found.items() if gain}
    summary = {"study": options.study, "rows": [dataclasses.asdict(row) for row in rows], "differences": gains}
    write_atomically(folder / "study.json", json.dumps(summary, indent=1) + "\n")
    log0(f"\n{folder}: one row per training in study.csv, the table in study.json, the picture in study.png.")
    check_complete(plan, len(runs))
    return summary


def _print_differences(study: str, found: dict) -> None:
    other = BASELINE.get(study, "its plain twin")
    log0(f"\nTest accuracy minus that of {other}, in pairs of equal seeds (± half of the 95 % interval):")
    for name, gain in found.items():
        if gain is None:
            log0(f"{name:30s} no seed has both trainings")
            continue
        mean, half, n = gain
        log0(f"{name:30s} {mean:+.2%}" + ("" if half is None else f" ± {half:.2%}") + f"   n = {n}")
