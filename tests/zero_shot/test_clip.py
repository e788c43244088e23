"""Zero-shot classification: names into sentences into a classifier, and one line for what cannot be asked."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from diffvit_timm.errors import InputError
from diffvit_timm.zero_shot import clip as zero_shot
from diffvit_timm.zero_shot.clip import TEMPLATES, load_clip, logits, read_templates, readable, zero_shot_classifier

NAMES, SENTENCES = ["english_setter", "pug"], ("a photo of a {}.", "art of the {}.")


@pytest.fixture
def clip(clip_folder):
    return load_clip(str(clip_folder))


def test_a_classifier_is_normalised_mean_normalised_in_float64(clip, tmp_path):
    classifier = zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    for row, name in zip(classifier, ("english setter", "pug"), strict=True):
        texts = clip.tokenize([sentence.format(name) for sentence in SENTENCES])
        with torch.no_grad():
            directions = clip.model.encode_text(texts).double()
        directions = directions / directions.norm(dim=1, keepdim=True)
        mean = directions.mean(dim=0)
        torch.testing.assert_close(row.double(), mean / mean.norm(), atol=1e-6, rtol=1e-5)


def test_logits_are_scaled_cosines_as_open_clip_computes_them(clip, tmp_path):
    images = torch.randn(3, 3, 16, 16)
    classifier = zero_shot_classifier(clip, NAMES, SENTENCES[:1], tmp_path)
    texts = clip.tokenize([SENTENCES[0].format(readable(name)) for name in NAMES])
    with torch.no_grad():
        expected, _ = clip.model.get_logits(images, texts)
    torch.testing.assert_close(logits(clip, classifier, images), expected)


def test_the_order_of_the_names_is_that_of_the_classes(clip, tmp_path):
    forward = zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    assert torch.equal(zero_shot_classifier(clip, NAMES[::-1], SENTENCES, tmp_path), forward.flip(0))


def test_a_classifier_is_kept_until_model_names_or_templates_change(clip, tmp_path, monkeypatch):
    first = zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    read, encode = [], clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_text", lambda tokens: (read.append(1), encode(tokens))[1])
    assert torch.equal(zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path), first)
    assert not read
    zero_shot_classifier(clip, NAMES, SENTENCES[:1], tmp_path)
    zero_shot_classifier(clip, ["english_setter", "boxer"], SENTENCES, tmp_path)
    with torch.no_grad():
        clip.model.text_projection.mul_(2)
    zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    assert len(read) == 6
    assert len(list(tmp_path.iterdir())) == 4


def test_a_new_image_tower_needs_no_new_classifier(clip, tmp_path):
    zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    with torch.no_grad():
        clip.model.visual.proj.mul_(2)
    zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


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
    assert read_templates("auto", dataset) == TEMPLATES[key]
    assert read_templates(key, "any") == TEMPLATES[key]


def test_every_template_has_one_place_for_the_class_and_cifar_has_clips_eighteen():
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)
    assert len(set(TEMPLATES["cifar"])) == 18
    assert {"a photo of a {}.", "a low contrast photo of the {}.", "a photo of the big {}."} <= set(TEMPLATES["cifar"])


def test_templates_of_a_file_are_its_lines(tmp_path):
    (tmp_path / "own.txt").write_text("a drawing of a {}.\n\n{} in the snow\n")
    assert read_templates(str(tmp_path / "own.txt"), "any") == ("a drawing of a {}.", "{} in the snow")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a photo of a {}.\na photo\n", r"line 2: 'a photo' needs one {}"),
        ("{} and {}\n", "line 1: .* needs one {}"),
        ("\n", "has no templates"),
        (None, r"is neither one of auto, pet, cifar, .* nor a text file"),
    ],
)
def test_templates_that_are_none_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "own.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_templates(str(tmp_path / "own.txt"), "any")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN5:openai", "--clip RN5:openai: open_clip knows no CLIP of that name: did you mean RN50"),
        ("RN50", r"--clip RN50 needs a tag of its weights: RN50:openai\|"),
        ("RN50:mine", r"--clip RN50:mine needs a tag"),
        ("resnet50", "open_clip knows no CLIP of that name"),
        ("RN50:openai", r"--clip RN50:openai cannot be loaded"),  # there is no network here
        ("local-dir:nowhere", "holds no open_clip_config.json"),
    ],
)
def test_clips_that_cannot_be_had_are_one_line(name, message):
    with pytest.raises(InputError, match=message):
        load_clip(name)


@pytest.mark.parametrize(
    ("name", "quick"),
    [("ViT-B-32:openai", True), ("ViT-B-32:metaclip_400m", True), ("ViT-B-32:laion2b_s34b_b79k", False)],
)
def test_weights_get_the_activation_that_they_were_trained_with(name, quick, clip_folder, monkeypatch):
    open_clip, asked = zero_shot.open_clip_or_stop(), {}
    make = open_clip.create_model_and_transforms

    def without_weights(architecture, tag, **settings):
        asked.update(settings, tag=tag)
        return make(f"local-dir:{clip_folder}", **settings)

    monkeypatch.setattr(open_clip, "create_model_and_transforms", without_weights)
    model = load_clip(name).model
    assert asked == {"tag": name.split(":")[1], "force_quick_gelu": quick}
    assert any(isinstance(module, open_clip.transformer.QuickGELU) for module in model.modules()) == quick


def test_towers_of_equal_weights_and_another_activation_share_no_classifier(clip, tmp_path):
    first = zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    for block in clip.model.transformer.resblocks:
        block.mlp.gelu = torch.nn.ReLU()
    assert not torch.equal(zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path), first)


def test_other_braces_of_a_template_are_its_own(clip, tmp_path):
    plain = zero_shot_classifier(clip, NAMES, ("a {0} of a {}.",), tmp_path)
    assert plain.shape[0] == len(NAMES)


def test_a_folder_of_another_model_is_no_clip(tmp_path, clip_folder):
    with pytest.raises(InputError, match=r"holds no open_clip_config\.json"):
        load_clip(str(tmp_path))
    config = json.loads((clip_folder / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"--clip .* cannot be loaded"):
        load_clip(str(tmp_path))


def test_a_model_without_a_text_tower_cannot_read(clip_folder, monkeypatch):
    open_clip = zero_shot.open_clip_or_stop()
    tower = torch.nn.Linear(2, 2)
    tower.encode_image = tower.forward
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *args, **kwargs: (tower, None, None))
    with pytest.raises(InputError, match="has no text tower to read class names with"):
        load_clip(str(clip_folder))


def test_without_open_clip_the_line_says_how_to_get_it(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"pip install 'diffvit_timm\[clip\]'"):
        load_clip(str(clip_folder))


def test_directions_have_length_one(clip, tmp_path):
    classifier = zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    torch.testing.assert_close(classifier, F.normalize(classifier, dim=-1))
