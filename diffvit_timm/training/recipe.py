"""A whole training: check the options, load the data, convert, train, test, push."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import set_seed

from ..console import is_main, log0
from ..data.checks import check_images
from ..data.config import DataConfig
from ..data.labels import shown_classes
from ..data.noise import with_input_noise, with_label_noise
from ..data.splits import Splits, take_per_class, take_stratified
from ..errors import InputError
from ..files import read_json, read_yaml
from ..hub.publishing import check_repository, push_run
from ..layers.base import attention_kind
from ..models.outputs import is_multi_label_model, set_multi_label
from ..models.pretrained import check_model
from .accelerator import make_accelerator, run_on_main, share_weights
from .config import TrainConfig
from .dry_run import dry_run
from .longer import is_finished
from .model import check_progressive, check_source, conversion_method, create_model
from .run_folder import RunFolder, open_run
from .teacher import load_teacher
from .trackers import check_trackers
from .trainer import Trainer

__all__ = ["build", "train"]

ONE_LABEL = "needs one label per image, but the images of this dataset may have several"


def train(config: TrainConfig, name: str, multi_label: bool = False, trainer: type[Trainer] = Trainer) -> dict:
    """Run a whole training.

    Args:
        config: options of the training.
        name: name of the run folder with `output=auto`.
        multi_label: whether the images of the dataset may have lists of labels. Their result has no accuracy.
        trainer: class of the trainer.

    Returns:
        The result, as in result.json, with the run folder as `output`; a dry run returns its estimate.

    Raises:
        InputError: bad input. Nothing is written then, unless the training had begun.
    """
    check_trackers(config.run.trackers)
    with open_run(config, name) as (output, checkpoint):
        result = _train_and_push(config, output, checkpoint, multi_label, trainer)
    return result if config.run.dry_run else {**result, "output": str(output)}


def _train_and_push(
    config: TrainConfig, output: Path, checkpoint: Path | None, multi_label: bool, kind: type[Trainer]
) -> dict:
    """Train in a run folder that is claimed, unless the run is finished, and push it; returns the result."""
    run = config.run
    if run.push_to_hub and is_main():
        check_repository(run.push_to_hub, run.hub_private)
    if is_finished(output, config.flat()):
        result = _finished_result(config, output, multi_label)
    else:
        result = _train(config, output, checkpoint, multi_label, kind)
    if run.push_to_hub and is_main():
        url = push_run(output, run.push_to_hub, run.hub_private, "push_to_hub", run.path_in_repo)
        log0(f"pushed to {url}")
    return result


def _finished_result(config: TrainConfig, output: Path, multi_label: bool) -> dict:
    """Return the result of a finished run. If its dataset has another name, its images must be the same."""
    result = read_json(output / "result.json", "delete it to test the best weights again")
    there = read_yaml(output / "config.yaml", "restore it from a copy").get("dataset", config.data.dataset)
    is_moved = there != config.data.dataset
    if is_moved and _load_splits(config.data, multi_label).fingerprints != result.get("fingerprints"):
        raise InputError(
            f"`dataset={config.data.dataset}` has other images than `dataset={there}`, with which {output} was "
            "trained: choose another `output`"
        )
    log0(f"{output} is already finished")
    return result


class Parts(NamedTuple):
    """The parts of a training, which are arguments of `Trainer`."""

    accelerator: Accelerator
    model: Any
    splits: Splits
    conversion: dict | None
    teacher: Any


def _train(config: TrainConfig, output: Path, checkpoint: Path | None, multi_label: bool, kind: type[Trainer]) -> dict:
    """Train in a run folder, or do a dry run or a test instead; returns the result."""
    accelerator, model, splits, conversion, teacher = build(config, output, not checkpoint, multi_label)
    if config.run.dry_run:
        return dry_run(config, accelerator, model, splits, conversion, teacher)
    trainer = kind(config, accelerator, model, splits, output, conversion, teacher)
    result = _test_only(trainer) if config.run.eval_only else trainer.fit(checkpoint)
    accelerator.end_training()
    return result


def build(config: TrainConfig, output: Path, is_new: bool = True, multi_label: bool = False) -> Parts:
    """Load the data, and create or convert the model, after all checks that need neither.

    Args:
        config: options of the training.
        output: run folder.
        is_new: whether the weights will be used, and not replaced by those of a checkpoint.
        multi_label: whether the images of the dataset may have lists of labels.

    Raises:
        InputError: bad input.
    """
    # 1. Check everything that can be checked before data is loaded.
    accelerator = make_accelerator(config.run, output, config.optim.ema)
    is_own = check_source(config.model)
    check_progressive(config)
    if config.run.eval_only and not is_own:
        raise InputError(
            f"`eval_only`: the head of `model={config.model.model}` would be random; give a folder or hf-hub:NAME"
        )
    if config.optim.teacher:
        check_model(config.optim.teacher, parameter="teacher")
    # 2. Load the data, and create or convert the model.
    splits = _load_splits(config.data, multi_label)
    if splits.is_multi_label:
        config.optim.require_default("teacher", ONE_LABEL)
        config.model.require_default("head_init", ONE_LABEL)
    if not config.run.eval_only:
        run_on_main(accelerator, lambda: check_images(splits, config.data.workers))
    set_seed(config.run.seed)
    reports = accelerator.is_main_process and is_new
    model, report = create_model(config.model, splits, reports, accelerator.device)
    share_weights(accelerator, model)
    if config.run.eval_only and is_multi_label_model(model) != splits.is_multi_label:
        raise InputError(
            f"`eval_only`: `model={config.model.model}` was trained for {_labels_of(is_multi_label_model(model))}, but "
            f"the dataset has {_labels_of(splits.is_multi_label)}: test it on another dataset"
        )
    set_multi_label(model, splits.is_multi_label)
    if report:
        log0(str(report))
    teacher = load_teacher(config.optim.teacher, model, splits.class_names) if config.optim.teacher else None
    if config.model.head_init == "probe" and is_new:
        from .probe import fit_linear_probe  # not above: scikit-learn is slow to import

        fit_linear_probe(model, splits, accelerator)
    conversion = (
        {"method": conversion_method(config.model, attention_kind(model)), **report.summary()} if report else None
    )
    return Parts(accelerator, model, splits, conversion, teacher)


def _labels_of(is_multi_label: bool) -> str:
    return "several labels per image" if is_multi_label else "one label per image"


def _load_splits(config: DataConfig, multi_label: bool = False) -> Splits:
    """Load the dataset, take a part of the training images, and add noise, as the options say."""
    splits = config.load(config.stream, config.val_share, multi_label)
    if splits.is_multi_label:
        config.require_default("samples_per_class", ONE_LABEL)
        config.require_default("label_noise", ONE_LABEL)
        config.require("class_balance", config.class_balance != "sampler", f"{ONE_LABEL}: choose loss or none")
    if config.test_share and not config.group_column:
        log0(
            f"{config.test_share:.0%} of the training images are held out for the test, class by class. If several of "
            "them show one patient or scene, this test is too easy: the option group_column keeps them together"
        )
    for role in ("val", "test"):
        classes = len(shown_classes(getattr(splits, role)))
        if classes < len(splits.class_names):
            log0(f"the {role} images show {classes} of the {len(splits.class_names)} classes")
    if config.max_train_samples:
        count = len(splits.train)
        config.require("max_train_samples", config.max_train_samples <= count, f"exceeds the {count} training images")
        train = take_stratified(splits.train, config.max_train_samples, config.sample_seed)
        splits = dataclasses.replace(splits, train=train)
    elif config.samples_per_class:
        train = take_per_class(splits.train, config.samples_per_class, config.sample_seed)
        splits = dataclasses.replace(splits, train=train)
    if config.max_val_samples:
        count = len(splits.val)
        config.require("max_val_samples", config.max_val_samples <= count, f"exceeds the {count} validation images")
        splits = dataclasses.replace(splits, val=take_stratified(splits.val, config.max_val_samples))
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
        run = RunFolder(trainer.output, trainer.config)
        trainer.draw_predictions()
        run.write_json("result.json", result)
    return result
