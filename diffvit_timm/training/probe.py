"""Start the head as a linear probe, before fine-tuning (LP-FT): `Kumar et al. 2022` - https://arxiv.org/abs/2202.10054.

A random head sends noisy gradients through pretrained features until it has learned; a fitted head does not.
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

from ..console import log0
from ..data.loading import image_batches
from ..data.splits import Splits
from ..errors import InputError

__all__ = ["fit_linear_probe"]

# Values of scikit-learn's C, the inverse of the L2 penalty, on standardised features.
PENALTIES = tuple(10.0**exponent for exponent in np.arange(-3.0, 1.1, 0.5))


def fit_linear_probe(model: Any, splits: Splits, accelerator: Accelerator) -> float:
    """Set the head, in place, to a multinomial logistic regression on the features of the frozen network.

    Args:
        model: timm model with a linear head of one output per class.
        splits: train is fitted, val chooses the L2 penalty. Every image is seen once, as in evaluation.
        accelerator: device and precision; every process fits the same head.

    Returns:
        The accuracy of the probe on val.

    Raises:
        InputError: the head is not linear, or a class has no training images.
    """
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise InputError(f"`head_init=probe` needs a linear head, but the head of this model is {type(head).__name__}")
    missing = sorted(set(range(len(splits.class_names))) - set(splits.train["label"][:]))
    if missing:
        names = ", ".join(splits.class_names[label] for label in missing)
        raise InputError(f"`head_init=probe` needs training images of every class, but {names} has none")
    model.to(accelerator.device).eval()
    x, y = _extract_features(model, splits.train, accelerator, "probe: train")
    x_val, y_val = _extract_features(model, splits.val, accelerator, "probe: val")
    model.train()
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_val = (x - mean) / std, (x_val - mean) / std
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits do not matter here
        fits = [LogisticRegression(C=c, max_iter=300).fit(x, y) for c in PENALTIES]
    losses = [log_loss(y_val, fit.predict_proba(x_val), labels=fit.classes_) for fit in fits]
    best = fits[int(np.argmin(losses))]
    _set_head(head, best, mean, std)
    accuracy = best.score(x_val, y_val)
    log0(f"linear probe: val {accuracy:.2%}, penalty C = {best.C:.3g}")
    return accuracy


@torch.inference_mode()
def _extract_features(model: Any, split: Any, accelerator: Accelerator, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the input of the head for every image, (n, dim), and the labels, (n,)."""
    rows = []
    for images in image_batches(model, split, label=label):
        with accelerator.autocast():
            features = model.forward_head(model.forward_features(images.to(accelerator.device)), pre_logits=True)
        rows.append(features.float().cpu())
    return torch.cat(rows).numpy(), np.asarray(split["label"][:])


def _set_head(head: nn.Linear, fit: LogisticRegression, mean: np.ndarray, std: np.ndarray) -> None:
    """Copy a regression on standardised features into a head on plain features."""
    weight, bias = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # scikit-learn has one row of log-odds for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / std
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(weight))
        if head.bias is not None:
            head.bias.copy_(torch.as_tensor(bias - weight @ mean))
