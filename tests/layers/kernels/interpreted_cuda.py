"""The CUDA kernel in Triton's interpreter against the float64 formula. test_cuda.py runs it with TRITON_INTERPRET=1."""

import pytest
import torch
from formula import branch_dims, expected, expected_norm, inputs, relative_errors, run

from diffvit_timm.layers.kernels import cuda

VERSION_2 = (16, None)


@pytest.mark.parametrize("dims", [(8, 8), (12, 4), (24, 8), (5, 6), VERSION_2])
@pytest.mark.parametrize("tokens", [1, 17, 40])
def test_output_and_gradients_equal_the_formula(tokens, dims):
    tensors = inputs(batch=2, heads=2, tokens=tokens, dims=dims, dtype=torch.float32)
    for error in relative_errors(run(cuda, tensors, dims), expected(*tensors, dims, 0.3)):
        assert error < 2e-6


@pytest.mark.parametrize("dims", [(12, 4), VERSION_2])
def test_rows_that_do_not_fit_are_computed_block_by_block(dims, monkeypatch):
    monkeypatch.setattr(cuda, "WHOLE_ROW_KEYS", 16)
    monkeypatch.setitem(cuda.BLOCKS, "BLOCK_K", 32)
    tensors = inputs(batch=1, heads=2, tokens=75, dims=dims, dtype=torch.float32)
    for error in relative_errors(run(cuda, tensors, dims), expected(*tensors, dims, 0.3)):
        assert error < 2e-6


def test_errors_in_float16_are_below_2e_3():
    tensors = inputs(batch=1, heads=1, tokens=33, dims=(12, 4), dtype=torch.float16)
    for error in relative_errors(run(cuda, tensors, (12, 4)), expected(*tensors, (12, 4), 0.3)):
        assert error < 2e-3


@pytest.mark.parametrize("dims", [(12, 4), (5, 6), VERSION_2])
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("rows", [0, 256])  # block by block, and whole rows
def test_the_head_norm_is_applied_to_the_output(tokens, dims, rows, monkeypatch):
    monkeypatch.setattr(cuda, "WHOLE_ROW_KEYS", rows)
    *tensors, grad = inputs(tokens=tokens, dims=dims, dtype=torch.float32)
    weight = torch.rand(tensors[2].shape[-1]) + 0.5
    out = cuda.forward(*tensors, branch_dims(dims), 0.3, weight)
    wanted = expected_norm(expected(*tensors, grad, dims, 0.3)[0], weight)
    assert relative_errors([out], [wanted])[0] < 2e-6
