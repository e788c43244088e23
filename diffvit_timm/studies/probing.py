"""Frozen networks beside each other: how well their features classify images, by several probes."""

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..console import log0
from ..inspection.accuracy import mean_per_class, paired_differences, wilson_interval
from ..inspection.colours import LINES
from ..inspection.features import Feature, extract_features, stored_features
from ..inspection.probes import Fit, LabelledFeatures, Probe, run_probe
from ..inspection.saving import legend_label, save_figure

if TYPE_CHECKING:
    from ..data.splits import Splits

__all__ = ["ProbeResult", "SplitFeatures", "network_features", "plot_probes", "probe_network", "probe_rows"]

ROLES = ("train", "val", "test")
SplitFeatures = dict[str, dict[Feature, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The result of one probe on one kind of features of one network.

    Attributes:
        model: name of the network.
        features, probe: as in `image_features` and `run_probe`.
        width: number of features per image.
        fit: result of `run_probe`.
    """

    model: str
    features: Feature
    probe: Probe
    width: int
    fit: Fit


def network_features(
    name: str, model: Any, splits: "Splits", features: Sequence[Feature], cache: Path | None, device: str = "cpu"
) -> SplitFeatures:
    """Compute the features of all images of three splits, without augmentation.

    Args:
        name: name of the network, for the progress.
        model: timm model, which is moved to the device. Autocast is the caller's.
        splits: the images.
        features: kinds of features.
        cache: folder of stored features, or None to store nothing.
        device: device to compute on.

    Returns:
        For 'train', 'val' and 'test' the features by their kinds, (images, width) each.

    Raises:
        InputError: as `stored_features`.
    """
    found: SplitFeatures = {}
    for role in ROLES:
        title, split = f"{name}: {role}", getattr(splits, role)
        if cache is None:
            found[role] = extract_features(model, split, features, device, title)
        else:
            found[role] = stored_features(model, split, features, cache, device, title)
    return found


def probe_network(
    name: str, found: SplitFeatures, splits: "Splits", probes: Collection[Probe], device: str = "cpu"
) -> list[ProbeResult]:
    """Run all probes on all kinds of features of a network.

    Args:
        name: name of the network.
        found: result of `network_features`.
        splits: its splits: train is learned from, val chooses the setting of each probe, and test is classified.
        probes: what to run.
        device: device of the probes.
    """
    labels = {role: np.asarray(getattr(splits, role)["label"][:]) for role in ROLES}
    results = []
    for kind, probe in itertools.product(found["train"], probes):
        train, val = (LabelledFeatures(found[role][kind], labels[role]) for role in ("train", "val"))
        fit = run_probe(probe, train, val, found["test"][kind], len(splits.class_names), device)
        log0(f"{name}: {kind}, {probe}, {fit.setting}: validation accuracy {fit.val_accuracy:.2%}")
        results.append(ProbeResult(name, kind, probe, train.x.shape[1], fit))
    return results


def probe_rows(results: Sequence[ProbeResult], labels: np.ndarray) -> list[dict[str, Any]]:
    """Compute one row per network, kind of features and probe.

    Args:
        results: those of `probe_network`, of all networks.
        labels: true classes of the test images, (images,).

    Returns:
        Rows of `model`, `features`, `width`, `probe`, `setting`, `at_edge` and `val_accuracy`; `images`, `accuracy`
        with `low` and `high`, its 95 % interval (Wilson's), and `mean_per_class` on the test images; and `difference`,
        the accuracy minus that of the first network with the same probe and kind of features, with `difference_low` and
        `difference_high`, its 95 % interval by the paired bootstrap over the images. The differences of the first
        network are None.
    """
    first: dict[tuple[str, str], np.ndarray] = {}
    rows = []
    for result in results:
        right = result.fit.predictions == labels
        base = first.setdefault((result.features, result.probe), right)
        low, high = wilson_interval(right)
        row = {
            "model": result.model, "features": result.features, "width": result.width, "probe": result.probe,
            "setting": result.fit.setting, "at_edge": result.fit.at_edge, "val_accuracy": result.fit.val_accuracy,
            "images": len(right), "accuracy": float(right.mean()), "low": low, "high": high,
            "mean_per_class": mean_per_class(right, labels),
        }  # fmt: skip
        others = None if right is base else base[:, None].astype(np.float64)
        rows.append(row | paired_differences(right[:, None].astype(np.float64), others)[0])
    return rows


def plot_probes(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the test accuracy of each probe with its 95 % interval: one line per probe and kind of features.

    Args:
        rows: result of `probe_rows`.
        path: PNG file to write.
        title: title of the figure.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    places = {key: -place for place, key in enumerate(dict.fromkeys((row["features"], row["probe"]) for row in rows))}
    figure = Figure(figsize=(8, 1.6 + 0.3 * len(places) + 0.12 * len(rows)), layout="constrained")
    figure.suptitle(title)
    axis = figure.subplots()
    for number, (model, colour) in enumerate(zip(models, itertools.cycle(LINES), strict=False)):
        own = [row for row in rows if row["model"] == model]
        shift = 0.5 * ((len(models) - 1) / 2 - number) / len(models)
        y = [places[row["features"], row["probe"]] + shift for row in own]
        accuracy = np.array([row["accuracy"] for row in own])
        reach = [accuracy - [row["low"] for row in own], [row["high"] for row in own] - accuracy]
        axis.errorbar(accuracy, y, xerr=reach, fmt="o", ms=4, lw=1.2, color=colour, label=legend_label(model))
    axis.set_yticks(list(places.values()), [f"{probe}, {features}" for features, probe in places])
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel("Test accuracy (top-1), with 95 % intervals over the images")
    axis.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", fontsize=8)
    save_figure(figure, path)
