"""The classes of a dataset are found among ImageNet's by their names."""

import pytest
import timm
import torch
from timm.data import ImageNetInfo

from diffvit_timm.errors import InputError
from diffvit_timm.zero_shot.class_names import (
    OTHER_NAMES,
    class_outputs,
    class_scores,
    imagenet_classes,
    read_class_map,
)


def description(indices):
    return [ImageNetInfo("imagenet-1k").index_to_description(index) for index in indices]


def test_breeds_are_found_under_any_of_their_names():
    setter, pit_bull, none, chin = imagenet_classes(
        ["english_setter", "american_pit_bull_terrier", "bengal", "Japanese chin"]
    )
    assert description(setter) == ["English setter"]
    assert "American Staffordshire terrier" in description(pit_bull)[0]
    assert none == []
    assert description(chin) == ["Japanese spaniel"]


def test_a_name_of_two_classes_gives_both():
    (crane,) = imagenet_classes(["crane"])
    assert len(crane) == 2


def test_every_alternative_name_is_one_of_imagenets():
    assert all(imagenet_classes(list(OTHER_NAMES)))


def test_a_class_map_takes_precedence_over_the_names(tmp_path):
    (tmp_path / "map.yaml").write_text("cat: [281, 282]\nbeagle: []\n")
    class_map = read_class_map(tmp_path / "map.yaml", ["cat", "beagle", "pug"])
    assert imagenet_classes(["cat", "beagle", "pug"], class_map) == [[281, 282], [], [254]]


def test_a_dataset_without_any_imagenet_class_is_an_error():
    with pytest.raises(InputError, match=r"none of the classes \(zero, one, two, ...\).*pass `class_map`"):
        imagenet_classes(["zero", "one", "two", "three"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("horse: [1]", r"class_map=.*map.yaml` names 'horse', but the classes of the dataset are \['cat'\]"),
        ("cat: [1000]", r"maps cat to \[1000\]: give a list of indices from 0 to 999"),
        ("cat: tabby", "maps cat to 'tabby': give a list of indices"),
        ("- cat", "is not a mapping"),
        (None, "cannot be read"),
    ],
)
def test_invalid_class_maps_are_errors(tmp_path, text, message):
    if text is not None:
        (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_class_map(tmp_path / "map.yaml", ["cat"])


def test_outputs_are_found_by_the_networks_own_label_names_first():
    model = timm.create_model(
        "test_vit", num_classes=4, pretrained_cfg_overlay={"label_names": ["a", "pug", "b", "cat"]}
    )
    assert class_outputs(model, ["cat", "pug"]) == [[3], [1]]
    assert class_outputs(timm.create_model("test_vit"), ["pug", "bengal"]) == [[254], []]
    with pytest.raises(InputError, match="the 7 classes of the network are neither the dataset's 2 by name"):
        class_outputs(timm.create_model("test_vit", num_classes=7), ["pug", "bengal"])


def test_the_score_of_a_class_is_its_largest_output_or_minus_infinity():
    scores = class_scores(torch.tensor([[1.0, 5.0, 3.0], [2.0, 0.0, 9.0]]), [[0, 1], [], [2]])
    assert scores.tolist() == [[5.0, -torch.inf, 3.0], [2.0, -torch.inf, 9.0]]
