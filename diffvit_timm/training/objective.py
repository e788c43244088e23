"""The objectives of a training, one class per image or any number of classes: they differ in loss and score."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.class_balance import class_weights, positive_weights, weighted_cross_entropy
from ..data.labels import label_targets
from ..data.splits import Splits
from ..inspection.accuracy import Accuracy
from ..inspection.average_precision import MultiLabelScore
from .config import TrainConfig

__all__ = ["MultiLabel", "Objective", "SingleLabel", "make_objective"]


class SingleLabel:
    """One class per image: softmax, cross-entropy and accuracy.

    Args:
        classes: number of classes.
        smoothing: share of the target that is spread evenly over all classes.
        weights: weight of each class in the loss, from `class_weights`, on the device of the logits; None: 1.
    """

    metric, shown = "accuracy", "val"

    def __init__(self, classes: int, smoothing: float = 0.0, weights: Tensor | None = None) -> None:
        self.classes, self.smoothing, self.weights = classes, smoothing, weights

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss of a batch, a scalar in nats.

        Args:
            logits: (B, classes).
            targets: (B,), class indices; or (B, classes), shares of the classes, as mixup makes them.
        """
        if self.weights is None:
            return F.cross_entropy(logits.float(), targets, label_smoothing=self.smoothing)
        return weighted_cross_entropy(logits.float(), targets, self.weights, self.smoothing)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image in an evaluation, (B,), without smoothing and weights."""
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def outputs(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return what the score needs of the logits: the predicted classes and their probabilities, (B,) each."""
        confidences, predictions = logits.float().softmax(-1).max(-1)
        return predictions, confidences

    def score(
        self, predictions: np.ndarray, confidences: np.ndarray, targets: np.ndarray, losses: np.ndarray
    ) -> Accuracy:
        """Compute the score of a split from the outputs, targets and losses of its images."""
        return Accuracy.of(predictions, targets, losses, confidences)

    def value(self, score: Accuracy) -> float:
        """Return the number that chooses the best epoch."""
        return score.accuracy

    def report(self, score: Accuracy, names: list[str]) -> dict[str, Any]:
        """Return the score on the test images, as in result.json, with the names of the classes."""
        return {
            "test_accuracy": score.accuracy,
            "test_interval_95": score.interval,
            "test_mean_per_class": score.mean_per_class,
            "test_loss": score.loss,
            "test_calibration_error": score.calibration_error,
            "test_images": score.images,
            "test_confusions": [[names[label], names[predicted], n] for label, predicted, n in score.confusions],
        }


class MultiLabel:
    """Any number of classes per image: a sigmoid per class, binary cross-entropy and mean average precision.

    The arguments and methods are those of `SingleLabel`, with targets (B, classes) of 0 and 1.

    Args:
        classes: number of classes.
        smoothing: a target of 1 becomes 1 - smoothing / 2, and a target of 0 becomes smoothing / 2.
        weights: weight of the images that have a class, (classes,), from `positive_weights`, on the device of the
            logits; None: 1.
    """

    metric, shown = "mean_average_precision", "val mAP"

    def __init__(self, classes: int, smoothing: float = 0.0, weights: Tensor | None = None) -> None:
        self.classes, self.smoothing, self.weights = classes, smoothing, weights

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over images and classes, a scalar in nats."""
        smooth = targets.float().lerp(targets.new_tensor(0.5), self.smoothing)
        return F.binary_cross_entropy_with_logits(logits.float(), smooth, pos_weight=self.weights)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image, its mean over the classes, (B,)."""
        return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(1)

    def outputs(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return the logits, (B, classes), by which the images of a class are ranked."""
        return (logits.float(),)

    def score(self, outputs: np.ndarray, targets: np.ndarray, losses: np.ndarray) -> MultiLabelScore:
        """Compute the score of a split."""
        return MultiLabelScore(outputs, targets > 0, float(losses.mean(dtype=np.float64)))

    def value(self, score: MultiLabelScore) -> float:
        """Return the number that chooses the best epoch; 0 if no image has a class."""
        return score.mean_average_precision if score.is_true.any() else 0.0

    def report(self, score: MultiLabelScore, names: list[str]) -> dict[str, Any]:
        """Return the score on the test images, as in result.json. A class without test images has no precision."""
        precisions = zip(names, score.precisions.tolist(), strict=True)
        return {
            "test_mean_average_precision": self.value(score),
            "test_interval_95": score.interval,
            "test_chance": score.chance if score.is_true.any() else 0.0,
            "test_average_precisions": {name: None if math.isnan(value) else value for name, value in precisions},
            "test_loss": score.loss,
            "test_images": score.images,
        }


Objective = SingleLabel | MultiLabel


def make_objective(config: TrainConfig, splits: Splits, device: torch.device) -> Objective:
    """Choose the objective by the labels of the dataset; `device` is that of the training."""
    classes, smoothing = len(splits.class_names), config.optim.label_smoothing
    is_weighted, weights = config.data.class_balance == "loss", None
    if splits.is_multi_label:
        if is_weighted:
            weights = positive_weights(label_targets(splits.train)).to(device)
        return MultiLabel(classes, smoothing, weights)
    if is_weighted:
        weights = class_weights(splits.train["label"][:], classes).to(device)
    return SingleLabel(classes, smoothing, weights)
