"""The model that a configuration describes, its data settings, and the report of its conversion."""

import dataclasses

import pytest
import timm
import torch
from datasets import Dataset
from timm.layers import Attention

from diffvit_timm import DifferentialAttention, DifferentialAttentionV2, differential_layers
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.loading import image_batches, model_data_config
from diffvit_timm.data.splits import Splits
from diffvit_timm.errors import InputError
from diffvit_timm.layers.base import attention_kind
from diffvit_timm.models.pretrained import save_pretrained
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.model import check_source, create_model

NAMES = ["cat", "dog", "owl"]
SMALL = ("depth=2",)


def config(model="diffvit_tiny_patch16", **kwargs):
    return TrainConfig.from_flat(
        "data", model, **{"pretrained": False, "img_size": (32,), "model_kwargs": SMALL, **kwargs}
    ).model


def made(cfg, names=NAMES):
    """Create the model for a dataset of these classes without images."""
    none = Dataset.from_dict({"image": [], "label": []})
    return create_model(cfg, Splits(none, none, none, names), report=False)[0]


def refusal(cfg, names=NAMES):
    """Return the message of the InputError, which must be one line."""
    with pytest.raises(InputError) as caught:
        made(cfg, names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    """A trained model of the user's own: (model, its local-dir: name)."""
    model = tiny_model(drop_path_rate=0.0).eval()
    torch.nn.init.normal_(model.head.weight)
    save_pretrained(model, tmp_path / "own", label_names=NAMES)
    return model, f"local-dir:{tmp_path}/own"


def own(name, **kwargs):
    return config(name, pretrained=True, img_size=(), model_kwargs=(), **kwargs)


def test_a_model_has_one_output_per_class_and_the_settings_that_were_given():
    model = made(config(drop_path=0.3, model_kwargs=(*SMALL, "in_chans=1", "norm_layer=rmsnorm")))
    assert {type(block.attn) for block in model.blocks} == {DifferentialAttention}
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    assert len(model.blocks) == 2
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert "rms" in type(model.norm).__name__.lower()


@pytest.mark.parametrize(("img_size", "height", "width"), [((48,), 48, 48), ((32, 48), 32, 48)])
@pytest.mark.parametrize("options", [{}, {"attn": "plain"}, {"model": "vit_tiny_patch16_224", "attn": "diff"}])
def test_the_image_size_is_one_number_or_height_and_width(img_size, height, width, options):
    model = made(config(img_size=img_size, **options))
    assert model_data_config(model)["input_size"] == (3, height, width)
    assert model(torch.randn(2, 3, height, width)).shape == (2, 3)
    assert model.pos_embed.shape[1] == (height // 16) * (width // 16) + 1


def test_without_an_image_size_the_model_keeps_its_own():
    model = made(config(img_size=(), model_kwargs=("depth=1",)))
    assert model_data_config(model)["input_size"] == (3, 224, 224)


def test_attn_chooses_the_layer():
    kinds = {attn: type(made(config(attn=attn)).blocks[0].attn) for attn in ("model", "diff", "plain")}
    assert kinds == {"model": DifferentialAttention, "diff": DifferentialAttention, "plain": Attention}


def test_any_timm_model_can_be_trained():
    model = made(config("test_vit", img_size=(), model_kwargs=()))
    assert model.num_classes == 3


@pytest.mark.parametrize("attn", ["model", "diff", "diff_v2", "plain"])
def test_the_generic_architecture_is_trained_with_a_base(attn):
    model = made(config("diffvit", attn=attn, model_kwargs=("base=beit_base_patch16_224", "embed_dim=48", "depth=2")))
    assert attention_kind(model) == ("diff" if attn == "model" else attn)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert "`model=diffvit` needs the name of a plain network: pass `model_kwargs=base=" in refusal(config("diffvit"))
    unknown = config("diffvit", model_kwargs=("base=vit_tinyest_patch16_224",))
    assert refusal(unknown).startswith("`model_kwargs=base=vit_tinyest_patch16_224` is not known to timm: did you mean")


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("vit_small_patch16_rope_mixed_224", "rope.freqs"),
        ("vit_srelpos_small_patch16_224", "shared_rel_pos.mlp.fc1.weight"),
    ],
)
def test_positions_that_all_blocks_share_are_frozen_with_the_first_blocks(name, shared):
    model = made(config(name, attn="diff_v2", freeze="1"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert shared in dict(model.named_parameters())
    assert shared not in trained
    assert {key.split(".")[1] for key in trained if key.startswith("blocks.")} == {"1"}
    free = made(config(name, attn="diff_v2", freeze="none"))
    assert dict(free.named_parameters())[shared].requires_grad


@pytest.mark.parametrize("name", ["vit_dwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"])
def test_timms_own_differential_networks_are_trained_as_they_are(name):
    model = made(config(name))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert "is differential already" in refusal(config(name, attn="diff"))


def test_an_unknown_model_is_refused_with_a_suggestion():
    message = refusal(config("diffvit_tiny_patch61"))
    assert message.startswith("`model=diffvit_tiny_patch61` is not known to timm: did you mean ")
    assert "diffvit_tiny_patch16" in message
    assert refusal(config("xyzzy")).startswith("`model=xyzzy` is not known to timm")
    assert refusal(config("ftp:somewhere")).startswith("`model=ftp:somewhere` is neither a model name nor ")


def test_an_unknown_tag_is_refused_with_the_tags_there_are():
    message = refusal(config("diffvit_tiny_patch16.deit"))
    assert message.startswith("`model=diffvit_tiny_patch16.deit` has no such tag: choose one of ")
    for tag in ("deit_in1k", "augreg_in21k", "augreg_in21k_ft_in1k"):
        assert f"diffvit_tiny_patch16.{tag}" in message


def test_attn_diff_converts_a_plain_vit_and_keeps_its_data_settings():
    plain = config("vit_tiny_patch16_224.augreg_in21k_ft_in1k", attn="plain")
    assert isinstance(made(plain).blocks[0].attn, Attention)
    asked = dataclasses.replace(plain, attn="diff", model_kwargs=(*SMALL, "lambda_init=0.1"), drop_path=0.2)
    model = made(asked)
    assert {type(block.attn) for block in model.blocks} == {DifferentialAttention}
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert [layer.lambda_init.item() for layer in differential_layers(model)] == pytest.approx([0.1, 0.1])
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    cfg = model_data_config(model)
    assert (cfg["mean"], cfg["input_size"]) == ((0.5, 0.5, 0.5), (3, 32, 32))


def test_attn_diff_is_refused_for_networks_that_cannot_be_converted():
    message = refusal(config("test_resnet", attn="diff", img_size=(), model_kwargs=()))
    assert message.startswith("`model=test_resnet` cannot be converted with `attn=diff`, ")
    assert "it has no self-attention layer" in message


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_network_that_cannot_be_converted_is_refused_before_data_and_weights_are_loaded(pretrained):
    resnet = config("resnet50", attn="diff", pretrained=pretrained, img_size=(), model_kwargs=())
    with pytest.raises(
        InputError, match=r"^`model=resnet50` cannot be converted with `attn=diff`, .*no self-attention"
    ):
        check_source(resnet)


def test_an_argument_that_timm_does_not_accept_is_an_input_error():
    assert refusal(config(model_kwargs=("heads=3",))).startswith("`model=diffvit_tiny_patch16` cannot be created: ")


def test_weights_that_cannot_be_loaded_are_an_input_error_that_says_what_to_do():
    message = refusal(config("diffvit_tiny_patch16.augreg_in21k", pretrained=True, img_size=(), model_kwargs=()))
    assert message.startswith(
        "`model=diffvit_tiny_patch16.augreg_in21k` cannot be loaded: it is not in the cache and cannot be "
    )
    assert "pass `pretrained=False`" in message


def test_a_missing_checkpoint_folder_is_an_input_error(tmp_path):
    assert refusal(own(f"local-dir:{tmp_path}/nowhere")).startswith(f"`model=local-dir:{tmp_path}/nowhere` ")


def test_the_users_own_head_is_kept_when_the_classes_agree(checkpoint):
    model, name = checkpoint
    loaded, images = made(own(name)).eval(), torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("names", [["cat", "owl", "dog"], ["ant", "bee", "fly"], [*NAMES, "yak"], NAMES[:2]])
def test_the_users_own_head_of_other_classes_is_replaced_only_when_asked(checkpoint, names):
    model, name = checkpoint
    message = refusal(own(name), names)
    assert message.startswith(f"`model={name}` has a head of 3 classes")
    assert f"differ from the {len(names)} classes of the dataset" in message
    assert "pass `reset_head`" in message

    fresh = made(own(name, reset_head=True), names).eval()
    assert fresh.num_classes == len(names)
    assert not torch.equal(fresh.head.weight[:2], model.head.weight[:2])
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(fresh.forward_features(images), model.forward_features(images))


def test_without_saved_class_names_only_their_number_is_compared(tiny_model, tmp_path):
    save_pretrained(tiny_model(), tmp_path / "own")
    assert made(own(f"local-dir:{tmp_path}/own"), ["x", "y", "z"]).num_classes == 3
    assert "pass `reset_head`" in refusal(own(f"local-dir:{tmp_path}/own"), ["x", "y"])


def test_the_attention_of_the_users_own_checkpoint_is_not_replaced_silently(checkpoint):
    message = refusal(own(checkpoint[1], attn="plain"))
    assert message.startswith("`attn=plain`: ")
    assert "already has the attention diff" in message


def test_settings_of_the_attention_are_not_dropped_silently(checkpoint):
    name = checkpoint[1]
    refusal(dataclasses.replace(own(name), model_kwargs=("head_norm=True",)))
    refusal(config("vit_tiny_patch16_224", model_kwargs=(*SMALL, "lambda_init=0.1")))


@pytest.fixture
def plain_checkpoint(tmp_path):
    """A plain ViT of the user's own, in a folder whose path says diffvit: (model, its local-dir: name)."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3).eval()
    torch.nn.init.normal_(model.head.weight)
    folder = tmp_path / "diffvit-comparison" / "plain"
    save_pretrained(model, folder, label_names=NAMES)
    return model, f"local-dir:{folder}"


def test_a_folder_with_diffvit_in_its_path_may_contain_a_plain_model(plain_checkpoint):
    model, name = plain_checkpoint
    loaded, images = made(own(name)).eval(), torch.randn(2, 3, 160, 160)
    assert torch.equal(loaded(images), model(images))


def test_the_users_own_plain_checkpoint_is_converted_with_its_head_and_reported(plain_checkpoint, splits):
    model, name = plain_checkpoint
    converted, report = create_model(own(name, attn="diff"), splits)
    assert len(differential_layers(converted)) == len(converted.blocks)
    assert torch.equal(converted.head.weight, model.head.weight)
    assert report.images == len(splits.val)
    assert report.output_error < 1
    assert create_model(own(name), splits)[1] is None


@pytest.mark.parametrize(
    ("attn", "conversion", "options", "layer"),
    [
        ("diff", "calibrated", {"calibration_images": 5}, DifferentialAttention),
        ("diff", "pairs", {"calibration_images": 5}, DifferentialAttention),
        ("diff_v2", "auto", {}, DifferentialAttentionV2),
        ("diff_v2", "contrast", {"calibration_images": 5}, DifferentialAttentionV2),
    ],
)
def test_every_conversion_is_an_option_of_the_recipe(plain_checkpoint, splits, attn, conversion, options, layer):
    name = plain_checkpoint[1]
    converted, report = create_model(own(name, attn=attn, conversion=conversion, **options), splits)
    assert {type(block.attn) for block in converted.blocks} == {layer}
    assert report.output_error < (1e-5 if (attn, conversion) == ("diff_v2", "auto") else 1)
    assert all(block.attn.num_heads == (1 if conversion == "pairs" else 2) for block in converted.blocks)


def test_calibration_images_are_drawn_from_all_classes_of_a_sorted_split(splits, tiny_model):
    ordered = splits.train.select(sorted(range(len(splits.train)), key=splits.train["label"].__getitem__))
    drawn = torch.cat(list(image_batches(tiny_model(), ordered, 12)))
    everything = torch.cat(list(image_batches(tiny_model(), ordered)))
    places = [next(i for i, other in enumerate(everything) if torch.equal(image, other)) for image in drawn]
    assert {ordered[place]["label"] for place in places} == {0, 1, 2}


def test_options_of_a_conversion_are_not_dropped_silently(checkpoint, plain_checkpoint):
    ours, plain = checkpoint[1], plain_checkpoint[1]
    assert "`attn=diff_v2`: `model=" in refusal(own(ours, attn="diff_v2"))
    assert "`conversion=slice` has no effect" in refusal(own(ours, conversion="slice"))
    assert "`conversion=svd` has no effect" in refusal(own(plain, conversion="svd"))
    assert "`conversion=svd` has no effect" in refusal(config(conversion="svd", attn="plain"))
    assert "`model_kwargs=lambda_init=0.3`" in refusal(
        dataclasses.replace(own(ours, attn="diff"), model_kwargs=("lambda_init=0.3",))
    )


def test_a_probe_does_not_replace_the_users_own_head_unless_asked(checkpoint):
    assert "`head_init=probe` would replace the head" in refusal(own(checkpoint[1], head_init="probe"))
    made(own(checkpoint[1], head_init="probe", reset_head=True))


def test_timms_one_liner_can_be_trained_for_comparison(hub_cache):
    stock = config("deit_tiny_patch16_224.fb_in1k", pretrained=True, img_size=(), model_kwargs=("attn_layer=diff",))
    model = made(stock)
    assert type(model.blocks[0].attn).__name__ == "DiffAttention"
    assert model.num_classes == 3


def test_a_conversion_of_another_attention_is_refused(plain_checkpoint):
    assert "conversion 'mirror' is not one of attn='diff'" in refusal(
        own(plain_checkpoint[1], attn="diff", conversion="mirror")
    )


def test_a_network_that_a_conversion_does_not_apply_to_is_refused_before_its_weights_are_read():
    normed = config("vit_tiny_patch16_224", attn="diff_v2", conversion="contrast", model_kwargs=("qk_norm=True",))
    with pytest.raises(
        InputError, match=r"`conversion=contrast`: blocks.0.attn: conversion 'contrast' scales the quer"
    ):
        check_source(normed)


def test_the_data_settings_follow_the_model_and_not_only_its_checkpoint():
    cfg = model_data_config(made(config("diffvit_tiny_patch16.deit_in1k", img_size=(96,), model_kwargs=())))
    assert cfg["input_size"] == (3, 96, 96)
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert cfg["interpolation"] == "bicubic"
    assert cfg["crop_pct"] == 0.9

    augreg = model_data_config(made(config("diffvit_tiny_patch16.augreg_in21k")))
    assert augreg["mean"] == augreg["std"] == (0.5, 0.5, 0.5)


def test_a_grey_model_of_a_colour_checkpoint_takes_the_mean_of_its_channels():
    grey = made(config("diffvit_tiny_patch16.deit_in1k", img_size=(96,), model_kwargs=("in_chans=1",)))
    cfg = model_data_config(grey)
    assert cfg["input_size"] == (1, 96, 96)
    assert cfg["mean"] == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert cfg["std"] == pytest.approx(((0.229 + 0.224 + 0.225) / 3,))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_batches_are_those_of_evaluation(splits, tiny_model, channels):
    model = tiny_model(in_chans=channels)
    images = torch.cat(list(image_batches(model, splits.test, 5)))
    assert images.shape == (5, channels, 16, 16)
    everything = torch.cat(list(image_batches(model, splits.test)))
    assert len(everything) == len(splits.test)
    assert all(any(torch.equal(image, other) for other in everything) for image in images)
    assert len(torch.cat(list(image_batches(model, splits.test, 1000)))) == len(splits.test)


def test_a_model_of_four_channels_is_refused_because_images_have_one_or_three(splits):
    cfg = config(model_kwargs=(*SMALL, "in_chans=4"))
    with pytest.raises(InputError, match="in_chans"):
        list(image_batches(made(cfg), splits.test, 1))


def test_nothing_is_reported_if_nothing_is_converted(splits, checkpoint):
    assert create_model(config(), splits)[1] is None
    assert create_model(own(checkpoint[1]), splits)[1] is None


def test_a_plain_twin_has_no_report(splits, hub_cache):
    plain = config("diffvit_tiny_patch16.deit_in1k", pretrained=True, attn="plain", img_size=(), model_kwargs=())
    assert create_model(plain, splits)[1] is None
    stock = config("deit_tiny_patch16_224.fb_in1k", pretrained=True, img_size=(), model_kwargs=())
    assert create_model(stock, splits)[1] is None


def test_converted_deit_agrees_with_its_source_on_real_pets(pets, hub_cache):
    splits = load_splits(str(pets))
    splits = dataclasses.replace(splits, val=splits.val.select(range(24)))
    reports = {
        method: create_model(
            config("diffvit_tiny_patch16.deit_in1k", pretrained=True, img_size=(), model_kwargs=(), conversion=method),
            splits,
        )[1]
        for method in ("svd", "slice")
    }
    assert reports["svd"].images == 24
    assert reports["svd"].agreement > 0.8
    assert reports["svd"].lambdas == pytest.approx([0.05] * 12)
    assert reports["slice"].agreement < reports["svd"].agreement
