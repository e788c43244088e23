"""Output and gradients of the CPU kernel against the float64 formula, for tiles of any size."""

import pytest
import torch
from formula import branch_dims, expected, expected_norm, inputs, relative_errors, run

from diffvit_timm.layers.kernels import cpu

VERSION_2 = (16, None)


@pytest.mark.parametrize("dims", [(8, 8), (12, 4), (5, 6), (1, 15), (48, 16), (96, 32), VERSION_2, (128, None)])
@pytest.mark.parametrize("tokens", [1, 2, 33, 197])
def test_output_and_gradients_equal_the_formula(tokens, dims):
    tensors = inputs(tokens=tokens, dims=dims, dtype=torch.float32)
    for error in relative_errors(run(cpu, tensors, dims), expected(*tensors, dims, 0.3)):
        assert error < 2e-6


@pytest.mark.parametrize("dims", [(12, 4), VERSION_2])
@pytest.mark.parametrize("tile_bytes", [1, 3000, 20_000, 60_000, 1 << 20])
def test_the_size_of_the_tiles_does_not_change_the_result(tile_bytes, dims, monkeypatch):
    tensors = inputs(batch=5, tokens=37, dims=dims)
    wanted = expected(*tensors, dims, 0.3)
    monkeypatch.setattr(cpu, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(cpu, "TILE_QUERIES", 16)
    for error in relative_errors(run(cpu, tensors, dims), wanted):
        assert error < 1e-12


@pytest.mark.parametrize("dims", [(12, 4), VERSION_2])
def test_4097_tokens_are_cut_into_tiles_of_a_few_hundred_queries(dims):
    tensors = inputs(batch=1, heads=1, tokens=4097, dims=dims, dtype=torch.float32)
    assert {cpu._tile_size((1, heads, 4097), 4) for heads in (1, 3, 12)} == {(1, 241)}
    for error in relative_errors(run(cpu, tensors, dims), expected(*tensors, dims, 0.3)):
        assert error < 1e-5


def test_errors_in_bfloat16_are_below_1e_2():
    tensors = inputs(tokens=197, dims=(48, 16), dtype=torch.bfloat16)
    for error in relative_errors(run(cpu, tensors, (48, 16), 0.125), expected(*tensors, (48, 16), 0.125)):
        assert error < 1e-2


def test_logits_of_hundreds_neither_overflow_nor_become_nan():
    tensors = inputs(tokens=33, dims=(12, 4), dtype=torch.float32, sharpness=1e4)
    assert all(t.isfinite().all() for t in run(cpu, tensors, (12, 4)))


def test_an_empty_batch_gives_empty_outputs_and_gradients():
    tensors = inputs(batch=0, dims=(12, 4))
    assert [t.shape for t in run(cpu, tensors, (12, 4))[:2]] == [(0, 3, 9, 16), (0, 3, 9, 16)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_output_and_gradients_have_the_dtype_of_the_inputs(dtype):
    assert {t.dtype for t in run(cpu, inputs(dims=(12, 4), dtype=dtype), (12, 4))} == {dtype}


@pytest.mark.parametrize("dims", [(12, 4), (5, 6), VERSION_2])
@pytest.mark.parametrize("tokens", [1, 40])
def test_the_head_norm_is_applied_to_the_output(tokens, dims):
    *tensors, grad = inputs(tokens=tokens, dims=dims, dtype=torch.float32)
    weight = torch.rand(tensors[2].shape[-1]) + 0.5
    out = cpu.forward(*tensors, branch_dims(dims), 0.3, weight)
    wanted = expected_norm(expected(*tensors, grad, dims, 0.3)[0], weight)
    assert relative_errors([out], [wanted])[0] < 2e-6
