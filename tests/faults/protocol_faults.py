"""Protocols of a study that are wrong somewhere, for tests/campaign.py: each is read, or is one error."""

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from diffvit_timm.cli.protocol import read_protocol

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 10**9, 10**30, 0.5, -0.5, float("nan"), float("inf"), "", "ten", "x" * 10**4, "a\nb",
    "../../etc", [], [0], [1, 2, 3], [1, [2]], ["a"] * 3, {}, {"a": 1}, [[[[]]]], [0.1, 0.1], [100], "plain",
)  # fmt: skip
ENTRIES = ("from_the_future", "lr", "rates", "attn", "seed", "model_kwargs", "margin", "config", "dataset")


def whole_protocol() -> dict[str, Any]:
    """Return the entries of a protocol that can be read."""
    return {
        "title": "A study", "train": {"dataset": "x", "model": "diffvit_nano", "pretrained": False, "max_steps": 2},
        "arms": {"plain": {"attn": "plain"}, "other": {"attn": "diff_v2", "rates": [1, 2]}}, "baseline": "plain",
        "rates": [0.001, 0.002], "tuning_seeds": [100], "test_seeds": [0, 1], "endpoint": "test_accuracy",
        "margin": 0.5,
    }  # fmt: skip


def protocol_faults(root: Path, count: int, rng: random.Random) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield trials: a protocol with one to three wrong entries is read, or is one error."""
    for number in range(count):
        changed = copy.deepcopy(whole_protocol())
        changes = [_change(changed, rng) for _ in range(rng.randint(1, 3))]

        def trial(path=root / f"{number}.yaml", changed=changed) -> None:
            path.write_text(yaml.safe_dump(changed, sort_keys=False))
            study = read_protocol(str(path))
            assert study.baseline in [arm.name for arm in study.arms]
            assert not set(study.tuning_seeds) & set(study.test_seeds)
            assert all(rate > 0 for arm in study.arms for rate in arm.rates)

        yield f"protocol with {', '.join(changes)}"[:300], trial


def _change(entries: dict, rng: random.Random) -> str:
    """Replace a random entry by a random value, remove it, or add one; returns what was done."""
    path = []
    while True:
        name = rng.choice([*entries, rng.choice(ENTRIES)])
        path.append(name)
        if isinstance(entries.get(name), dict) and entries[name] and rng.random() < 0.8:
            entries = entries[name]
            continue
        if rng.random() < 0.1:
            entries.pop(name, None)
            return f"no {'.'.join(path)}"
        entries[name] = rng.choice(VALUES)
        return f"{'.'.join(path)}={entries[name]!r}"
