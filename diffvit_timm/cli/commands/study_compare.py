"""Compare several trainings by a protocol: each at its own best learning rate, on other seeds than those that chose it.

    diffvit study compare recipes/studies/p1_cifar10.yaml --output runs/p1                     # tune, test and report
    diffvit study compare recipes/studies/p1_cifar10.yaml --output runs/p1 --minutes 30        # a part of it
    diffvit study compare recipes/studies/p1_cifar10.yaml --output runs/p1 --part report       # write the report again

FILE is a YAML file with these entries:

    title: Attention on my images
    train: {dataset: FOLDER, model: diffvit_nano, pretrained: false, max_steps: 500}     # options of diffvit train
    arms:                                            # options that differ, and rates if an arm has its own
      plain: {attn: plain}
      version 2: {attn: diff_v2}
    baseline: plain
    rates: [1.0e-3, 2.0e-3, 4.0e-3]                  # extended until the best one is inside, at most four times
    tuning_seeds: [100, 101]                         # choose the rates by accuracy on the validation images
    test_seeds: [0, 1, 2, 3]                         # compare the arms, in pairs of equal seed
    endpoint: test_accuracy                          # or corruption_accuracy, with corruption_images
    margin: 0.5                                      # points within which two arms are equal

The seed of a run sets the random weights, the order of the images, and which training images are drawn. Every finished
run is a row of OUTPUT/runs.csv, and no run of this file is done twice: the same command continues a study, also on
another machine to which only runs.csv was copied. With --processes 2, two runs at a time have one thread each.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ...console import log0
from ...errors import InputError, require_at_least
from ...files import write_atomically
from ...options import CheckedOptions
from ...output import claim_folder, new_folder
from ...studies.compare.protocol import Protocol
from ..protocol import read_protocol

if TYPE_CHECKING:
    from ...studies.compare.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """YAML file of the protocol."""
    output: str
    """Folder of the ledger, the report and the pictures; the same command continues the study in it."""
    part: Literal["all", "tune", "test", "report"] = "all"
    """tune: choose the learning rates; test: compare the arms; report: only write the report; all: all of these."""
    minutes: float = 0.0
    """No new run starts after this many minutes; 0: no limit."""
    processes: int = 1
    """Number of runs at a time; with 2 or more, each run has its own process with one thread."""
    arms: tuple[str, ...] = ()
    """Names of the arms to run; all if none is given. The report has all arms."""
    dataset: str | None = None
    """Path of the dataset on this machine; it replaces `dataset` of the file. The images must be the same."""
    keep_runs: bool = False
    """Keep the folders of the finished runs, with their weights, below OUTPUT/runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("minutes", self.minutes >= 0, "must not be negative")
        require_at_least(1, processes=self.processes)


def main(options: Options) -> dict:
    protocol = read_protocol(options.file, options.dataset)
    names = [arm.name for arm in protocol.arms]
    if unknown := [name for name in options.arms if name not in names]:
        raise InputError(f"`arms={unknown[0]}` is not an arm of {options.file}: choose from {', '.join(names)}")
    folder = Path(options.output).expanduser()
    # Not above: --help does not wait for them.
    from ...studies.compare.ledger import Ledger
    from ...studies.compare.running import check_arms, run_parts

    if options.part != "report":
        check_arms(protocol)
    elif not (folder / "runs.csv").is_file():
        raise InputError(f"`output={folder}` has no runs.csv: run the study first")
    if not any((folder / name).exists() for name in ("runs.csv", "protocol.yaml")):
        new_folder(folder)  # it refuses a folder with other files
    with claim_folder(folder):
        ledger = Ledger(folder / "runs.csv", protocol)
        try:
            if options.part != "report":
                write_atomically(folder / "protocol.yaml", Path(options.file).expanduser().read_text(encoding="utf-8"))
                parts = ("tune", "test") if options.part == "all" else (options.part,)
                run_parts(
                    protocol, ledger, folder, parts, options.arms, options.minutes, options.processes,
                    options.keep_runs,
                )  # fmt: skip
        finally:
            with contextlib.suppress(OSError):  # the folder of a run that was stopped stays
                (folder / "runs").rmdir()
            summary = _write_report(protocol, ledger, folder)
    return {"output": str(folder), **summary}


def _write_report(protocol: Protocol, ledger: "Ledger", folder: Path) -> dict:
    """Write the report on what the ledger has, and print its sentences; returns a part of it."""
    from ...studies.compare.pictures import plot_differences, plot_rates
    from ...studies.compare.report import report_text, summarise_study, summary_json

    if not ledger.finished:
        log0("No run is finished, so there is no report.")
        return {"missing": None, "arms": {}}
    found = summarise_study(protocol, ledger)
    summary = summary_json(found)
    write_atomically(folder / "report.md", report_text(found))
    write_atomically(folder / "study.json", json.dumps(summary, indent=1) + "\n")
    plot_rates(found, folder / "rates.png")
    plot_differences(found, folder / "differences.png")
    log0("")
    for arm in summary["arms"].values():
        if arm["sentence"]:
            log0(arm["sentence"].replace("**", ""))
    log0(f"{folder}: the report is in report.md, its numbers are in study.json, and all runs are in runs.csv.")
    return {"missing": summary["missing"], "arms": {name: arm["sentence"] for name, arm in summary["arms"].items()}}
