"""Saved models whose config.json is wrong somewhere, for tests/campaign.py."""

import copy
import json
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch

from diffvit_timm.data.loading import model_data_config
from diffvit_timm.models.outputs import class_names
from diffvit_timm.models.pretrained import check_model, load_model, save_pretrained

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 10**6, 10**9, 10**30, 0.5, float("nan"), float("inf"), -0.0, "", "ten", "x" * 10**5,
    "../../etc", [], [0], [1, 2, 3], [float("nan")] * 3, ["a"] * 3, {}, {"0": "cat"}, [[[[]]]],
)  # fmt: skip
MEMORY = 6 * 2**30  # bytes that a trial may allocate beyond what this process has


def config_faults(root: Path, count: int, rng: random.Random) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield trials: a saved network with one to three wrong entries loads and predicts, or is one error."""
    whole = root / "whole"
    shape = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    save_pretrained(timm.create_model("diffvit_tiny_patch16", **shape), whole, ["cat", "dog", "owl"])
    config = json.loads((whole / "config.json").read_text())
    for number in range(count):
        changed = copy.deepcopy(config)
        changes = [_change(changed, rng) for _ in range(rng.randint(1, 3))]

        def trial(folder=root / str(number), changed=changed) -> None:
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(changed))
            (folder / "model.safetensors").symlink_to(whole / "model.safetensors")
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            check_model(str(folder))
            model = load_model(str(folder)).eval()
            logits = model(torch.zeros(1, *model_data_config(model)["input_size"]))
            assert logits.isfinite().all()
            assert len(class_names(model) or logits[0]) == logits.shape[1]

        yield f"config.json with {', '.join(changes)}"[:300], trial


def _change(config: dict, rng: random.Random) -> str:
    """Replace a random entry by a random value, remove it, or add one; returns what was done."""
    entry, path = config, []
    while True:
        name = rng.choice([*entry, "from_the_future"])
        path.append(name)
        if isinstance(entry.get(name), dict) and entry[name] and rng.random() < 0.8:
            entry = entry[name]
            continue
        if rng.random() < 0.1:
            entry.pop(name, None)
            return f"no {'.'.join(path)}"
        entry[name] = rng.choice(VALUES)
        return f"{'.'.join(path)}={entry[name]!r}"
