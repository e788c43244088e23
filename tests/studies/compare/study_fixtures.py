"""A small protocol, and rows of its ledger without any training."""

from diffvit_timm.studies.compare.ledger import Ledger, Row
from diffvit_timm.studies.compare.protocol import Arm, Planned, Protocol
from diffvit_timm.training.config import TrainConfig


def protocol(**options):
    """Return a protocol of three arms, two tuning seeds and four test seeds."""
    train = TrainConfig.from_flat("data", "diffvit_nano", pretrained=False)
    rates = (0.01, 0.02, 0.04)
    arms = tuple(
        Arm(name, train.replace(attn=attn), rates)
        for name, attn in (("plain", "plain"), ("first", "diff"), ("second", "diff_v2"))
    )
    defaults = dict(title="A study", arms=arms, baseline="plain", tuning_seeds=(100, 101), test_seeds=(0, 1, 2, 3))
    return Protocol(**{**defaults, **options})


def row(study, arm, part, rate, seed, val_accuracy=0.5, endpoint=None, **values):
    known = dict(
        test_accuracy=endpoint, test_loss=None if endpoint is None else 1.0,
        calibration_error=None if endpoint is None else 0.25, diverged=False, parameters=1000, flops=2_000_000,
        updates=7, seconds=1.5, hardware="a processor, 1 threads", versions="torch 2", images="a-b",
        checksum=study.checksum(Planned(arm, part, rate, seed)),
    )  # fmt: skip
    return Row(arm, part, rate, seed, val_accuracy, endpoint, **{**known, **values})


def ledger(study, tmp_path, rows=()):
    found = Ledger(tmp_path / "runs.csv", study)
    for entry in rows:
        found.add(entry)
    return found


def tuned(study, arm, scores):
    """Return the tuning rows of an arm: rate -> validation accuracy with every tuning seed."""
    return [row(study, arm, "tune", rate, seed, score) for rate, score in scores.items() for seed in study.tuning_seeds]
