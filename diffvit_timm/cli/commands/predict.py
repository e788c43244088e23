"""Name the most likely classes of images.

    diffvit predict cat.jpg dog.jpg --model RUN

Each image is resized, cropped and normalised as in the model's evaluation.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ...console import printable
from ...errors import InputError, require_at_least, require_files
from ...models.pretrained import class_names
from ...options import CheckedOptions
from ..images import load_for_inference, read_image


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


def main(options: Options) -> None:
    require_at_least(1, top=options.top)
    require_files("images", options.images)
    network, transform, mode = load_for_inference(options.model, options.device)
    if not network.num_classes:
        raise InputError(f"`model={options.model}` has no head, so it cannot name classes: give a classifier")
    names = class_names(network) or [f"class {i}" for i in range(network.num_classes)]
    predictions: dict[str, list] = {}
    for path in options.images:
        image = transform(read_image(path, mode))[None].to(options.device)  # (1, C, H, W)
        with torch.inference_mode():
            shares, classes = network(image).float().softmax(-1)[0].topk(min(options.top, len(names)))
        predictions[str(path)] = [(names[c], p) for c, p in zip(classes.tolist(), shares.tolist(), strict=True)]
    if options.json:
        print(json.dumps(predictions))
        return
    for name, rows in predictions.items():
        print(printable(name))
        print("\n".join(f"  {share:6.1%}  {printable(label)}" for label, share in rows))
