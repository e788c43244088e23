"""The function of a packed projection in Triton's interpreter. test_cuda.py runs it with TRITON_INTERPRET=1."""

import copy

import pytest
import timm
import torch
from formula import branch_dims, expected, expected_norm, inputs, relative_errors
from torch._dynamo import compiled_autograd
from torch.utils.flop_counter import FlopCounterMode

import diffvit_timm
from diffvit_timm.layers import token_layer
from diffvit_timm.layers.kernels import cuda, operator
from diffvit_timm.layers.kernels.layout import Sizes
from diffvit_timm.layers.kernels.packed import attend_packed
from diffvit_timm.layers.kernels.packing import empty_gradients
from diffvit_timm.layers.kernels.vector_lambda import _lambda_in_one_kernel

# The interpreter of Triton 3.6 and older reads loop bounds in a way that NumPy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")

CONVERTED, HALVES, VERSION_2 = (48, 16), (32, 32), (64, None)
SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)


def merged(heads):
    """Merge heads, (B, H, N, d), to (B, N, H d)."""
    return heads.transpose(1, 2).flatten(2)


def pack(q, k, v):
    """Return the projection of which q, k and v are the parts."""
    return torch.cat([merged(t) for t in (q, k, v)], dim=-1)


def sizes_of(q, v, dims, scale=0.3):
    _, H, N, width = v.shape
    return Sizes(H, N, q.shape[-1], width, branch_dims(dims), scale)


def lambda_vectors(width=32, dtype=torch.float32):
    """Return the four vectors, which have gradients, and lambda_init."""
    vectors = [0.1 * torch.randn(width, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    return [*(t.to(dtype).requires_grad_() for t in vectors), torch.tensor(0.2)]


def expected_of_vectors(q, k, v, grad, vectors, dims, scale=0.3):
    """Compute in float64 the merged output and the gradients of the projection and of the four vectors."""
    q1, k1, q2, k2 = exact = [t.detach().double().requires_grad_() for t in vectors[:4]]
    lam = (q1 @ k1).exp() - (q2 @ k2).exp() + 0.2
    out, *grads, grad_lam = expected(q, k, v, lam.detach(), grad, dims, scale)
    return [merged(out), pack(*grads), *torch.autograd.grad(lam, exact, grad_lam.sum().reshape(()))]


def run(packed, lambda_inputs, grad, sizes):
    """Compute the merged output, and the gradients of the projection and of what lambda comes from."""
    leaves = [packed, *(t for t in lambda_inputs if t.requires_grad)]
    out = attend_packed(packed, lambda_inputs, sizes)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("dims", [CONVERTED, HALVES, (5, 6)])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 17), (1, 65)])  # 65: more than a block of 64
def test_output_and_all_gradients_of_version_1_equal_the_formula(batch, tokens, dims):
    q, k, v, _, grad = inputs(batch=batch, heads=2, tokens=tokens, dims=dims, dtype=torch.float32)
    vectors = lambda_vectors(sum(dims) // 2)
    errors = relative_errors(
        run(pack(q, k, v).requires_grad_(), vectors, merged(grad), sizes_of(q, v, dims)),
        expected_of_vectors(q, k, v, grad, vectors, dims),
    )
    assert max(errors) < (5e-6 if tokens > 1 else 1e-3)  # of one key, only rounding is left in the gradients of q and k


@pytest.mark.parametrize("tokens", [17, 65])
def test_output_and_all_gradients_of_version_2_equal_the_formula(tokens):
    q, k, v, lam, grad = inputs(batch=1, heads=2, tokens=tokens, dims=VERSION_2, dtype=torch.float32)
    packed, lam = pack(q, k, v).requires_grad_(), lam.requires_grad_()
    out, *grads, grad_lam = expected(q, k, v, lam, grad, VERSION_2, 0.3)
    wanted = [merged(out), pack(*grads), grad_lam]
    for error in relative_errors(run(packed, [lam], merged(grad), sizes_of(q, v, VERSION_2)), wanted):
        assert error < 5e-6


def test_projections_and_gradients_that_are_not_contiguous_are_read_as_they_lie():
    q, k, v, _, grad = inputs(batch=2, heads=2, tokens=40, dims=CONVERTED, dtype=torch.float32)
    vectors, packed = lambda_vectors(), pack(q, k, v)
    wanted = expected_of_vectors(q, k, v, grad, vectors, CONVERTED)
    wider = torch.cat([torch.randn(2, 40, 32), packed], dim=-1)[..., 32:]  # after the rows of an MLP
    tokens_outside = packed.transpose(0, 1).contiguous().transpose(0, 1)
    channels_outside = packed.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (wider, tokens_outside, channels_outside):
        assert not view.is_contiguous()
        view = view.detach().requires_grad_()
        strided = merged(grad).transpose(1, 2).contiguous().transpose(1, 2)
        found = run(view, vectors, strided, sizes_of(q, v, CONVERTED))
        assert max(relative_errors(found, wanted)) < 5e-6


def test_a_gradient_that_is_one_number_for_all_is_read():
    q, k, v, _, grad = inputs(heads=2, tokens=17, dims=CONVERTED, dtype=torch.float32)
    vectors, packed = lambda_vectors(), pack(q, k, v).requires_grad_()
    attend_packed(packed, vectors, sizes_of(q, v, CONVERTED)).sum().backward()
    wanted = expected_of_vectors(q, k, v, torch.ones_like(grad), vectors, CONVERTED)
    assert max(relative_errors([packed.grad, *(t.grad for t in vectors[:4])], wanted[1:])) < 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lambda_is_float32_beside_a_projection_in_float16(dtype):
    q, k, v, _, grad = inputs(batch=1, heads=2, tokens=33, dims=CONVERTED, dtype=torch.float16)
    vectors = lambda_vectors(dtype=dtype)
    found = run(pack(q, k, v).requires_grad_(), vectors, merged(grad), sizes_of(q, v, CONVERTED))
    assert [t.dtype for t in found] == [torch.float16] * 2 + [dtype] * 4
    errors = relative_errors(found, expected_of_vectors(q, k, v, grad, vectors, CONVERTED))
    assert max(errors[:2]) < 1e-3
    assert max(errors[2:]) < 3e-2  # sums of numbers that cancel


@pytest.mark.parametrize("dims", [CONVERTED, VERSION_2])
def test_the_results_are_bit_for_bit_those_of_the_split_heads(dims):
    q, k, v, lam, grad = inputs(batch=2, heads=2, tokens=33, dims=dims, dtype=torch.float16)
    vectors, packed = lambda_vectors(), pack(q, k, v).requires_grad_()
    if dims == VERSION_2:
        lam = lam.float().requires_grad_()
        found = run(packed, [lam], merged(grad), sizes_of(q, v, dims))
        expanded = lam.detach()
    else:
        found = run(packed, vectors, merged(grad), sizes_of(q, v, dims))
        scalar = _lambda_in_one_kernel(*vectors)
        expanded = scalar.detach().expand(2, 2, 33, 1)
    out, *kept = cuda.forward(q, k, v, expanded, branch_dims(dims), 0.3, for_backward=True)
    *grads, grad_lam = cuda.backward(
        grad, q, k, v, expanded, out, *kept, branch_dims(dims), 0.3, empty_gradients(q, k, v)
    )
    assert torch.equal(found[0], merged(out))
    assert torch.equal(found[1], pack(*grads))
    if dims == VERSION_2:
        assert torch.equal(found[2], grad_lam)
    else:
        torch.testing.assert_close(found[2:], list(torch.autograd.grad(scalar, vectors[:4], grad_lam.sum())))


def test_gradients_of_lambda_that_overflow_float16_are_added_up_in_float32():
    q, k, v, _, grad = inputs(batch=2, heads=1, tokens=33, dims=CONVERTED, dtype=torch.float16)
    v, grad, vectors = torch.full_like(v, 100.0), torch.full_like(grad, 100.0), lambda_vectors()
    _, _, grad_q1, *_ = run(pack(q, k, v).requires_grad_(), vectors, merged(grad), sizes_of(q, v, CONVERTED))
    factor = -64 * 100.0 * 100.0 * 66 * torch.exp(vectors[0] @ vectors[1]).detach()
    torch.testing.assert_close(grad_q1, factor * vectors[1].detach(), rtol=1e-4, atol=1.0)


def test_one_lambda_for_all_queries_can_be_a_scalar():
    q, k, v, _, grad = inputs(heads=2, tokens=17, dims=CONVERTED, dtype=torch.float32)
    lam, packed = torch.tensor(0.4, requires_grad=True), pack(q, k, v).requires_grad_()
    out, *grads, grad_lam = expected(q, k, v, lam, grad, CONVERTED, 0.3)
    found = run(packed, [lam], merged(grad), sizes_of(q, v, CONVERTED))
    assert max(relative_errors(found, [merged(out), pack(*grads), grad_lam])) < 5e-6


@pytest.mark.parametrize("frozen", ["lambda", "projection"])
def test_what_is_frozen_gets_no_gradient(frozen):
    q, k, v, _, grad = inputs(heads=2, tokens=17, dims=CONVERTED, dtype=torch.float32)
    vectors, packed = lambda_vectors(), pack(q, k, v)
    wanted = expected_of_vectors(q, k, v, grad, vectors, CONVERTED)[1:]
    for t in vectors[:4]:
        t.requires_grad_(frozen != "lambda")
    packed.requires_grad_(frozen != "projection")
    attend_packed(packed, vectors, sizes_of(q, v, CONVERTED)).backward(merged(grad))
    for t, exact in zip((packed, *vectors), wanted, strict=False):
        assert (t.grad is None) != t.requires_grad
        assert t.grad is None or relative_errors([t.grad], [exact])[0] < 5e-6


@pytest.mark.parametrize("with_gradients", [False, True])
def test_the_head_norm_is_applied_with_and_without_gradients(with_gradients):
    q, k, v, lam, grad = inputs(heads=2, tokens=17, dims=CONVERTED, dtype=torch.float32)
    weight = torch.rand(64) + 0.5
    wanted = merged(expected_norm(expected(q, k, v, lam, grad, CONVERTED, 0.3)[0], weight))
    with torch.set_grad_enabled(with_gradients):
        out = attend_packed(pack(q, k, v).requires_grad_(), [lam], sizes_of(q, v, CONVERTED), weight)
    assert out.requires_grad == with_gradients
    assert relative_errors([out.detach()], [wanted])[0] < 2e-6


def test_a_second_derivative_is_refused():
    q, k, v, _, _ = inputs(heads=2, tokens=5, dims=CONVERTED, dtype=torch.float32)
    packed = pack(q, k, v).requires_grad_()
    out = attend_packed(packed, lambda_vectors(), sizes_of(q, v, CONVERTED))
    (grad,) = torch.autograd.grad(out.square().sum(), packed, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def trained(model, images):
    """Return the output of a model, and the gradients of its parameters by name."""
    out = model(images)
    out.square().sum().backward()
    return out.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [{"head_norm": False}, {"head_norm": True, "scale_attn_norm": True}, {"attn": "diff_v2"}],
    ids=["no norm", "norms", "version 2"],
)
def test_a_network_whose_layers_call_the_function_computes_what_it_computes_on_the_cpu(settings, monkeypatch):
    network, images = timm.create_model("diffvit_tiny_patch16", **settings, **SMALL), torch.randn(2, 3, 32, 32)
    wanted, wanted_gradients = trained(copy.deepcopy(network), images)
    sizes = []
    monkeypatch.setattr(token_layer, "takes_packed", lambda packed, head_dim, vectors: True)
    monkeypatch.setattr(token_layer, "attend_packed", lambda *args: [sizes.append(args[2]), attend_packed(*args)][1])
    out, gradients = trained(network, images)
    assert len(sizes) == 2
    assert gradients.keys() == wanted_gradients.keys()
    errors = relative_errors([out, *gradients.values()], [wanted, *wanted_gradients.values()])
    assert max(errors) < 5e-6
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images), wanted)


@pytest.mark.parametrize(
    "settings", [{"qk_norm": True, "branch_dims": (8, 8)}, {"attn_drop_rate": 0.1}], ids=["qk_norm", "dropout"]
)
def test_layers_whose_heads_need_more_do_not_call_the_function(settings, monkeypatch):
    monkeypatch.setattr(token_layer, "takes_packed", lambda packed, head_dim, vectors: True)
    monkeypatch.setattr(token_layer, "attend_packed", None)
    network = timm.create_model("diffvit_tiny_patch16", **settings, **SMALL)
    network(torch.randn(2, 3, 32, 32))
    layer, x = diffvit_timm.DifferentialAttention(16, num_heads=2), torch.randn(1, 5, 16)
    layer(x, attn_mask=torch.ones(5, 5, dtype=torch.bool))
    layer(x, is_causal=True)


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
def test_a_backward_pass_that_something_watches_uses_operators(attn, monkeypatch):
    monkeypatch.setattr(token_layer, "takes_packed", lambda packed, head_dim, vectors: True)
    network = timm.create_model("diffvit_tiny_patch16", attn=attn, **{**SMALL, "depth": 1})
    images = torch.randn(2, 3, 32, 32)
    parameters, out = list(network.parameters()), network(images)
    unwatched = torch.autograd.grad(out.square().sum(), parameters, retain_graph=True)
    monkeypatch.setattr(operator, "on_gpu", lambda tensor: True)
    with FlopCounterMode(display=False) as counter:
        watched = torch.autograd.grad(out.square().sum(), parameters, retain_graph=True)
    torch.testing.assert_close(watched, unwatched)
    assert counter.get_total_flops() > 0
    directions = torch.eye(10).view(10, 2, 5)[[0, 9]]  # one of each image
    batch = torch.autograd.grad(out, parameters, directions, is_grads_batched=True, retain_graph=True)
    for i, direction in enumerate(directions):
        single = torch.autograd.grad(out, parameters, direction, retain_graph=True)
        torch.testing.assert_close(tuple(t[i] for t in batch), single)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch causes it
def test_the_backward_pass_can_be_compiled(monkeypatch):
    monkeypatch.setattr(token_layer, "takes_packed", lambda packed, head_dim, vectors: True)
    layer = diffvit_timm.DifferentialAttention(48, num_heads=3)  # the compiler takes seconds for each layer
    parameters, out = list(layer.parameters()), layer(torch.randn(2, 17, 48)).square().sum()
    wanted = torch.autograd.grad(out, parameters, retain_graph=True)
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        out.backward()
    torch._dynamo.reset()
    torch.testing.assert_close(tuple(t.grad for t in parameters), wanted)


def test_offloading_to_the_cpu_and_checkpointing_do_not_change_the_gradients(monkeypatch):
    monkeypatch.setattr(token_layer, "takes_packed", lambda packed, head_dim, vectors: True)
    network = timm.create_model("diffvit_tiny_patch16", **{**SMALL, "depth": 1})
    images, parameters = torch.randn(2, 3, 32, 32), list(network.parameters())
    wanted = torch.autograd.grad(network(images).sum(), parameters)
    with torch.autograd.graph.save_on_cpu():
        out = network(images).sum()
    torch.testing.assert_close(torch.autograd.grad(out, parameters), wanted)
    network.set_grad_checkpointing(True)
    torch.testing.assert_close(torch.autograd.grad(network(images).sum(), parameters), wanted)
