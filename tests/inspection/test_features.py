"""The features of frozen networks: which tokens they are, and when stored ones are read again."""

import numpy as np
import pytest
import timm
import torch

from diffvit_timm.data.loading import image_batches
from diffvit_timm.errors import InputError
from diffvit_timm.inspection import features
from diffvit_timm.inspection.features import extract_features, image_features, require_features, stored_features


@pytest.fixture
def passes(monkeypatch):
    """The kinds of features that each pass over a split computes."""
    computed, extract = [], features._extract_parts

    def record(model, split, parts, *rest):
        computed.append(list(parts))
        return extract(model, split, parts, *rest)

    monkeypatch.setattr(features, "_extract_parts", record)
    return computed


def test_the_features_are_the_class_token_and_the_mean_of_the_patches(tiny_model):
    model, images = tiny_model(reg_tokens=2).eval(), torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        tokens, found = model.forward_features(images), image_features(model, images)
    torch.testing.assert_close(found["head"], tokens[:, 0])
    torch.testing.assert_close(found["cls"], tokens[:, 0])
    torch.testing.assert_close(found["mean"], tokens[:, 3:].mean(1))  # without the class token and two registers
    torch.testing.assert_close(found["both"], torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], dim=1))


@pytest.mark.parametrize(
    ("name", "size"),
    [("swin_tiny_patch4_window7_224", 224), ("resnet18", 64), ("vit_base_patch16_siglip_gap_224", 224)],
)
def test_networks_without_a_class_token_have_the_mean_that_their_head_reads(name, size):
    smaller = {} if name == "resnet18" else {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {"depth": 1}
    model, images = timm.create_model(name, **smaller).eval(), torch.randn(1, 3, size, size)
    with torch.inference_mode():
        found = image_features(model, images, ["head", "mean"])
    head = model.fc_norm(found["mean"]) if hasattr(model, "fc_norm") else found["mean"]
    torch.testing.assert_close(found["head"], head, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        InputError, match="`models=x` has no class token, so `features=both` cannot be: use head or mean"
    ):
        require_features(model, ["head", "both"], "`models=x`")


def test_extracted_features_are_those_of_every_image_in_order_and_the_mode_stays(tiny_model, splits):
    model = tiny_model(drop_path_rate=0.5).train()
    found = extract_features(model, splits.test, ["both", "head"])
    assert model.training
    assert list(found) == ["both", "head"]
    with torch.inference_mode():
        tokens = model.eval().forward_features(torch.cat(list(image_batches(model, splits.test))))
    np.testing.assert_allclose(found["head"], tokens[:, 0], rtol=1e-5, atol=1e-5)
    assert found["both"].shape == (18, 64)
    assert found["both"].dtype == np.float32


def test_stored_features_are_read_again_and_only_missing_kinds_are_computed(tiny_model, splits, passes, tmp_path):
    first = stored_features(tiny_model(), splits.test, ["head", "cls"], tmp_path)
    again = stored_features(tiny_model(), splits.test, ["cls", "both"], tmp_path)
    assert passes == [["head", "cls"], ["mean"]]
    np.testing.assert_array_equal(first["cls"], again["cls"])
    np.testing.assert_array_equal(again["both"], extract_features(tiny_model(), splits.test, ["both"])["both"])


def test_other_weights_buffers_images_and_sizes_have_features_of_their_own(tiny_model, splits, passes, tmp_path):
    changed = tiny_model()
    with torch.no_grad():
        changed.blocks[1].mlp.fc2.bias[3] += 1e-3
    other_lambda = tiny_model()
    other_lambda.blocks[0].attn.lambda_init.fill_(0.5)  # no part of the state dict
    networks = [tiny_model(), changed, other_lambda, tiny_model(img_size=24), tiny_model(attn="plain")]
    for model in networks:
        stored_features(model, splits.test, ["head"], tmp_path)
    stored_features(tiny_model(), splits.train, ["head"], tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        stored_features(tiny_model(), splits.test, ["head"], tmp_path)
    assert passes == (len(networks) + 2) * [["head"]]
    assert len(list(tmp_path.iterdir())) == len(networks) + 2


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other images"])
def test_damaged_files_are_computed_again(tiny_model, splits, passes, tmp_path, damage):
    whole = stored_features(tiny_model(), splits.test, ["head"], tmp_path)["head"]
    (file,) = tmp_path.iterdir()
    content = {"cut": file.read_bytes()[:-9], "empty": b"", "text": b"no features"}.get(damage)
    if content is None:
        np.save(file, whole[1:])
    else:
        file.write_bytes(content)
    np.testing.assert_array_equal(stored_features(tiny_model(), splits.test, ["head"], tmp_path)["head"], whole)
    assert len(passes) == 2
    np.testing.assert_array_equal(np.load(file), whole)
