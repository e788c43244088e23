"""The options of a training, in four parts: data, model, optimisation, run. Each function takes the part it reads."""

import ast
import contextlib
import dataclasses
import math
import re
from typing import Any, Literal

import yaml

from ..conversion.weights import READS_IMAGES
from ..data.config import DataConfig
from ..errors import InputError, require_at_least
from ..hub.places import folder_prefix
from ..options import CheckedOptions, check_value, named
from .optimizers import check_optimizer

__all__ = ["DROPOUT_ARGUMENTS", "TRACKERS", "ModelConfig", "OptimConfig", "RunConfig", "TrainConfig"]

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")  # those of accelerate that were tried

# Arguments of timm's transformers for dropout, as the ViT paper uses it (https://arxiv.org/abs/2010.11929, B.1).
DROPOUT_ARGUMENTS = ("pos_drop_rate", "proj_drop_rate")


@dataclasses.dataclass(frozen=True)
class ModelConfig(CheckedOptions):
    """The network, where its weights come from, and which of them are trained."""

    model: str
    """timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder."""
    pretrained: bool = True
    """Load the pretrained weights; otherwise start from random weights. Folders and hf-hub:NAME always bring theirs."""
    img_size: tuple[int, ...] = ()
    """Image size in pixels: one number, or height and width; default: the size of the model."""
    attn: Literal["model", "diff", "diff_v2", "plain", "gated", "dna"] = "model"
    """diff, diff_v2: convert a plain ViT; plain: a diffvit model with plain attention; gated, dna: only for a diffvit
    model from scratch; model: unchanged."""
    conversion: Literal["auto", "svd", "slice", "pairs", "calibrated", "mirror", "contrast"] = "auto"
    """Method that converts plain weights; auto: mirror for diff_v2, svd for diff."""
    calibration_images: int = 256
    """For the methods calibrated, contrast and pairs: number of unlabelled training images."""
    model_kwargs: tuple[str, ...] = ()
    """More arguments of timm.create_model, as NAME=VALUE."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; 0: off."""
    dropout: float = 0.0
    """Dropout rate after the position embeddings, the output projections of attention and the layers of the MLPs."""
    head_init: Literal["random", "probe"] = "random"
    """probe: start the head as a logistic regression on the features of the frozen network."""
    reset_head: bool = False
    """Replace the head of a model from a folder or the Hub, e.g. because it has other classes."""
    freeze: str = "none"
    """Weights that are not trained: none, backbone (all but the head), proj (all but the head and the output
    projections of attention), or N: the stem and the first N blocks."""
    lora: int = 0
    """Train additions of this rank (LoRA, by peft) to the matrices of the blocks, beside the head and lambda, and merge
    them into the saved network; 0: train the matrices themselves."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, but larger models fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, calibration_images=self.calibration_images)
        for name in ("drop_path", "dropout"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        sizes = len(self.img_size) <= 2 and all(size > 0 for size in self.img_size)
        self.require("img_size", sizes, "must be one positive number of pixels, or height and width")
        known = self.freeze in ("none", "backbone", "proj") or re.fullmatch("[0-9]+", self.freeze) is not None
        self.require("freeze", known, "must be none, backbone, proj or a number of blocks")
        self.require("lora", self.lora >= 0, "must not be negative")
        self.require(
            "lora", not self.lora or self.freeze == "none", f"freezes the blocks: leave out `freeze={self.freeze}`"
        )
        self.require(
            "calibration_images", self.looks_at_images or self.is_default("calibration_images"),
            "has no effect without `conversion=calibrated` or `conversion=contrast`",
        )  # fmt: skip
        for pair in self.model_kwargs:
            self.require("model_kwargs", "=" in pair, "must be NAME=VALUE pairs")
        for name, value in self.keyword_arguments.items():
            check_value(name, value)
        own = {name: name for name in ("attn", "conversion", "pretrained", "img_size")} | {
            "drop_path_rate": "drop_path"
        }
        own |= dict.fromkeys(DROPOUT_ARGUMENTS, "dropout") if self.dropout else {}
        for name in self.keyword_arguments.keys() & own.keys():
            raise InputError(f"`model_kwargs={name}=...` is an option of its own: pass `{own[name]}`")

    @property
    def looks_at_images(self) -> bool:
        """Whether the conversion looks at training images."""
        return self.conversion in READS_IMAGES

    @property
    def keyword_arguments(self) -> dict[str, Any]:
        """The entries of `model_kwargs` by name, as numbers, tuples, truth values or words."""
        return {name: _parse_value(text) for name, _, text in (pair.partition("=") for pair in self.model_kwargs)}


@dataclasses.dataclass(frozen=True)
class OptimConfig(CheckedOptions):
    """Length of the training, optimizer, learning rate, regularisation, and what is learned from."""

    epochs: int = 4
    """Passes over the training images."""
    max_steps: int = 0
    """Number of updates, instead of epochs; 0: train for epochs."""
    patience: int = 0
    """Stop after this many epochs without a better validation result; 0: never."""
    keep_weights: Literal["best", "last"] = "best"
    """Weights to test and to save in best/: those of the best epoch on the validation images, or the last ones."""
    batch_size: int = 32
    """Batch size per process, summed over accumulation steps (accelerate: per step)."""
    grad_accum: int = 1
    """Accumulation steps per update, which split batch_size; raised automatically if the GPU runs out of memory."""
    opt: str = "adamw"
    """Optimizer of timm, as in timm.optim.list_optimizers(): adamw, lion, lamb, sgd, ... nmuon, with a larger learning
    rate, learns several times faster from scratch."""
    lr: float = 5e-4
    """Peak learning rate of the head; layer_decay lowers it towards the stem. The default is for adamw: lion needs a
    smaller one (a third to a tenth), sgd a much larger one. diffvit study rates finds one."""
    warmup_epochs: float = 0.5
    """Epochs of linear warm-up, which a cosine decay to zero follows."""
    warmup_steps: int = 0
    """Updates of linear warm-up, instead of warmup_epochs; 0: warm up for epochs."""
    weight_decay: float = 0.05
    """Weight decay, not applied to biases, norms, tokens and position embeddings."""
    layer_decay: float = 0.75
    """Factor on the learning rate from each block to the one below it, down to the stem; 1: the same for all."""
    lambda_lr_scale: float = 1.0
    """Factor on the learning rate of the parameters of lambda."""
    query_lr_scale: float = 1.0
    """Factor on the learning rate of the second queries of version 2."""
    clip_grad: float = 1.0
    """Maximum gradient norm; 0: no clipping."""
    label_smoothing: float = 0.1
    """Share of the target that is spread evenly over all classes."""
    mixup: float = 0.0
    """Alpha of mixup; 0: off. If CutMix is also on, each batch gets one of the two."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: off."""
    ema: float = 0.0
    """Decay of a moving average of the weights (e.g. 0.9999), which is evaluated and saved; 0: off."""
    teacher: str | None = None
    """Network with the same classes to distil from, in any form that model takes."""
    distill_weight: float = 0.5
    """Weight of the distillation loss; the loss of the labels has the rest."""
    distill_temperature: float = 2.0
    """Temperature of the distillation loss."""
    lambda_warmup: float = 0.0
    """Epochs in which lambda (its buffer lambda_init) moves linearly to lambda_target; 0: off."""
    lambda_target: float = 0.2
    """lambda_init after lambda_warmup epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, epochs=self.epochs, batch_size=self.batch_size, grad_accum=self.grad_accum)
        for name in ("lr", "layer_decay", "lambda_lr_scale", "query_lr_scale", "distill_temperature"):
            self.require(name, getattr(self, name) > 0, "must be above 0")
        for name in (
            "max_steps", "patience", "warmup_epochs", "warmup_steps", "weight_decay", "clip_grad", "mixup", "cutmix",
            "lambda_warmup",
        ):  # fmt: skip
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("label_smoothing", "ema", "lambda_target"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        self.require(
            "patience",
            self.keep_weights == "best" or not self.patience,
            "chooses an epoch: leave out `keep_weights=last`",
        )
        self.require("distill_weight", 0 < self.distill_weight <= 1, "must be in (0, 1]")
        if not self.is_default("opt"):
            check_optimizer(self.opt)
        self.require("grad_accum", self.grad_accum <= self.batch_size, f"exceeds `batch_size={self.batch_size}`")
        for name, needed in (
            ("distill_weight", "teacher"), ("distill_temperature", "teacher"), ("lambda_target", "lambda_warmup")
        ):  # fmt: skip
            self.require(
                name, bool(getattr(self, needed)) or self.is_default(name), f"has no effect without `{needed}`"
            )

    def length(self, updates_per_epoch: int) -> tuple[int, int]:
        """Return the number of updates, and of epochs, the last of which may be incomplete."""
        updates = self.max_steps or self.epochs * updates_per_epoch
        return updates, math.ceil(updates / updates_per_epoch)


@dataclasses.dataclass(frozen=True)
class RunConfig(CheckedOptions):
    """The run folder, checkpoints, precision, logs and the Hub."""

    output: str = "auto"
    """Run folder, new or empty; auto: runs/NAME-DATE-TIME."""
    resume: str = "never"
    """never; auto: continue from the newest checkpoint in output, if any; or a run folder or checkpoint to continue. A
    finished run continues if epochs or max_steps, which include what is done, are larger than before: with its last
    weights and its optimizer, and with a new warm-up and cosine for what is added. lr, warmup_epochs, warmup_steps and
    patience may change, too."""
    checkpoint_every: float = 1.0
    """Epochs between two checkpoints (0.1: ten per epoch); 0: only after a signal."""
    keep_checkpoints: int = 1
    """Number of newest checkpoints to keep."""
    seed: int = 0
    """Seed of the head, the shuffling and the augmentation; the validation split is the same for every seed."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of accelerate; no: float32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    log_every: int = 10
    """Updates between two rows of metrics.jsonl."""
    val_every: int = 0
    """Updates between two validations within an epoch, which are only logged; 0: only after an epoch."""
    attention_every: int = 0
    """Epochs between two pictures of the attention on four validation images; 0: none."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that get the curves and pictures, too: tensorboard, wandb, trackio, mlflow."""
    tracker_project: str = "diffvit_timm"
    """Project of the trackers, in which every training has a run with the name of its run folder."""
    push_to_hub: str | None = None
    """Hub repository to push the result to, NAME or USER/NAME, or HF_REPOSITORY for the one that this variable names.
    It is checked before the training and created if new."""
    path_in_repo: str | None = None
    """Folder in the repository, for several runs in one repository; default: its root."""
    hub_private: bool = False
    """If the repository is new, make it private."""
    eval_only: bool = False
    """Test the model without training it."""
    dry_run: bool = False
    """Build everything, train for two updates, evaluate, save and load, estimate the time, and leave nothing behind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, keep_checkpoints=self.keep_checkpoints, log_every=self.log_every)
        for name in ("checkpoint_every", "val_every", "attention_every", "seed"):
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        self._check_trackers()
        for name in ("hub_private", "path_in_repo"):
            has_repository = bool(self.push_to_hub) or self.is_default(name)
            self.require(name, has_repository, "has no effect without `push_to_hub`")
        folder_prefix(self.path_in_repo)
        if self.eval_only and (self.dry_run or self.resume != "never"):
            raise InputError("`eval_only` neither trains nor resumes: leave out `dry_run` and `resume`")
        if self.push_to_hub and (self.eval_only or self.dry_run):
            raise InputError(f"`push_to_hub={self.push_to_hub}`: `eval_only` and `dry_run` have no result to push")
        if self.dry_run and self.resume != "never":
            raise InputError(f"`dry_run` starts a new run: leave out `resume={self.resume}`")

    def _check_trackers(self) -> None:
        for name in self.trackers:
            if name not in TRACKERS:
                raise InputError(f"`trackers={name}` was not tried here: choose among {', '.join(TRACKERS)}")
        self.require("trackers", len(set(self.trackers)) == len(self.trackers), "names a tracker twice")
        known = bool(self.trackers) or self.is_default("tracker_project")
        self.require("tracker_project", known, "has no effect without `trackers`")
        name = self.tracker_project
        is_name = len(name) <= 128 and re.fullmatch(r"\w[\w.-]*", name) is not None  # a folder of TensorBoard, too
        self.require("tracker_project", is_name, "must be a name of letters, digits, hyphens, underscores and dots")
        if self.eval_only and self.trackers:
            raise InputError(f"{named('trackers', self.trackers)}: `eval_only` tracks nothing: leave it out")

    @property
    def data_seed(self) -> int:
        """Seed of the shuffling, to which the epoch is added. Two seeds never share the order of an epoch."""
        return 10_000 * self.seed


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tune or train a timm model on an image classification dataset.

    Every option has one name in all four parts together, so that presets and config.yaml can be flat.
    """

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        """Check the options that concern two parts."""
        data, model, optim = self.data, self.model, self.optim
        is_fair = bool(data.val_share) or optim.keep_weights == "last"
        data.require("val_share", is_fair, "lets test images choose the weights: pass `keep_weights=last`")
        if data.stream:
            data.require("stream", data.stream >= optim.batch_size, f"is less than `batch_size={optim.batch_size}`")
            model.require("conversion", not model.looks_at_images, "needs stored images: leave out `stream`")
            model.require("head_init", model.head_init != "probe", "needs stored images: leave out `stream`")
        if model.lora:
            optim.require_default("query_lr_scale", f"has no effect with `lora={model.lora}`")
            model.require("lora", not self.run.eval_only, "trains, and `eval_only` does not: leave one of them out")
        if self.run.eval_only and model.reset_head and model.head_init != "probe":
            raise InputError("`eval_only` tests the head of the model: leave out `reset_head`")

    @classmethod
    def from_flat(cls, dataset: str, model: str, **options: Any) -> "TrainConfig":
        """Create a configuration from options without their parts, with values as in the four dataclasses."""
        options |= {"dataset": dataset, "model": model}
        parts = {}
        for part, kind in cls._kinds().items():
            names = [field.name for field in dataclasses.fields(kind) if field.name in options]
            parts[part] = kind(**{name: options.pop(name) for name in names})
        if options:
            raise TypeError(f"unknown options: {', '.join(options)}")
        return cls(**parts)

    def flat(self) -> dict[str, Any]:
        """Return all options without their parts."""
        return {name: value for part in self._kinds() for name, value in vars(getattr(self, part)).items()}

    def replace(self, **options: Any) -> "TrainConfig":
        """Return a copy with other values of some options."""
        return type(self).from_flat(**{**self.flat(), **options})

    def require_default(self, name: str, reason: str) -> None:
        """Check that an option was not given; as in `CheckedOptions`, in whichever part it is."""
        for part in (getattr(self, part) for part in self._kinds()):
            if hasattr(part, name):
                part.require_default(name, reason)

    @staticmethod
    def _kinds() -> dict[str, type]:
        return {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "run": RunConfig}


def _parse_value(text: str) -> Any:
    """Read a Python literal; otherwise a word, unless YAML reads it as true, false or null."""
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    with contextlib.suppress(yaml.YAMLError, RecursionError):
        if (value := yaml.safe_load(text)) is None or isinstance(value, bool):
            return value
    return text
