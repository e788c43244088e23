"""The dataset of recipes/digit_masks.py serves both segmentation and classification with several labels."""

import importlib.util
from pathlib import Path

import numpy as np

from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.masks import decode_mask, load_masks

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "digit_masks.py"


def test_the_labels_of_an_image_are_the_digits_of_its_mask(image_folder, tmp_path):
    spec = importlib.util.spec_from_file_location("digit_masks", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    source = str(image_folder)  # its small images stand in for the digits and for the photographs
    recipe.main(recipe.Options(str(tmp_path / "out"), source, source, train=12, test=4, size=32))
    masks, labels = load_masks(str(tmp_path / "out")), load_splits(str(tmp_path / "out"), multi_label=True)
    assert (
        masks.class_names
        == ["background", *labels.class_names]
        == ["background", "digit cat", "digit dog", "digit owl"]
    )
    assert len(masks.train) == len(labels.train) + len(labels.val) == 12
    by_name = {Path(row["image"]["path"]).name: row["label"] for row in labels.test}
    assert len(by_name) == len(masks.test) == 4
    for row in masks.test:
        shown = set(np.unique(decode_mask(row["mask"], "a mask")).tolist()) - {0}
        assert {label + 1 for label in by_name[Path(row["image"]["path"]).name]} == shown
