"""The options of a run: its folder, checkpoints, precision, logs and the Hub."""

import dataclasses
import re
from typing import Literal

from ..errors import InputError, require_at_least
from ..hub.places import folder_prefix
from ..options import CheckedOptions, named

__all__ = ["TRACKERS", "RunConfig"]

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")  # those of accelerate that were tried


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
