"""Pictures of attention during a training: they show the same images, and do not change the training."""

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file

from diffvit_timm.errors import InputError
from diffvit_timm.training.attention_pictures import AttentionPictures
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.recipe import train

SHAPE = ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")


@pytest.fixture
def config(image_folder, tmp_path):
    return TrainConfig.from_flat(
        str(image_folder), "diffvit_tiny_patch16", pretrained=False, img_size=(16,), model_kwargs=SHAPE,
        epochs=3, batch_size=8, workers=0, augment="flip", output=str(tmp_path / "run")
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "grad_checkpointing": True}, {"attn": "plain"}])
def test_every_second_epoch_has_a_picture_and_the_training_is_the_same(config, tmp_path, options):
    config = config.replace(**options)
    train(config, "recipe")
    drawn = config.replace(output=str(tmp_path / "drawn"), attention_every=2)
    train(drawn, "recipe")
    assert {path.name for path in (tmp_path / "drawn" / "attention").iterdir()} == {"epoch-002.png", "epoch-002.npz"}
    assert not (tmp_path / "run" / "attention").exists()
    weights = [load_file(tmp_path / run / "best" / "model.safetensors") for run in ("run", "drawn")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    numbers = np.load(tmp_path / "drawn" / "attention" / "epoch-002.npz")
    assert set(numbers) == {"last layer", "rollout", "for its class, by gradients"}
    assert numbers["rollout"].shape == (4, 2, 2)


class Album(GeneralTracker):
    """A tracker that accepts pictures."""

    name = "album"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self):
        super().__init__()
        self.pictures = []

    tracker = None

    def store_init_configuration(self, values):
        pass

    def log(self, values, step, **kwargs):
        pass

    def log_images(self, values, step, **kwargs):
        self.pictures.append((values, step, kwargs))


def test_a_tracker_that_accepts_pictures_gets_them(tiny_model, splits, tmp_path):
    model = tiny_model()
    album = Album()
    accelerator = Accelerator(cpu=True, log_with=album)
    accelerator.trackers = [album]
    pictures = AttentionPictures(model, splits.val, splits.class_names, tmp_path / "attention", "tiny on animals")
    pictures.draw(model, "epoch-001", accelerator, 7)
    ((values, step, kwargs),) = album.pictures
    assert values["attention"].dtype == np.uint8
    assert values["attention"].shape[0] == 1
    assert values["attention"].shape[3] == 3
    assert (step, kwargs) == (7, {})


def test_a_network_without_attention_is_refused_before_the_training(config, tmp_path):
    with pytest.raises(InputError, match="`attention_every`: the attention of a ConvNeXt cannot be captured"):
        train(config.replace(model="test_convnext", img_size=(), model_kwargs=(), attention_every=1), "recipe")
    assert not list(tmp_path.iterdir())
    assert timm.is_model("test_convnext")


def test_grey_images_are_drawn_grey(tiny_model, splits, tmp_path, saved_figures):
    model = tiny_model(in_chans=1)
    AttentionPictures(model, splits.val, splits.class_names, tmp_path / "attention", "tiny").draw(
        model, "epoch-001", Accelerator(cpu=True), 1
    )
    assert saved_figures[0].axes[0].images[0].get_array().ndim == 2
