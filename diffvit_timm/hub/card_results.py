"""The results of a run on its model card: a table, and sentences that say what the numbers mean."""

from typing import NamedTuple

from ..data.class_balance import reports_balanced
from .markdown import escaped
from .redaction import Records

__all__ = ["Metric", "result_metrics", "results_section"]

BALANCE = {
    "sampler": " The training drew every class equally often.",
    "loss": " The training weighted the loss of each class by the inverse of its size.",
}


class Metric(NamedTuple):
    """A metric on the test images.

    Attributes:
        kind: its type on the Hub.
        name: what it is, in words.
        value: from 0 to 1.
        interval: its 95 % interval; None if there is none.
    """

    kind: str
    name: str
    value: float
    interval: tuple[float, float] | None = None


def result_metrics(result: dict) -> list[Metric]:
    """Return the metrics of a result.json: of one class per image, or of any number of classes."""
    interval = result["test_interval_95"]
    if "test_mean_average_precision" in result:
        return [Metric("map", "mean average precision", result["test_mean_average_precision"], interval)]
    return [
        Metric("accuracy", "top-1 accuracy", result["test_accuracy"], interval),
        Metric("accuracy", "balanced accuracy (mean over the classes)", result["test_mean_per_class"]),
    ]


def results_section(records: Records) -> str:
    """Write the results of a run on its test images, and what they mean; empty without a result."""
    if not (result := records.result):
        return ""
    rows = [
        *((metric.name, _in_percent(metric)) for metric in result_metrics(result)),
        ("loss", f"{result['test_loss']:.4f} nats"),
        *_calibration(result),
        ("test images", f"{result['test_images']:,} (split: {escaped(result['test_split'])}), evaluated once"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    text = f"## Results\n\n| | {escaped(records.dataset)} |\n|---|---|\n{table}\n\n"
    text += (
        f"These are the results of one run with seed {result['seed']}. The interval reflects the number of test "
        "images. It does not include the variation between seeds."
    )
    if precisions := result.get("test_average_precisions"):
        text += (
            " An image may have any number of the classes. The average precision of a class is the mean of the "
            "precision at each of its images, ranked by score. Random scores would reach about "
            f"{result['test_chance']:.0%}."
        )
        if result.get("class_balance") == "loss":
            text += " The training gave the images that have a rare class a larger weight."
        text += "\n\n" + _precision_table(precisions)
    balance = result.get("class_balance", "none")
    if "test_accuracy" in result and reports_balanced(result.get("class_imbalance"), balance):
        text += f" The largest class has {result['class_imbalance']:.1f} times as many training images as the smallest."
        text += BALANCE.get(balance, "")
    if pairs := result.get("test_confusions"):
        confusions = "; ".join(
            f"{escaped(label)} classified as {escaped(predicted)} ({n})" for label, predicted, n in pairs
        )
        text += f" The most frequent errors, with the number of images: {confusions}."
    if result.get("lambda"):
        text += (
            f"\n\nThe second attention map is subtracted with the weight lambda, which is {min(result['lambda']):.3f} "
            f"to {max(result['lambda']):.3f} in the layers of this model. Up to {max(result['negative_mass']):.1%} of "
            "a layer's attention, by absolute value, is negative."
        )
    return text


def _calibration(result: dict) -> list[tuple[str, str]]:
    """Return the row of the calibration error, which a classifier of one class per image has."""
    error = result.get("test_calibration_error")
    return [] if error is None else [("expected calibration error (15 bins)", f"{error:.4f}")]


def _in_percent(metric: Metric) -> str:
    if metric.interval is None:
        return f"{metric.value:.2%}"
    low, high = metric.interval
    return f"{metric.value:.2%} (95 % interval {low:.2%} to {high:.2%})"


def _precision_table(precisions: dict[str, float | None]) -> str:
    """Return the average precision of every class as a folded table, the least first."""
    known = sorted((value, name) for name, value in precisions.items() if value is not None)
    rows = [f"| {escaped(name)} | {value:.2%} |" for value, name in known]
    rows += [f"| {escaped(name)} | no test images |" for name, value in precisions.items() if value is None]
    table = "\n".join(rows)
    return (
        "<details><summary>Average precision of each class</summary>\n\n| class | average precision |\n|---|---|\n"
        f"{table}\n\n</details>"
    )
