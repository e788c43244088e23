"""Name the most likely classes of images.

    diffvit predict cat.jpg dog.jpg --model RUN
    diffvit predict test/*/*.jpg --model RUN --picture predictions.png     # and draw them, with right and wrong ones

Each image is resized, cropped and normalised as in the model's evaluation. In the picture, the name of an image's
folder is its true class, if it is a class of the model.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ...console import counted, log0, printable
from ...errors import InputError, require_at_least, require_files
from ...files import require_writable
from ...inspection.figures import PredictedImage, plot_predictions
from ...inspection.naming import model_title
from ...inspection.saving import save_figure
from ...models.pretrained import class_names, short_names
from ...options import CheckedOptions
from ..images import load_for_inference, read_image

SHOWN_CLASSES = 3  # likeliest classes per image in the picture
LARGEST_SIDE = 400  # pixels of an image in the picture
MOST_IMAGES = 60


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
    """Image files."""
    model: str
    """timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder."""
    top: int = 5
    """Number of classes per image."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    json: bool = False
    """Print JSON."""
    picture: Path | None = None
    """New PNG file with the images, their likeliest classes and, where known, their true class; at most 60 images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, top=self.top)
        require_files("images", self.images)
        if self.picture is not None:
            self._check_picture(self.picture)

    def _check_picture(self, path: Path) -> None:
        self.require("picture", path.suffix.lower() == ".png", "must be a PNG file: end its name with .png")
        self.require("picture", not path.expanduser().exists(), "exists already: choose another file")
        folder = path.expanduser().parent
        self.require("picture", folder.is_dir(), f"needs the folder {folder}, which does not exist: create it first")
        require_writable(folder, f"`picture={path}`")
        if len(self.images) > MOST_IMAGES:
            raise InputError(f"`picture={path}` shows at most {MOST_IMAGES} images, not {len(self.images)}: give fewer")


def main(options: Options) -> None:
    network, transform, mode = load_for_inference(options.model, options.device)
    if not network.num_classes:
        raise InputError(f"`model={options.model}` has no head, so it cannot name classes: give a classifier")
    names = class_names(network) or [f"class {i}" for i in range(network.num_classes)]
    predictions: dict[str, list] = {}
    cases = []
    for path in options.images:
        image = read_image(path, mode)
        with torch.inference_mode():
            shares = network(transform(image)[None].to(options.device)).float().softmax(-1)[0].cpu()  # (classes,)
        predictions[str(path)] = _likeliest(shares, names, options.top)
        if options.picture is not None:
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            likeliest = _likeliest(shares, names, SHOWN_CLASSES)
            cases.append(PredictedImage(image, likeliest, _true_class(path, shares, names), path.name))
    if options.picture is not None:
        title = model_title(short_names([options.model])[0], network)
        _draw(cases, title, options.picture.expanduser())
    if options.json:
        print(json.dumps(predictions))
        return
    for name, rows in predictions.items():
        print(printable(name))
        print("\n".join(f"  {share:6.1%}  {printable(label)}" for label, share in rows))


def _likeliest(shares: torch.Tensor, names: list[str], top: int) -> list[tuple[str, float]]:
    """Return the likeliest classes with their probabilities."""
    found = shares.topk(min(top, len(names)))
    return [(names[c], p) for c, p in zip(found.indices.tolist(), found.values.tolist(), strict=True)]


def _true_class(path: Path, shares: torch.Tensor, names: list[str]) -> tuple[str, float] | None:
    """Return the class that the folder of an image names, with its probability; None if it names none or several."""
    folder = path.absolute().parent.name
    return (folder, shares[names.index(folder)].item()) if names.count(folder) == 1 else None


def _draw(cases: list[PredictedImage], model: str, path: Path) -> None:
    """Draw the images, and count the right ones among those whose class is known."""
    known = [case for case in cases if case.true is not None]
    right = sum(bool(case.is_right) for case in known)
    count = f"{right} of {len(known)} right" if known else "true classes not known"
    if 0 < len(known) < len(cases):
        count += f", {len(cases) - len(known)} of unknown class"
    save_figure(plot_predictions(cases, f"Predictions of {model}\n{counted(len(cases), 'image')}: {count}"), path)
    log0(f"{path}: {counted(len(cases), 'image')} with their predictions: {count}")
