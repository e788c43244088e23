"""The sentences of a report: the verdict on the kernel, and the targets."""

from diffvit_timm.studies.gpu_report.report import report_text
from diffvit_timm.studies.gpu_report.verdicts import kernel_verdicts, target_sentences

H100 = "NVIDIA H100 80GB HBM3"


def attention_row(tokens=197, ours=10.0, stacked=12.0, ratio=0.6, **more):
    settings = {
        "precision": "bf16", "attention": "V1 48+16", "step": "forward", "heads": 6, "tokens": tokens, "batch": 64
    }  # fmt: skip
    results = {
        "plain flash": {"median_us": 6.0, "of_reference": 1.0},
        "ours": {"median_us": ours, "of_reference": ratio},
        "stacked SDPA": {"median_us": stacked, "of_reference": 0.5},
    }
    identity = {"gpu": H100, "torch": "2.11"}
    row = {"settings": settings, "results": results, "reference": "plain flash", "drift": 1.01}
    return {**row, "identity": identity, **more}


def eager_row(step="inference", of_plain=0.97, of_timm=1.25, batch=64):
    throughput = {"median_us": 1.0, "of_plain": of_plain, "of_timm": of_timm}
    settings = {"model": "diffvit_small_patch16", "precision": "bf16", "batch": batch, "step": step}
    return {"settings": settings, "results": {"Diff-ViT": {"throughput": throughput}}}


def test_where_the_stacked_call_is_faster_has_kernel_should_say_no():
    assert kernel_verdicts([attention_row(), attention_row(tokens=1025, ours=30.0, stacked=20.0)]) == [
        "forward: our kernel was 0.67x to 1.20x as fast as stacked SDPA (2 shapes).",
        "`has_kernel` should say no for: V1 48+16, 6 heads, N = 1025, batch 64, bf16, forward.",
    ]
    assert kernel_verdicts([attention_row()]) == [
        "forward: our kernel was 1.20x as fast as stacked SDPA (1 shape).",
        "Our kernel was faster for every measured shape.",
    ]
    left = {"settings": attention_row()["settings"], "not_measured": "time limit"}
    assert kernel_verdicts([left]) == ["Our kernel and stacked SDPA were not compared for any shape."]


def test_a_target_is_reached_by_every_shape_or_named_with_those_below_it():
    reached, *_ = target_sentences(H100, [attention_row()], [])
    assert reached.startswith("The target of 0.55x of flash for attention alone was reached: 1 of 1 measured shapes")
    missed, below, _ = target_sentences("NVIDIA A100-SXM4-80GB", [attention_row(ratio=0.58)], [])
    assert missed.startswith("The target of 0.6x of flash for attention alone was not reached: 0 of 1")
    assert below == "V1 48+16, 6 heads, N = 197, batch 64, bf16, forward: 0.58x is below the target."


def test_the_targets_of_networks_are_sentences_that_name_what_is_below():
    _, plain, timm = target_sentences(H100, [], [eager_row(), eager_row(batch=1, of_plain=0.7, of_timm=1.4)])
    assert plain == (
        "Diff-ViT, inference, bf16: the target of 0.95x the speed of the plain ViT was not reached: 1 of 2 measured "
        "rows reached it, but not diffvit_small_patch16, batch 1 (0.70x)."
    )
    assert timm.endswith("1 of 2 measured rows reached it, but not diffvit_small_patch16, batch 64 (1.25x).")
    _, reached, _ = target_sentences(H100, [], [eager_row(of_plain=0.96)])
    assert reached.endswith("the speed of the plain ViT was reached: 1 of 1 measured rows reached it.")


def test_the_report_shows_what_was_measured_and_what_was_not():
    state = {"sm_mhz": 1980.0, "power_w": None}
    left = {**attention_row(tokens=577), "not_measured": "failed: RuntimeError: x"}
    del left["results"]
    identity = {"gpu": H100, "driver": "580"}
    check = {"settings": {}, "passed": False, "failures": ["opcheck, bf16: wrong"], "identity": identity}
    text = report_text({"check": [check], "attention": [attention_row(before=state, after=state), left]})
    assert text.startswith(f"# Differential attention on {H100}\n")
    assert "0 of 1 checks passed, and 0 were not measured.\n\n- opcheck, bf16: wrong" in text
    assert "| V1 48+16 | 6 | 197 | 64 | bf16 | plain flash | 6.0 | 0.60 | 0.50 | 1.00 | 1.01 |" in text
    assert "tokens 577, batch 64: not measured: failed: RuntimeError: x." in text
    assert "- sm_mhz: 1980 to 1980." in text
    assert "power_w" not in text
    assert "## Targets" in text
    on_cpu = report_text({"check": [{**check, "identity": {"gpu": "A Processor", "driver": None}}]})
    assert "This is a trial on a CPU." in on_cpu
    assert "## Targets" not in on_cpu
