"""The configuration of a training: a frozen dataclass, its command line (tyro) and its YAML presets."""

import ast
import contextlib
import dataclasses
import math
from typing import Any, Literal

import yaml

from ..data.steps import parse_policy
from ..errors import InputError, require_at_least

Optimizer = Literal["adamw", "nmuon"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tune or train a timm model on an image classification dataset."""

    dataset: str
    """Name on the Hub, or a folder: parquet files, or one folder of images a class."""
    model: str
    """timm model name with its pretrained tag; local-dir:FOLDER and hf-hub:NAME too."""
    image_column: str = "auto"
    """Column of the images; auto: the only image column."""
    label_column: str = "label"
    """Column of the class labels."""
    test_share: float = 0.0
    """Test on this share of the training images, not on the test split, which may have no labels; 0: on that."""
    group_column: str | None = None
    """Column of what no two splits may share, such as patients, where the training images are divided."""
    label_noise: float = 0.0
    """Share of wrong labels among those of training and validation; those of the test stay right."""
    input_noise: float = 0.0
    """Standard deviation of noise in all images, where white less black is 1."""

    pretrained: bool = True
    """Load the pretrained weights; --no-pretrained starts from random ones."""
    attn: Literal["model", "diff", "diff_v2", "plain"] = "model"
    """plain: the plain twin of a diffvit model; diff, diff_v2: convert a plain ViT; model: as the name says."""
    conversion: Literal["auto", "svd", "slice", "pairs", "calibrated", "mirror"] = "auto"
    """How plain weights become a Diff-ViT's; auto: mirror for diff_v2, svd for diff."""
    calibration_images: int = 256
    """Training images, unlabelled, that --conversion calibrated and pairs look at."""
    model_kwargs: tuple[str, ...] = ()
    """More arguments of timm.create_model, as NAME=VALUE."""
    head_init: Literal["random", "probe"] = "random"
    """probe: start the head as the logistic regression on the frozen network's features."""
    reset_head: bool = False
    """Start a new head where a loaded one has other classes."""
    freeze: str = "none"
    """What keeps its weights: none, backbone (all but the head), or a number: the stem and so many first blocks."""

    epochs: int = 4
    """Passes over the training images."""
    max_steps: int = 0
    """Updates, in the place of --epochs; 0: as many as the epochs have."""
    max_train_samples: int = 0
    """Train on so many of the training images, drawn at random; 0: on all."""
    stream: int = 0
    """Read the training images as they come, so many of them an epoch, without a copy on the disk; 0: store them."""
    patience: int = 0
    """Stop after so many epochs without a better one on validation; 0: never."""
    batch_size: int = 32
    """Images an update and process, all accumulation steps together."""
    grad_accum: int = 1
    """Forward passes that an update's batch is cut into; more where a GPU has not the memory."""
    opt: Optimizer = "adamw"
    """timm's optimizer; nmuon, with a larger --lr, learns several times faster from scratch."""
    lr: float = 5e-4
    """Peak learning rate of the head; layer_decay lowers it towards the stem."""
    warmup_epochs: float = 0.5
    """Linear warm-up of the learning rate, before its cosine decay to zero."""
    weight_decay: float = 0.05
    """The optimizer's, not for biases, norms, tokens and position embeddings."""
    layer_decay: float = 0.75
    """Learning rate of a block over that of the next one; 1: the same for all."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    label_smoothing: float = 0.1
    """Probability spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup; 0: off. With cutmix, each batch takes one of them."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: off."""
    ema: float = 0.0
    """Decay of a moving average of the weights, 0.9999 for long runs, which is what is evaluated and kept; 0: none."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; 0: off."""
    augment: str = "crop+flip"
    """none, or of crop, shift, flip, color, randaugment, autoaugment, trivialaugment, erase, cutout; joined by +."""
    repeated_augmentation: int = 1
    """Looks at an image, each augmented anew, in an epoch; which then has fewer images."""
    crop_scale: float = 0.35
    """Smallest share of the image that a random crop keeps."""
    teacher: str | None = None
    """Network of the same classes to learn from, beside the labels: timm name, local-dir:FOLDER or hf-hub:NAME."""
    distill_weight: float = 0.5
    """Weight of the teacher's loss; the labels have the rest."""
    distill_temperature: float = 2.0
    """Temperature of both networks' probabilities in the teacher's loss."""
    lambda_warmup: float = 0.0
    """Epochs over which lambda_init goes from its start to --lambda-target; 0: it stays."""
    lambda_target: float = 0.2
    """lambda_init at the end of --lambda-warmup."""

    output: str = "auto"
    """Run folder, new or empty; auto: runs/RECIPE-DATE-TIME."""
    resume: str = "never"
    """auto: go on from the newest complete checkpoint in --output, if there is one; or a run folder or checkpoint."""
    checkpoint_every: float = 1.0
    """Epochs between two checkpoints; 0.1: ten an epoch; 0: none but that of a signal."""
    keep_checkpoints: int = 1
    """How many to keep, the newest."""
    seed: int = 0
    """Of the head, the data order and the augmentation; not of the validation split."""
    grad_checkpointing: bool = False
    """Keep less for the backward pass and compute it again: slower, and room for larger models."""
    compile: bool = False
    """torch.compile the model."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of accelerate; no: float32."""
    workers: int = 2
    """Processes that load images; 0: none beside the training."""
    log_every: int = 10
    """Updates between two rows of metrics.jsonl."""
    val_every: int = 0
    """Updates between two validations within an epoch, which go into metrics.jsonl too; 0: after each epoch alone."""
    attention_every: int = 0
    """Epochs between two pictures of what four validation images are attended to; 0: none."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers by accelerate's names (tensorboard, wandb, ...), beside metrics.jsonl."""
    push_to_hub: str | None = None
    """Repository on the Hub, NAME or USER/NAME, that the result goes to: checked before the training, made if new."""
    hub_private: bool = False
    """Make the repository private, where it is made."""
    eval_only: bool = False
    """Test --model as it is, without training."""
    dry_run: bool = False
    """Build everything, take two updates, evaluate, save and load, say how long it would take, and leave nothing."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, naming the option."""
        require_at_least(
            1,
            epochs=self.epochs,
            batch_size=self.batch_size,
            grad_accum=self.grad_accum,
            log_every=self.log_every,
            calibration_images=self.calibration_images,
            keep_checkpoints=self.keep_checkpoints,
            repeated_augmentation=self.repeated_augmentation,
        )
        for name in ("lr", "layer_decay", "distill_temperature"):
            self._require(name, getattr(self, name) > 0, "must be above 0")
        for name in (
            "warmup_epochs",
            "val_every",
            "weight_decay",
            "clip_grad",
            "mixup",
            "cutmix",
            "lambda_warmup",
            "checkpoint_every",
            "max_steps",
            "max_train_samples",
            "stream",
            "patience",
            "workers",
            "seed",
            "input_noise",
            "attention_every",
        ):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("label_smoothing", "drop_path", "ema", "test_share", "label_noise"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        self._require("lambda_target", 0 <= self.lambda_target < 1, "must be in [0, 1)")
        self._require("distill_weight", 0 < self.distill_weight <= 1, "must be in (0, 1]")
        self._require("seed", self.seed < 2**32, "must be below 2**32")
        self._require("crop_scale", 0 < self.crop_scale <= 1, "must be in (0, 1]")
        self._require("grad_accum", self.grad_accum <= self.batch_size, f"exceeds --batch-size {self.batch_size}")
        known = self.freeze in ("none", "backbone") or self.freeze.isdigit()
        self._require("freeze", known, "must be none, backbone or a number of blocks")
        for name, needed, there in (
            ("distill_weight", "teacher", self.teacher),
            ("distill_temperature", "teacher", self.teacher),
            ("lambda_target", "lambda-warmup", self.lambda_warmup),
            ("hub_private", "push-to-hub", self.push_to_hub),
            ("crop_scale", "augment crop", "crop" in parse_policy(self.augment)),
            ("calibration_images", "conversion calibrated", self._looks_at_images()),
        ):
            self._require(name, bool(there) or self.is_default(name), f"has no effect without --{needed}")
        if self.stream:
            self._require("stream", self.stream >= self.batch_size, f"is less than --batch-size {self.batch_size}")
            self._refuse_with_stream()
        if self.eval_only and (self.dry_run or self.resume != "never"):
            raise InputError("--eval-only neither trains nor resumes: leave out --dry-run and --resume")
        if self.eval_only and self.reset_head and self.head_init != "probe":
            raise InputError("--eval-only tests the head that there is: leave out --reset-head")
        if self.push_to_hub and (self.eval_only or self.dry_run):
            raise InputError(f"--push-to-hub {self.push_to_hub}: --eval-only and --dry-run leave nothing to push")
        if self.dry_run and self.resume != "never":
            raise InputError(f"--dry-run starts anew: leave out --resume {self.resume}")
        for pair in self.model_kwargs:
            self._require("model_kwargs", "=" in pair, "must be NAME=VALUE pairs")
        own = {"attn": "attn", "conversion": "conversion", "pretrained": "pretrained", "drop_path_rate": "drop-path"}
        for name in self.model_arguments.keys() & own.keys():
            raise InputError(f"--model-kwargs {name}=... is an option of its own: pass --{own[name]}")

    @property
    def data_seed(self) -> int:
        """Of the order of the images, to which the epoch is added: no two seeds share the order of any epoch."""
        return 10_000 * self.seed

    @property
    def model_arguments(self) -> dict[str, Any]:
        """--model-kwargs by name, as numbers, tuples, ... or words."""
        return {name: _value(text) for name, _, text in (pair.partition("=") for pair in self.model_kwargs)}

    def is_default(self, name: str) -> bool:
        """Whether an option has the value that it has where it is not given."""
        return getattr(self, name) == type(self).__dataclass_fields__[name].default

    def leave_out(self, name: str, reason: str) -> None:
        """
        Raises:
            InputError: an option that is given, and has no place here.
        """
        if not self.is_default(name):
            raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} {reason}: leave it out")

    def _looks_at_images(self) -> bool:
        return self.conversion in ("calibrated", "pairs")

    def length(self, updates_per_epoch: int) -> tuple[int, int]:
        """Updates of the whole training, and epochs, of which the last may be a part."""
        updates = self.max_steps or self.epochs * updates_per_epoch
        return updates, math.ceil(updates / updates_per_epoch)

    def _refuse_with_stream(self) -> None:
        """What looks at stored training images, or at some of them more than once."""
        for name, used in (
            ("conversion", self._looks_at_images()),
            ("head_init", self.head_init == "probe"),
            ("max_train_samples", self.max_train_samples > 0),
            ("repeated_augmentation", self.repeated_augmentation > 1),
            ("test_share", self.test_share > 0),
            ("group_column", self.group_column is not None),
            ("label_noise", self.label_noise > 0),
            ("input_noise", self.input_noise > 0),
        ):
            self._require(name, not used, "needs stored images: leave out --stream")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} {rule}")


def _value(text: str) -> Any:
    """What Python reads; else a word, but for those that are true, false or null in YAML, as every word is true."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    with contextlib.suppress(yaml.YAMLError):
        if (value := yaml.safe_load(text)) is None or isinstance(value, bool):
            return value
    return text
