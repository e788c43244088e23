"""Zero-shot classification: names become sentences, sentences a classifier; every error is one line."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from diffvit_timm.errors import InputError
from diffvit_timm.zero_shot.clip import (
    ImageTower,
    load_clip,
    require_open_clip,
    zero_shot_classifier,
    zero_shot_logits,
)
from diffvit_timm.zero_shot.imagenet_names import readable

NAMES, SENTENCES = ["english_setter", "pug"], ("a photo of a {}.", "art of the {}.")


@pytest.fixture
def clip(clip_folder):
    return load_clip(str(clip_folder))


def test_a_row_is_the_normalised_mean_of_normalised_sentences_in_float64(clip, tmp_path):
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
        embeddings = ImageTower(clip.model.visual)(images)
    torch.testing.assert_close(zero_shot_logits(embeddings, classifier, clip.model.logit_scale.exp().item()), expected)


def test_the_rows_are_in_the_order_of_the_names(clip, tmp_path):
    forward = zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    assert torch.equal(zero_shot_classifier(clip, NAMES[::-1], SENTENCES, tmp_path), forward.flip(0))


def test_a_classifier_is_cached_until_model_names_or_templates_change(clip, tmp_path, monkeypatch):
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


def test_another_image_tower_uses_the_cached_classifier(clip, tmp_path):
    zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    with torch.no_grad():
        clip.model.visual.proj.mul_(2)
    zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN5:openai", "`clip=RN5:openai` is not known to open_clip: did you mean RN50"),
        ("RN50", "`clip=RN50` needs a known tag of its weights: open_clip has RN50:openai, "),
        ("RN50:mine", "`clip=RN50:mine` needs a known tag"),
        ("resnet50", "`clip=resnet50` is not known to open_clip"),
        ("RN50:openai", "`clip=RN50:openai` cannot be loaded"),  # there is no network here
        ("local-dir:nowhere", "`clip=local-dir:nowhere` has no open_clip_config.json"),
    ],
)
def test_names_that_cannot_be_loaded_are_errors_of_one_line(name, message):
    with pytest.raises(InputError, match=message):
        load_clip(name)


@pytest.mark.parametrize(
    ("name", "quick"),
    [("ViT-B-32:openai", True), ("ViT-B-32:metaclip_400m", True), ("ViT-B-32:laion2b_s34b_b79k", False)],
)
def test_weights_get_the_activation_of_their_training(name, quick, clip_folder, monkeypatch):
    open_clip, asked = require_open_clip(), {}
    make = open_clip.create_model_and_transforms

    def without_weights(architecture, tag, **settings):
        asked.update(settings, tag=tag)
        return make(f"local-dir:{clip_folder}", **settings)

    monkeypatch.setattr(open_clip, "create_model_and_transforms", without_weights)
    model = load_clip(name).model
    assert asked == {"tag": name.split(":")[1], "force_quick_gelu": quick}
    assert any(isinstance(module, open_clip.transformer.QuickGELU) for module in model.modules()) == quick


def test_another_activation_does_not_use_the_cached_classifier(clip, tmp_path):
    first = zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    for block in clip.model.transformer.resblocks:
        block.mlp.gelu = torch.nn.ReLU()
    assert not torch.equal(zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path), first)


def test_other_braces_of_a_template_stay_as_they_are(clip, tmp_path):
    plain = zero_shot_classifier(clip, NAMES, ("a {0} of a {}.",), tmp_path)
    assert plain.shape[0] == len(NAMES)


def test_a_folder_without_a_clip_model_is_an_error(tmp_path, clip_folder):
    with pytest.raises(InputError, match=r"has no open_clip_config\.json"):
        load_clip(str(tmp_path))
    config = json.loads((clip_folder / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"`clip=.* cannot be loaded"):
        load_clip(str(tmp_path))


def test_a_model_without_a_text_tower_is_an_error(clip_folder, monkeypatch):
    open_clip = require_open_clip()
    tower = torch.nn.Linear(2, 2)
    tower.encode_image = tower.forward
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *args, **kwargs: (tower, None, None))
    with pytest.raises(InputError, match="has no text tower for the class names"):
        load_clip(str(clip_folder))


def test_without_open_clip_the_error_says_how_to_install_it(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"pip install 'diffvit_timm\[clip\]'"):
        load_clip(str(clip_folder))


def test_rows_have_length_one(clip, tmp_path):
    classifier = zero_shot_classifier(clip, NAMES, SENTENCES, tmp_path)
    torch.testing.assert_close(classifier, F.normalize(classifier, dim=-1))
