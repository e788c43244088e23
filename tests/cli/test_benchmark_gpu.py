"""diffvit benchmark gpu: the whole program at toy sizes on the CPU, a repeated call, and what ends it."""

import functools
import json
import os
import subprocess
import sys

import pytest
import timm

from diffvit_timm.cli import main
from diffvit_timm.studies.gpu_report import checks, kernel_checks, network_checks, trainer
from diffvit_timm.studies.gpu_report.kernel import our_attention

TOY = (
    "--device", "cpu", "--models", "diffvit_micro_patch8_32", "--img-size", "32", "--batch-sizes", "1", "--precisions",
    "bf16", "--tokens", "17", "--check-tokens", "17", "1", "--row-seconds", "0.01", "--trainer-steps", "1",
)  # fmt: skip

pytestmark = [
    # torch says that autocast to bf16 has no fused RMSNorm on a CPU.
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),
    # opcheck causes it.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture
def one_layer(monkeypatch):
    """Networks of one layer, because the compiler takes a second or more for each."""
    name = "diffvit_micro_patch8_32"
    made = functools.partial(timm.model_entrypoint(name), depth=1)
    monkeypatch.setitem(timm.models._registry._model_entrypoints, name, made)
    monkeypatch.setitem(network_checks.SMALL, "depth", 1)


def rows_of(folder, stage):
    return json.loads((folder / f"{stage}.json").read_text())["rows"]


@pytest.mark.usefixtures("one_layer")
def test_every_stage_runs_on_the_cpu_and_a_repeated_call_keeps_the_rows(diffvit, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "TURNS", 1)
    folder = tmp_path / "report"
    result = diffvit("benchmark", "gpu", "--output", folder, *TOY)
    assert result["rows"] == {"check": 34, "attention": 6, "models-eager": 2, "models-compiled": 2, "trainer": 1}
    assert set(result["left"].values()) == {0}
    assert not result["failed_checks"]
    for stage in result["rows"]:
        for row in rows_of(folder, stage):
            assert row["identity"]["torch"]
            assert stage == "check" or {"before", "after", "drift", "results"} <= row.keys()
    text = (folder / "report.md").read_text()
    for title in (
        "Checks",
        "Attention alone",
        "Networks, eager",
        "Networks, compiled",
        "Trainer",
    ):
        assert f"## {title}" in text
    assert "34 of 34 checks passed" in text
    assert "This is a trial on a CPU." in text

    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    main(["benchmark", "gpu", "--output", str(folder), *TOY])
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == files
    assert text in capsys.readouterr().err


def test_groups_beyond_the_time_limit_are_recorded_and_measured_by_the_next_call(diffvit, tmp_path):
    options = ("--output", tmp_path, *TOY, "--stages", "attention", "report")
    assert diffvit("benchmark", "gpu", *options, "--minutes", "1e-30")["left"] == {"attention": 6}
    assert "attention: 6 rows were not measured: time limit." in (tmp_path / "report.md").read_text()
    assert diffvit("benchmark", "gpu", *options)["left"] == {"attention": 0}
    assert "## Not measured" not in (tmp_path / "report.md").read_text()


def test_a_failed_check_is_a_line_and_ends_the_program(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(checks, "NETWORK_CHECKS", {})
    monkeypatch.setattr(kernel_checks, "our_attention", lambda *args: 1.05 * our_attention(*args))
    with pytest.raises(SystemExit) as caught:
        main(["benchmark", "gpu", "--output", str(tmp_path), *TOY, "--check-tokens", "1"])
    assert caught.value.code == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    title = "bf16, V1 48+16, N = 1, one lambda"
    assert any(line.startswith(f"failed: {title}: the error of the output is 0.0") for line in failed)
    assert sum(not row["passed"] for row in rows_of(tmp_path, "check")) > 10
    assert not (tmp_path / "attention.json").exists()


@pytest.mark.parametrize(("part", "other"), [("gpu", "NVIDIA A100"), ("torch", "2.7.0"), ("layers", "0")])
def test_rows_of_another_gpu_or_version_are_refused(refusal, tmp_path, part, other):
    (tmp_path / "check.json").write_text(json.dumps({"identity": {part: other}, "rows": []}))
    message = refusal("benchmark", "gpu", "--output", tmp_path, *TOY)
    assert message.startswith(f"--output {tmp_path} holds rows of ")
    assert f"{part} {other}" in message
    assert message.endswith("choose another folder")


def test_a_report_on_an_empty_folder_is_refused(refusal, tmp_path):
    message = refusal("benchmark", "gpu", "--output", tmp_path, "--stages", "report")
    assert message == f"--output {tmp_path} has no rows to report: run another stage first"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "vit_tiny_patch16_224"], "--models vit_tiny_patch16_224 must be diffvit_* variants"),
        (["--models", "diffvit_tinny_patch16"], "--models diffvit_tinny_patch16 is not known to timm"),
        (["--batch-sizes", "0"], "--batch-sizes 0 must be numbers from 1 on"),
        (["--stages", "check", "check"], "--stages check check names a value twice"),
        (["--minutes", "0"], "--minutes 0.0 must be above 0"),
        (["--precisions", "fp32"], "--precisions fp32 has none with 16 bits, which the stage check needs"),
        (["--device", "cuda:9"], "--device cuda:9 cannot be used"),
        (["--output", __file__], f"--output {__file__} is a file: choose a folder"),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(refusal, tmp_path, options, message):
    assert refusal("benchmark", "gpu", "--output", tmp_path / "new", *TOY, *options).startswith(message)
    assert not (tmp_path / "new").exists()


# The only check of networks is the one that fp16 adds, because no such check runs Triton on a CPU.
INTERPRETED = """
import sys
from diffvit_timm.cli import main
from diffvit_timm.studies.gpu_report import checks, kernel_checks

kernel_checks.BATCH = 1
checks.NETWORK_CHECKS = {"GradScaler": checks.NETWORK_CHECKS["GradScaler"]}
main(["benchmark", "gpu", *sys.argv[1:]])
"""


def test_the_checks_run_in_tritons_interpreter(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    # Triton decides at its import whether it interprets kernels, so this needs a separate process.
    options = (*TOY, "--precisions", "fp16", "--check-tokens", "17", "--stages", "check", "report")
    command = [sys.executable, "-c", INTERPRETED, "--output", str(tmp_path), *options]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "The kernels ran in Triton's interpreter." in (tmp_path / "report.md").read_text()
    rows = {
        name: [r for r in rows_of(tmp_path, "check") if r["settings"]["check"] == name]
        for name in ("kernel", "GradScaler")
    }
    assert [len(listed) for listed in rows.values()] == [15, 1]
    assert all(row["interpreter"] for row in rows["kernel"])
