"""Networks in several precisions: latency, throughput, memory, and whether they still predict the same classes.

Weights and images are cast to each precision, without autocast.
"""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..console import track
from ..data.augment import without_seed
from ..data.images import ImageDataset
from ..data.loading import model_data_config
from ..errors import InputError
from ..inspection.colours import LINES
from ..inspection.saving import save_figure
from ..models.pretrained import brings_weights, check_model, load_model
from ..zero_shot.clip import (
    PREFIX,
    ImageTower,
    check_architecture,
    check_clip,
    load_clip,
    names_weights,
    random_clip,
)
from ..zero_shot.comparison import Classifier, clip_classifier, supervised_classifier
from ..zero_shot.imagenet_names import spoken_names
from .timing import PRECISIONS, inference_step, interleaved, paired_ratio, peak_bytes, weight_bytes

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Candidate",
    "check_candidate",
    "compare_precisions",
    "has_weights",
    "load_candidate",
    "plot_throughput",
    "time_candidates",
]

BATCH_SIZE = 8  # images per batch when outputs are compared
WITHOUT_WEIGHTS = "pass `pretrained=False`"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network to measure.

    Attributes:
        name: name in the tables.
        network: the network in float32, in evaluation mode, on its device.
        transform: function that turns an image into a normalised tensor, (C, H, W).
        input_size: size of its images, (C, H, W).
        has_classes: whether its outputs are scores of classes. Those of CLIP's image tower are an embedding.
        classifier: the network as a classifier of the dataset's classes; None if it has other classes.
        load_seconds: time that it took to create the network and to load its weights.
    """

    name: str
    network: nn.Module
    transform: Callable
    input_size: tuple[int, ...]
    has_classes: bool
    classifier: Classifier | None
    load_seconds: float

    def predictions(self, outputs: Tensor) -> Tensor | None:
        """Return the top-1 class of each of the outputs, (n, outputs) -> (n,); None for an embedding."""
        if self.has_classes:
            return outputs.argmax(dim=1)
        return None if self.classifier is None else self.classifier.score(outputs).argmax(dim=1)


def check_candidate(model: str, pretrained: bool) -> None:
    """Check that a network exists, before the first network is created.

    Args:
        model: one of the four forms of a model (see models/pretrained.py), or clip: and the name of a CLIP model, as in
            `check_clip`. clip:ARCHITECTURE, without a tag, is an image tower with random weights.
        pretrained: whether to load the pretrained weights of a timm model. Folders and repositories always bring
            theirs.

    Raises:
        InputError: an unknown network, with the alternatives; or open_clip is not installed.
    """
    if not model.startswith(PREFIX):
        check_model(model, has_weights(model, pretrained), hint=WITHOUT_WEIGHTS)
    elif pretrained or names_weights(model):
        check_clip(model, "model")
    else:
        check_architecture(model, "model")


def has_weights(model: str, pretrained: bool) -> bool:
    """Return whether `load_candidate` loads weights; arguments as in `check_candidate`."""
    if model.startswith(PREFIX):
        return names_weights(model)
    return pretrained or brings_weights(model)


def load_candidate(
    model: str,
    name: str,
    class_names: Sequence[str],
    templates: Sequence[str] = (),
    pretrained: bool = False,
    device: str = "cpu",
) -> Candidate:
    """Load a network to measure.

    Args:
        model, pretrained: as in `check_candidate`.
        name: name of the network in the tables.
        class_names: class names of the dataset; empty if there is none.
        templates: sentences with {} in place of the class name, for CLIP.
        device: device to move the network to.

    Raises:
        InputError: as `load_model`, `load_clip` and `spoken_names`.
    """
    if model.startswith(PREFIX):
        return _load_tower(model, name, class_names, templates, device)
    start = time.perf_counter()
    network = load_model(model, has_weights(model, pretrained), hint=WITHOUT_WEIGHTS).eval().to(device)
    seconds = time.perf_counter() - start
    config, classifier = model_data_config(network), None
    if network.num_classes and class_names:
        with contextlib.suppress(InputError):  # a network with other classes is timed, but has no accuracy
            classifier = supervised_classifier(network, name, class_names, device=device)
    transform: Any = create_transform(**config, is_training=False)
    return Candidate(name, network, transform, config["input_size"], bool(network.num_classes), classifier, seconds)


def _load_tower(model: str, name: str, class_names: Sequence[str], templates: Sequence[str], device: str) -> Candidate:
    """Load the image tower of a CLIP model. With weights and class names it is a zero-shot classifier."""
    start = time.perf_counter()
    clip = load_clip(model, "model") if names_weights(model) else random_clip(model)
    network = ImageTower(clip.model.visual).eval().to(device)
    seconds = time.perf_counter() - start
    classifier = None
    if class_names and names_weights(model):
        classifier = clip_classifier(clip, spoken_names(class_names), templates, device)
    size = clip.model.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return Candidate(name, network, clip.transform, (3, height, width), False, classifier, seconds)


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
        (None without classes); `cosine`, the mean cosine similarity of an image's outputs to those in float32;
        `largest_difference` of an output (both None where numbers overflow); and `accuracy` on the images whose class
        the network has (None without labels, or for a network with other classes).
    """
    rows: dict[tuple[str, str], dict[str, float | None]] = {}
    for candidate in candidates:
        exact = _outputs(candidate, "fp32", split, images, device)  # (images, outputs)
        expected = candidate.predictions(exact)
        for precision in precisions:
            outputs = exact if precision == "fp32" else _outputs(candidate, precision, split, images, device)
            predicted = candidate.predictions(outputs)
            same = None if predicted is None or expected is None else predicted == expected
            rows[candidate.name, precision] = {
                "agreement": None if same is None else same.float().mean().item(),
                "cosine": _finite(F.cosine_similarity(outputs.double(), exact.double()).mean()),
                "largest_difference": _finite((outputs - exact).abs().max()),
                "accuracy": _accuracy(candidate, outputs, split),
            }
    return rows


def _finite(value: Tensor) -> float | None:
    """Return a number, or None if it is NaN or infinite, which JSON has no words for."""
    return value.item() if value.isfinite() else None


@torch.inference_mode()
def _outputs(candidate: Candidate, precision: str, split: "Dataset | None", images: int, device: str) -> Tensor:
    """Compute the outputs of a network in a precision for images or noise: (images, outputs), float32."""
    network, dtype = _cast(candidate.network, precision), PRECISIONS[precision]
    batches = _noise(candidate, images) if split is None else _image_batches(candidate, precision, split)
    return torch.cat([network(batch.to(device, dtype)).float().cpu() for batch in batches])


def _noise(candidate: Candidate, images: int) -> Iterable[Tensor]:
    """Return batches of Gaussian noise in the size of the network's images, (B, C, H, W), the same in each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, *candidate.input_size, generator=generator).split(BATCH_SIZE)


def _image_batches(candidate: Candidate, precision: str, split: "Dataset") -> Iterable[Tensor]:
    """Yield the images of a split as the network reads them, (B, C, H, W), and show the progress."""
    images = ImageDataset(split, without_seed(candidate.transform), candidate.input_size[0])
    loader = DataLoader(images, batch_size=BATCH_SIZE)
    return (batch for batch, _ in track(loader, f"{candidate.name} {precision}", len(loader)))


def _accuracy(candidate: Candidate, outputs: Tensor, split: "Dataset | None") -> float | None:
    """Return the top-1 accuracy on the images whose class the network has; None if there are no such images."""
    if split is None or candidate.classifier is None:
        return None
    labels = torch.tensor(split["label"][:])
    counts = torch.from_numpy(candidate.classifier.known)[labels]  # (images,)
    correct = candidate.classifier.score(outputs).argmax(dim=1) == labels
    return correct[counts].float().mean().item() if counts.any() else None


def time_candidates(
    candidates: Sequence[Candidate], precisions: Sequence[str], batch_size: int, repeats: int, device: str
) -> list[dict[str, Any]]:
    """Time the inference of networks in several precisions in turns, so that other load affects all of them.

    Args:
        candidates: the networks.
        precisions: keys of PRECISIONS, with fp32.
        batch_size: number of images per step.
        repeats: number of rounds; in each round every network takes one step in every precision.
        device: device of the networks.

    Returns:
        One row per network and precision: `p50_ms` and `p90_ms`, median and 90th percentile of the time of a step in
        milliseconds; `images_per_second` at the median; `speed`, relative to the same network in fp32 and paired by
        round, the median with its quartiles `speed_low` and `speed_high`; `weights_mb` and `peak_mb`, the memory of
        the weights, and the peak of a forward pass without weights and images, in MiB; `load_s`, the seconds to load
        the network.
    """
    models, inputs, steps = {}, {}, {}
    for candidate in candidates:
        images = torch.randn(batch_size, *candidate.input_size, device=device)  # (B, C, H, W)
        for precision in precisions:
            key = candidate.name, precision
            models[key] = _cast(candidate.network, precision)
            inputs[key] = images.to(PRECISIONS[precision])
            steps[key] = inference_step(models[key], inputs[key])
    seconds = interleaved(steps, repeats, device=device)
    rows = []
    for candidate in candidates:
        for precision in precisions:
            key = candidate.name, precision
            speed, low, high = paired_ratio(seconds[key], seconds[candidate.name, "fp32"])
            p50, p90 = (float(quantile) for quantile in np.quantile(seconds[key], [0.5, 0.9]))
            rows.append(
                {
                    "model": candidate.name, "precision": precision, "batch_size": batch_size, "p50_ms": 1e3 * p50,
                    "p90_ms": 1e3 * p90, "images_per_second": batch_size / p50, "speed": speed,
                    "speed_low": low, "speed_high": high, "weights_mb": weight_bytes(models[key]) / 2**20,
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
