"""A stem of convolutions instead of the patch embedding, compared with its formula in float64."""

import pytest
import timm
import torch
import torch.nn.functional as F

import diffvit_timm
from diffvit_timm.models.pretrained import save_pretrained


def small(stem=(4, 6), **kwargs):
    torch.manual_seed(0)
    shape = dict(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    return timm.create_model("diffvit_tiny_patch16", stem=stem, **{**shape, **kwargs})


def test_the_patches_are_those_of_the_formula():
    model = small().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for norm in (module for module in model.patch_embed.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    first, second, last = model.patch_embed.proj
    x = images
    for layer, stride in ((first, 1), (second, 2)):
        x = F.conv2d(x, layer.conv.weight, stride=stride, padding=1)
        mean, variance = (statistic.view(-1, 1, 1) for statistic in (layer.bn.running_mean, layer.bn.running_var))
        x = (x - mean) / (variance + layer.bn.eps).sqrt() * layer.bn.weight.view(-1, 1, 1) + layer.bn.bias.view(
            -1, 1, 1
        )
        x = x.relu()
    x = F.conv2d(x, last.conv.weight, last.conv.bias, stride=2, padding=1)
    torch.testing.assert_close(model.eval().patch_embed(images), x.flatten(2).mT)


@pytest.mark.parametrize(
    ("patch_size", "stem", "strides"),
    [(2, (), [2]), (4, (8,), [2, 2]), (4, (8, 8, 8), [1, 1, 2, 2]), (8, (4, 4), [2, 2, 2])],
)
def test_the_last_convolutions_halve_the_image_until_there_is_one_vector_per_patch(patch_size, stem, strides):
    model = small(stem, patch_size=patch_size)
    assert [layer.conv.stride[0] for layer in model.patch_embed.proj] == strides
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize("pos_embed", ["learn", "sincos"])
@pytest.mark.parametrize("attn", ["diff", "diff_v2", "plain", "gated"])
def test_a_saved_network_with_a_stem_loads_by_name_with_equal_bits(attn, pos_embed, tmp_path):
    model = small(attn=attn, pos_embed=pos_embed)
    model(torch.randn(4, 3, 16, 16))  # the statistics of BatchNorm are saved, too
    save_pretrained(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), model.eval()(images))


def test_its_first_convolution_is_adapted_to_grey_images(tmp_path):
    save_pretrained(small(), tmp_path)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1).eval()
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(grey(images), small().eval()(images.expand(-1, 3, -1, -1)))


def test_a_plain_network_with_a_stem_can_be_converted():
    plain = small(attn="plain").eval()
    converted = diffvit_timm.from_vit(plain, attn="diff_v2").eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(converted(images), plain(images))


def test_it_can_be_scripted_and_read_images_of_another_size():
    model = small().eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))
    model.set_input_size(32, patch_size=4)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("stem", "patch_size", "message"),
    [
        ([8], 6, r"stem=\[8\] needs square patches whose side is a power of two, not patch_size=\(6, 6\)"),
        ([8], (4, 2), r"stem=\[8\] needs square patches"),
        ([8], 8, r"stem=\[8\] has too few convolutions: patches of 8 pixels need 2 channels or more"),
        (8, 4, r"stem=8 must be a list of channels"),
        ([8, 0], 4, r"stem=\[8, 0\] must be a list of channels, whole numbers above 0, such as \[32, 64\]"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused(stem, patch_size, message):
    with pytest.raises(ValueError, match=message):
        small(stem, patch_size=patch_size, img_size=24)


def test_the_size_of_the_patches_of_a_stem_cannot_change():
    with pytest.raises(ValueError, match=r"patch_size=8: the convolutions of a stem have a fixed size"):
        small().set_input_size(patch_size=8)


def test_pretrained_weights_of_another_patch_embedding_are_refused(tmp_path):
    save_pretrained(small(None), tmp_path)
    with pytest.raises(RuntimeError, match="the checkpoint has no stem"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, stem=(4, 6))
