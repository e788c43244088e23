"""The operator with autograd, torch.compile, autocast and export, and the memory it keeps for the backward pass."""

import pytest
import timm
import torch
import torch._dynamo
import torch.autograd.forward_ad as forward_ad
from formula import branch_dims, expected, inputs, relative_errors
from torch._dynamo import compiled_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from diffvit_timm import DifferentialAttention, DifferentialAttentionV2, differential_attention
from diffvit_timm.layers.kernels import operator
from diffvit_timm.layers.kernels.operator import attend, attend_operator, has_kernel
from diffvit_timm.studies.timing import explicit_maps, kept_bytes

SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # opcheck causes it
@pytest.mark.parametrize("dims", [(12, 4), (16, None)])
def test_the_operator_passes_opcheck(dims):
    q, k, v, lam, _ = (t.float().requires_grad_() for t in inputs(tokens=5, dims=dims))
    widths = None if dims[1] is None else list(dims)
    torch.library.opcheck(attend_operator, (q, k, v, lam, None, widths, 0.3, True))
    q, k, v, lam = (t.detach() for t in (q, k, v, lam))
    torch.library.opcheck(attend_operator, (q, k, v, lam, torch.rand(16), widths, 0.3, False))


def test_a_second_derivative_is_refused():
    q, k, v, lam, _ = (t.float().requires_grad_() for t in inputs(tokens=5))
    (grad,) = torch.autograd.grad(attend(q, k, v, lam, (8, 8), 0.3).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_a_compiled_model_has_no_graph_break_and_is_not_recompiled_for_another_batch_size(attn):
    model = timm.create_model("diffvit_tiny_patch16", attn=attn, **{**SMALL, "depth": 1})
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3, 5, 8):
            x = torch.randn(batch, 3, 32, 32)
            out = compiled(x)
            torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)
            out.sum().backward()
    torch._dynamo.reset()


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_a_training_step_keeps_as_much_memory_as_that_of_the_plain_model(attn):
    settings = dict(img_size=112, depth=2, num_classes=10)
    x = torch.randn(2, 3, 112, 112)
    plain, ours = (timm.create_model("diffvit_tiny_patch16", attn=a, **settings) for a in ("plain", attn))
    assert kept_bytes(ours, x) <= 1.1 * kept_bytes(plain, x)


@pytest.mark.parametrize("head_norm", [False, True])
def test_autocast_computes_in_bfloat16(head_norm):
    model = timm.create_model("diffvit_tiny_patch16", head_norm=head_norm, **SMALL)
    x = torch.randn(2, 3, 32, 32)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    half.float().sum().backward()
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_exported_model_has_none_of_our_operators():
    model = timm.create_model("diffvit_tiny_patch16", **SMALL).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),))
    assert not [node for node in program.graph.nodes if "diffvit_timm" in str(node.target)]


def small_model(attn):
    torch.manual_seed(0)
    return timm.create_model("diffvit_tiny_patch16", attn=attn, **SMALL).eval(), torch.randn(2, 3, 32, 32)


@pytest.mark.filterwarnings("ignore")  # the tracer has many
@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_a_traced_model_computes_the_same_also_with_gradients(attn):
    model, x = small_model(attn)
    traced = torch.jit.trace(model, x)  # compares itself with a trace without gradients
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_a_batch_of_gradients_equals_single_gradients(attn):
    model, x = small_model(attn)
    x.requires_grad_()
    out = model(x)
    directions = torch.eye(10).view(10, 2, 5)
    batch = torch.autograd.grad(out, x, directions, is_grads_batched=True, retain_graph=True)[0]
    single = torch.stack([torch.autograd.grad(out, x, d, retain_graph=True)[0] for d in directions])
    torch.testing.assert_close(batch, single)


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_forward_derivatives_of_explicit_maps_equal_those_of_the_backward_pass(attn):
    model, x = small_model(attn)
    model, x, direction = model.double(), x.double().requires_grad_(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with explicit_maps(model), forward_ad.dual_level():
        dual = model(forward_ad.make_dual(x.detach(), direction))
        forward = forward_ad.unpack_dual(dual).tangent.sum()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(forward, (gradient * direction).sum())


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_a_backward_pass_that_something_watches_uses_operators(attn):
    model, x = small_model(attn)
    with FlopCounterMode(display=False) as both:
        model(x).sum().backward()
    with FlopCounterMode(display=False) as forward:
        out = model(x).sum()
    with FlopCounterMode(display=False) as backward:
        out.backward()
    assert forward.get_total_flops() + backward.get_total_flops() == both.get_total_flops()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch causes it
@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_the_backward_pass_can_be_compiled(attn):
    # One layer, because the compiler takes seconds for each.
    layer = (DifferentialAttentionV2 if attn == "diff_v2" else DifferentialAttention)(48, num_heads=3)
    out = layer(torch.randn(2, 17, 48)).square().sum()
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        out.backward()
    torch._dynamo.reset()


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_make_fx_sees_operators(attn):
    model, x = small_model(attn)
    torch.testing.assert_close(make_fx(model, pre_dispatch=True)(x)(x), model(x))


def test_autocast_leaves_a_float64_model_as_it_is():
    model, x = small_model("diff_v2")
    with torch.autocast("cpu", torch.bfloat16):
        assert model.double()(x.double()).dtype == torch.float64


def test_wide_branches_have_no_cuda_kernel():
    q, v = (torch.empty(1, 1, 9, width, device="meta", dtype=torch.float16) for width in (256, 64))
    fits = [operator._fits_cuda_kernel(q, v, widths) for widths in ((64, 192), (128, 128), None)]
    assert fits == [False, True, True]
    assert not operator._fits_cuda_kernel(q.float(), v, None)


@pytest.mark.parametrize("scale", [0.0, -0.3, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale):
    q, k, v, lam, _ = (t.float() for t in inputs())
    with pytest.raises(ValueError, match=f"scale={scale} must be positive"):
        differential_attention(q, k, v, lam, (8, 8), scale)


def test_the_widths_of_the_branches_can_be_a_list():
    q, k, v, lam, _ = (t.float() for t in inputs())
    torch.testing.assert_close(attend(q, k, v, lam, [8, 8], 0.3), attend(q, k, v, lam, (8, 8), 0.3))


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_of_lambda_are_added_up_in_float32(fused):
    # 64 x 3 x 197 gradients of -2.0 are more than float16 can hold.
    q, k = torch.zeros(2, 64, 3, 197, 16, dtype=torch.bfloat16)
    v = torch.ones(64, 3, 197, 2, dtype=torch.bfloat16)
    lam = torch.tensor(0.5, requires_grad=True)
    differential_attention(q.half(), k.half(), v.half(), lam, (8, 8), 0.3, fused=fused).sum().backward()
    assert lam.grad.item() == pytest.approx(-2 * 64 * 3 * 197, rel=1e-3)


def test_a_mask_that_hides_nothing_does_not_change_the_output():
    q, k, v, lam, _ = (t.float() for t in inputs())
    everything = torch.ones(9, 9, dtype=torch.bool)
    masked = differential_attention(q, k, v, lam, (8, 8), 0.3, attn_mask=everything)
    torch.testing.assert_close(masked, differential_attention(q, k, v, lam, (8, 8), 0.3))


@pytest.mark.parametrize(("tokens", "dims"), [(9, (16, None)), (1300, (12, 4))])
def test_inference_uses_flash_attention_where_it_is_faster(tokens, dims):
    *tensors, grad = inputs(tokens=tokens, dims=dims, dtype=torch.float32)
    widths = branch_dims(dims)
    assert has_kernel(tensors[0], tensors[2], widths)
    with torch.no_grad():
        assert not has_kernel(tensors[0], tensors[2], widths)
        out = differential_attention(*tensors, widths, 0.3)
    assert relative_errors([out], expected(*tensors, grad, dims, 0.3)[:1])[0] < 2e-6


def test_the_cpu_has_a_kernel_and_the_meta_device_has_none():
    on_cpu, on_meta = torch.empty(1, 1, 9, 16), torch.empty(1, 1, 9, 16, device="meta")
    assert has_kernel(on_cpu, on_cpu, (12, 4))
    assert not has_kernel(on_meta, on_meta, (12, 4))
