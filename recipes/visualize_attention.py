"""Draw what a ViT attends to: heads, layers, rollout, and for differential attention A1, A2 and their difference.

    python recipes/visualize_attention.py cat.jpg dog.jpg --model diffvit_tiny_patch16.deit_in1k
    python recipes/visualize_attention.py cat.jpg --model runs/finetuned --compare deit_tiny_patch16_224.fb_in1k

A model is a timm name, a folder of its weights or that of a run. Beside each PNG lie its numbers, as npz.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from timm.data import create_transform
from torch import Tensor

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0
from diffvit_timm.data.images import MODES, decode_image
from diffvit_timm.data.loading import model_data_config
from diffvit_timm.errors import InputError, require_images
from diffvit_timm.files import output_folder
from diffvit_timm.inspection import figures
from diffvit_timm.inspection.attention_maps import CapturedAttention, capture_attention
from diffvit_timm.inspection.statistics import HeadStatistics, head_statistics
from diffvit_timm.inspection.overlay import patched_box
from diffvit_timm.inspection.rollout import HeatMaps, Part, heat_maps, rollout
from diffvit_timm.layers.pos_embed import PosEmbed2d
from diffvit_timm.models.pretrained import check_model, class_names, load_model, model_name, short_names


@dataclasses.dataclass(frozen=True)
class VisualizeConfig:
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    model: str = "diffvit_tiny_patch16.deit_in1k"
    """timm model name with its pretrained tag, hf-hub:NAME, or a folder: of weights, or of a run."""
    compare: tuple[str, ...] = ()
    """More models, drawn beside the first."""
    part: Part = "clamp"
    """What of signed maps the rollout follows: each head's positive part, or such a part of the heads' mean."""
    output: str = "auto"
    """Folder of the pictures, new or empty; auto: runs/attention-DATE-TIME."""

    def __post_init__(self) -> None:
        require_images(self.images)
        stems = [path.stem for path in self.images]
        if len(set(stems)) < len(stems):
            raise InputError(f"images {' '.join(map(str, self.images))}: two have one name, which their pictures take")


class Maps(NamedTuple):
    """Where what the head reads looks, (L, B, H, rows, columns) each, and its lambda, (L, B, H); plain: A1 alone."""

    difference: np.ndarray
    attended: np.ndarray
    map1: np.ndarray
    map2: np.ndarray | None = None
    lam: np.ndarray | None = None


def output_maps(captured: CapturedAttention) -> Maps:
    """The rows of what the head reads in every layer and head, one layer's maps in memory at a time."""
    rows: dict[str, list[Tensor]] = {}
    for layer in captured:
        maps = layer.maps()
        matrices = {"difference": maps.difference, "attended": maps.attended, "map1": maps.map1}
        if maps.map2 is not None and maps.lam is not None:
            matrices |= {"map2": maps.map2, "lam": maps.lam.expand_as(maps.map1)}
        for name, matrix in matrices.items():
            rows.setdefault(name, []).append(captured.output_rows(matrix))
    numbers = {name: captured.on_patches(torch.stack(layers)).numpy() for name, layers in rows.items()}
    lam = numbers.pop("lam", None)
    return Maps(**numbers, lam=None if lam is None else lam[..., 0, 0])  # lambda is the same for every patch


class Look:
    """One model, the images as it sees them, and what it makes of them."""

    def __init__(self, given: str, name: str, paths: tuple[Path, ...], part: Part, option: str) -> None:
        self.name = name
        self.model: Any = load_model(model_name(given), option=option).eval()
        try:
            CapturedAttention(self.model)
        except TypeError as error:
            raise InputError(f"{option} {given}: {error}") from error
        config = model_data_config(self.model)
        transform: Any = create_transform(**config, is_training=False)
        mode = MODES[config["input_size"][0]]
        images = [decode_image({"bytes": None, "path": str(path)}, mode, str(path)) for path in paths]
        try:
            self.pictures = [
                figures.Picture(image, patched_box(image.size, transform, self.model.patch_embed), path.stem)
                for image, path in zip(images, paths, strict=True)
            ]
        except ValueError as error:
            raise InputError(f"images {' '.join(map(str, paths))}: too long and narrow a one ({error})") from error
        batch = torch.stack([transform(image) for image in images])
        seen = [self._see(image[None], part) for image in batch]  # one at a time: maps are large
        maps, rollouts, statistics = zip(*seen, strict=True)
        joined: Any = (None if m[0] is None else np.concatenate(m, axis=1) for m in zip(*maps, strict=True))
        self.maps = Maps(*joined)
        self.rollout = np.concatenate(rollouts)
        self.statistics = HeadStatistics(*(torch.stack(s).mean(dim=0) for s in zip(*statistics, strict=True)))
        self.heat: HeatMaps | None = heat_maps(self.model, batch) if self.model.num_classes else None
        self.says = self._predictions()

    def _see(self, image: Tensor, part: Part) -> tuple[Maps, np.ndarray, HeadStatistics]:
        with capture_attention(self.model) as captured, torch.no_grad():
            self.model(image)
        self.reads = "the class token looks" if captured.reads_class_token else "patches look, on average"
        through_all = captured.on_patches(captured.output_rows(rollout(captured, part)))
        return output_maps(captured), through_all.numpy(), head_statistics(captured)

    def _predictions(self) -> list[str]:
        """Of each image the likeliest class and its probability."""
        if self.heat is None:
            return [""] * len(self.pictures)
        names = class_names(self.model)
        probabilities, classes = self.heat.logits.softmax(dim=-1).max(dim=-1)
        return [
            f"{names[c] if names else f'class {c}'} {p:.0%}"
            for p, c in zip(probabilities.tolist(), classes.tolist(), strict=True)
        ]

    def heats(self) -> dict[str, np.ndarray]:
        """The rollout, and for a model with a head what speaks for its prediction."""
        maps = {"rollout": self.rollout}
        return maps | ({"for its prediction": self.heat.relevance.numpy()} if self.heat else {})

    def positions(self) -> tuple[np.ndarray, tuple[int, int]] | None:
        """The cosine similarities of the position embeddings of all patches, and their grid."""
        grid = self.model.patch_embed.grid_size
        tables = [m.table()[0] for m in self.model.patch_embed.modules() if isinstance(m, PosEmbed2d)]
        if self.model.pos_embed is not None:
            tables.append(self.model.pos_embed[0, -grid[0] * grid[1] :])
        if not tables:
            return None
        unit = F.normalize(tables[0].detach(), dim=-1)
        return (unit @ unit.T).numpy(), grid


def draw_picture(look: Look, index: int, folder: Path) -> None:
    """All that is shown of one image: heads of every layer, layers, the last layer's heads, its two branches."""
    picture, maps = look.pictures[index], look.maps
    where = f"{look.name}, {picture.name}: {look.says[index]}"
    signed = maps.map2 is not None
    kind = "A1 - lambda A2" if signed else "attention"
    heads = maps.difference[:, index]
    figure = figures.plot_heads(heads, f"Where {look.reads}: {kind}\n{where}", signed)
    figures.save(figure, folder / f"{picture.name}-heads.png", maps=heads)
    attended = maps.attended[:, index]
    layers = {f"layer {i}": layer.mean(axis=0)[None] for i, layer in enumerate(attended)}
    what = "Positive part of A1 - lambda A2" if signed else "Attention"
    figure = figures.plot_overlays([picture], layers, f"{what}, mean of heads: where {look.reads}\n{where}", width=5)
    figures.save(figure, folder / f"{picture.name}-layers.png", maps=attended.mean(axis=1))
    last = {f"head {i}": head[None] for i, head in enumerate(attended[-1])} | {"mean": attended[-1].mean(axis=0)[None]}
    figure = figures.plot_overlays([picture], last, f"{what} in the last layer: where {look.reads}\n{where}", width=5)
    figures.save(figure, folder / f"{picture.name}-last-layer.png", maps=attended[-1])
    if maps.map2 is not None and maps.lam is not None:
        branches = {"map1": maps.map1, "map2": maps.map2, "difference": maps.difference, "lam": maps.lam}
        last_layer = {name: values[-1, index] for name, values in branches.items()}
        figure = figures.plot_branches(picture, **last_layer, title=f"Last layer: where {look.reads}\n{where}")
        figures.save(figure, folder / f"{picture.name}-branches.png", **last_layer)


def draw_models(looks: list[Look], folder: Path) -> None:
    """What is shown of all images and models: rollout, lambda, statistics, position embeddings."""
    for number, look in enumerate(looks):
        suffix = f"-{number}" if number else ""
        pictures = [p._replace(name=f"{p.name}: {s}") for p, s in zip(look.pictures, look.says, strict=True)]
        figure = figures.plot_overlays(pictures, look.heats(), look.name)
        figures.save(figure, folder / f"rollout{suffix}.png", **look.heats())
        positions = look.positions()
        if positions:
            figure = figures.plot_positions(*positions, f"Similarity of position embeddings\n{look.name}")
            figures.save(figure, folder / f"positions{suffix}.png", similarity=positions[0])
    if len(looks) > 1:
        columns = {f"{kind}\n{look.name}": maps for kind in looks[0].heats() for look in looks
                   if (maps := look.heats().get(kind)) is not None}  # fmt: skip
        seen = {f"{kind}\n{look.name}": look.pictures for kind in looks[0].heats() for look in looks}
        figure = figures.plot_overlays(looks[0].pictures, columns, "The same images, several models", seen=seen)
        figures.save(figure, folder / "compare.png", **columns)
    lambdas = {look.name: lam.mean(axis=1) for look in looks if (lam := look.maps.lam) is not None}
    if lambdas:
        figure = figures.plot_lambdas(lambdas, "Lambda of what the head reads, mean of the images")
        figures.save(figure, folder / "lambda.png", **lambdas)
    statistics = {look.name: look.statistics for look in looks}
    figure = figures.plot_statistics(statistics, f"What heads look at: {len(looks[0].pictures)} images, a dot a head")
    numbers = {f"{name} {field}": getattr(s, field) for name, s in statistics.items() for field in s._fields}
    figures.save(figure, folder / "statistics.png", **numbers)


def main() -> dict:
    config = parse_config(VisualizeConfig, description=__doc__)
    folder = output_folder(config.output, "attention")
    given = [(config.model, "--model"), *((name, "--compare") for name in config.compare)]
    for name, option in given:
        check_model(model_name(name), option=option)
    names = short_names([name for name, _ in given], "--model and --compare")
    looks = [
        Look(name, short, config.images, config.part, option)
        for (name, option), short in zip(given, names, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(config.images)):
        draw_picture(looks[0], index, folder)
    draw_models(looks, folder)
    pictures = sorted(path.name for path in folder.glob("*.png"))
    log0(f"{len(pictures)} pictures in {folder}: {', '.join(pictures)}")
    return {"output": str(folder), "predictions": {look.name: look.says for look in looks}}


if __name__ == "__main__":
    run(main)
