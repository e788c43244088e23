"""The figure of a training: loss, validation accuracy, learning rate and lambda over the epochs."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..inspection.colours import BLUE, GREEN, VERMILION
from ..inspection.saving import save_figure

TITLES = {
    "val_accuracy": "Validation accuracy (top-1)",
    "val_mean_average_precision": "Validation mean average precision",
}


def plot_training(rows: list[dict], path: Path, title: str) -> None:
    """Plot the rows of metrics.jsonl.

    Args:
        rows: rows with `epoch` and either `train_loss` and `lr` (after updates) or `val_loss` and a score (after
            validations), which is `val_accuracy` or `val_mean_average_precision`; rows after whole epochs also have
            `lambda`.
        path: path of the PNG file.
        title: model, attention and dataset.
    """
    updates = [row for row in rows if "train_loss" in row]
    validations = [row for row in rows if "val_loss" in row]
    epochs = [row for row in validations if "lambda" in row]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    figure.suptitle(title, wrap=True)
    (loss, accuracy), (rate, lam) = figure.subplots(2, 2, sharex=True)

    loss.plot([row["epoch"] for row in updates], [row["train_loss"] for row in updates], color=BLUE, label="train")
    places = [row["epoch"] for row in validations]
    loss.plot(places, [row["val_loss"] for row in validations], "o-", color=VERMILION, label="val")
    loss.set_title("Loss (nats; train includes regularisation)")
    loss.legend()

    metric = next(name for name in TITLES if all(name in row for row in validations))
    accuracy.plot(places, [row[metric] for row in validations], "o-", color=VERMILION)
    accuracy.set_title(TITLES[metric])
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))

    rate.plot([row["epoch"] for row in updates], [row["lr"] for row in updates], color=GREEN)
    rate.set_title("Learning rate of the head")

    layers = len(epochs[-1]["lambda"]) if epochs else 0
    for layer in range(layers):
        shade = layer / max(1, layers - 1)
        lam.plot(
            [row["epoch"] for row in epochs],
            [row["lambda"][layer] for row in epochs],
            "o-",
            markersize=3,  # a single epoch has no line
            color=(0.0, 0.15 + 0.6 * shade, 0.4 + 0.4 * shade),
            label=f"block {layer}" if layer in (0, layers - 1) else None,
        )
    if layers:
        lam.legend()
    else:
        lam.text(0.5, 0.5, "plain attention: no lambda", ha="center", va="center", transform=lam.transAxes)
    lam.set_title("Lambda of each block")

    for axis in (rate, lam):
        axis.set_xlabel("Epoch")
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    save_figure(figure, path)
