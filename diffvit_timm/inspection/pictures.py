"""All pictures of what models attend to, written into a folder: PNG files, with their numbers beside them as .npz."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..console import counted
from . import figures
from .views import ModelView

__all__ = ["PICTURES", "draw_image", "draw_models"]

LINE = 5  # panels per line of heat maps of one image
HEAT_MAPS = "Rollout of the attention, and relevance for the prediction by gradients"

# Content of each file. IMAGE is the name of an image. The files of the second model end in -1, of the third in -2, ...
PICTURES = {
    "IMAGE-heads": "attention of the output in every layer and head: A1 - lambda A2 if it is differential",
    "IMAGE-layers": "its positive part over the image, for every layer, mean of the heads",
    "IMAGE-last-layer": "its positive part over the image, for the heads of the last layer",
    "IMAGE-branches": "A1, A2 and A1 - lambda A2 of the heads of the last layer",
    "rollout": "attention through all layers (rollout), and relevance for the predicted class by gradients",
    "IMAGE-compare-heads": "IMAGE-heads of all models, side by side",
    "compare": "rollout and relevance of all models, side by side",
    "lambda": "lambda of every layer",
    "statistics": "how widely and how far each head attends, and how much to tokens that are not patches",
    "positions": "similarity of the position embeddings of all pairs of patches",
}


def draw_image(view: ModelView, index: int, folder: Path) -> None:
    """Draw what a model attends to on one image: the files of `PICTURES` whose names start with IMAGE.

    IMAGE-branches is drawn only for differential attention.

    Args:
        view: view of the model.
        index: index of the image.
        folder: folder to write to.
    """
    picture, maps = view.pictures[index], view.maps
    is_signed = maps[0].map2 is not None
    where = f"{view.title}\n{picture.name}: {view.predictions[index]}".removesuffix(": ")

    heads = _heads(view, index)
    figure = figures.plot_heads(heads.maps, f"{_method(view)} in every layer and head\n{where}", is_signed)
    figures.save(figure, folder / f"{picture.name}-heads.png", **_by_layer(heads.maps))

    attended = [layer.attended[index] for layer in maps]  # (H, rows, columns) each
    means = [layer.mean(axis=0) for layer in attended]  # (rows, columns) each
    kind = "Positive part of A1 - lambda A2" if is_signed else "Attention"
    layers = {f"layer {i}": layer[None] for i, layer in enumerate(means)}
    title = f"{kind}, mean of the heads: attention of {view.reader}\n{where}"
    figure = figures.plot_overlays([picture], layers, title, width=LINE)
    figures.save(figure, folder / f"{picture.name}-layers.png", **_by_layer(means))

    last = {f"head {i}": head[None] for i, head in enumerate(attended[-1])} | {"mean": means[-1][None]}
    title = f"{kind} in the last layer: attention of {view.reader}\n{where}"
    figure = figures.plot_overlays([picture], last, title, width=LINE)
    figures.save(figure, folder / f"{picture.name}-last-layer.png", maps=attended[-1])

    if is_signed:
        last_layer = {name: values[index] for name, values in maps[-1]._asdict().items() if name != "attended"}
        figure = figures.plot_branches(picture, **last_layer, title=f"Last layer: attention of {view.reader}\n{where}")
        figures.save(figure, folder / f"{picture.name}-branches.png", **last_layer)


def _method(view: ModelView) -> str:
    """Return what the maps of a model show, for a title."""
    return f"Attention of {view.reader}" + (": A1 - lambda A2" if view.maps[0].map2 is not None else "")


def _heads(view: ModelView, index: int) -> figures.HeadMaps:
    """Return the attention of the output to one image, in every layer and head."""
    maps = [layer.difference[index] for layer in view.maps]  # (H, rows, columns) each
    prediction = f"prediction: {view.predictions[index]}" if view.predictions[index] else "no head"
    return figures.HeadMaps(maps, view.maps[0].map2 is not None, f"{view.title}\n{_method(view)}\n{prediction}")


def _by_layer(arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Name the arrays of the layers, which may have different shapes: layer_0, layer_1, ..."""
    return {f"layer_{index}": array for index, array in enumerate(arrays)}


def draw_models(views: Sequence[ModelView], folder: Path) -> None:
    """Draw what models make of all images: the other files of `PICTURES`.

    Lambda is drawn only for differential attention, and the comparisons only for several models. Each model has its own
    rollout and positions.

    Args:
        views: views of the models on the same images.
        folder: folder to write to.
    """
    for number, view in enumerate(views):
        _draw_model(view, folder, suffix=f"-{number}" if number else "")
    if len(views) > 1:
        _draw_comparison(views, folder)
        for index in range(len(views[0].pictures)):
            _draw_all_heads(views, index, folder)
    lambdas = {view.name: view.lambdas() for view in views if view.maps[0].lam is not None}  # (L, H) each
    if lambdas:
        differential = [view for view in views if view.name in lambdas]
        title = f"Lambda of {differential[0].reader}, mean over the images\n{_titles(differential)}"
        figure = figures.plot_lambdas(lambdas, title)
        figures.save(figure, folder / "lambda.png", **lambdas)
    statistics = {view.name: view.statistics for view in views}
    count = counted(len(views[0].pictures), "image")
    title = f"Statistics of the attention on {count}, one dot per head\n{_titles(views)}"
    numbers = {f"{name} {field}": getattr(s, field) for name, s in statistics.items() for field in s._fields}
    figures.save(figures.plot_statistics(statistics, title), folder / "statistics.png", **numbers)


def _draw_model(view: ModelView, folder: Path, suffix: str) -> None:
    """Draw the heat maps through all layers, and the position embeddings."""
    pictures = [
        picture._replace(name=f"{picture.name}: {prediction}".removesuffix(": "))
        for picture, prediction in zip(view.pictures, view.predictions, strict=True)
    ]
    if view.heat_maps():
        figure = figures.plot_overlays(pictures, view.heat_maps(), f"{HEAT_MAPS}\n{view.title}")
        figures.save(figure, folder / f"rollout{suffix}.png", **view.heat_maps())
    if view.positions is not None:
        figure = figures.plot_positions(*view.positions, f"Similarity of position embeddings\n{view.title}")
        figures.save(figure, folder / f"positions{suffix}.png", similarity=view.positions[0])


def _draw_comparison(views: Sequence[ModelView], folder: Path) -> None:
    """Draw the heat maps of several models side by side, with one row per image."""
    columns, seen = {}, {}
    for kind in ("rollout", "for its prediction"):
        for view in views:
            if kind in view.heat_maps():  # a model without a head has no prediction
                columns[f"{kind}\n{view.name}"] = view.heat_maps()[kind]
                seen[f"{kind}\n{view.name}"] = view.pictures
    if columns:
        title = f"{HEAT_MAPS}\n{_titles(views)}"
        figure = figures.plot_overlays(views[0].pictures, columns, title, seen=seen)
        figures.save(figure, folder / "compare.png", **columns)


def _draw_all_heads(views: Sequence[ModelView], index: int, folder: Path) -> None:
    """Draw the attention to one image in every layer and head of all models, side by side."""
    name, models = views[0].pictures[index].name, [_heads(view, index) for view in views]
    title = f"Attention in every layer and head of {_names(views)}, image {name}"
    numbers = {
        f"{view.name} {layer}": array
        for view, heads in zip(views, models, strict=True)
        for layer, array in _by_layer(heads.maps).items()
    }
    figures.save(figures.plot_all_heads(models, title), folder / f"{name}-compare-heads.png", **numbers)


def _names(views: Sequence[ModelView]) -> str:
    return " and ".join(view.name for view in views)


def _titles(views: Sequence[ModelView]) -> str:
    return "; ".join(view.title for view in views)
