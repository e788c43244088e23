"""The ways to compute attention, the checks of the kernels, and the processes that run them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from diffvit_timm.studies.gpu_report import checks, kernel_checks
from diffvit_timm.studies.gpu_report.attention import branch_widths, shapes
from diffvit_timm.studies.gpu_report.candidates import PLAIN, candidates, inference_call, training_call
from diffvit_timm.studies.gpu_report.inputs import make_heads
from diffvit_timm.studies.gpu_report.kernel import formula, our_attention
from diffvit_timm.studies.gpu_report.kernel_checks import Case, check_case
from diffvit_timm.studies.gpu_report.rows import Rows
from diffvit_timm.studies.gpu_report.settings import Settings

SMALL = Case("bf16", 64, (48, 16), tokens=5, per_token=False, norm=False)


@pytest.mark.parametrize("branch_dims", branch_widths(32))
def test_all_candidates_but_plain_attention_compute_the_formula(branch_dims):
    is_v2 = branch_dims is None
    heads = make_heads(2, 3, 9, 32, is_v2, is_v2, torch.float32, "cpu")
    wanted = formula(*heads.leaves, branch_dims, 0.2, None)
    grads = torch.autograd.grad(wanted, heads.leaves, heads.grad)
    made = {n: c for n, c in candidates(heads, branch_dims, 0.2).items() if n not in PLAIN}
    assert len(made) == (4 if is_v2 else 3)
    for candidate in made.values():
        torch.testing.assert_close(inference_call(candidate, heads.grad)(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(training_call(candidate, heads.grad)(), grads, rtol=1e-4, atol=1e-5)


def test_the_heads_are_views_of_one_projection():
    heads = make_heads(2, 3, 9, 8, True, True, torch.bfloat16, "cpu")
    assert [t.shape for t in heads.leaves] == [(2, 3, 9, 16), (2, 3, 9, 8), (2, 3, 9, 8), (2, 3, 9, 1)]
    assert {t.untyped_storage().data_ptr() for t in heads.leaves[:3]} == {heads.q.untyped_storage().data_ptr()}
    assert heads.q.stride(2) == 3 * (16 + 8 + 8)
    assert heads.lam.dtype == torch.float32


def test_the_shapes_are_those_of_small_base_and_tiny_in_the_order_of_their_importance():
    listed = list(shapes(Settings()))
    assert listed[:4] == [(6, 64, 197, 64), (12, 64, 197, 64), (3, 64, 197, 64), (6, 64, 577, 64)]
    sizes = dict.fromkeys((tokens, batch) for _, _, tokens, batch in listed)
    assert list(sizes) == [(197, 64), (577, 64), (1025, 16), (197, 1), (197, 256)]
    assert branch_widths(64) == [(48, 16), None, (32, 32)]


@pytest.mark.parametrize("spoil", ["output", "gradient of q", "gradient of lambda"])
def test_a_wrong_output_or_gradient_fails(monkeypatch, spoil):
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, of_value):
            ctx.factor = 1.0 if of_value else 1.5
            return 1.5 * x if of_value else x.clone()

        @staticmethod
        def backward(ctx, grad):
            return ctx.factor * grad, None

    def wrong(q, k, v, lam, *options):
        q = Scaled.apply(q, False) if spoil == "gradient of q" else q
        lam = Scaled.apply(lam, False) if spoil == "gradient of lambda" else lam
        out = our_attention(q, k, v, lam, *options)
        return Scaled.apply(out, True) if spoil == "output" else out

    assert check_case(SMALL, "cpu")["passed"]
    monkeypatch.setattr(kernel_checks, "our_attention", wrong)
    outcome = check_case(SMALL, "cpu")
    assert not outcome["passed"]
    (failure,) = outcome["failures"]
    assert failure.startswith(f"bf16, V1 48+16, N = 5, one lambda: the error of the {spoil} is 0.")


def test_an_output_with_a_nan_fails(monkeypatch):
    monkeypatch.setattr(kernel_checks, "our_attention", lambda *args: our_attention(*args) * torch.nan)
    assert len(check_case(SMALL, "cpu")["failures"]) == 5


def test_other_processes_check_too_and_an_error_is_a_failure(tmp_path):
    listed = checks._listed_checks(Settings(precisions=("bf16",), check_tokens=(1,)))[-2:]
    done = dict(checks._outcomes(listed, "cpu", workers=1, rows=Rows(tmp_path, "check", "cpu", minutes=5.0)))
    assert [outcome["passed"] for outcome in done.values()] == [True, True]
    (outcome,) = (o for _, o in checks._outcomes(listed[:1], "nowhere", 0, Rows(tmp_path, "check", "cpu", minutes=5.0)))
    assert outcome["failures"][0].startswith(f"{listed[0].title}: failed: RuntimeError: ")


def test_checks_beyond_the_time_limit_are_not_measured(tmp_path, monkeypatch):
    # A thread is the other process here, which would import PyTorch before it is told to leave.
    monkeypatch.setattr(
        checks.concurrent.futures, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers)
    )
    listed = checks._listed_checks(Settings(precisions=("bf16",), check_tokens=(1,)))[-2:]
    rows = Rows(tmp_path, "check", "cpu", minutes=1e-30)  # rounded away, so over at once
    for workers in (0, 1):
        outcomes = [outcome for _, outcome in checks._outcomes(listed, "cpu", workers, rows)]
        assert outcomes == [{"not_measured": "time limit"}] * 2
