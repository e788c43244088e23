"""print(model) says what each differential layer is, and disturbs nothing."""

import copy
import re

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffvit_timm import differential_layers, from_vit
from diffvit_timm.layers.adapters import ADAPTERS


def lines(model):
    """Return the line of print(model) for each class of differential layers: that of its last layer."""
    return dict(re.findall(r"\((?:attn|\d+)\): (\w+)\(\n +(attn=.*)", str(model)))


def test_version_1_shows_its_heads_its_branches_and_its_lambda_of_now(tiny_model):
    model = tiny_model(branch_dims=(12, 4), lambda_init=0.25, depth=1)
    layer = model.blocks[0].attn
    expected = {"DifferentialAttention": "attn=diff, num_heads=2, branch_dims=(12, 4), lambda=0.25"}
    with torch.no_grad():
        layer.lambda_q1.copy_(layer.lambda_q2)
        layer.lambda_k1.copy_(layer.lambda_k2)
        assert lines(model) == expected
        layer.lambda_q1.fill_(0.5)
        layer.lambda_k1.fill_(0.25)
        layer.lambda_q2.zero_()
    assert lines(model)["DifferentialAttention"].endswith("lambda=1.968")  # exp(8 / 8) - 1 + 0.25


@pytest.mark.parametrize(
    "options", [{"head_norm": True}, {"lambda_init": "schedule"}, {"branch_dims": (8, 8)}], ids=str
)
def test_every_form_of_version_1_shows_the_lambda_that_it_computes(tiny_model, options):
    model = tiny_model(depth=1, **options)
    shown = float(lines(model)["DifferentialAttention"].rpartition("=")[2])
    assert shown == pytest.approx(model.blocks[0].attn.compute_lambda(torch.zeros(())).item(), rel=1e-3)


def test_version_2_shows_lambda_init_because_its_lambda_depends_on_the_tokens(tiny_model):
    assert lines(tiny_model(attn="diff_v2", lambda_init=0.3)) == {
        "DifferentialAttentionV2": "attn=diff_v2, num_heads=2, lambda_init=0.3"
    }


def test_denoising_attention_shows_its_kind_and_its_heads(tiny_model):
    assert lines(tiny_model(attn="dna")) == {"DenoisingAttention": "attn=dna, num_heads=2"}


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_a_converted_layer_says_what_it_is(attn):
    plain = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=24, depths=(1, 1),
                              num_heads=(2, 2))  # fmt: skip
    ((name, line),) = lines(from_vit(plain, attn=attn, lambda_init=0.1)).items()
    assert name == {"diff": "DiffSwinAttention", "diff_v2": "DiffSwinAttentionV2"}[attn]
    assert (
        line
        == {
            "diff": "attn=diff, num_heads=2, branch_dims=(18, 6), lambda=0.1",
            "diff_v2": "attn=diff_v2, num_heads=2, lambda_init=0.1",
        }[attn]
    )


def test_every_adapter_has_the_line():
    classes = [kind for adapter in ADAPTERS.values() for kind in (adapter.diff, adapter.diff_v2)]
    owners = {next(base for base in kind.__mro__ if "extra_repr" in vars(base)).__name__ for kind in classes}
    assert owners == {"DifferentialLayer"}


def test_a_network_without_values_shows_no_lambda(tiny_model):
    expected = {"DifferentialAttention": "attn=diff, num_heads=2, branch_dims=(12, 4)"}
    assert lines(tiny_model(depth=1).to("meta")) == expected
    traced = tiny_model(depth=1)
    traced.blocks[0].attn.lambda_init = FakeTensorMode().from_tensor(traced.blocks[0].attn.lambda_init)
    assert lines(traced) == expected
    version2 = tiny_model(attn="diff_v2").to("meta")
    assert lines(version2) == {"DifferentialAttentionV2": "attn=diff_v2, num_heads=2"}


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_printing_changes_neither_a_copy_nor_a_script_nor_a_traced_network(tiny_model, attn):
    model = tiny_model(attn=attn).eval()
    expected = str(model)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        outputs = model(images)
        scripted = torch.jit.script(model)
        assert str(scripted)
        torch.testing.assert_close(scripted(images), outputs)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), outputs)
        torch.testing.assert_close(torch.compile(model, backend="eager")(images), outputs)
    assert str(copy.deepcopy(model)) == expected == str(model)
    assert not any(p.grad_fn for layer in differential_layers(model) for p in layer.parameters())
