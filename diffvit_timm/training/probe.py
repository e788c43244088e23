"""A linear probe as the start of the head: `Kumar et al. 2022` - https://arxiv.org/abs/2202.10054 (LP-FT).

A random head sends noise through pretrained features until it has learned; a fitted one does not.
"""

import warnings
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import nn

from ..console import say
from ..data.datasets import Splits
from ..data.loading import image_batches
from ..errors import InputError

# scikit-learn's C, the inverse of the L2 penalty, on standardised features; validation loss chooses.
STRENGTHS = tuple(10.0**exponent for exponent in np.arange(-3.0, 1.1, 0.5))


@torch.inference_mode()
def _features(model: Any, split: Any, accelerator: Accelerator, label: str) -> tuple[np.ndarray, np.ndarray]:
    """What the head sees of each image, (n, dim), and the labels."""
    rows = []
    for images in image_batches(model, split, label=label):
        with accelerator.autocast():
            features = model.forward_head(model.forward_features(images.to(accelerator.device)), pre_logits=True)
        rows.append(features.float().cpu())
    return torch.cat(rows).numpy(), np.asarray(split["label"])


def fit_linear_probe(model: Any, splits: Splits, accelerator: Accelerator) -> float:
    """Set the head, in place, to the multinomial logistic regression on the features of the frozen network.

    Args:
        model: a timm model with a linear head of as many outputs as there are classes.
        splits: train is fitted, val chooses the strength of the L2 penalty; each image is seen once, as in evaluation.
        accelerator: where and how precisely to compute; every process fits the same head.

    Returns:
        The accuracy of the probe on val.

    Raises:
        InputError: the head is not linear, or a class has no training images.
    """
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise InputError(f"--head-init probe needs a linear head, and this model has a {type(head).__name__}")
    missing = sorted(set(range(len(splits.class_names))) - set(splits.train["label"]))
    if missing:
        names = ", ".join(splits.class_names[label] for label in missing)
        raise InputError(f"--head-init probe needs training images of every class: {names} has none")
    model.to(accelerator.device).eval()
    x, y = _features(model, splits.train, accelerator, "probe: train")
    x_val, y_val = _features(model, splits.val, accelerator, "probe: val")
    model.train()
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_val = (x - mean) / std, (x_val - mean) / std
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe needs no last digit
        fits = [LogisticRegression(C=c, max_iter=300).fit(x, y) for c in STRENGTHS]
    losses = [log_loss(y_val, fit.predict_proba(x_val), labels=fit.classes_) for fit in fits]
    best = fits[int(np.argmin(losses))]
    weight, bias = best.coef_, best.intercept_
    if len(best.classes_) == 2:  # one row of log-odds
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / std
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(weight))
        if head.bias is not None:
            head.bias.copy_(torch.as_tensor(bias - weight @ mean))
    accuracy = best.score(x_val, y_val)
    say(f"linear probe: val {accuracy:.2%}, penalty C = {best.C:.3g}")
    return accuracy
