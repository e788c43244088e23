"""The training loop on accelerate: train, choose the best epoch on validation, touch the test split once."""

import contextlib
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, set_seed
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from ..data import ImageDataset, Splits, eval_transform, load_splits, train_transform
from ..diffvit import DiffVisionTransformer
from ..errors import InputError
from ..hub import check_model
from ..statistics import LayerStatistics, layer_statistics
from .config import TrainConfig
from .console import progress, say
from .curves import plot_training
from .distillation import distillation_loss, load_teacher
from .metrics import Accuracy
from .model import conversion_method, create_model, image_batches, model_data_config
from .optim import build_optimizer, build_scheduler, lambda_ramp
from .probe import fit_linear_probe
from .run_folder import RunFolder, resolve_output

STATISTICS_IMAGES = 16  # of the validation split, for lambda and negative attention mass after each epoch


def make_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """The accelerator of a configuration; trackers that write files write below `output`.

    Raises:
        InputError: a tracker that is not installed, fp16 without a GPU.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    for tracker in config.trackers:
        if tracker not in available:
            choices = ", ".join(available) or "none"
            raise InputError(f"--trackers {tracker} is not installed: pip install it (installed: {choices})")
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("--precision fp16 needs a GPU: use bf16 or no here")
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or else each rank without a GPU takes itself for the only one
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_dir=str(output),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
    )
    if accelerator.device.type == "cpu":
        # accelerate launch leaves a process one thread: 10 instead of 27 images/s on 2 cores
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // accelerator.num_processes))
    return accelerator


def _limit_cv2_threads(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # a pool of its own in each worker only fights the others for the cores


class Trainer:
    """Trains one model on one dataset.

    Args:
        config: what to do.
        accelerator: of `make_accelerator`.
        model: of `create_model` or `from_vit`; trained in place.
        splits: of `load_splits`.
        output: the run folder, of `resolve_output`.
        conversion: where the weights come from, for the result.
        teacher: of `load_teacher`, to learn from.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        splits: Splits,
        output: Path,
        conversion: dict | None = None,
        teacher: Any = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.splits = splits
        self.conversion = conversion
        self.teacher = teacher.to(accelerator.device) if teacher else None
        self.output = broadcast_object_list([output])[0]  # ranks may have read the clock a second apart
        self.run: RunFolder | None = None  # made by fit, so that bad settings leave nothing behind

        data_config = model_data_config(model)
        channels = data_config["input_size"][0]
        train = train_transform(config.augment, data_config, config.crop_scale)
        self.train_images = ImageDataset(splits.train, train, channels, config.seed)
        self.train_loader = self._loader(self.train_images, shuffle=True)
        evaluation = eval_transform(data_config)
        self.val_loader = self._loader(ImageDataset(splits.val, evaluation, channels))
        self.test_loader = self._loader(ImageDataset(splits.test, evaluation, channels))

        self.net: Any = model  # as it was given: what accelerate wraps or compiles shares its parameters
        optimizer = build_optimizer(model, config)
        self.model, self.optimizer, self.train_loader, self.val_loader, self.test_loader = accelerator.prepare(
            model, optimizer, self.train_loader, self.val_loader, self.test_loader
        )
        self.updates_per_epoch = len(self.train_loader)
        # not prepared: accelerate would step it num_processes times an update
        self.scheduler = build_scheduler(optimizer, config, self.updates_per_epoch)
        mixes = []
        if config.mixup:
            mixes.append(v2.MixUp(alpha=config.mixup, num_classes=len(splits.class_names)))
        if config.cutmix:
            mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=len(splits.class_names)))
        self.mix = v2.RandomChoice(mixes) if mixes else None
        self.layers = model.differential_layers() if isinstance(model, DiffVisionTransformer) else []
        self.lambda_starts = [layer.lambda_init.item() for layer in self.layers]
        self.statistics_images = list(image_batches(model, splits.val, STATISTICS_IMAGES)) if self.layers else []
        if config.lambda_warmup and getattr(model, "attn", None) == "diff_v2":
            raise InputError("--lambda-warmup is for attn diff: lambda of diff_v2 is learned for each token")
        if config.lambda_warmup and not self.layers:
            say("--lambda-warmup: plain attention has no lambda to ramp")
        self.step = 0
        self.last_lr = 0.0

    def _loader(self, images: ImageDataset, shuffle: bool = False) -> Any:
        config = self.config
        return DataLoader(
            images,
            batch_size=config.batch_size,
            shuffle=shuffle,
            num_workers=config.workers,
            worker_init_fn=_limit_cv2_threads,
            persistent_workers=shuffle and config.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _statistics(self) -> LayerStatistics:
        if not self.layers:
            return LayerStatistics([], [])
        return layer_statistics(self.net, self.statistics_images)

    def fit(self) -> dict:
        """Train; choose on validation; test once.

        Returns:
            The result, as in result.json.

        Raises:
            InputError: the loss became NaN or infinite, or an image did not decode.
        """
        config = self.config
        if self.accelerator.is_main_process:
            self.run = RunFolder(self.output, config)
        if config.trackers:
            settings = {key: str(value) for key, value in vars(config).items()}
            self.accelerator.init_trackers(self.output.name, config=settings)
        # ranks must not share mixup's and drop path's draws
        set_seed(config.seed, device_specific=True)
        say(self._plan())
        start, train_seconds, best = time.perf_counter(), 0.0, (-1.0, 0.0)
        for epoch in range(config.epochs):
            self.train_loader.set_epoch(epoch)  # the order
            self.train_images.set_epoch(epoch)  # the augmentation: accelerate forgets the dataset of a sharded sampler
            train_seconds += self._train_epoch(epoch)
            val = self.evaluate(self.val_loader, f"val {epoch + 1}")
            self._require_finite(val.loss)
            statistics = self._statistics()
            lambdas, negative = statistics.lambdas, statistics.negative_mass
            layers = {"lambda": lambdas, "negative_mass": negative}
            self._log(epoch=epoch + 1.0, val_accuracy=val.accuracy, val_loss=val.loss, **layers)
            marks = [f"epoch {epoch + 1}/{config.epochs}", f"val {val.accuracy:.2%}", f"val loss {val.loss:.3f}"]
            if lambdas:
                marks.append(f"lambda {min(lambdas):.3f} to {max(lambdas):.3f}  negative {max(negative):.1%}")
            say("  ".join([*marks, f"{time.perf_counter() - start:.0f} s"]))
            if (val.accuracy, -val.loss) > best:  # few images make ties: the lower loss then
                best = (val.accuracy, -val.loss)
                if self.run:
                    self.run.save_best(self.net, self.splits.class_names)
        self.accelerator.wait_for_everyone()
        return self._finish(best[0], time.perf_counter() - start, train_seconds)

    def _plan(self) -> str:
        config, processes = self.config, self.accelerator.num_processes
        parameters = sum(p.numel() for p in self.model.parameters())
        splits = self.splits
        return (
            f"{config.model}: {parameters / 1e6:.2f} M parameters; {len(splits.train)} train, {len(splits.val)} val, "
            f"{len(splits.test)} test images, {len(splits.class_names)} classes\n"
            f"{config.epochs} epochs of {self.updates_per_epoch} updates of {config.batch_size * processes} images "
            f"({config.batch_size} a process, {processes} processes, {config.grad_accum} passes)\n"
            f"on {self.accelerator.device} ({torch.get_num_threads()} CPU threads a process), "
            f"precision {self.accelerator.mixed_precision}; run folder {self.output}"
        )

    def _train_epoch(self, epoch: int) -> float:
        """One epoch; returns its seconds."""
        start = time.perf_counter()
        self.model.train()
        losses: list[Tensor] = []
        with progress(f"epoch {epoch + 1}", self.updates_per_epoch) as advance:
            for batch, (images, labels) in enumerate(self.train_loader, start=1):
                losses.append(self._update(images, labels))
                text = ""
                if self.step % self.config.log_every == 0 or batch == self.updates_per_epoch:
                    loss = self._check_losses(losses)
                    losses.clear()
                    at = epoch + batch / self.updates_per_epoch
                    self._log(step=self.step, epoch=at, train_loss=loss, lr=self.last_lr)
                    text = f"loss {loss:.3f}"
                advance(text)
        return time.perf_counter() - start

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        """One optimizer update from one batch; returns its mean loss, on the device."""
        config = self.config
        if config.lambda_warmup:
            updates = config.lambda_warmup * self.updates_per_epoch
            for layer, start in zip(self.layers, self.lambda_starts, strict=True):
                layer.set_lambda_init(lambda_ramp(self.step + 1, start, config.lambda_target, updates))
        if self.mix:
            images, labels = self.mix(images, labels)
        total = torch.zeros((), device=images.device)
        parts = list(zip(images.chunk(config.grad_accum), labels.chunk(config.grad_accum), strict=True))
        for index, (part, target) in enumerate(parts, start=1):
            last = index == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    logits = self.model(part)
                loss = F.cross_entropy(logits.float(), target, label_smoothing=config.label_smoothing)
                if self.teacher:
                    with torch.no_grad(), self.accelerator.autocast():
                        targets = self.teacher(part)
                    learned = distillation_loss(logits, targets, config.distill_temperature)
                    loss = torch.lerp(loss, learned, config.distill_weight)
                loss = loss * (len(part) / len(images))  # an image weighs the same in a smaller last part
                self.accelerator.backward(loss)
                total += loss.detach()
        if config.clip_grad:
            self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.last_lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total

    def _check_losses(self, losses: list[Tensor]) -> float:
        """Mean of the last losses over all processes; looking at each as it comes would stall a GPU."""
        values = self.accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
        for step, value in enumerate(values, start=self.step - len(values) + 1):
            self._require_finite(value, step)
        return sum(values) / len(values)

    def _require_finite(self, loss: float, step: int | None = None) -> None:
        if not math.isfinite(loss):
            where = f"at update {step}" if step else f"on the validation images after update {self.step}"
            raise InputError(
                f"the loss is {loss} {where}: lower --lr {self.config.lr:g}, raise --warmup-epochs "
                "or use --precision no"
            )

    @torch.inference_mode()
    def evaluate(self, loader: DataLoader, label: str) -> Accuracy:
        """Accuracy on a prepared loader, each image counted once on any number of processes."""
        self.model.eval()
        columns: list[tuple[Tensor, ...]] = []
        with progress(label, len(loader)) as advance:
            for images, labels in loader:
                with self.accelerator.autocast():
                    logits = self.model(images)
                losses = F.cross_entropy(logits.float(), labels, reduction="none")
                columns.append(self.accelerator.gather_for_metrics((logits.argmax(-1), labels, losses)))
                advance("")
        return Accuracy.of(*(torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)))

    def _log(self, **row) -> None:
        if self.run:
            self.run.log(**row)
        if self.config.trackers:
            numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
            layers = {f"{k}/{i}": x for k, v in row.items() if isinstance(v, list) for i, x in enumerate(v)}
            self.accelerator.log({**numbers, **layers}, step=self.step)

    def _finish(self, best: float, seconds: float, train_seconds: float) -> dict:
        self.net.load_state_dict(load_file(self.output / "best" / "model.safetensors"))
        test, statistics = self.evaluate(self.test_loader, "test"), self._statistics()
        images = len(self.splits.train) * self.config.epochs
        attn = getattr(self.net, "attn", "timm")
        result = {
            "test_accuracy": test.accuracy,
            "test_interval_95": test.interval,
            "test_mean_per_class": test.mean_per_class,
            "test_images": test.images,
            "val_accuracy": best,
            "epochs": self.config.epochs,
            "seconds": round(seconds, 1),
            "images_per_second": round(images / train_seconds, 1),
            "model": self.config.model,
            "attn": attn,
            "seed": self.config.seed,
            "conversion": self.conversion,
            "lambda": statistics.lambdas,
            "negative_mass": statistics.negative_mass,
        }
        if self.run:
            self.run.write_json("result.json", result)
            title = f"{self.config.model}, {attn} attention, on {Path(self.config.dataset).name}"
            plot_training(self.run.rows, self.run.path / "training.png", title)
        return result


def train(config: TrainConfig, recipe: str) -> dict:
    """A whole recipe: check the options, load the data, convert, train, test.

    Args:
        config: what to do.
        recipe: names the run folder of `--output auto`.

    Returns:
        The result, as in result.json.

    Raises:
        InputError: anything the user can mend; nothing is written then, unless training had begun.
    """
    output = resolve_output(config, recipe)
    accelerator = make_accelerator(config, output)
    check_model(config.model, config.pretrained)
    if config.teacher:
        check_model(config.teacher, option="--teacher")
    splits = load_splits(config.dataset, config.image_column, config.label_column)
    set_seed(config.seed)
    model, report = create_model(config, splits, report=accelerator.is_main_process)
    if report:
        say(str(report))
    teacher = load_teacher(config.teacher, model, splits.class_names) if config.teacher else None
    if config.head_init == "probe":
        fit_linear_probe(model, splits, accelerator)
    conversion = {"method": conversion_method(config, model.attn), **report.summary()} if report else None
    result = Trainer(config, accelerator, model, splits, output, conversion, teacher).fit()
    accelerator.end_training()
    return result
