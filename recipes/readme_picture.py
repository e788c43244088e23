"""Draw the picture of the README: where a plain ViT and a Diff-ViT look on a test image of Oxford-IIIT Pet.

    diffvit train --config pets --epochs 1 --lambda-warmup 1 --lambda-target 0.3 --dataset FOLDER --output DIFF
    diffvit train --config pets --epochs 1 --attn plain --dataset FOLDER --output PLAIN
    python recipes/readme_picture.py DIFF PLAIN FOLDER

FOLDER is the data set, or its name on the Hub, timm/oxford-iiit-pet. All maps are attention of the class token to the
patches in the last layer, mean over the heads. The numbers below them are their range: 1 is the mean over the patches
of the plain map, and for the Diff-ViT that of A1.
"""

import sys
from pathlib import Path
from typing import Any

from datasets import load_dataset
from matplotlib.figure import Figure

from diffvit_timm.inspection.colours import AMOUNT, SIGNED
from diffvit_timm.inspection.views import view_images
from diffvit_timm.models.pretrained import load_model

IMAGE_ID = "wheaten_terrier_143"
LIMIT = 2.0  # end of the signed colour scale, beyond which colours do not change: A1 reaches 10, and A2 only 1


def main(diff_run: str, plain_run: str, dataset: str) -> None:
    rows: Any = load_dataset(dataset, split="test")
    image = rows[list(rows["image_id"]).index(IMAGE_ID)]["image"].convert("RGB")
    diff, plain = (view_images(load_model(run).eval(), run, {IMAGE_ID: image}) for run in (diff_run, plain_run))
    print(diff.predictions, plain.predictions)
    maps = diff.maps[-1]  # of the last layer
    assert maps.map2 is not None, "DIFF has plain attention"
    assert maps.lam is not None
    last_layer = (maps.map1[0], maps.map2[0], maps.difference[0], plain.maps[-1].map1[0])
    map1, map2, difference, plain_map = (heads.mean(axis=0) for heads in last_layer)  # (rows, columns) each
    lam = maps.lam[0, 0]  # all heads of a layer have the same lambda
    panels = (
        ("Plain ViT", plain_map / plain_map.mean(), AMOUNT, 0, None),
        ("Diff-ViT: A1", map1 / map1.mean(), AMOUNT, 0, None),
        ("Diff-ViT: A2", map2 / map1.mean(), AMOUNT, None, None),  # nearly uniform, so its scale does not start at 0
        (f"A1 \N{MINUS SIGN} {lam:.2f} A2", difference / map1.mean(), SIGNED, -LIMIT, LIMIT),
    )
    figure = Figure(figsize=(10, 2.55), layout="constrained")
    axes = figure.subplots(1, 5)
    axes[0].imshow(image.crop(diff.pictures[0].box).resize((224, 224)))  # the part that both networks see
    axes[0].set_title("Image", fontsize=14)
    for axis, (title, values, colours, low, high) in zip(axes[1:], panels, strict=True):
        axis.imshow(values, cmap=colours, vmin=low, vmax=high)
        axis.set_title(title, fontsize=14)
        axis.set_xlabel(f"{values.min():.1f} to {values.max():.1f}".replace("-", "\N{MINUS SIGN}"), fontsize=13)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    figure.savefig(Path(__file__).parent / "results" / "attention.png", dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
