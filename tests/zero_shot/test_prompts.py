"""Prompt templates: chosen by the dataset's name, or read from a file."""

import pytest

from diffvit_timm.errors import InputError
from diffvit_timm.zero_shot.prompts import TEMPLATES, auto_templates, read_templates


@pytest.mark.parametrize(
    ("dataset", "key"),
    [
        ("timm/oxford-iiit-pet", "pet"),
        ("uoft-cs/cifar10", "cifar"),
        ("zalando-datasets/fashion_mnist", "fashion"),
        ("/data/mnist", "mnist"),
        ("somewhere/else", "plain"),
    ],
)
def test_templates_are_chosen_by_the_datasets_name(dataset, key):
    assert auto_templates(dataset, ["cat", "dog"]) == TEMPLATES[key]
    assert read_templates(key) == TEMPLATES[key]


def test_a_folder_of_wordnet_ids_gets_the_templates_of_imagenet():
    assert auto_templates("/data/val", ["n01440764", "n01443537-goldfish"]) == TEMPLATES["imagenet"]
    assert auto_templates("/data/val", ["n01440764", "goldfish"]) == TEMPLATES["plain"]
    assert auto_templates("/data/pets", ["n01440764", "n01443537"]) == TEMPLATES["pet"]
    assert auto_templates("", []) == TEMPLATES["plain"]


def test_every_template_has_one_place_for_the_class_and_cifar_has_the_18_of_clip():
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)
    assert len(set(TEMPLATES["cifar"])) == 18
    assert {"a photo of a {}.", "a low contrast photo of the {}.", "a photo of the big {}."} <= set(TEMPLATES["cifar"])


def test_the_templates_of_a_file_are_its_lines(tmp_path):
    (tmp_path / "own.txt").write_text("a drawing of a {}.\n\n{} in the snow\n")
    assert read_templates(str(tmp_path / "own.txt")) == ("a drawing of a {}.", "{} in the snow")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a photo of a {}.\na photo\n", r"`templates=.*own.txt` has 'a photo' in line 2: write exactly one {}"),
        ("{} and {}\n", ".* in line 1: write exactly one {}"),
        ("\n", "has no templates"),
        (None, r"is neither one of auto, pet, cifar, .* nor a text file"),
    ],
)
def test_invalid_templates_are_errors(tmp_path, text, message):
    if text is not None:
        (tmp_path / "own.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_templates(str(tmp_path / "own.txt"))
