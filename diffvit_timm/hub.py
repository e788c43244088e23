"""Models to folders that timm loads by `local-dir:`."""

from pathlib import Path

from timm.models import save_for_hf
from torch import nn


def save_pretrained(model: nn.Module, folder: str | Path, label_names: list[str] | None = None) -> None:
    """Write config.json and model.safetensors for `timm.create_model('local-dir:FOLDER', pretrained=True)`.

    Args:
        model: of timm.create_model or from_vit.
        folder: made if it is not there.
        label_names: class names in the order of the head's outputs.
    """
    config = {"label_names": label_names} if label_names else None
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
