"""Progressive resizing: the size of every update, and what is refused."""

import pytest
import timm
import torch
from run_faults import small_run
from torch import nn
from torch.nn.functional import interpolate

from diffvit_timm.cli.training_options import parse_training
from diffvit_timm.data.loading import model_data_config
from diffvit_timm.errors import InputError
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.progressive import ProgressiveSizes
from diffvit_timm.training.recipe import train

pytestmark = pytest.mark.usefixtures("undrawn_figures")

SHAPE = ("patch_size=8", "embed_dim=32", "depth=1", "num_heads=2")
DYNAMIC = (*SHAPE, "dynamic_img_size=true")


@pytest.fixture
def seen_sizes(monkeypatch):
    """The (height, width) of the images of every training forward pass."""
    sizes = []
    forward = timm.models.VisionTransformer.forward

    def spied(self, x, *args, **kwargs):
        if self.training:
            sizes.append(tuple(x.shape[2:]))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(timm.models.VisionTransformer, "forward", spied)
    return sizes


@pytest.fixture
def options(image_folder):
    """Function: folder, options -> the configuration of a run of six updates, in whose network 32 pixels are whole."""

    def make(folder, **given):
        given = {"img_size": (32,), "model_kwargs": DYNAMIC, "progressive_sizes": (16, 24), "max_steps": 6, **given}
        return small_run(folder, image_folder, **given)

    return make


def test_the_images_grow_in_equal_parts_of_the_training_and_are_tested_whole(options, seen_sizes, tmp_path):
    result = train(options(tmp_path / "run"), "train")
    assert seen_sizes == [(16, 16)] * 2 + [(24, 24)] * 2 + [(32, 32)] * 2
    assert result["test_images"] > 0
    saved = timm.create_model(f"local-dir:{tmp_path}/run/best", pretrained=True).eval()
    assert saved.patch_embed.img_size == (32, 32)
    assert saved(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_a_training_whose_updates_have_no_equal_parts_gives_the_rest_to_the_first_sizes(options, seen_sizes, tmp_path):
    train(options(tmp_path / "run", max_steps=7), "train")
    assert [size[0] for size in seen_sizes] == [16, 16, 16, 24, 24, 32, 32]


def test_a_finished_run_that_is_trained_for_longer_sees_whole_images(options, seen_sizes, tmp_path):
    train(options(tmp_path / "run"), "train")
    seen_sizes.clear()
    train(options("auto", max_steps=12, resume=str(tmp_path / "run")), "train")
    assert seen_sizes == [(32, 32)] * 6


def test_images_are_resized_as_by_an_antialiased_bilinear_filter():
    images = torch.rand(2, 3, 24, 48, dtype=torch.float64)
    sizes = ProgressiveSizes(nn.Conv2d(3, 4, 3, dtype=torch.float64), (12, 16), (3, 24, 48), updates=3)
    for step, shape in enumerate([(12, 24), (16, 32)]):
        expected = interpolate(images, shape, mode="bilinear", antialias=True)
        torch.testing.assert_close(sizes.resize(images, step), expected)
    assert sizes.resize(images, 2) is images


def test_a_network_of_convolutions_takes_every_size_and_stays_in_its_mode():
    model = timm.create_model("resnet18", num_classes=2).train()
    statistics = model.bn1.running_mean.clone()
    ProgressiveSizes(model, (33, 47), (3, 64, 64), updates=3)
    assert model.training
    assert torch.equal(model.bn1.running_mean, statistics)


@pytest.mark.parametrize("attn", ["plain", "diff", "diff_v2"])
def test_the_network_of_the_fast_preset_takes_its_sizes(attn):
    config = parse_training(["--config", "cifar10_fast"])
    model = timm.create_model(config.model.model, attn=attn, num_classes=10, **config.model.keyword_arguments)
    sizes = ProgressiveSizes(model, config.optim.progressive_sizes, model_data_config(model)["input_size"], updates=6)
    images = torch.rand(2, 3, 32, 32)
    assert [sizes.resize(images, step).shape[-1] for step in range(6)] == [16, 16, 24, 24, 32, 32]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model_kwargs": SHAPE},
            r"`progressive_sizes=16`: the model does not take .* `model_kwargs=dynamic_img_size=true`",
        ),
        (
            {"progressive_sizes": (17,)},
            "`progressive_sizes=17`: the model does not take .* multiples of its patch size",
        ),
        ({"progressive_sizes": (16, 32)}, "`progressive_sizes=32` must be below the model's 32 pixels"),
        ({"progressive_sizes": (16, 640)}, "`progressive_sizes=640` must be below the model's 32 pixels"),
        ({"attn": "diff_v2", "model_kwargs": SHAPE}, "`progressive_sizes=16`: the model does not take"),
    ],
)
def test_sizes_that_a_model_does_not_take_are_one_line_before_the_training(options, given, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        train(options(tmp_path / "run", **given), "train")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("sizes", "given", "message"),
    [
        ((24, 16), {}, "`progressive_sizes=24 16` must be positive and in ascending order"),
        ((16, 16), {}, "`progressive_sizes=16 16` must be positive and in ascending order"),
        ((0,), {}, "`progressive_sizes=0` must be positive and in ascending order"),
        ((10_000,), {}, "`progressive_sizes=10000` must be at most 8192"),
        ((16,), {"teacher": "big"}, "`teacher=big` sees whole images: leave out `progressive_sizes`"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_loads(sizes, given, message):
    with pytest.raises(InputError) as caught:
        TrainConfig.from_flat("pets", "vit", progressive_sizes=sizes, **given)
    assert str(caught.value) == message
