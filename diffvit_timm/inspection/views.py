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
from ..models.pretrained import class_names
from .attention_maps import CapturedAttention, capture_attention
from .figures import Picture
from .overlay import patched_box
from .rollout import Part, heat_maps, rollout
from .statistics import HeadStatistics, head_statistics

__all__ = ["ModelView", "OutputMaps", "output_maps", "position_similarity", "view_images"]


class OutputMaps(NamedTuple):
    """Attention of the output token to the patches in every layer and head.

    The output token is the class token, or the mean over the patches if the head reads them.

    Attributes:
        difference: A1 - lambda A2, (L, B, H, rows, columns); for plain attention its only map.
        attended: the positive part of the difference, (L, B, H, rows, columns), as in `AttentionMaps`.
        map1: A1, (L, B, H, rows, columns).
        map2: A2, (L, B, H, rows, columns); None for plain attention.
        lam: lambda of the output token, (L, B, H); None for plain attention.
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
        pictures: the images, each with the part that the model sees.
        reads_class_token: whether the output token is the class token.
        maps: attention of the output token.
        rollout: attention rollout through all layers, (B, rows, columns).
        relevance: relevance for the predicted class, by gradients, (B, rows, columns); None for a model without a head.
        predictions: most likely class of each image with its probability, such as 'cat 93%'; empty without a head.
        statistics: statistics of the heads, (L, H) each, as means over the images.
        positions: result of `position_similarity`.
    """

    name: str
    pictures: list[Picture]
    reads_class_token: bool
    maps: OutputMaps
    rollout: np.ndarray
    relevance: np.ndarray | None
    predictions: list[str]
    statistics: HeadStatistics
    positions: tuple[np.ndarray, tuple[int, int]] | None

    def heat_maps(self) -> dict[str, np.ndarray]:
        """Return the heat maps through all layers by their name in figures, (B, rows, columns) each."""
        maps = {"rollout": self.rollout}
        return maps if self.relevance is None else maps | {"for its prediction": self.relevance}


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
        TypeError: a model that `capture_attention` does not support.
    """
    config = model_data_config(model)
    transform: Any = create_transform(**config, is_training=False)
    pictures, inputs = [], []
    for title, image in images.items():
        image = image.convert(MODES[config["input_size"][0]])
        try:
            box = patched_box(image.size, transform, model.patch_embed)
        except ValueError as error:
            raise InputError(f"`images={title}` is too long and narrow for {name}: {error}") from error
        pictures.append(Picture(image, box, title))
        inputs.append(transform(image))  # (C, H, W)
    views = [_view_image(model, image[None], part) for image in inputs]  # one at a time, because maps are large
    reads_class_token, maps, rollouts, statistics = zip(*views, strict=True)
    fields: Any = (None if parts[0] is None else np.concatenate(parts, axis=1) for parts in zip(*maps, strict=True))
    heat = heat_maps(model, torch.stack(inputs)) if model.num_classes else None
    return ModelView(
        name=name,
        pictures=pictures,
        reads_class_token=reads_class_token[0],
        maps=OutputMaps(*fields),
        rollout=np.concatenate(rollouts),
        relevance=None if heat is None else heat.relevance.numpy(),
        predictions=[""] * len(images) if heat is None else _predictions(model, heat.logits),
        statistics=HeadStatistics(*(torch.stack(parts).mean(dim=0) for parts in zip(*statistics, strict=True))),
        positions=position_similarity(model),
    )


def _view_image(model: Any, image: Tensor, part: Part) -> tuple[bool, OutputMaps, np.ndarray, HeadStatistics]:
    """Run a model on one image, (1, C, H, W)."""
    with capture_attention(model) as captured, torch.no_grad():
        model(image)
    flow = captured.on_patches(captured.output_rows(rollout(captured, part)))  # (1, rows, columns)
    return captured.reads_class_token, output_maps(captured), flow.numpy(), head_statistics(captured)


def output_maps(captured: CapturedAttention) -> OutputMaps:
    """Select the attention of the output token in every layer. Only one layer's maps are in memory at a time."""
    rows: dict[str, list[Tensor]] = {}
    for layer in captured:
        maps = layer.maps()
        matrices = {"difference": maps.difference, "attended": maps.attended, "map1": maps.map1}
        if maps.map2 is not None and maps.lam is not None:
            # Lambda has one value per query token in version 2, so it is selected like the maps.
            matrices |= {"map2": maps.map2, "lam": maps.lam.expand_as(maps.map1)}
        for name, matrix in matrices.items():  # (B, H, N, N) each
            rows.setdefault(name, []).append(captured.output_rows(matrix))
    # (L, B, H, rows, columns) each
    grids = {name: captured.on_patches(torch.stack(layers)).numpy() for name, layers in rows.items()}
    lam = grids.pop("lam", None)
    return OutputMaps(**grids, lam=None if lam is None else lam[..., 0, 0])  # all key tokens have the same lambda


def _predictions(model: Any, logits: Tensor) -> list[str]:
    """Write the most likely class of each image, and its probability."""
    names = class_names(model)
    probabilities, classes = logits.softmax(dim=-1).max(dim=-1)
    return [
        f"{names[c] if names else f'class {c}'} {p:.0%}"
        for p, c in zip(probabilities.tolist(), classes.tolist(), strict=True)
    ]


def position_similarity(model: Any) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Compute the cosine similarity between the position embeddings of all pairs of patches.

    Args:
        model: timm VisionTransformer, or a subclass.

    Returns:
        The similarities, (patches, patches), and the rows and columns of the grid of patches; None for a model without
        position embeddings.
    """
    grid = model.patch_embed.grid_size
    tables = [module.table()[0] for module in model.patch_embed.modules() if isinstance(module, PosEmbed2d)]
    if getattr(model, "pos_embed", None) is not None:
        tables.append(model.pos_embed[0, -grid[0] * grid[1] :])  # without those of the prefix tokens
    if not tables:
        return None
    unit = F.normalize(tables[0].detach(), dim=-1)  # (patches, dim)
    return (unit @ unit.T).numpy(), grid
