"""Progressive resizing: the size of every update, and what is refused."""

from collections import Counter

import pytest
import timm
import torch
from run_faults import small_run
from torch.nn.functional import interpolate

from diffvit_timm.cli.training_options import parse_training
from diffvit_timm.console import counted
from diffvit_timm.errors import InputError
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.progressive import ProgressiveSizes, check_sizes
from diffvit_timm.training.recipe import train

pytestmark = pytest.mark.usefixtures("undrawn_figures")

SHAPE = ("patch_size=8", "embed_dim=32", "depth=1", "num_heads=2")
TOO_EARLY = "could stop before the images have the model's size"
DYNAMIC = (*SHAPE, "dynamic_img_size=true")


@pytest.fixture
def seen(monkeypatch):
    """The (height, width) of the images of every forward pass: in training mode, and in evaluation mode."""
    sizes = {True: [], False: []}
    forward = timm.models.VisionTransformer.forward

    def spied(self, x, *args, **kwargs):
        if x.device.type != "meta" and len(x) > 1:  # not the image that checks the sizes
            sizes[self.training].append(tuple(x.shape[2:]))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(timm.models.VisionTransformer, "forward", spied)
    return sizes


@pytest.fixture
def options(image_folder):
    """Function: folder, options -> the configuration of a run of six updates, whose network takes 32 pixels."""

    def make(folder, **given):
        given = {"img_size": (32,), "model_kwargs": DYNAMIC, "progressive_sizes": (16, 24), "max_steps": 6, **given}
        return small_run(folder, image_folder, **given)

    return make


def test_the_images_grow_in_equal_parts_of_the_training_and_are_evaluated_at_the_size_of_the_model(
    options, seen, tmp_path, capsys
):
    result = train(options(tmp_path / "run"), "train")
    assert seen[True] == [(16, 16)] * 2 + [(24, 24)] * 2 + [(32, 32)] * 2
    assert set(seen[False]) == {(32, 32)}
    assert result["updates"] == 6
    stages = "16 pixels for 2 updates, 24 pixels for 2 updates, 32 pixels for 2 updates"
    assert f"sizes of the training images: {stages}\n" in capsys.readouterr().err
    saved = timm.create_model(f"local-dir:{tmp_path}/run/best", pretrained=True).eval()
    assert saved.patch_embed.img_size == (32, 32)


@pytest.mark.parametrize("updates", [3, 7, 8])
def test_a_training_without_equal_parts_gives_the_rest_to_the_first_sizes(options, seen, tmp_path, capsys, updates):
    train(options(tmp_path / "run", max_steps=updates), "train")
    printed = capsys.readouterr().err
    lengths = {size: updates // 3 + (part < updates % 3) for part, size in enumerate((16, 24, 32))}
    assert Counter(size[0] for size in seen[True]) == lengths
    assert all(f"{size} pixels for {counted(length, 'update')}" in printed for size, length in lengths.items())


@pytest.mark.parametrize("is_dry", [False, True])
def test_a_training_with_fewer_updates_than_sizes_is_refused(options, tmp_path, is_dry):
    with pytest.raises(InputError) as caught:
        train(options(tmp_path / "run", max_steps=2, dry_run=is_dry, resume="never"), "train")
    message = "`progressive_sizes=16 24` needs a training of at least 3 updates, but this one has 2"
    assert str(caught.value) == message


def test_a_finished_run_that_is_trained_for_longer_goes_on_at_the_size_of_the_model(options, seen, tmp_path):
    train(options(tmp_path / "run"), "train")
    seen[True].clear()
    train(options("auto", max_steps=12, resume=str(tmp_path / "run")), "train")
    assert seen[True] == [(32, 32)] * 6


def test_a_dry_run_measures_the_size_of_the_model_and_gives_an_upper_bound(options, seen, tmp_path, capsys):
    train(options(tmp_path / "run", resume="never", dry_run=True), "train")
    assert seen[True] == [(32, 32)] * 2
    assert "dry run: at most about " in capsys.readouterr().err


def test_a_test_of_a_run_needs_no_sizes(options, tmp_path):
    train(options(tmp_path / "run"), "train")
    tested = options(tmp_path / "test", model_kwargs=(), img_size=(24,), resume="never", pretrained=True)
    result = train(tested.replace(model=str(tmp_path / "run" / "best"), eval_only=True), "test")
    assert result["test_images"] == 18


def test_images_are_resized_as_by_an_antialiased_bilinear_filter():
    images = torch.rand(2, 3, 24, 48, dtype=torch.float64)
    model = timm.create_model("diffvit_nano", in_chans=3, img_size=(24, 48), patch_size=4, dynamic_img_size=True)
    sizes = ProgressiveSizes(model, (12, 16), updates=3)
    for step, shape in enumerate([(12, 24), (16, 32)]):
        expected = interpolate(images, shape, mode="bilinear", antialias=True)
        torch.testing.assert_close(sizes.resize(images, step), expected)
    assert sizes.resize(images, 2) is images


def test_the_check_of_the_sizes_changes_no_mode_and_no_statistics():
    model = timm.create_model("resnet18", num_classes=2).train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    statistics = model.bn1.running_mean.clone()
    check_sizes(model, (33, 47))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.bn1.running_mean, statistics)


@pytest.mark.parametrize("attn", ["plain", "diff", "diff_v2"])
def test_the_network_of_the_fast_preset_takes_its_sizes(attn):
    config = parse_training(["--config", "cifar10_fast"])
    model = timm.create_model(config.model.model, attn=attn, num_classes=10, **config.model.keyword_arguments)
    sizes = ProgressiveSizes(model, config.optim.progressive_sizes, updates=6)
    images = torch.rand(2, 3, 32, 32)
    assert [sizes.resize(images, step).shape[-1] for step in range(6)] == [16, 16, 24, 24, 32, 32]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_kwargs": SHAPE}, r"`progressive_sizes=16`: .* 16 x 16 pixels .* `model_kwargs=dynamic_img_size=true`"),
        ({"progressive_sizes": (17,)}, r"`progressive_sizes=17`: .* 17 x 17 pixels .* multiples of its patch size"),
        ({"img_size": (32, 48), "progressive_sizes": (16, 24)}, "`progressive_sizes=24`: .* 24 x 36 pixels"),
        ({"progressive_sizes": (16, 32)}, "`progressive_sizes=32` must be smaller than the model's size of 32 pixels"),
        ({"progressive_sizes": (640,)}, "`progressive_sizes=640` must be smaller than the model's size of 32 pixels"),
        ({"attn": "diff_v2", "model_kwargs": SHAPE}, "`progressive_sizes=16`: the model does not take"),
    ],
)
def test_sizes_that_a_model_does_not_take_are_one_line_before_any_data_is_loaded(options, given, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        train(options(tmp_path / "run", **given).replace(dataset="nowhere"), "train")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sizes", "given", "message"),
    [
        ((24, 16), {}, "`progressive_sizes=24 16` must be positive and in ascending order"),
        ((16, 16), {}, "`progressive_sizes=16 16` must be positive and in ascending order"),
        ((0,), {}, "`progressive_sizes=0` must be positive and in ascending order"),
        ((10_000,), {}, "`progressive_sizes=10000` must be at most 8192"),
        ((16,), {"teacher": "big"}, "`teacher=big` needs images of its own size: leave out `progressive_sizes`"),
        ((16,), {"patience": 3}, f"`patience=3` {TOO_EARLY}: leave out `progressive_sizes`"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_loads(sizes, given, message):
    with pytest.raises(InputError) as caught:
        TrainConfig.from_flat("pets", "vit", progressive_sizes=sizes, **given)
    assert str(caught.value) == message
