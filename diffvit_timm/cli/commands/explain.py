"""Draw what a ViT attends to: heads, layers, rollout, relevance, and both maps of differential attention.

    diffvit explain cat.jpg dog.jpg --model RUN
    diffvit explain cat.jpg --model RUN --compare deit_tiny_patch16_224.fb_in1k    # several models, side by side
    diffvit explain cat.jpg --model vit_small_patch8_224.dino --img-size 480       # as DINO's authors draw it
    diffvit explain cat.jpg --model RUN --part abs --output pictures               # rollout of the absolute values

Relevance is a heat map for the predicted class, from the attention and its gradients.
Each picture is a PNG. Its numbers are beside it in an NPZ file of the same name, for numpy.load.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...console import counted, log0
from ...errors import InputError, require_files
from ...inspection.attention_maps import CapturedAttention
from ...inspection.layout import patch_embedding
from ...inspection.pictures import PICTURES, draw_image, draw_models
from ...inspection.rollout import Part
from ...inspection.views import ModelView, view_images
from ...models.pretrained import check_model, load_model, short_names, size_arguments
from ...options import CheckedOptions
from ...output import output_folder
from ..images import read_image


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
    """Image files."""
    model: str = "diffvit_tiny_patch16.deit_in1k"
    """timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder."""
    compare: tuple[str, ...] = ()
    """More models in the same forms, to draw beside the first."""
    img_size: tuple[int, ...] = ()
    """Image size in pixels: one number, or height and width; default: the size of each model. More pixels give finer
    maps, and the position embeddings are interpolated."""
    part: Part = "clamp"
    """Part of A1 - lambda A2 for rollout: clamp drops negative values per head; the others use the mean over heads."""
    output: str = "auto"
    """Folder of the pictures, new or empty; auto: runs/explain-DATE-TIME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_files("images", self.images)
        names = [path.stem for path in self.images]
        self.require(
            "images", len(set(names)) == len(names), "must have different names, which their pictures take: rename one"
        )
        self.require_image_size("img_size")
        self.require(
            "compare", len({self.model, *self.compare}) == 1 + len(self.compare),
            f"and `model={self.model}` name a model twice: give each model once",
        )  # fmt: skip


def main(options: Options) -> dict:
    with output_folder(options.output, "explain") as folder:
        return _explain(options, folder)


def _explain(options: Options, folder: Path) -> dict:
    models = {options.model: "model"} | dict.fromkeys(options.compare, "compare")  # each with its parameter
    for name, parameter in models.items():
        check_model(name, parameter=parameter)
    images = {path.stem: read_image(path, "RGB") for path in options.images}
    networks = [_load(name, parameter, options.img_size) for name, parameter in models.items()]
    views = []
    for name, network in zip(short_names(list(models)), networks, strict=True):
        log0(f"looking at {counted(len(images), 'image')} through {name}")
        views.append(view_images(network, name, images, options.part))
    for index in range(len(images)):
        draw_image(views[0], index, folder)
    draw_models(views, folder)
    _print_views(views, folder)
    return {"output": str(folder), "predictions": {view.name: view.predictions for view in views}}


def _load(name: str, parameter: str, img_size: tuple[int, ...]) -> Any:
    """Load a network whose attention can be drawn, in evaluation mode."""
    network = load_model(name, parameter=parameter, **size_arguments(img_size)).eval()
    try:
        CapturedAttention(network)
        patch_embedding(network)
    except TypeError as error:
        raise InputError(f"`{parameter}={name}`: {error}") from error
    return network


def _print_views(views: list[ModelView], folder: Path) -> None:
    """Print a table of the predictions, and a list of the pictures."""
    rows = [
        (picture.name, view.name, prediction or "no head")
        for view in views
        for picture, prediction in zip(view.pictures, view.predictions, strict=True)
    ]
    image_width, model_width, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    log0("\nFor each image and model: the most likely class and its probability.")
    for image, model, prediction in rows:
        log0(f"  {image:{image_width}}  {model:{model_width}}  {prediction}")
    names = {path.stem for path in folder.glob("*.png")}
    log0(
        f"\n{counted(len(names), 'picture')} (PNG) in {folder}, each with its numbers in an NPZ file of the same name."
    )
    if len(views) > 1:
        log0(f"The other IMAGE-* show {views[0].name}; a number at the end counts the models of compare.")
    first = views[0].pictures[0].name
    for name, what in PICTURES.items():
        if name.replace("IMAGE", first) in names:
            log0(f"  {name:{max(map(len, PICTURES))}}  {what}")
