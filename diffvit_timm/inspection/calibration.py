"""The calibration of a classifier: whether its confidence is the share of its correct predictions."""

import numpy as np

__all__ = ["calibration_error"]


def calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Compute the expected calibration error, the mean distance of confidence and accuracy in bins of equal width.

    Paper: `Guo et al. 2017` - https://arxiv.org/abs/1706.04599, equation 3

    Args:
        confidences: probability of the predicted class of each image, (n,), in [0, 1].
        right: whether each prediction is correct, (n,).
        bins: number of bins; bin m has the confidences in ((m - 1) / bins, m / bins].

    Returns:
        The error, in [0, 1]; NaN if a confidence is NaN.
    """
    if np.isnan(confidences).any():
        return float("nan")
    places = np.clip(np.ceil(confidences.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=confidences.astype(np.float64) - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))
