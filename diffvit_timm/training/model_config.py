"""The options of the network of a training."""

import ast
import contextlib
import dataclasses
import re
from typing import Any, Literal

import yaml

from ..conversion.weights import READS_IMAGES
from ..errors import InputError, require_at_least
from ..options import CheckedOptions, check_value

__all__ = ["DROPOUT_ARGUMENTS", "ModelConfig"]

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
    """More arguments of timm.create_model, as NAME=VALUE. Each replaces the argument with the same name in a preset;
    NAME=null removes it."""
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
        self.require_image_size("img_size")
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
        """The entries of `model_kwargs` by name, as numbers, tuples, truth values or words, but for null."""
        parsed = {name: _parse_value(text) for name, _, text in (pair.partition("=") for pair in self.model_kwargs)}
        return {name: value for name, value in parsed.items() if value is not None}


def _parse_value(text: str) -> Any:
    """Read a Python literal; otherwise a word, unless YAML reads it as true, false or null."""
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    with contextlib.suppress(yaml.YAMLError, RecursionError):
        if (value := yaml.safe_load(text)) is None or isinstance(value, bool):
            return value
    return text
