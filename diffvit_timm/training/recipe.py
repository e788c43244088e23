"""A whole recipe: check the options, load the data, convert, train, test."""

import dataclasses
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.models import parse_model_name

from ..data import Splits, load_splits
from ..errors import InputError
from ..hub import check_model, load_model
from .accelerator import make_accelerator
from .config import TrainConfig
from .console import say
from .distillation import load_teacher
from .model import conversion_method, create_model, image_batches
from .probe import fit_linear_probe
from .run_folder import RunFolder, resolve_run
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
    if (output / "result.json").exists():
        say(f"{output} is finished already")
        return json.loads((output / "result.json").read_text())
    accelerator = make_accelerator(config, output)
    check_model(config.model, config.pretrained)
    if config.teacher:
        check_model(config.teacher, option="--teacher")
    splits = _fewer(load_splits(config.dataset, config.image_column, config.label_column, config.stream), config)
    if config.eval_only and parse_model_name(config.model)[0] is None:
        raise InputError(
            f"--eval-only: the head of --model {config.model} starts at random; give local-dir: or hf-hub:"
        )
    set_seed(config.seed)
    model, report = create_model(config, splits, report=accelerator.is_main_process and not checkpoint)
    if report:
        say(str(report))
    teacher = load_teacher(config.teacher, model, splits.class_names) if config.teacher else None
    if config.head_init == "probe" and not checkpoint:
        fit_linear_probe(model, splits, accelerator)
    conversion = {"method": conversion_method(config, model.attn), **report.summary()} if report else None
    if config.dry_run:
        return _dry_run(config, accelerator, model, splits, conversion, teacher)
    trainer = Trainer(config, accelerator, model, splits, output, conversion, teacher)
    result = _test_only(trainer) if config.eval_only else trainer.fit(checkpoint)
    accelerator.end_training()
    return result


def _fewer(splits: Splits, config: TrainConfig) -> Splits:
    """The splits with --max-train-samples of the training images."""
    most = config.max_train_samples
    if not most:
        return splits
    if most > len(splits.train):
        raise InputError(f"--max-train-samples {most}: --dataset {config.dataset} has {len(splits.train)} to train on")
    return dataclasses.replace(splits, train=splits.train.shuffle(seed=0).take(most))


def _test_only(trainer: Trainer) -> dict:
    result = trainer.test()
    if trainer.accelerator.is_main_process:
        RunFolder(trainer.output, trainer.config).write_json("result.json", result)
    return result


def _dry_run(
    config: TrainConfig, accelerator: Accelerator, model: Any, splits: Splits, conversion: dict | None, teacher: Any
) -> dict:
    """Two updates, two batches of validation and test, the best weights saved and loaded; in a folder that goes."""
    few = 2 * config.batch_size * accelerator.num_processes  # images
    part = dataclasses.replace(
        splits, val=splits.val.take(min(few, len(splits.val))), test=splits.test.take(min(few, len(splits.test)))
    )
    short = dataclasses.replace(config, max_steps=2, log_every=1, checkpoint_every=0.0, trackers=())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(short, accelerator, model, part, Path(folder) / "run", conversion, teacher)
        ends: list[float] = []
        trainer.optimizer.optimizer.register_step_post_hook(lambda *_: ends.append(time.perf_counter()))
        trainer.fit()
        saved = load_model(f"local-dir:{trainer.output}/best").to(accelerator.device).eval()
        images = next(image_batches(model, part.test, min(len(part.test), 8))).to(accelerator.device)
        with torch.inference_mode():
            difference = (saved(images) - trainer.judged.eval()(images)).abs().max().item()
        start = time.perf_counter()
        trainer.evaluate(trainer.test_loader, "timing")
        image = (time.perf_counter() - start) / len(part.test)
        accelerator.wait_for_everyone()
    if difference:
        raise RuntimeError(f"the logits of the saved weights differ by {difference}")
    updates = config.max_steps or config.epochs * trainer.updates_per_epoch
    epochs = -(-updates // trainer.updates_per_epoch)
    seconds = updates * (ends[1] - ends[0]) + (epochs * len(splits.val) + len(splits.test)) * image
    result = {
        "dry_run": True,
        "updates": updates,
        "seconds_an_update": round(ends[1] - ends[0], 3),
        "expected_seconds": round(seconds, 1),
        "peak_memory_gib": round(_peak_memory(accelerator.device) / 2**30, 2),
    }
    say(
        f"dry run: {updates} updates of {ends[1] - ends[0]:.2f} s and {epochs} evaluations are about "
        f"{seconds / 60:.0f} minutes; at most {result['peak_memory_gib']} GiB so far; saved and loaded to the same bits"
    )
    return result


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
