"""Find a learning rate by several short trainings, which start from the same weights and see the same batches.

    diffvit study rates --config pets                                    # 7 rates from 1e-5 to 1e-2, 60 updates each
    diffvit study rates --config pets --opt lion --rates 1e-6 1e-3
    diffvit study rates --config pets --dataset FOLDER --updates 200 --count 5

Each training has a warm-up and a cosine decay of its own, and is judged by the loss on the validation images. There is
one training per rate, so rates whose losses are close are equally good. A longer training often prefers a somewhat
smaller rate. The other options are those of diffvit train; learning rate, warm-up and length are set here. The folder
--output (auto: runs/rates) gets the table in rates.json and the picture in rates.png. Finished trainings do not run
again, and the same command continues a study that was killed, also with other --rates and --count.
"""

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Annotated

import tyro

from ...console import counted, log0
from ...output import claim_folder, new_folder
from ...studies.rates import Rate, RateLedger, RatesConfig, best_rate, plot_rates, try_rates
from ...training.config import TrainConfig
from ..training_options import training_arguments


@dataclasses.dataclass(frozen=True)
class Options(RatesConfig):
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]


def main(options: Options) -> dict:
    given = options.train.run.output
    folder = Path("runs/rates" if given == "auto" else given).expanduser()
    if not (folder / "rates.json").exists():
        new_folder(folder)  # it refuses a folder with other files
    with claim_folder(folder):
        ledger = RateLedger(folder, options)
        try_rates(options, ledger)
        rows = ledger.rows
        best = best_rate(rows)
        data, model = options.train.data, options.train.model
        length = f"{counted(options.updates, 'update')} of {options.train.optim.batch_size} images"
        title = f"{Path(model.model).name} on {Path(data.dataset).name}, {options.train.optim.opt}, {length} per rate"
        plot_rates(rows, best, math.log(ledger.classes), title, folder / "rates.png")
    _print(rows, best, ledger.val_images)
    command = shlex.join(["diffvit", "train", *training_arguments(options.train.replace(lr=best.lr, output="auto"))])
    edge = _edge(rows, best)
    log0(f"\nThe lowest validation loss has the learning rate {best.lr:g}{edge}.")
    log0(f"This command trains with it:\n  {command}")
    log0(f"{folder}: the table is in rates.json, the picture in rates.png.")
    return {
        "output": str(folder),
        "best_lr": best.lr,
        "at_edge": bool(edge),
        "command": command,
        "rates": [dataclasses.asdict(row) for row in rows],
    }


def _print(rows: list[Rate], best: Rate, images: int) -> None:
    log0(f"\nLoss (nats) and top-1 accuracy on {counted(images, 'validation image')} after the last update.")
    log0("learning rate   val loss   val accuracy   seconds")
    for row in rows:
        if row.val_loss is None:
            log0(f"{row.lr:13g}   diverged                  {row.seconds:7.0f}")
            continue
        mark = "   lowest loss" if row == best else ""
        log0(f"{row.lr:13g}   {row.val_loss:8.4f}   {row.val_accuracy:12.2%}   {row.seconds:7.0f}{mark}")


def _edge(rows: list[Rate], best: Rate) -> str:
    """Return a note if the best rate is the smallest or the largest one, with the rates to try next."""
    step = rows[1].lr / rows[0].lr
    if best == rows[0]:
        return (
            f", the smallest that was tried: a smaller one may be better (--rates {best.lr / step**2:.3g} {best.lr:g})"
        )
    if best == rows[-1]:
        return f", the largest that was tried: a larger one may be better (--rates {best.lr:g} {best.lr * step**2:.3g})"
    return ""
