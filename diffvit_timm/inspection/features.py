"""The features of a frozen network, by which a probe classifies images.

A pass over a dataset takes long, and several probes read the same features, so `stored_features` keeps them on disk.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ..data.fingerprint import fingerprint
from ..data.loading import image_batches, model_data_config
from ..errors import InputError
from ..files import disk_errors
from ..layers.hooks import evaluating

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FEATURES", "Feature", "extract_features", "image_features", "require_features", "stored_features"]

Feature = Literal["head", "cls", "mean", "both"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
PARTS = {"head": ("head",), "cls": ("cls",), "mean": ("mean",), "both": ("cls", "mean")}
DIGITS = 32  # of the checksum in a file's name


def image_features(model: Any, images: Tensor, wanted: Collection[Feature] = FEATURES) -> dict[Feature, Tensor]:
    """Compute features of images.

    Args:
        model: timm model.
        images: (B, C, H, W), normalised.
        wanted: the features to compute: `head`, the input of the head, which is pooled as the network was trained;
            `cls`, the class token; `mean`, the mean of the patch tokens; `both`, the class token and the mean beside
            each other, as in DINOv2 (https://arxiv.org/abs/2304.07193, section 7).

    Returns:
        Name -> features, (B, width).
    """
    parts = _image_parts(model, images, _parts(wanted))
    return {name: torch.cat([parts[part] for part in PARTS[name]], dim=-1) for name in wanted}


def _parts(wanted: Collection[Feature]) -> list[str]:
    return list(dict.fromkeys(part for name in wanted for part in PARTS[name]))


def _image_parts(model: Any, images: Tensor, parts: Collection[str]) -> dict[str, Tensor]:
    """Compute the parts of features, (B, width) each: head, cls or mean."""
    tokens = model.forward_features(images)
    found: dict[str, Tensor] = {}
    if "head" in parts:
        found["head"] = model.forward_head(tokens, pre_logits=True)
    if "cls" in parts:
        found["cls"] = tokens[:, 0]
    if "mean" in parts:
        found["mean"] = _patches(model, tokens).mean(1)
    return found


def _patches(model: Any, tokens: Tensor) -> Tensor:
    """Return the tokens of the patches, (B, patches, width); tokens are (B, N, width), or a map with its width last or
    second."""
    if tokens.ndim == 3:
        return tokens[:, getattr(model, "num_prefix_tokens", 0) :]
    channels_last = tokens.shape[-1] == model.num_features
    return tokens.flatten(1, 2) if channels_last else tokens.flatten(2).transpose(1, 2)


def require_features(model: Any, wanted: Collection[str], given: str) -> None:
    """Check that a network has the wanted features.

    Args:
        model: timm model; it may be on the meta device.
        wanted: names of FEATURES.
        given: the user's parameter with the name of the network, for the error.

    Raises:
        InputError: features of the class token, of a network without one.
    """
    needs_token = [name for name in wanted if name in ("cls", "both")]
    if needs_token and getattr(model, "cls_token", None) is None:
        raise InputError(f"{given} has no class token, so `features={needs_token[0]}` cannot be: use head or mean")


def extract_features(
    model: Any, split: "Dataset", wanted: Collection[Feature], device: Any = "cpu", label: str | None = None
) -> dict[Feature, np.ndarray]:
    """Compute the features of every image of a split, without augmentation.

    Args:
        model: timm model, which is moved to the device.
        split: a stored split of `Splits`.
        wanted: as in `image_features`.
        device: device to compute on. Autocast is the caller's.
        label: show progress under this label.

    Returns:
        Name -> features, (images, width), float32.

    Raises:
        InputError: as `image_batches`.
    """
    return _composed(_extract_parts(model, split, _parts(wanted), device, label), wanted)


def stored_features(
    model: Any, split: "Dataset", wanted: Collection[Feature], folder: Path, device: Any = "cpu", label: str = ""
) -> dict[Feature, np.ndarray]:
    """Read features from a folder, or compute and store what is missing there.

    The name of a file has a checksum of all that the features depend on: the weights and buffers, the structure of the
    network, the preprocessing, the images and labels (see `fingerprint`), the kind of device, the precision, and the
    versions of timm and torch. It says nothing of this package's own version.

    Args:
        model, split, wanted, device, label: as in `extract_features`.
        folder: existing folder of the files; each version of this package needs one of its own.

    Returns:
        As `extract_features`.

    Raises:
        InputError: as `extract_features`, or a full disk.
    """
    key = _key(model, split, device)
    files = {part: folder / f"{key}-{part}.npy" for part in _parts(wanted)}
    found = {part: array for part, file in files.items() if (array := _read(file, len(split))) is not None}
    missing = [part for part in files if part not in found]
    if missing:
        found |= _extract_parts(model, split, missing, device, label or None)
        with disk_errors("the features", folder, "free space, or choose another `cache`"):
            for part in missing:
                _write(files[part], found[part])
    return _composed(found, wanted)


def _composed(parts: Mapping[str, np.ndarray], wanted: Collection[Feature]) -> dict[Feature, np.ndarray]:
    return {name: np.concatenate([parts[part] for part in PARTS[name]], axis=1) for name in wanted}


@torch.inference_mode()
def _extract_parts(
    model: Any, split: "Dataset", parts: Collection[str], device: Any, label: str | None
) -> dict[str, np.ndarray]:
    """Compute the parts of the features of every image, (images, width) each, float32."""
    rows: list[dict[str, Tensor]] = []
    with evaluating(model.to(device)):
        for images in image_batches(model, split, label=label):
            found = _image_parts(model, images.to(device), parts)
            rows.append({part: features.float().cpu() for part, features in found.items()})
    return {part: torch.cat([row[part] for row in rows]).numpy() for part in parts}


def _key(model: nn.Module, split: "Dataset", device: Any) -> str:
    digest = hashlib.sha256()
    kind = torch.device(device).type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    versions = [timm.__version__, torch.__version__]
    about = [str(model), model_data_config(model), fingerprint(split), kind, precision, versions]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    # Also the buffers that are not saved, such as lambda_init.
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def _read(file: Path, images: int) -> np.ndarray | None:
    """Read features; None if there are none, or if the file is damaged, because they can be computed again."""
    try:
        array = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.ndim == 2 and len(array) == images and array.dtype == np.float32 else None


def _write(file: Path, array: np.ndarray) -> None:
    new = file.with_suffix(".new")  # so that no half-written file has the name
    with new.open("wb") as stream:
        np.save(stream, array)
    new.replace(file)
