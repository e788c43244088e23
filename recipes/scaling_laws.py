"""How the test loss falls with the size of the model, differential beside plain attention.

    python recipes/scaling_laws.py --sizes 32x2 64x3 96x4 128x6                  # widths and depths, CIFAR-10, 3 seeds
    python recipes/scaling_laws.py --dataset cifar100 --batch-size 64 \\
        --sizes diffvit_10m_patch8_224 diffvit_25m_patch8_224 diffvit_50m_patch8_224                    # a GPU's work

Runs lie in --output, one folder each, with the training loss (the mean of --log-every updates; 1: of each) and the
validation loss (each epoch's; --val-every 1: after each update) in metrics.jsonl; what is finished there is not run
again, what was killed goes on. How to train is said by train_cifar.py's options. Results: recipes/README.md.
"""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

from studies import StudyConfig, require_twin, require_whole, trained
from train_cifar import CifarConfig, named_dataset

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0
from diffvit_timm.errors import InputError
from diffvit_timm.files import write_atomically

HEAD = 32  # the width of a head, where sizes are widths and depths


@dataclasses.dataclass(frozen=True)
class ScalingConfig(StudyConfig):
    sizes: tuple[str, ...] = ("32x2", "64x3", "96x4", "128x6")
    """WIDTHxDEPTH of --model, in heads of 32 channels; or names of models."""
    output: str = "auto"
    """Folder of the runs and the picture, new or of the same study; auto: runs/scaling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        from diffvit_timm.models.pretrained import check_model  # not above: --help need not wait for torch

        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise InputError(f"--sizes {' '.join(self.sizes)}: give one or more, each once")
        for size in self.sizes:
            if (given := shape(size)) is None:
                check_model(size, pretrained=False, option="--sizes")
                require_twin(size, "--sizes")
            elif given[0] % HEAD:
                raise InputError(f"--sizes {size}: the width must be a multiple of {HEAD}, a head's")
        if not any(map(shape, self.sizes)):
            self.leave_out("model", "has no effect beside --sizes that are models themselves")
        for name in self.model_arguments.keys() & {"embed_dim", "depth", "num_heads"}:
            raise InputError(f"--model-kwargs {name}=... is what --sizes varies: leave it out")
        self.require_own_folder("scaling", r"(\d+x\d+|diffvit\w*)-\w+-\d+")


def shape(size: str) -> tuple[int, int] | None:
    """Width and depth of WIDTHxDEPTH."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    return (int(match[1]), int(match[2])) if match else None


def planned(config: ScalingConfig) -> list[tuple[str, CifarConfig]]:
    """The size and the options of every run, all sizes of a seed before the next seed."""
    plan = []
    for seed, size, attn in itertools.product(range(config.seeds), config.sizes, (config.attn, "plain")):
        if (given := shape(size)) is None:
            own: dict[str, Any] = {"model": size}
        else:
            sides = f"embed_dim={given[0]}", f"depth={given[1]}", f"num_heads={given[0] // HEAD}"
            own = {"model_kwargs": config.model_kwargs + sides}
        plan.append((size, config.single("scaling", f"{size}-{attn}-{seed}", seed=seed, attn=attn, **own)))
    return plan


def spread(interval: tuple[float, float] | None) -> str:
    return " (95 % {:.4f} to {:.4f})".format(*interval) if interval else ""


def fitted(points: list) -> dict[str, dict]:
    """What is said of the points and kept: a power law an attention, and each attention beside plain at equal size."""
    from diffvit_timm.studies.power_law import MIN_SIZES, fit_power_law, loss_ratio  # not above: --help is first

    laws: dict[str, dict] = {}
    ratios: dict[str, dict] = {}
    for axis, attn in itertools.product(("parameters", "flops"), dict.fromkeys(p.attn for p in points)):
        if law := fit_power_law([p for p in points if p.attn == attn], axis):
            laws.setdefault(attn, {})[axis] = dataclasses.asdict(law)
            log0(f"{attn}: loss = {law.scale:.2f} ({axis})^-{law.exponent:.4f}{spread(law.interval)}")
            if law.misfit is not None and law.misfit < 0.05:
                log0(f"  but the sizes lie on no such law (p = {law.misfit:.2g}): that interval is of the seeds alone")
        if attn != "plain" and (found := loss_ratio(points, axis, attn)):
            ratios.setdefault(attn, {})[axis] = dataclasses.asdict(found)
            log0(f"loss of {attn} over that of plain at equal {axis}: {found.ratio:.4f}{spread(found.interval)}")
    if not laws:
        log0(f"a power law takes {MIN_SIZES} sizes: the picture joins the means of these")
    return {"laws": laws, "over_plain": ratios}


def keep(folder: Path, points: list, **found: dict) -> dict:
    """Write the points, and what was found of them; returns what was written."""
    summary = {"points": [dataclasses.asdict(point) for point in points], **found}
    write_atomically(folder / "scaling.json", json.dumps(summary, indent=1) + "\n")
    return summary


def main() -> dict:
    config = named_dataset(parse_config(ScalingConfig, description=__doc__))
    from diffvit_timm.studies.power_law import Point, count_flops, plot_scaling

    points, plan, folder = [], planned(config), config.folder("scaling")
    for size, single, result, model in trained(plan):
        parameters = sum(p.numel() for p in model.parameters())
        figures = parameters, count_flops(model), result["test_loss"], result["test_accuracy"]
        points.append(Point(size, result["attn"], single.seed, *figures))
        keep(folder, points)
    log0(f"\n{'size':24s} attention   seed   parameters   MFLOPs   test loss   accuracy")
    for p in points:
        sizes = f"{p.parameters:12,d} {p.flops / 1e6:8.1f}"
        log0(f"{p.size:24s} {p.attn:9s} {p.seed:6d} {sizes} {p.loss:11.4f} {p.accuracy:10.2%}")
    plot_scaling(points, folder / "scaling.png", config.title)
    summary = keep(folder, points, **fitted(points))
    require_whole(plan, len(points))
    return summary


if __name__ == "__main__":
    run(main)
