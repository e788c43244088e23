"""The readable end of a training: what was reached, where the weights are, and what to do next."""

import shlex

from ..console import log0, printable
from ..data.class_balance import reports_balanced

__all__ = ["print_summary"]

WORST = 3  # classes to name if each has a precision of its own


def print_summary(result: dict) -> None:
    """Print the result of a training in words.

    Args:
        result: result of `train` or `demo`.
    """
    if result.get("dry_run"):
        return
    if "test_interval_95" not in result:
        log0(f"{result['output']} is a run that chose a setting, such as a learning rate. It was not tested.")
        return
    low, high = result["test_interval_95"]
    images = f"{result['test_images']:,} images, split: {result['test_split']}"
    metric = "accuracy" if "test_accuracy" in result else "mean average precision"
    value = result[f"test_{metric.replace(' ', '_')}"]
    lines = ["", f"Test {metric}: {value:.2%} (95 % interval {low:.2%} to {high:.2%}; {images})."]
    if precisions := result.get("test_average_precisions"):
        known = sorted((value, name) for name, value in precisions.items() if value is not None)
        worst = ", ".join(f"{printable(name)} {value:.2%}" for value, name in known[:WORST])
        lines.append(f"Random scores would reach about {result['test_chance']:.0%}. The lowest classes: {worst}.")
    elif reports_balanced(result.get("class_imbalance"), result.get("class_balance", "none")):
        lines.append(
            f"Balanced accuracy (mean over the classes): {result['test_mean_per_class']:.2%}. The largest class has "
            f"{result['class_imbalance']:.1f} times as many training images as the smallest."
        )
    if "plain_twin_accuracy" in result:
        twin_low, twin_high = result["plain_twin_interval_95"]
        lines.append(
            f"Plain twin, trained in the same way: {result['plain_twin_accuracy']:.2%} "
            f"({twin_low:.2%} to {twin_high:.2%})."
        )
    elif result["attn"] in ("diff", "diff_v2"):
        lines.append("For the plain twin under the same options, add --attn plain.")
    if kept := (result.get("conversion") or {}).get("agreement"):
        method = result["conversion"]["method"]
        lines.append(f"Before the training, the conversion ({method}) gave the source's top-1 class on {kept:.1%}.")
    run = result["output"]
    if "epochs" in result:  # an evaluation saves no weights
        word = shlex.quote(run)
        lines += [
            f"The weights are in {run}/best, the curves in {run}/training.png, and test images with their predictions "
            f"in {run}/predictions.png.",
            "Next:",
            f"  diffvit predict IMAGE.jpg --model {word}",
            f"  diffvit explain IMAGE.jpg --model {word}",
            f"  diffvit push {word} NAME",
        ]
    log0("\n".join(lines))
