"""Vary one setting of trainings from scratch, with differential and plain attention, and draw a table and a picture.

    diffvit study ablation --study pos_embed                                           # CIFAR-10, 3 seeds
    diffvit study ablation --study attention --dataset mnist --model diffvit_nano --epochs 5 --max-train-samples 9000
    diffvit study ablation --study patch_size pos_embed depth augmentation --output results

Each study has its own folder below --output (auto: runs/ablation), with a folder per training. Finished trainings do
not run again, and the same command continues a study that was killed. The other options are those of diffvit train,
except for what the studies vary. At the end, results.json has the tables of all studies, validation.png their
validation losses, and figures/ shows where the best differential network and the best plain one look.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...console import log0
from ...files import read_json, write_atomically
from ...studies.ablation import BASELINE, AblationConfig, differences, plan_ablation
from ...studies.best_networks import draw_best_networks
from ...studies.learning_curves import LearningCurve, plot_losses, read_losses
from ...studies.results import Run, plot_study, summarise, write_csv
from ...studies.runs import SCRATCH, Plan, check_complete, train_all
from ...training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Options(AblationConfig):
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = SCRATCH


def main(options: Options) -> dict:
    plans = {study: plan_ablation(options, study) for study in options.study}
    folder, curves, results = options.folder("ablation"), [], {}
    finished: list[dict] = []
    for study, plan in plans.items():
        log0(f"\n{study}")
        runs, own_curves, own_results = _run_study(options, study, plan)
        finished += own_results
        curves += own_curves
        results[study] = _summarise(options, study, runs)
    earlier = read_json(folder / "results.json", "delete it") if (folder / "results.json").exists() else {}
    write_atomically(folder / "results.json", json.dumps(earlier | results, indent=1) + "\n")
    plot_losses(curves, "val_loss", folder / "validation.png", f"Validation loss, seed 0, {options.title}")
    draw_best_networks(finished, folder / "figures")
    log0(
        f"\n{folder}: the tables of all studies are in results.json, the validation losses in validation.png. Each "
        "study's folder\nhas one row per training in study.csv, the table in study.json and the picture in study.png. "
        "figures/ shows where\nthe networks look that were best on the validation images."
    )
    check_complete([training for plan in plans.values() for training in plan], len(finished))
    return {"output": str(folder), "studies": results}


def _run_study(options: Options, study: str, plan: Plan) -> tuple[list[Run], list[LearningCurve], list[dict]]:
    """Run the trainings of a study; returns the finished runs, the curves of seed 0, and the results of the runs."""
    runs: list[Run] = []
    curves: list[LearningCurve] = []
    results: list[dict] = []
    for setting, config, result, model in train_all(plan):
        attn, parameters = result["attn"], sum(p.numel() for p in model.parameters())
        runs.append(Run(setting, attn, config.run.seed, result["test_accuracy"], parameters, result["seconds"]))
        write_csv(runs, options.study_folder(study) / "study.csv")
        results.append(result)
        if config.run.seed == 0:
            losses = read_losses(Path(result["output"]))
            name = setting if study in BASELINE else f"{setting}, {attn}"
            curves.append(LearningCurve(name, study, attn, parameters, result["test_accuracy"], losses))
    return runs, curves, results


def _summarise(options: Options, study: str, runs: list[Run]) -> dict[str, Any]:
    """Print and write the table of a study, and draw its picture."""
    log0("\nTest accuracy: mean over the seeds ± standard deviation. Seconds: mean time of a training.")
    log0(f"{study:30s} attention   seeds   test accuracy        parameters   seconds")
    for row in (rows := summarise(runs)):
        spread = "" if row.deviation is None else f" ± {row.deviation:.2%}"
        accuracy = f"{row.mean:.2%}{spread}"
        size = f"{row.parameters:12,d} {row.seconds:9.0f}"
        log0(f"{row.setting:30s} {row.attn:9s} {row.seeds:7d}   {accuracy:18s} {size}")
    found = differences(study, runs)
    _print_differences(study, found)
    folder = options.study_folder(study)
    plot_study(runs, folder / "study.png", f"{study}: {options.train.model.model}, {options.title}")
    gains = {name: gain for name, gain in found.items() if gain}
    summary = {"rows": [dataclasses.asdict(row) for row in rows], "differences": gains}
    write_atomically(folder / "study.json", json.dumps(summary, indent=1) + "\n")
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
