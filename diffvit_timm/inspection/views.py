"""The view of one model on some images: its attention, rollout, relevance, head statistics and predictions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ..data.images import MODES
from ..data.loading import model_data_config
from ..errors import InputError
from ..layers.pos_embed import PosEmbed2d
from ..models.outputs import class_names, probabilities
from .attention_maps import CapturedAttention, capture_attention, has_windows
from .figures import Picture
from .layout import patch_embedding
from .naming import model_title
from .overlay import patched_box
from .rollout import Part, heat_maps, rollout
from .statistics import HeadStatistics, head_statistics, stack_heads

__all__ = ["ModelView", "OutputMaps", "output_maps", "position_similarity", "view_images"]


class OutputMaps(NamedTuple):
    """Attention of the model's output to the patches in every head of a layer, as `output_attention` defines it.

    Attributes:
        difference: A1 - lambda A2, (B, H, rows, columns); for plain attention its only map.
        attended: the positive part of the difference, (B, H, rows, columns), as in `AttentionMaps`.
        map1: A1, (B, H, rows, columns).
        map2: A2, (B, H, rows, columns); None for plain attention.
        lam: lambda, (B, H), as the mean over the tokens that count for the output; None for plain attention.
    """

    difference: np.ndarray
    attended: np.ndarray
    map1: np.ndarray
    map2: np.ndarray | None = None
    lam: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ModelView:
    """What a model attends to and predicts on some images.

    Shapes: L layers, B images, H heads. All heat maps have one value per patch.

    Attributes:
        name: name of the model.
        title: its name and its attention, for the titles of figures.
        pictures: the images, each with the part that the model sees.
        reader: what attends in the maps: 'the class token', 'patches, on average' or 'the patches of each window'.
        maps: attention of the output in each layer.
        rollout: attention rollout through all layers, (B, rows, columns); None for a model with windows.
        relevance: relevance for the predicted class, by gradients, (B, rows, columns); None for a model with windows or
            without a head.
        predictions: most likely class of each image with its probability, such as 'cat 93%'; empty without a head.
        statistics: statistics of the heads, (L, H) each, as means over the images.
        positions: result of `position_similarity`.
    """

    name: str
    title: str
    pictures: list[Picture]
    reader: str
    maps: list[OutputMaps]
    rollout: np.ndarray | None
    relevance: np.ndarray | None
    predictions: list[str]
    statistics: HeadStatistics
    positions: tuple[np.ndarray, tuple[int, int]] | None

    def lambdas(self) -> np.ndarray:
        """Return lambda of each layer and head, (L, H), mean over the images; NaN for heads that a layer lacks."""
        lams = [torch.from_numpy(layer.lam.mean(axis=0)) for layer in self.maps if layer.lam is not None]
        return stack_heads(lams).numpy()

    def heat_maps(self) -> dict[str, np.ndarray]:
        """Return the heat maps through all layers by their name in figures, (B, rows, columns) each."""
        maps = {"rollout": self.rollout, "for its prediction": self.relevance}
        return {name: heat for name, heat in maps.items() if heat is not None}


def view_images(model: Any, name: str, images: Mapping[str, Image.Image], part: Part = "clamp") -> ModelView:
    """Look at images through a model.

    Args:
        model: ViT that `capture_attention` supports, in evaluation mode.
        name: name of the model in figures.
        images: name of each image -> the image, grey or RGB.
        part: part of signed maps that the rollout follows, as in `mixing`.

    Raises:
        InputError: an image is so narrow that nothing is left of it after the model's transform, or the model reads
            neither grey nor colour images.
        TypeError: a model that `capture_attention` does not support, or whose grid of patches is not known.
    """
    embedding = patch_embedding(model)
    config = model_data_config(model)
    transform: Any = create_transform(**config, is_training=False)
    pictures, inputs = [], []
    for title, image in images.items():
        image = image.convert(MODES[config["input_size"][0]])
        try:
            box = patched_box(image.size, transform, embedding)
        except ValueError as error:
            raise InputError(f"`images={title}` is too long and narrow for {name}: {error}") from error
        pictures.append(Picture(image, box, title))
        inputs.append(transform(image))  # (C, H, W)
    windowed = has_windows(model)
    # One image at a time, because the maps are large.
    captures = [_capture(model, image[None], None if windowed else part) for image in inputs]
    maps, rollouts, statistics, logits = zip(*captures, strict=True)
    relevance = None
    if model.num_classes and not windowed:
        relevance = heat_maps(model, torch.stack(inputs)).relevance.numpy()
    return ModelView(
        name=name,
        title=model_title(name, model),
        pictures=pictures,
        reader="the patches of each window" if windowed else _reader(model),
        maps=[_join_images(layer) for layer in zip(*maps, strict=True)],
        rollout=None if windowed else np.concatenate(rollouts),
        relevance=relevance,
        predictions=_predictions(model, torch.cat(logits)) if model.num_classes else [""] * len(images),
        statistics=HeadStatistics(*(torch.stack(parts).mean(dim=0) for parts in zip(*statistics, strict=True))),
        positions=position_similarity(model),
    )


def _capture(
    model: Any, image: Tensor, part: Part | None
) -> tuple[list[OutputMaps], np.ndarray | None, HeadStatistics, Tensor]:
    """Run a model on one image, (1, C, H, W): its maps, statistics, logits, and rollout unless `part` is None."""
    with capture_attention(model) as captured, torch.no_grad():
        logits = model(image)
    flow = None
    if part is not None:
        flow = captured.on_patches(captured.output_rows(rollout(captured, part))).numpy()  # (1, rows, columns)
    return output_maps(captured), flow, head_statistics(captured), logits


def _reader(model: Any) -> str:
    """Return what attends in the maps of a model without windows."""
    return "the class token" if CapturedAttention(model).reads_class_token else "patches, on average"


def _join_images(images: tuple[OutputMaps, ...]) -> OutputMaps:
    """Join the maps of one layer on several images."""
    fields: Any = (None if parts[0] is None else np.concatenate(parts) for parts in zip(*images, strict=True))
    return OutputMaps(*fields)


def output_maps(captured: CapturedAttention) -> list[OutputMaps]:
    """Select the attention of the model's output in every layer. Only one layer's maps are in memory at a time."""
    layers = []
    for layer in captured:
        maps = layer.maps()
        matrices = {"difference": maps.difference, "attended": maps.attended, "map1": maps.map1}
        if maps.map2 is not None and maps.lam is not None:
            # Lambda has one value per query token in version 2, so it is selected like the maps.
            matrices |= {"map2": maps.map2, "lam": maps.lam.expand_as(maps.map1)}
        grids = {name: captured.output_attention(layer, matrix).numpy() for name, matrix in matrices.items()}
        if "lam" in grids:  # all key tokens have the same lambda, but the windows have not
            grids["lam"] = grids["lam"].mean(axis=(-2, -1))  # (B, H)
        layers.append(OutputMaps(**grids))
    return layers


def _predictions(model: Any, logits: Tensor) -> list[str]:
    """Write the most likely class of each image, and its probability."""
    names = class_names(model)
    shares, classes = probabilities(model, logits).max(dim=-1)
    return [
        f"{names[c] if names else f'class {c}'} {p:.0%}" for p, c in zip(shares.tolist(), classes.tolist(), strict=True)
    ]


def position_similarity(model: Any) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Compute the cosine similarity between the position embeddings of all pairs of patches.

    Args:
        model: transformer of timm.

    Returns:
        The similarities, (patches, patches), and the rows and columns of the grid of patches; None for a model without
        a table of position embeddings.
    """
    grid = getattr(patch_embedding(model), "grid_size", None)
    if grid is None:
        return None
    tables = [module.table()[0] for module in model.modules() if isinstance(module, PosEmbed2d)]
    pos_embed = getattr(model, "pos_embed", None)
    if isinstance(pos_embed, Tensor):
        # Without those of the prefix tokens. SAM's have a dimension for rows and one for columns.
        tables.append(pos_embed[0].flatten(0, -2)[-grid[0] * grid[1] :])
    if not tables:
        return None
    unit = F.normalize(tables[0].detach(), dim=-1)  # (patches, dim)
    return (unit @ unit.T).numpy(), grid
