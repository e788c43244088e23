"""A model while it is trained: its optimizer, its schedules, its averaged weights, and one update of all of them."""

import contextlib
import copy
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision.transforms import v2

from ..data.loading import model_data_config
from .config import TrainConfig
from .lambda_warmup import LambdaWarmup
from .lora import from_merged, merged_copy
from .memory import find_accum_steps
from .objective import Objective
from .optim import build_optimizer, build_scheduler
from .progressive import ProgressiveSizes
from .sharding import full_optimizer_state, full_weights, load_optimizer_state, load_weights
from .teacher import distillation_loss

__all__ = ["Learner"]

# Entries of a group of the optimizer that follow from the option `lr`; some of timm's optimizers have the last one.
RATES = ("lr", "initial_lr", "max_lr_snapshot")

EMA = "ema."  # prefix of the averaged weights in a checkpoint


class Learner:
    """Updates the weights of one model.

    Args:
        config: options of the training.
        accelerator: accelerator from `make_accelerator`.
        model: network to train, in place.
        objective: what the network learns, from `make_objective`.
        updates_per_epoch: number of updates per epoch.
        updates: number of updates of the training.
        teacher: network to distil from.

    Attributes:
        net: the network as it was given. What accelerate wraps or compiles shares its parameters.
        model: the network as accelerate prepared it.
        accum_steps: accumulation steps per update.
        last_lr: learning rate of the head in the last update.
        progressive: sizes of the training images; None if all have the model's size.

    Raises:
        InputError: options that do not fit the model.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        objective: Objective,
        updates_per_epoch: int,
        updates: int,
        teacher: Any = None,
    ) -> None:
        optim = config.optim
        if accelerator.is_fsdp2:
            optim.require_default("query_lr_scale", "does not work with a sharded model")
            config.model.require_default("lora", "does not work with a sharded model")
        self.config = config
        self.accelerator = accelerator
        self.teacher = teacher.to(accelerator.device) if teacher else None
        self.objective = objective
        self.net: Any = model
        self.lambda_warmup = None
        if optim.lambda_warmup:
            self.lambda_warmup = LambdaWarmup(model, optim.lambda_target, optim.lambda_warmup * updates_per_epoch)
        self.progressive = None
        if optim.progressive_sizes and not config.run.eval_only:
            self.progressive = ProgressiveSizes(model, optim.progressive_sizes, updates)
        self.unsharded = copy.deepcopy(model) if accelerator.is_fsdp2 else None
        if config.run.compile:
            model.compile()
        optimizer = build_optimizer(model, optim)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        # The scheduler is not prepared, because accelerate would step it num_processes times per update.
        self.updates_per_epoch, self.updates = updates_per_epoch, updates
        self.scheduler = build_scheduler(optimizer, optim, updates_per_epoch, updates)
        self.frozen = [module for module in model.modules() if _is_frozen(module)]
        self.mix = _batch_mix(optim.mixup, optim.cutmix, objective.classes)
        # The average of the weights (Polyak and Juditsky 1992) follows faster in early updates.
        self.ema = ModelEmaV3(model, decay=optim.ema, use_warmup=True) if optim.ema else None
        self.accum_steps = optim.grad_accum
        self.last_lr = 0.0

    @property
    def eval_model(self) -> Any:
        """The network that is evaluated: that with averaged weights, the unsharded one, or the one that is trained."""
        if self.ema:
            return self.ema.module
        return self.net if self.unsharded is None else self.unsharded

    def saved_model(self) -> Any:
        """Return the network to save: the one that is evaluated, without LoRA."""
        return merged_copy(self.eval_model) if self.config.model.lora else self.eval_model

    def set_training_mode(self) -> None:
        """Put the network into training mode, but for frozen modules: they neither drop paths nor update statistics."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    def fit_memory(self) -> None:
        """Raise the accumulation steps until an update fits into the GPU's memory.

        This is not done on a CPU, whose system hands out more memory than it has and kills the process that uses it;
        nor for a sharded model, where a process without memory would leave the others waiting for its part.

        Raises:
            InputError: not even a single image fits.
        """
        if self.accelerator.device.type != "cpu" and self.unsharded is None:
            shape = (self.config.optim.batch_size, *model_data_config(self.net)["input_size"])
            self.accum_steps = find_accum_steps(self.net, shape, self.accum_steps, self.accelerator)

    def update(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Take one optimizer step.

        Args:
            images: (B, C, H, W), this process's part of the batch.
            labels: (B,), class indices; or (B, classes), 1 for each class of an image and 0 for the others.
            step: number of updates done before this one.

        Returns:
            The mean loss, a scalar on the device.
        """
        # The draws of mixup and drop path depend on seed, rank and update only, so a resumed run draws the same.
        place = (self.config.run.seed, self.accelerator.process_index, step)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        if self.lambda_warmup:
            self.lambda_warmup.apply(step + 1)
        # 1. The size of the images, and mixup.
        if self.progressive:
            images = self.progressive.resize(images, step)
        if self.mix:
            images, labels = self.mix(images, labels)  # labels become (B, classes)
        # 2. Gradients of the whole batch, in accumulation steps.
        loss = self._accumulate_gradients(images, labels)
        if self.config.optim.clip_grad:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad)
        # 3. One step of the optimizer, its schedule and the average. fp16 skips the steps that overflow.
        self.last_lr = max(group["lr"] for group in self.optimizer.param_groups if not group.get("is_lambda"))
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.net, step + 1)
        return loss

    def _accumulate_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run the forward and backward passes of one update; returns the mean loss."""
        total = torch.zeros((), device=images.device)
        parts = list(zip(images.chunk(self.accum_steps), labels.chunk(self.accum_steps), strict=True))
        for index, (part, targets) in enumerate(parts, start=1):
            is_last = index == len(parts)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                # every image has the same weight, also in a smaller last part
                loss = self._loss(part, targets) * (len(part) / len(images))
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the labels, and that of the teacher if there is one; a scalar, in nats."""
        optim = self.config.optim
        with self.accelerator.autocast():
            logits = self.model(images)  # (B, classes)
        loss = self.objective.loss(logits, targets)
        if self.teacher:
            with torch.no_grad(), self.accelerator.autocast():
                teacher_logits = self.teacher(images)
            distilled = distillation_loss(logits, teacher_logits, optim.distill_temperature)
            loss = torch.lerp(loss, distilled, optim.distill_weight)
        return loss

    def gather_weights(self) -> None:
        """Copy the weights of a sharded network into the unsharded one; every process must take part."""
        if self.unsharded is not None and (weights := full_weights(self.net)):
            self.unsharded.load_state_dict(weights)

    def load_eval_weights(self, weights: dict[str, Tensor]) -> None:
        """Set the weights of the network that is evaluated to those of `saved_model`."""
        if self.config.model.lora:
            weights = from_merged(self.eval_model, weights)
        self.eval_model.load_state_dict(weights)
        if self.unsharded is not None:
            load_weights(self.net, weights)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights, the averaged weights among them, and the other state; every process must take part."""
        weights = full_weights(self.net)
        average = self.ema.module.state_dict() if self.ema else {}
        weights |= {EMA + name: tensor for name, tensor in average.items()}
        scaler = self.accelerator.scaler
        return weights, {
            "optimizer": full_optimizer_state(self.net, self.optimizer.optimizer),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(
        self, weights: dict[str, Tensor], state: dict[str, Any], start: int = 0, restarts: bool = False
    ) -> None:
        """Restore what `state_dict` returned.

        Args:
            weights, state: what `state_dict` returned.
            start: number of updates that were done when the present schedule started.
            restarts: start the schedule now, with the learning rates of the present options.
        """
        if start:
            self.progressive = None  # a finished run that is trained for longer has seen the small images
        load_weights(self.net, {name: tensor for name, tensor in weights.items() if not name.startswith(EMA)})
        if self.ema:
            average = {name.removeprefix(EMA): tensor for name, tensor in weights.items() if name.startswith(EMA)}
            self.ema.module.load_state_dict(average)
        # Built before the optimizer's state is loaded, because it sets the learning rates.
        optimizer = self.optimizer.optimizer
        self.scheduler = build_scheduler(optimizer, self.config.optim, self.updates_per_epoch, self.updates - start)
        rates = [{name: group[name] for name in RATES if name in group} for group in optimizer.param_groups]
        load_optimizer_state(self.net, optimizer, state["optimizer"])
        if restarts:
            for group, own in zip(optimizer.param_groups, rates, strict=True):
                group.update(own)
        else:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _batch_mix(mixup: float, cutmix: float, class_count: int) -> Any:
    """Return the transform of a batch by mixup or CutMix, one of them drawn per batch; None if both are off."""
    mixes: list = [v2.MixUp(alpha=mixup, num_classes=class_count)] if mixup else []
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=class_count))
    return v2.RandomChoice(mixes) if mixes else None
