"""Networks in several precisions: latency, throughput, memory, and whether they still predict the same classes.

Weights and images are cast to each precision, without autocast.
"""

import contextlib
import copy
import dataclasses
import difflib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..console import track
from ..data.augment import eval_transform
from ..data.images import ImageDataset
from ..data.loading import model_data_config
from ..errors import InputError
from ..inspection.colours import LINES
from ..inspection.saving import save_figure
from ..models.pretrained import check_model, load_model
from ..zero_shot.class_names import class_outputs, class_scores
from ..zero_shot.clip import require_open_clip
from .timing import PRECISIONS, inference_step, interleaved, peak_bytes, weight_bytes

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Candidate",
    "check_candidate",
    "compare_precisions",
    "load_candidate",
    "plot_throughput",
    "time_candidates",
]

CLIP = "clip:"  # prefix of the names of CLIP's image towers
BATCH_SIZE = 8  # images per batch when outputs are compared
WITHOUT_WEIGHTS = "pass `pretrained=False`"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network to measure.

    Attributes:
        name: name in the tables.
        model: the network in float32, in evaluation mode, on its device.
        data_config: timm's data settings of the network.
        is_classifier: whether the outputs are scores of classes. The outputs of an image tower are an embedding.
        indices: for each class of the dataset the indices of its outputs; empty if the network has other classes.
        load_seconds: time that it took to create the network and to load its weights.
    """

    name: str
    model: nn.Module
    data_config: dict[str, Any]
    is_classifier: bool
    indices: list[list[int]]
    load_seconds: float


def check_candidate(model: str, pretrained: bool) -> None:
    """Check that a network exists, before the first network is created.

    Args:
        model: one of the four forms of a model (see models/pretrained.py), or clip:NAME for the image tower of a CLIP
            model of open_clip.
        pretrained: whether pretrained weights are wanted. CLIP's image towers have random weights.

    Raises:
        InputError: an unknown network, with the alternatives; or open_clip is not installed.
    """
    if not model.startswith(CLIP):
        check_model(model, pretrained, hint=WITHOUT_WEIGHTS)
        return
    known = require_open_clip().list_models()
    architecture = model.removeprefix(CLIP)
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3)
        fix = f"did you mean {' or '.join(CLIP + name for name in close)}?" if close else "give clip:ARCHITECTURE"
        raise InputError(f"`model={model}` is not known to open_clip: {fix}")


def load_candidate(
    model: str, name: str, class_names: Sequence[str], pretrained: bool = False, device: str = "cpu"
) -> Candidate:
    """Load a network to measure.

    Args:
        model, pretrained: as in `check_candidate`.
        name: name of the network in the tables.
        class_names: class names of the dataset; empty if there is none.
        device: device to move the network to.

    Raises:
        InputError: as `load_model`.
    """
    start = time.perf_counter()
    is_tower = model.startswith(CLIP)
    if is_tower:
        network, data_config = _image_tower(model.removeprefix(CLIP))
    else:
        network = load_model(model, pretrained, hint=WITHOUT_WEIGHTS)
        data_config = model_data_config(network)
    network = network.eval().to(device)
    seconds = time.perf_counter() - start
    is_classifier = not is_tower and bool(network.num_classes)
    indices: list[list[int]] = []
    if is_classifier and class_names:
        with contextlib.suppress(InputError):  # a network with other classes is timed, but has no accuracy
            indices = class_outputs(network, class_names)
    return Candidate(name, network, data_config, is_classifier, indices, seconds)


def _image_tower(architecture: str) -> tuple[Any, dict[str, Any]]:
    """Create the image tower of a CLIP model; returns it and its data settings."""
    tower: Any = require_open_clip().create_model(architecture).visual
    side = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size,) * 2
    return tower, {
        "input_size": (3, *side), "mean": tower.image_mean, "std": tower.image_std, "interpolation": "bicubic",
        "crop_pct": 1.0,
    }  # fmt: skip


def _cast(model: nn.Module, precision: str) -> nn.Module:
    """Return a copy of a network with its weights in a precision; in fp32 the network itself."""
    return model if precision == "fp32" else copy.deepcopy(model).to(PRECISIONS[precision])


def compare_precisions(
    candidates: Sequence[Candidate], precisions: Sequence[str], split: "Dataset | None", images: int, device: str
) -> dict[tuple[str, str], dict[str, float | None]]:
    """Compare the outputs of networks in several precisions with those in float32.

    Args:
        candidates: the networks.
        precisions: keys of PRECISIONS.
        split: images to classify, a stored split of `Splits`; None for Gaussian noise.
        images: number of images of noise.
        device: device of the networks.

    Returns:
        (name of the network, precision) -> `agreement`, the share of images with the same top-1 class as in float32
        (None without classes); `largest_difference` of an output; and `accuracy` on the images whose class the network
        has (None without labels, or for a network with other classes).
    """
    rows: dict[tuple[str, str], dict[str, float | None]] = {}
    for candidate in candidates:
        exact = _outputs(candidate, "fp32", split, images, device)  # (images, outputs)
        for precision in precisions:
            outputs = exact if precision == "fp32" else _outputs(candidate, precision, split, images, device)
            same = (outputs.argmax(dim=1) == exact.argmax(dim=1)).float().mean().item()
            rows[candidate.name, precision] = {
                "agreement": same if candidate.is_classifier else None,
                "largest_difference": (outputs - exact).abs().max().item(),
                "accuracy": _accuracy(candidate, outputs, split),
            }
    return rows


@torch.inference_mode()
def _outputs(candidate: Candidate, precision: str, split: "Dataset | None", images: int, device: str) -> Tensor:
    """Compute the outputs of a network in a precision for images or noise: (images, outputs), float32."""
    model, dtype = _cast(candidate.model, precision), PRECISIONS[precision]
    batches = _noise(candidate, images) if split is None else _image_batches(candidate, precision, split)
    return torch.cat([model(batch.to(device, dtype)).float().cpu() for batch in batches])


def _noise(candidate: Candidate, images: int) -> Iterable[Tensor]:
    """Return batches of Gaussian noise in the size of the network's images, (B, C, H, W), the same in each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, *candidate.data_config["input_size"], generator=generator).split(BATCH_SIZE)


def _image_batches(candidate: Candidate, precision: str, split: "Dataset") -> Iterable[Tensor]:
    """Yield the images of a split as the network reads them, (B, C, H, W), and show the progress."""
    data_config = candidate.data_config
    loader = DataLoader(
        ImageDataset(split, eval_transform(data_config), data_config["input_size"][0]), batch_size=BATCH_SIZE
    )
    return (batch for batch, _ in track(loader, f"{candidate.name} {precision}", len(loader)))


def _accuracy(candidate: Candidate, outputs: Tensor, split: "Dataset | None") -> float | None:
    """Return the top-1 accuracy on the images whose class the network has; None if there are no such classes."""
    if split is None or not candidate.indices:
        return None
    labels = torch.tensor(split["label"][:])
    has_class = torch.tensor([bool(own) for own in candidate.indices])  # (classes,)
    correct = class_scores(outputs, candidate.indices).argmax(dim=1) == labels  # (images,)
    return correct[has_class[labels]].float().mean().item()


def time_candidates(
    candidates: Sequence[Candidate], precisions: Sequence[str], batch_size: int, repeats: int, device: str
) -> list[dict[str, Any]]:
    """Time the inference of networks in several precisions in turns, so that other load affects all of them.

    Args:
        candidates: the networks.
        precisions: keys of PRECISIONS.
        batch_size: number of images per step.
        repeats: number of rounds; in each round every network takes one step in every precision.
        device: device of the networks.

    Returns:
        One row per network and precision: `p50_ms` and `p90_ms`, median and 90th percentile of the time of a step in
        milliseconds; `images_per_second` at the median; `weights_mb` and `peak_mb`, the memory of the weights, and the
        peak of a forward pass without weights and images, in MiB; `load_s`, the seconds to load the network.
    """
    models, inputs, steps = {}, {}, {}
    for candidate in candidates:
        images = torch.randn(batch_size, *candidate.data_config["input_size"], device=device)  # (B, C, H, W)
        for precision in precisions:
            key = candidate.name, precision
            models[key] = _cast(candidate.model, precision)
            inputs[key] = images.to(PRECISIONS[precision])
            steps[key] = inference_step(models[key], inputs[key])
    seconds = interleaved(steps, repeats, device=device)
    rows = []
    for candidate in candidates:
        for precision in precisions:
            key = candidate.name, precision
            p50, p90 = (float(quantile) for quantile in np.quantile(seconds[key], [0.5, 0.9]))
            rows.append(
                {
                    "model": candidate.name, "precision": precision, "batch_size": batch_size, "p50_ms": 1e3 * p50,
                    "p90_ms": 1e3 * p90, "images_per_second": batch_size / p50,
                    "weights_mb": weight_bytes(models[key]) / 2**20,
                    "peak_mb": peak_bytes(models[key], inputs[key]) / 2**20, "load_s": candidate.load_seconds,
                }
            )  # fmt: skip
    return rows


def plot_throughput(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Plot the throughput of each network in each precision, with one panel per batch size.

    Args:
        rows: rows of `time_candidates`, for one or several batch sizes.
        path: PNG file to write.
        title: title of the figure.
    """
    sizes, models, precisions = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("batch_size", "model", "precision")
    )
    figure = Figure(figsize=(3 + 3.6 * len(sizes), 1.6 + 0.5 * len(models)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axis, size in zip(axes, sizes, strict=True):
        for place, (precision, colour) in enumerate(zip(precisions, LINES, strict=False)):
            own = [row for row in rows if (row["batch_size"], row["precision"]) == (size, precision)]
            heights = np.arange(len(models)) + (place - (len(precisions) - 1) / 2) * 0.8 / len(precisions)
            values = [row["images_per_second"] for row in own]
            axis.barh(heights, values, 0.75 / len(precisions), color=colour, label=precision)
        axis.set_title(f"batch {size}")
        axis.set_xlabel("images per second (median)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(models)), models)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    save_figure(figure, path)
