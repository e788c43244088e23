"""The reference for the tests of every kernel: a plain float64 formula, with gradients by autograd."""

import torch

from diffvit_timm.layers.kernels.packing import empty_gradients


def inputs(batch=2, heads=3, tokens=9, dims=(8, 8), seed=0, dtype=torch.float64, sharpness=1.0):
    """Return random q, k, v, lambda and gradient of the output, in the memory order of a projection.

    dims=(d, None) is version 2. `sharpness` scales the queries.
    """
    generator = torch.Generator().manual_seed(seed)
    d1, d2 = dims
    width, q_width = (d1, 2 * d1) if d2 is None else (d1 + d2, d1 + d2)

    def tokens_first(channels):
        return torch.randn(batch, tokens, heads, channels, generator=generator, dtype=torch.float64).transpose(1, 2)

    q, k, v, grad = (tokens_first(channels) for channels in (q_width, width, width, width))
    lam = torch.rand(batch, heads, tokens, 1, generator=generator, dtype=torch.float64)
    return [t.to(dtype) for t in (sharpness * q, k, v, lam, grad)]


def expected(q, k, v, lam, grad, dims, scale):
    """Compute equation 1 in float64. Return the output and the gradients of q, k, v and lambda."""
    d1, d2 = dims
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v, lam)]
    q, k, v, lam = leaves
    k1, k2 = (k, k) if d2 is None else (k[..., :d1], k[..., d1:])
    map1 = torch.softmax(q[..., :d1] @ k1.transpose(-1, -2) * scale, -1)
    map2 = torch.softmax(q[..., d1:] @ k2.transpose(-1, -2) * scale, -1)
    out = map1 @ v - lam * (map2 @ v)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


def expected_norm(out, weight):
    """Compute the RMSNorm of each head's output in float64."""
    return out * weight.double() / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def branch_dims(dims):
    """Convert the dims of the tests to the argument `branch_dims`."""
    return None if dims[1] is None else dims


def run(kernel, tensors, dims, scale=0.3):
    """Compute with a kernel, `cpu` or `cuda`, what `expected` returns."""
    *qkv_lam, grad = tensors
    widths = branch_dims(dims)
    grads = empty_gradients(*qkv_lam[:3])
    if kernel.__name__.endswith("cuda"):
        out, *kept = kernel.forward(*qkv_lam, widths, scale, for_backward=True)
        return [out, *kernel.backward(grad, *qkv_lam, out, *kept, widths, scale, grads)]
    return [kernel.forward(*qkv_lam, widths, scale), *kernel.backward(grad, *qkv_lam, widths, scale, grads)]


def relative_errors(actual, wanted):
    """Return |actual - wanted| / max(|wanted|, 0.01) for each tensor. With one key, q has a gradient of 0."""
    return [((a.double() - w).norm() / w.norm().clamp_min(1e-2)).item() for a, w in zip(actual, wanted, strict=True)]
