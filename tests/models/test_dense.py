"""Dense heads and the feature pyramid on plain, differential and hierarchical networks."""

import pytest
import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from diffvit_timm import from_vit
from diffvit_timm.errors import InputError
from diffvit_timm.models.pyramid import FeaturePyramid
from diffvit_timm.models.segmentation import SegmentationNetwork, resize


def plain_vit(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=4, img_size=64, num_classes=5, **kwargs)


def test_the_linear_head_reads_the_last_blocks_side_by_side():
    network = SegmentationNetwork(plain_vit(), 3, "linear", layers=2).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        maps = network.backbone.forward_intermediates(images, indices=[2, 3], norm=True, intermediates_only=True)
        torch.testing.assert_close(network.features(images), torch.cat(maps, dim=1))
        assert network(images).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_only_the_head_of_a_frozen_network_is_trained_and_its_backbone_stays_in_evaluation(head):
    network = SegmentationNetwork(plain_vit(), 3, head).train()
    assert not network.backbone.training
    assert network.head.training
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in network.head.parameters())
    assert all(p.grad is None and not p.requires_grad for p in network.backbone.parameters())


def test_fine_tuning_trains_the_backbone_too():
    network = SegmentationNetwork(plain_vit(), 3, "conv", layers=1, frozen=False).train()
    assert network.backbone.training
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for name, p in network.backbone.named_parameters() if not name.startswith("head"))


def test_the_maps_of_a_hierarchical_network_get_the_finest_resolution():
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 4, 8))
    network = SegmentationNetwork(swin, 3, "linear", layers=2).eval()
    assert network(torch.randn(1, 3, 224, 224)).shape == (1, 3, 14, 14)


def test_an_exact_conversion_has_the_same_logits():
    plain = plain_vit().eval()
    converted = from_vit(plain, attn="diff_v2")
    torch.manual_seed(1)
    ours = SegmentationNetwork(converted, 3, "conv").eval()
    torch.manual_seed(1)
    theirs = SegmentationNetwork(plain, 3, "conv").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-4)


def test_more_layers_than_blocks_are_refused():
    with pytest.raises(InputError, match="`layers=9` is not possible"):
        SegmentationNetwork(plain_vit(), 3, layers=9)


def test_resizing_to_the_same_size_changes_nothing():
    maps = torch.randn(1, 2, 4, 4)
    assert resize(maps, maps.shape[-2:]) is maps
    assert resize(maps, (8, 6)).shape == (1, 2, 8, 6)


@pytest.mark.parametrize("attn", ["plain", "diff", "diff_v2"])
def test_the_pyramid_has_maps_of_the_strides_4_to_32(attn):
    model = timm.create_model("diffvit_tiny_patch16", attn=attn, depth=2, dynamic_img_size=True)
    pyramid = FeaturePyramid(model, out_channels=32)
    with torch.inference_mode():
        maps = pyramid(torch.randn(1, 3, 64, 96))
    assert {name: tuple(part.shape[1:]) for name, part in maps.items()} == {
        "0": (32, 16, 24), "1": (32, 8, 12), "2": (32, 4, 6), "3": (32, 2, 3)
    }  # fmt: skip
    assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
    assert pyramid.feature_info.channels() == 4 * [32]


def test_faster_r_cnn_of_torchvision_trains_on_the_pyramid():
    torch.manual_seed(0)
    model = timm.create_model("diffvit_tiny_patch16", depth=2, embed_dim=48, num_heads=3, dynamic_img_size=True)
    anchors = AnchorGenerator(sizes=((16,), (32,), (64,), (96,)), aspect_ratios=4 * ((0.5, 1.0, 2.0),))
    detector = FasterRCNN(
        FeaturePyramid(model, out_channels=64), num_classes=2, rpn_anchor_generator=anchors, min_size=96, max_size=96,
        box_detections_per_img=5
    ).train()  # fmt: skip
    image = torch.rand(3, 96, 96) * 0.2
    image[:, 20:60, 30:70] += 0.7
    target = {"boxes": torch.tensor([[30.0, 20.0, 70.0, 60.0]]), "labels": torch.tensor([1])}
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = sum(detector([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert all(p.grad is not None for p in model.blocks.parameters())
    with torch.inference_mode():
        (found,) = detector.eval()([image])
    assert set(found) == {"boxes", "labels", "scores"}
