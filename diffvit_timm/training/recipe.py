"""A whole recipe: check the options, load the data, convert, train, test."""

import dataclasses
import json
from pathlib import Path

from accelerate.utils import set_seed

from ..console import is_main, say
from ..data.datasets import Splits, load_splits
from ..data.noise import with_input_noise, with_label_noise
from ..errors import InputError
from ..hub.publishing import check_repository, push_run
from ..models.pretrained import check_model
from .accelerator import make_accelerator
from .config import TrainConfig
from .dry_run import dry_run
from .model import WITHOUT_WEIGHTS, conversion_method, create_model, owns_head
from .probe import fit_linear_probe
from .run_folder import RunFolder, resolve_run
from .teacher import load_teacher
from .trainer import Trainer

__all__ = ["train"]


def train(config: TrainConfig, recipe: str) -> dict:
    """A whole recipe.

    Args:
        config: what to do.
        recipe: names the run folder of `--output auto`.

    Returns:
        The result, as in result.json; that of --dry-run is its own.

    Raises:
        InputError: anything the user can mend; nothing is written then, unless training had begun.
    """
    output, checkpoint = resolve_run(config, recipe)
    if config.push_to_hub and is_main():
        check_repository(config.push_to_hub, config.hub_private)
    if (output / "result.json").exists():
        say(f"{output} is finished already")
        result = json.loads((output / "result.json").read_text())
    else:
        result = _train(config, output, checkpoint)
    if config.push_to_hub and is_main():
        say(f"pushed to {push_run(output, config.push_to_hub, config.hub_private)}")
    return result


def _train(config: TrainConfig, output: Path, checkpoint: Path | None) -> dict:
    """The training of a recipe in its folder, or what is asked for in its place; its result."""
    accelerator = make_accelerator(config, output)
    check_model(config.model, config.pretrained, hint=WITHOUT_WEIGHTS)
    if config.eval_only and not owns_head(config):
        mend = "give local-dir: or hf-hub:" if config.pretrained else "pass --pretrained"
        raise InputError(f"--eval-only: the head of --model {config.model} starts at random; {mend}")
    if config.teacher:
        check_model(config.teacher, option="--teacher")
    splits = _load_splits(config)
    set_seed(config.seed)
    model, report = create_model(config, splits, report=accelerator.is_main_process and not checkpoint)
    if report:
        say(str(report))
    teacher = load_teacher(config.teacher, model, splits.class_names) if config.teacher else None
    if config.head_init == "probe" and not checkpoint:
        fit_linear_probe(model, splits, accelerator)
    conversion = {"method": conversion_method(config, model.attn), **report.summary()} if report else None
    if config.dry_run:
        return dry_run(config, accelerator, model, splits, conversion, teacher)
    trainer = Trainer(config, accelerator, model, splits, output, conversion, teacher)
    result = _test_only(trainer) if config.eval_only else trainer.fit(checkpoint)
    accelerator.end_training()
    return result


def _load_splits(config: TrainConfig) -> Splits:
    """The dataset with --max-train-samples of its training images, and with the noise that is asked for."""
    splits = load_splits(
        config.dataset, config.image_column, config.label_column, config.stream, config.test_share, config.group_column
    )
    if config.test_share and not config.group_column:
        say(
            f"tested on {config.test_share:.0%} of the training images, drawn class by class. Where several show one "
            "patient or scene, that is too easy a test: --group-column keeps them together"
        )
    for role in ("val", "test"):
        classes = len(set(getattr(splits, role)["label"]))
        if classes < len(splits.class_names):
            say(f"the {role} images are of {classes} of the {len(splits.class_names)} classes")
    if most := config.max_train_samples:
        if most > len(splits.train):
            have = len(splits.train)
            raise InputError(f"--max-train-samples {most}: --dataset {config.dataset} has {have} to train on")
        splits = dataclasses.replace(splits, train=splits.train.shuffle(seed=0).take(most))
    if config.label_noise:
        train, val = (with_label_noise(split, config.label_noise) for split in (splits.train, splits.val))
        splits = dataclasses.replace(splits, train=train, val=val)
    if config.input_noise:
        noisy = {name: with_input_noise(getattr(splits, name), config.input_noise) for name in ("train", "val", "test")}
        splits = dataclasses.replace(splits, **noisy)
    return splits


def _test_only(trainer: Trainer) -> dict:
    result = trainer.test()
    if trainer.accelerator.is_main_process:
        RunFolder(trainer.output, trainer.config).write_json("result.json", result)
    return result
