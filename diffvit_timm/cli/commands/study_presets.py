"""Train the networks of several presets, and draw their losses and accuracies in common pictures.

    diffvit study presets mnist                               # the paper's layer, version 2, plain, and plain widened
    diffvit study presets cifar10 --seeds 3
    diffvit study presets cifar100 --dataset FOLDER           # two kinds of attention at three sizes
    diffvit study presets mnist_nano mine.yaml --set epochs=5 batch_size=64

A preset is named as in diffvit train --config; a folder of presets (bach, cifar10, cifar100, mnist) stands for all of
them. Each training has its own folder below --output (auto: runs/ and the names of the presets). Finished trainings do
not run again, and the same command continues a study that was killed.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...console import log0
from ...errors import InputError, require_at_least
from ...files import write_atomically, write_csv
from ...options import CheckedOptions, named
from ...studies.flops import forward_flops
from ...studies.learning_curves import LearningCurve, plot_accuracies, plot_losses, read_losses
from ...studies.runs import Plan, check_complete, require_one_process, require_study_folder, train_all
from ...training.config import TrainConfig
from ..parser import mapping_arguments, preset_names, presets_of_folder
from ..training_options import TRAIN_FIELDS, parse_training

# Options that the study sets for each training, or that have no place in it.
RESERVED = ("output", "resume", "seed", "dry_run", "eval_only", "push_to_hub")


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    presets: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PRESET [PRESET ...]")]
    """Presets, YAML files, or folders of presets."""
    dataset: str | None = None
    """Dataset of all trainings, instead of those of the presets."""
    set: tuple[str, ...] = ()
    """Options of diffvit train for all trainings, as NAME=VALUE; commas separate the values of a list."""
    seeds: int = 1
    """Number of seeds (0, 1, ...) per preset."""
    output: str = "auto"
    """Folder of the trainings, the table and the pictures; auto: runs/ and the names of the presets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, seeds=self.seeds)
        require_one_process()
        for pair in self.set:
            name, equals, _ = pair.partition("=")
            if not equals:
                raise InputError(f"`set={pair}` must be NAME=VALUE")
            if name.replace("-", "_") in RESERVED:
                raise InputError(f"`set={pair}`: {name} is set for each training: leave it out")


def main(options: Options) -> dict:
    plan = _plan(options)
    folder = _folder(options)
    require_study_folder(folder, "|".join(rf"{re.escape(_folder_name(name))}-\d+" for name, _ in plan))
    curves: list[LearningCurve] = []
    rows: list[dict[str, Any]] = []
    for preset, config, result, model in train_all(plan):
        run, parameters = Path(result["output"]), sum(p.numel() for p in model.parameters())
        losses = read_losses(run)
        name = f"{preset}, seed {config.run.seed}" if options.seeds > 1 else preset
        dataset = Path(config.data.dataset).name
        curves.append(LearningCurve(name, dataset, result["attn"], parameters, result["test_accuracy"], losses))
        rows.append(
            {
                "preset": preset, "seed": config.run.seed, "attention": result["attn"], "parameters": parameters,
                "flops": forward_flops(model), "updates": result["updates"],
                "train_loss": losses["train_loss"][-1][1], "val_loss": losses["val_loss"][-1][1],
                "test_loss": result["test_loss"], "test_accuracy": result["test_accuracy"],
                "seconds": result["seconds"],
            }
        )  # fmt: skip
        _write(folder, rows, curves)
    _print(rows, folder)
    check_complete(plan, len(rows))
    return {"output": str(folder), "rows": rows}


def _plan(options: Options) -> Plan:
    """Return the preset and the options of every training, with all presets of a seed before the next seed."""
    names = [preset for name in options.presets for preset in presets_of_folder(name) or [name]]
    shown = list(map(_shown_name, names))
    if not names or len(set(shown)) < len(names):
        raise InputError(f"{named('presets', options.presets)}: give one or more presets of different names")
    shared = dict(pair.split("=", 1) for pair in options.set)
    if options.dataset is not None:
        shared["dataset"] = options.dataset
    configs = {name: _config(preset, shared) for name, preset in zip(shown, names, strict=True)}
    folder = _folder(options)
    return [
        (name, config.replace(seed=seed, resume="auto", output=str(folder / f"{_folder_name(name)}-{seed}")))
        for seed in range(options.seeds)
        for name, config in configs.items()
    ]


def _config(preset: str, shared: dict[str, Any]) -> TrainConfig:
    """Return the options of a preset, overridden by the shared options."""
    lists = {name: value.split(",") if _is_list(name) else value for name, value in shared.items()}
    config = parse_training(["--config", preset, *mapping_arguments(lists, "`set`", TRAIN_FIELDS, "diffvit train")])
    if config.run.push_to_hub:
        raise InputError(
            f"`presets={preset}` has push_to_hub={config.run.push_to_hub}: push the best run after the study"
        )
    return config


def _is_list(name: str) -> bool:
    return typing.get_origin(TRAIN_FIELDS.get(name.replace("-", "_"))) is tuple


def _folder(options: Options) -> Path:
    names = "-".join(_folder_name(_shown_name(preset)) for preset in options.presets)
    return Path(f"runs/{names}" if options.output == "auto" else options.output).expanduser()


def _shown_name(preset: str) -> str:
    """Return the name of a preset, or that of a YAML file without its folder."""
    return preset if preset in preset_names() else Path(preset).stem


def _folder_name(shown_name: str) -> str:
    return shown_name.replace("/", "-")


def _write(folder: Path, rows: list[dict[str, Any]], curves: Sequence[LearningCurve]) -> None:
    """Write the table and the pictures of the trainings that are finished."""
    write_csv(folder / "table.csv", list(rows[0]), rows)
    write_atomically(folder / "study.json", json.dumps({"rows": rows}, indent=1) + "\n")
    plot_losses(curves, "val_loss", folder / "validation.png", "Validation loss of every training")
    # The other pictures show only earlier trainings and were drawn after the last one of them.
    dataset, attn = curves[-1].dataset, curves[-1].attn
    own = [curve for curve in curves if curve.dataset == dataset]
    _draw(folder, f"{dataset}-{attn}", f"{attn} attention", [curve for curve in own if curve.attn == attn])
    if _has_sizes(own):
        title = f"Test accuracy on {dataset}, all kinds of attention"
        plot_accuracies(own, folder / f"{dataset}-accuracy.png", title)


def _draw(folder: Path, name: str, title: str, curves: Sequence[LearningCurve]) -> None:
    """Draw the losses of the trainings with one kind of attention, and the accuracies of their sizes."""
    plot_losses(curves, "train_loss", folder / f"{name}-train-loss.png", f"Training loss, {title}")
    plot_losses(curves, "val_loss", folder / f"{name}-val-loss.png", f"Validation loss, {title}")
    if _has_sizes(curves):
        plot_accuracies(curves, folder / f"{name}-accuracy.png", f"Test accuracy on {curves[0].dataset}, {title}")


def _has_sizes(curves: Sequence[LearningCurve]) -> bool:
    """Return whether some kind of attention has networks of several sizes."""
    return len({(curve.attn, curve.parameters) for curve in curves}) > len({curve.attn for curve in curves})


def _print(rows: list[dict[str, Any]], folder: Path) -> None:
    """Print one row per training and the files."""
    width = max(len("preset"), *(len(row["preset"]) for row in rows))
    log0("\nOne row per training. MFLOPs: of the forward pass of one image. Losses: nats, train and val at the end.")
    columns = "seed  attention   parameters    MFLOPs  train loss  val loss  test loss  accuracy  seconds"
    log0(f"{'preset':{width}s}  {columns}")
    for row in rows:
        log0(
            f"{row['preset']:{width}s}  {row['seed']:4d}  {row['attention']:9s} {row['parameters']:12,d} "
            f"{row['flops'] / 1e6:9.1f}  {row['train_loss']:10.4f} {row['val_loss']:9.4f}  {row['test_loss']:9.4f} "
            f"{row['test_accuracy']:9.2%} {row['seconds']:8.0f}"
        )
    log0(
        f"\n{folder}: the table is in table.csv, the validation losses of all trainings are in validation.png, and the "
        "other pictures have the losses and accuracies per kind of attention."
    )
