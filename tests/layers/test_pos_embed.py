"""Position embeddings: their formulas, other grids, and what timm does with a model (scripting, saving, resizing)."""

import pytest
import timm
import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models._features_fx import create_feature_extractor
from timm.optim import param_groups_weight_decay

from diffvit_timm.layers.pos_embed import POS_EMBEDS, Learned2d, SinCos2d
from diffvit_timm.models.pretrained import save_pretrained

SMALL = dict(img_size=(32, 24), patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
GRID = (4, 3)


def make(pos_embed, **kwargs):
    torch.manual_seed(0)
    return timm.create_model("diffvit_tiny_patch16", pos_embed=pos_embed, **{**SMALL, **kwargs}).eval()


def added_embedding(model, images):
    """Return what the position embedding adds to the patches, (N, dim)."""
    tokens = model._pos_embed(model.patch_embed(images))[0, 1:]
    patches = model.patch_embed.proj(images).flatten(2)[0].T
    return (tokens - patches).detach()


def test_a_learned_embedding_is_the_vector_of_the_row_followed_by_that_of_the_column():
    model = make("learn_2d")
    rows, columns = model.patch_embed.norm[1].rows[0], model.patch_embed.norm[1].columns[0]
    table = added_embedding(model, torch.randn(1, 3, 32, 24)).view(4, 3, 16)
    for row in range(4):
        for column in range(3):
            torch.testing.assert_close(table[row, column], torch.cat([rows[row], columns[column]]))


def sines_and_cosines(rows, columns):
    """Compute the embedding of each patch, (rows, columns, 16), by the formula."""
    waves = [10_000 ** (-i / 4) for i in range(4)]
    angles = [[[position * wave for position in (row, column) for wave in waves] for column in columns] for row in rows]
    return torch.cat([torch.tensor(angles).sin(), torch.tensor(angles).cos()], dim=-1)


def test_sincos_follows_the_formula_and_timm():
    table = added_embedding(make("sincos"), torch.randn(1, 3, 32, 24))
    torch.testing.assert_close(table.view(4, 3, 16), sines_and_cosines(range(4), range(3)), atol=1e-5, rtol=1e-5)
    assert torch.equal(SinCos2d(GRID, 16).table()[0], build_sincos2d_pos_embed(list(GRID), 16))


def test_none_adds_nothing_and_learn_is_timms_table():
    images = torch.randn(1, 3, 32, 24)
    assert added_embedding(make("none"), images).abs().max() < 1e-6
    model = make("learn")
    torch.testing.assert_close(added_embedding(model, images), model.pos_embed[0, 1:].detach())


@pytest.mark.parametrize("pos_embed", ["none", "sincos", "learn_2d", "learn"])
def test_the_order_of_the_patches_matters_unless_there_is_no_embedding(pos_embed):
    model, images = make(pos_embed, img_size=32), torch.randn(2, 3, 32, 32)
    swapped = torch.cat([images[:, :, 16:], images[:, :, :16]], dim=2)  # both halves have whole patches
    moved = (model(swapped) - model(images)).abs().max().item()
    assert moved < 1e-5 if pos_embed == "none" else moved > 1e-4


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_torchscript_fx_and_dynamic_sizes_give_the_same_output(pos_embed):
    model, images = make(pos_embed), torch.randn(2, 3, 32, 24)
    expected = model(images)
    torch.testing.assert_close(torch.jit.script(model)(images), expected)
    features = create_feature_extractor(model, {"norm": "out"})(images)["out"]
    torch.testing.assert_close(features, model.forward_features(images))
    dynamic = make(pos_embed, dynamic_img_size=True)
    dynamic.load_state_dict(model.state_dict())
    torch.testing.assert_close(dynamic(images), expected)
    other = torch.randn(1, 3, 40, 16)
    torch.testing.assert_close(torch.jit.script(dynamic)(other), dynamic(other))
    model.set_input_size((40, 16))
    torch.testing.assert_close(dynamic(other), model(other))


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_another_size_keeps_the_positions_in_the_image(pos_embed):
    """The learned rows are a linear slope here, so on a grid of twice the size their values are known."""
    model = make(pos_embed, img_size=32)
    with torch.no_grad():
        if pos_embed == "learn_2d":
            model.patch_embed.norm[1].rows.copy_(torch.arange(4.0)[None, :, None].expand(1, 4, 8))
    model.set_input_size((64, 64))
    table = added_embedding(model, torch.randn(1, 3, 64, 64))
    assert table.shape == (64, 16)
    if pos_embed == "learn_2d":
        expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
        torch.testing.assert_close(table.view(8, 8, 16)[:, 0, 0], expected)
    if pos_embed == "sincos":
        centres = [(i + 0.5) * 4 / 8 - 0.5 for i in range(8)]
        torch.testing.assert_close(table.view(8, 8, 16), sines_and_cosines(centres, centres), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_a_saved_model_loads_from_its_folder_also_at_another_size(pos_embed, tmp_path):
    model, images = make(pos_embed), torch.randn(2, 3, 32, 24)
    save_pretrained(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(images), model(images))
    larger = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(64, 48)).eval()
    model.set_input_size((64, 48))
    torch.testing.assert_close(larger(images.repeat(1, 1, 2, 2)), model(images.repeat(1, 1, 2, 2)))
    save_pretrained(model, tmp_path / "resized")
    resized = timm.create_model(f"local-dir:{tmp_path / 'resized'}", pretrained=True).eval()
    assert torch.equal(resized(images.repeat(1, 1, 2, 2)), model(images.repeat(1, 1, 2, 2)))


def test_learned_axes_have_no_weight_decay_and_the_fixed_table_is_not_saved():
    model = make("learn_2d")
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    not_decayed = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert {id(model.patch_embed.norm[1].rows), id(model.patch_embed.norm[1].columns)} <= not_decayed
    assert "patch_embed.norm.1.fixed" not in make("sincos").state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(pos_embed="rotary"),
            "pos_embed='rotary' is not known: choose one of 'learn', 'none', 'learn_2d', 'sincos'",
        ),
        (dict(pos_embed="sincos", embed_dim=18), "a width that is a multiple of 4: change embed_dim=18"),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(options.pop("pos_embed"), **options)


def test_both_embeddings_work_without_a_model():
    for embed in (SinCos2d(GRID, 16), Learned2d(GRID, 16)):
        torch.testing.assert_close(embed.table(), embed.table_for(*GRID))
