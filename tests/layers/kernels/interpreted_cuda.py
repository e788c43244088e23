"""The CUDA kernels in Triton's interpreter against float64 formulas. test_cuda.py runs it with TRITON_INTERPRET=1."""

import copy

import pytest
import timm
import torch
from formula import branch_dims, expected, expected_norm, inputs, relative_errors, run

import diffvit_timm  # noqa: F401 (registers the models)
from diffvit_timm.layers.kernels import cuda, operator, vector_lambda

# The interpreter of Triton 3.6 and older reads loop bounds in a way that NumPy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning")

CONVERTED, HALVES, WIDE = (48, 16), (32, 32), (96, 32)
VERSION_2, WIDE_VERSION_2 = (64, None), (128, None)
ODD = (5, 6)
ALL_DIMS = (CONVERTED, HALVES, WIDE, VERSION_2, WIDE_VERSION_2, ODD)
# Blocks have 16 to 64 rows. So these are one key; a part of a block; full blocks only; and full blocks with one more
# row, with which a head has several programs and every loop over blocks has turns before its last one.
TOKENS = (1, 17, 64, 65)
# The lengths of real images, whose cost grows with the square, are only for the widths of real networks.
LONG = [(dims, tokens) for dims in (CONVERTED, VERSION_2) for tokens in (197, 256, 257, 577)]
CASES = [(dims, tokens) for dims in ALL_DIMS for tokens in TOKENS] + LONG + [(CONVERTED, 1025)]


@pytest.mark.parametrize(("dims", "tokens"), CASES)
def test_output_and_gradients_equal_the_formula(dims, tokens):
    batch, heads = (2 if tokens < 50 else 1), (2 if tokens < 100 else 1)
    tensors = inputs(batch=batch, heads=heads, tokens=tokens, dims=dims, dtype=torch.float32)
    errors = relative_errors(run(cuda, tensors, dims, 0.125), expected(*tensors, dims, 0.125))
    # With one key the gradients of q and k are 0, and what is left is the rounding of two equal numbers.
    assert max(errors) < (2e-6 if tokens > 1 else 1e-3)


@pytest.mark.parametrize("dims", [CONVERTED, VERSION_2])
def test_queries_keys_and_values_can_be_parts_of_one_projection(dims):
    *qkv, lam, grad = inputs(batch=2, heads=2, tokens=33, dims=dims, dtype=torch.float32)
    widths = [t.shape[-1] for t in qkv]
    projection = torch.cat([t.transpose(1, 2) for t in qkv], dim=-1)  # (B, N, H, sum of the widths)
    parts = [t.transpose(1, 2) for t in projection.split(widths, dim=-1)]
    assert not any(t.is_contiguous() for t in parts)
    tensors = [*parts, lam, grad]
    for error in relative_errors(run(cuda, tensors, dims), expected(*tensors, dims, 0.3)):
        assert error < 2e-6


@pytest.mark.parametrize("shape", [(), (1, 2, 1, 1), (2, 2, 33, 1)], ids=["scalar", "per head", "per token"])
def test_lambda_can_be_one_number_or_one_per_head_or_per_token(shape):
    q, k, v, _, grad = inputs(batch=2, heads=2, tokens=33, dims=CONVERTED, dtype=torch.float32)
    lam = torch.rand(shape).expand(2, 2, 33, 1)
    for error in relative_errors(
        run(cuda, [q, k, v, lam, grad], CONVERTED), expected(q, k, v, lam, grad, CONVERTED, 0.3)
    ):
        assert error < 2e-6


def test_errors_in_float16_are_below_2e_3():
    tensors = inputs(batch=1, heads=1, tokens=33, dims=CONVERTED, dtype=torch.float16)
    tensors[3] = tensors[3].float()
    for error in relative_errors(run(cuda, tensors, CONVERTED), expected(*tensors, CONVERTED, 0.3)):
        assert error < 2e-3


def test_gradients_of_lambda_that_overflow_float16_are_float32():
    q, k, v, lam, grad = inputs(batch=2, heads=1, tokens=33, dims=CONVERTED, dtype=torch.float16)
    tensors = [q, k, torch.full_like(v, 100.0), lam.float(), torch.full_like(grad, 100.0)]
    grad_lam = run(cuda, tensors, CONVERTED)[-1]
    assert grad_lam.dtype == torch.float32
    torch.testing.assert_close(grad_lam, torch.full_like(grad_lam, -64 * 100.0 * 100.0))


def test_logits_of_hundreds_neither_overflow_nor_become_nan():
    tensors = inputs(tokens=33, dims=CONVERTED, dtype=torch.float32, sharpness=1e4)
    assert all(t.isfinite().all() for t in run(cuda, tensors, CONVERTED))


@pytest.mark.parametrize("dims", [CONVERTED, ODD, VERSION_2])
@pytest.mark.parametrize("tokens", [1, 40])
def test_the_head_norm_is_applied_to_the_output(tokens, dims):
    *tensors, grad = inputs(tokens=tokens, dims=dims, dtype=torch.float32)
    weight = torch.rand(tensors[2].shape[-1]) + 0.5
    out, *_ = cuda.forward(*tensors, branch_dims(dims), 0.3, weight)
    wanted = expected_norm(expected(*tensors, grad, dims, 0.3)[0], weight)
    assert relative_errors([out], [wanted])[0] < (2e-6 if tokens > 1 else 1e-5)  # of one key, 1 - lambda is left


def test_lambda_of_version_1_and_its_gradients_equal_the_formula():
    vectors = [(0.3 * torch.randn(32, generator=torch.Generator().manual_seed(i))).requires_grad_() for i in range(4)]
    lam = vector_lambda._lambda_in_one_kernel(*vectors, torch.tensor(0.2))
    q1, k1, q2, k2 = exact = [t.detach().double().requires_grad_() for t in vectors]
    wanted = (q1 @ k1).exp() - (q2 @ k2).exp() + 0.2
    torch.testing.assert_close(lam.double(), wanted, rtol=1e-6, atol=1e-6)
    for gradient, exact_gradient in zip(
        torch.autograd.grad(3 * lam, vectors), torch.autograd.grad(3 * wanted, exact), strict=True
    ):
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-6)
    detached = [t.detach() for t in vectors]
    assert not vector_lambda._lambda_in_one_kernel(*detached, torch.tensor(0.2)).requires_grad


@pytest.mark.parametrize(
    "settings", [{"head_norm": False}, {"head_norm": True}, {"attn": "diff_v2"}], ids=["no norm", "norm", "version 2"]
)
def test_a_network_on_the_path_of_a_gpu_computes_what_it_computes_on_the_cpu(settings, monkeypatch):
    small = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    network, images = timm.create_model("diffvit_tiny_patch16", **settings, **small), torch.randn(2, 3, 32, 32)
    on_cpu = copy.deepcopy(network)
    wanted = on_cpu(images)
    wanted.square().sum().backward()
    for module in (operator, vector_lambda):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
        monkeypatch.setattr(module, "gpu_runs_triton", lambda index: True)
    out = network(images)
    out.square().sum().backward()
    gradients, wanted_gradients = ([p.grad for p in model.parameters()] for model in (network, on_cpu))
    assert max(relative_errors([out, *gradients], [wanted, *wanted_gradients])) < 5e-6
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images), wanted.detach())
