"""Start the head as a linear probe, before fine-tuning (LP-FT): `Kumar et al. 2022` - https://arxiv.org/abs/2202.10054.

A random head sends noisy gradients through pretrained features until it has learned; a fitted head does not.
"""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import nn

from ..console import log0
from ..data.splits import Splits, require_every_class
from ..errors import InputError
from ..inspection.features import extract_features
from ..inspection.probes import fit_logistic_regressions, standardisation

__all__ = ["fit_linear_probe"]


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
    require_every_class(splits, "`head_init=probe`")
    with accelerator.autocast():
        x, x_val = (
            extract_features(model, split, ["head"], accelerator.device, f"probe: {name}")["head"]
            for name, split in (("train", splits.train), ("val", splits.val))
        )
    y, y_val = (np.asarray(split["label"][:]) for split in (splits.train, splits.val))
    mean, std = standardisation(x)
    x, x_val = (x - mean) / std, (x_val - mean) / std
    fits = fit_logistic_regressions(x, y)
    losses = [log_loss(y_val, fit.predict_proba(x_val), labels=fit.classes_) for fit in fits]
    best = fits[int(np.argmin(losses))]
    _set_head(head, best, mean, std)
    accuracy = best.score(x_val, y_val)
    log0(f"linear probe: val {accuracy:.2%}, penalty C = {best.C:.3g}")
    return accuracy


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
