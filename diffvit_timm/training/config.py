"""The options of a training, in four parts: data, model, optimisation, run. Each function takes the part it reads."""

import dataclasses
from typing import Any

from ..data.config import DataConfig
from ..errors import InputError
from .model_config import ModelConfig
from .optim_config import OptimConfig
from .run_config import RunConfig

__all__ = ["TrainConfig"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tune or train a timm model on an image classification dataset.

    Every option has one name in all four parts together, so that presets and config.yaml can be flat.
    """

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

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
