"""The training loop on accelerate: train, choose the best epoch on validation, touch the test split once."""

import contextlib
import copy
import itertools
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from ..console import progress, say
from ..data.datasets import Splits
from ..data.loading import evaluation_images, image_batches, model_data_config, training_images
from ..errors import DivergedError, InputError
from ..inspection.attention_maps import can_capture
from ..inspection.layer_statistics import LayerStatistics, layer_statistics
from ..models.diff_vision_transformer import DiffVisionTransformer
from .attention_pictures import AttentionPictures
from .batches import TrainingBatches, evaluation_batches
from .checkpoint import Checkpoints, load_checkpoint
from .config import TrainConfig
from .curves import plot_training
from .memory import passes_that_fit
from .metrics import Accuracy
from .optim import build_optimizer, build_scheduler, lambda_ramp
from .run_folder import RunFolder
from .sharding import load_optimizer_state, load_weights, whole_optimizer_state, whole_weights
from .signals import StopSignal
from .teacher import distillation_loss

EMA = "ema."  # before the names of averaged weights in a checkpoint
STATISTICS_IMAGES = 16  # of the validation split, for lambda and negative attention mass after each epoch


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


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

    Raises:
        InputError: options that do not go with the model or the images.
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
        images = training_images(splits.train, config.augment, data_config, config.crop_scale, config.seed)
        self.batches = TrainingBatches(images, config, accelerator)
        self.val_loader, self.test_loader = (
            evaluation_batches(evaluation_images(split, data_config), config, accelerator)
            for split in (splits.val, splits.test)
        )

        self.net: Any = model  # as it was given: what accelerate wraps or compiles shares its parameters
        self.whole = copy.deepcopy(model) if accelerator.is_fsdp2 else None  # of the weights, where the net is cut up
        if config.compile:
            model.compile()
        optimizer = build_optimizer(model, config)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.frozen = [module for module in model.modules() if _is_frozen(module)]
        self.updates_per_epoch = self.batches.per_epoch
        self.updates, self.epochs = config.length(self.updates_per_epoch)
        self.passes = config.grad_accum
        # not prepared: accelerate would step it num_processes times an update
        self.scheduler = build_scheduler(optimizer, config, self.updates_per_epoch, self.updates)
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
        self.pictures = (
            AttentionPictures(model, splits.val, splits.class_names, self.output / "attention")
            if config.attention_every or (config.push_to_hub and can_capture(model))
            else None
        )
        self.ema = self._average() if config.ema else None
        self.step = 0  # updates done
        self.epochs_done = 0  # evaluated ones
        self.best = (-1.0, 0.0)  # validation accuracy, and less loss
        self.epochs_since_best = 0
        self.losses: list[Tensor] = []  # of the updates since the last row of metrics.jsonl
        self.last_lr = 0.0
        self.seconds = self.train_seconds = 0.0  # of what was done before a resume
        self.checkpoints = Checkpoints(self.output, config.keep_checkpoints)
        self.last_checkpoint = 0  # the update that it was taken after
        self.stop = StopSignal()

    def _average(self) -> ModelEmaV3:
        """The moving average of the weights (`Polyak and Juditsky 1992`), the faster the earlier in the training."""
        for layer in self.layers if self.config.lambda_warmup else []:
            layer.set_lambda_init(layer.lambda_init.item())  # the ramp saves it, and so the copy must
        return ModelEmaV3(self.net, decay=self.config.ema, use_warmup=True)

    @property
    def judged(self) -> Any:
        """The network that is looked at and kept: the average of the weights, or what was trained."""
        return self.ema.module if self.ema else self.net if self.whole is None else self.whole

    def _statistics(self) -> LayerStatistics:
        if not self.layers:
            return LayerStatistics([], [])
        return layer_statistics(self.judged, self.statistics_images)

    def fit(self, checkpoint: Path | None = None) -> dict:
        """Train; choose on validation; test once.

        Args:
            checkpoint: to go on from, of `resolve_run`.

        Returns:
            The result, as in result.json.

        Raises:
            InputError: the loss became NaN or infinite, an image did not decode, a checkpoint of another run.
            SystemExit: after SIGTERM or SIGUSR1 and a checkpoint, with 128 and the signal's number.
        """
        config = self.config
        rows = self._restore(checkpoint) if checkpoint else 0
        if self.accelerator.is_main_process:
            self.run = RunFolder(self.output, config, rows)
        if config.trackers:
            settings = {key: str(value) for key, value in vars(config).items()}
            beside = {"wandb": {"dir": str(self.output)}}  # the others take accelerate's project_dir, it does not
            self.accelerator.init_trackers(self.output.name, config=settings, init_kwargs=beside)
        # Not on a CPU: systems hand out more memory than they have, and end who uses it. Nor where the model is cut up:
        # who is out of memory alone leaves the others waiting for its part.
        if self.accelerator.device.type != "cpu" and self.whole is None:
            shape = (config.batch_size, *model_data_config(self.net)["input_size"])
            self.passes = passes_that_fit(self.net, shape, config.grad_accum, self.accelerator)
        say(self._plan())
        self.started = time.perf_counter() - self.seconds
        with self.stop.listening():
            for epoch in range(self.epochs_done, self.epochs):
                if config.patience and self.epochs_since_best >= config.patience:
                    say(f"no better epoch since {self.epochs_since_best}: --patience ends the training")
                    break
                self._train_epoch(epoch)
                self._evaluate_epoch(epoch)
            self.accelerator.wait_for_everyone()
            return self._finish()

    def _evaluate_epoch(self, epoch: int) -> None:
        """Validate, keep the best, draw what is attended to, take a checkpoint; each if it is due."""
        config = self.config
        val = self.evaluate(self.val_loader, f"val {epoch + 1}")
        self._require_finite(val.loss)
        if self.whole is not None and (weights := whole_weights(self.net)):
            self.whole.load_state_dict(weights)
        statistics = self._statistics()
        lambdas, negative = statistics.lambdas, statistics.negative_mass
        layers = {"lambda": lambdas, "negative_mass": negative}
        self._log(epoch=self.step / self.updates_per_epoch, val_accuracy=val.accuracy, val_loss=val.loss, **layers)
        marks = [f"epoch {epoch + 1}/{self.epochs}", f"val {val.accuracy:.2%}", f"val loss {val.loss:.3f}"]
        if lambdas:
            marks.append(f"lambda {min(lambdas):.3f} to {max(lambdas):.3f}  negative {max(negative):.1%}")
        say("  ".join([*marks, f"{time.perf_counter() - self.started:.0f} s"]))
        self.epochs_since_best += 1
        if (val.accuracy, -val.loss) > self.best:  # few images make ties: the lower loss then
            self.best, self.epochs_since_best = (val.accuracy, -val.loss), 0
            if self.run:
                self.run.save_best(self.judged, self.splits.class_names)
        self.epochs_done = epoch + 1
        if self.pictures and self.run and config.attention_every and self.epochs_done % config.attention_every == 0:
            self.pictures.draw(self.judged, f"epoch-{self.epochs_done:03d}", self.accelerator, self.step)
        if self._checkpoint_is_due():
            self._save_checkpoint()
        self._stop_if_asked(together=True)

    def _stop_if_asked(self, together: bool) -> None:
        """Take a checkpoint and leave, if a signal came; with several processes, where they are `together`."""
        if self.accelerator.num_processes > 1:
            if not together:
                return
            self.stop.agree(self.accelerator)
        if self.stop.number:
            self._save_checkpoint()
            name = signal.Signals(self.stop.number).name
            say(f"{name}: checkpoint of update {self.step} written; go on with --resume {self.output}")
            raise SystemExit(128 + self.stop.number)

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint_every
        return every > 0 and self.step - self.last_checkpoint >= max(1, round(every * self.updates_per_epoch))

    def _identity(self) -> dict:
        """What a checkpoint's data must have in common with that of the run that goes on from it."""
        splits = self.splits
        images = [len(split) for split in (splits.train, splits.val, splits.test)]
        return {"classes": splits.class_names, "images": images, "processes": self.accelerator.num_processes}

    def _save_checkpoint(self) -> None:
        self.last_checkpoint = self.step
        weights = whole_weights(self.net)
        optimizer = whole_optimizer_state(self.net, self.optimizer.optimizer)
        if not self.run:
            return
        scaler = self.accelerator.scaler
        state = {
            **self._identity(),
            "epochs_done": self.epochs_done,
            "step": self.step,
            "best": self.best,
            "epochs_since_best": self.epochs_since_best,
            "losses": self.losses,
            "rows": len(self.run.rows),
            "seconds": time.perf_counter() - self.started,
            "train_seconds": self.train_seconds,
            "conversion": self.conversion,
            "optimizer": optimizer,
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }
        average = self.ema.module.state_dict() if self.ema else {}
        weights |= {EMA + name: tensor for name, tensor in average.items()}
        self.checkpoints.save(self.epochs_done, self.step, weights, state)

    def _restore(self, checkpoint: Path) -> int:
        """Take up the state of a checkpoint; returns how many rows metrics.jsonl had."""
        weights, state = load_checkpoint(checkpoint)
        here = self._identity()
        wrong = [f"{name} {state[name]} there, {value} here" for name, value in here.items() if state[name] != value]
        if wrong:
            raise InputError(f"--resume {checkpoint} is of another run: {'; '.join(wrong)}")
        if self.accelerator.is_main_process:
            self.checkpoints.remove_after(checkpoint)
        load_weights(self.net, {name: tensor for name, tensor in weights.items() if not name.startswith(EMA)})
        if self.ema:
            average = {name.removeprefix(EMA): tensor for name, tensor in weights.items() if name.startswith(EMA)}
            self.ema.module.load_state_dict(average)
        load_optimizer_state(self.net, self.optimizer.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epochs_done, self.step, self.best = state["epochs_done"], state["step"], tuple(state["best"])
        self.epochs_since_best = state["epochs_since_best"]
        self.losses = [loss.to(self.accelerator.device) for loss in state["losses"]]
        self.seconds, self.train_seconds = state["seconds"], state["train_seconds"]
        self.conversion, self.last_checkpoint = state["conversion"], self.step
        say(f"going on from {checkpoint}: {self.epochs_done} epochs and {self.step} updates done")
        return state["rows"]

    def _plan(self) -> str:
        config, processes = self.config, self.accelerator.num_processes
        parameters = sum(p.numel() for p in self.net.parameters())
        frozen = sum(p.numel() for p in self.net.parameters() if not p.requires_grad)
        size = f"{parameters / 1e6:.2f} M parameters" + (f", {frozen / 1e6:.2f} M frozen" if frozen else "")
        splits = self.splits
        return (
            f"{config.model}: {size}; {len(splits.train)} train, {len(splits.val)} val, "
            f"{len(splits.test)} test images, {len(splits.class_names)} classes\n"
            f"{self.updates} updates, {self.updates_per_epoch} an epoch, of {config.batch_size * processes} images "
            f"({config.batch_size} a process, {processes} processes, {self.passes} passes)\n"
            f"on {self.accelerator.device} ({torch.get_num_threads()} CPU threads a process), "
            f"precision {self.accelerator.mixed_precision}; run folder {self.output}"
        )

    def _train_epoch(self, epoch: int) -> None:
        """One epoch, or what a checkpoint left of it."""
        start = time.perf_counter()
        self._training_mode()
        done = self.step - epoch * self.updates_per_epoch
        end = min(self.updates_per_epoch, self.updates - epoch * self.updates_per_epoch)
        with progress(f"epoch {epoch + 1}", end - done) as advance:
            for batch, (images, labels) in enumerate(
                itertools.islice(self.batches.of_epoch(epoch, done), end - done), start=done + 1
            ):
                self.losses.append(self._update(images, labels))
                last, text, at = batch == end, "", epoch + batch / self.updates_per_epoch
                row_is_due = self.step % self.config.log_every == 0 or last
                if row_is_due:
                    loss = self._check_losses(self.losses)
                    self.losses.clear()
                    self._log(step=self.step, epoch=at, train_loss=loss, lr=self.last_lr)
                    text = f"loss {loss:.3f}"
                advance(text)
                now = time.perf_counter()
                self.train_seconds, start = self.train_seconds + now - start, now
                if not last and self.config.val_every and self.step % self.config.val_every == 0:
                    self._validate_within(at)
                    start = time.perf_counter()
                self._stop_if_asked(together=row_is_due)
                if not last and self._checkpoint_is_due():  # that of a whole epoch waits for its evaluation
                    self._save_checkpoint()

    def _training_mode(self) -> None:
        self.model.train()
        for module in self.frozen:  # neither drops paths nor counts statistics
            module.eval()

    def _validate_within(self, epoch: float) -> None:
        """A row of metrics between two epochs; nothing is chosen by it."""
        # a checkpoint that a signal takes meanwhile would leave the row out
        val = self.evaluate(self.val_loader, f"val {epoch:.2f}", stops=False)
        self._log(epoch=epoch, val_accuracy=val.accuracy, val_loss=val.loss)
        self._training_mode()

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        """One optimizer update from one batch; returns its mean loss, on the device."""
        config = self.config
        # mixup's and drop path's draws: a function of seed, rank and update, so that a resumed run draws the same
        place = (config.seed, self.accelerator.process_index, self.step)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        if config.lambda_warmup:
            updates = config.lambda_warmup * self.updates_per_epoch
            for layer, start in zip(self.layers, self.lambda_starts, strict=True):
                layer.set_lambda_init(lambda_ramp(self.step + 1, start, config.lambda_target, updates))
        if self.mix:
            images, labels = self.mix(images, labels)
        total = torch.zeros((), device=images.device)
        parts = list(zip(images.chunk(self.passes), labels.chunk(self.passes), strict=True))
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
        if self.ema:
            self.ema.update(self.net, self.step)
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
            raise DivergedError(
                f"the loss is {loss} {where}: lower --lr {self.config.lr:g}, raise --warmup-epochs "
                "or use --precision no"
            )

    @torch.inference_mode()
    def evaluate(self, loader: DataLoader, label: str, stops: bool = True) -> Accuracy:
        """Accuracy on a prepared loader, each image counted once on any number of processes; a signal stops it."""
        model = self.judged if self.ema else self.model
        model.eval()
        columns: list[tuple[Tensor, ...]] = []
        with progress(label, len(loader)) as advance:
            for images, labels in loader:
                with self.accelerator.autocast():
                    logits = model(images)
                losses = F.cross_entropy(logits.float(), labels, reduction="none")
                columns.append(self.accelerator.gather_for_metrics((logits.argmax(-1), labels, losses)))
                advance("")
                if stops:
                    self._stop_if_asked(together=False)
        return Accuracy.of(*(torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)))

    def _log(self, **row) -> None:
        if self.run:
            self.run.log(**row)
        if self.config.trackers:
            numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
            layers = {f"{k}/{i}": x for k, v in row.items() if isinstance(v, list) for i, x in enumerate(v)}
            self.accelerator.log({**numbers, **layers}, step=self.step)

    def _finish(self) -> dict:
        """Test the best weights, once; write the result and the pictures."""
        config = self.config
        seconds = time.perf_counter() - self.started  # of the training alone
        best = load_file(self.output / "best" / "model.safetensors")
        self.judged.load_state_dict(best)
        if self.whole is not None:
            load_weights(self.net, best)
        result = {
            **self.test(),
            "val_accuracy": self.best[0],
            "train_images": len(self.splits.train),
            "epochs": self.epochs_done,
            "updates": self.step,
            "seconds": round(seconds, 1),
            "images_per_second": round(self.step * self.batches.images_an_update / self.train_seconds, 1),
        }
        if self.run:
            title = f"{self.config.model}, {result['attn']} attention, on {Path(self.config.dataset).name}"
            plot_training(self.run.rows, self.run.path / "training.png", title)
            if self.pictures and config.push_to_hub:
                self.pictures.draw(self.judged, "the-best-weights", self.accelerator, self.step)
            self.run.write_json("result.json", result)  # last: a run that has it is finished
        return result

    def test(self) -> dict:
        """What the network as it is makes of the test split."""
        test, statistics = self.evaluate(self.test_loader, "test"), self._statistics()
        names = self.splits.class_names
        return {
            "test_accuracy": test.accuracy,
            "test_interval_95": test.interval,
            "test_mean_per_class": test.mean_per_class,
            "test_loss": test.loss,
            "test_images": test.images,
            "test_split": "held out of train" if self.config.test_share else str(self.splits.test.split or "test"),
            "test_confusions": [[names[label], names[said], count] for label, said, count in test.confusions],
            "model": self.config.model,
            "attn": getattr(self.net, "attn", "timm"),
            "seed": self.config.seed,
            "conversion": self.conversion,
            "lambda": statistics.lambdas,
            "negative_mass": statistics.negative_mass,
        }
