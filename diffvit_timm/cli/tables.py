"""Cells of the tables that commands print."""

from collections.abc import Mapping
from typing import Any

__all__ = ["points_with_interval", "share_with_interval"]


def share_with_interval(row: Mapping[str, Any], name: str = "accuracy") -> str:
    """Write a share of a row, in percent, with its interval, `low` to `high`."""
    return f"{row[name]:.2%} ({row['low']:.2%} to {row['high']:.2%})"


def points_with_interval(row: Mapping[str, Any]) -> str:
    """Write the `difference` of a row in points, with its interval; '-' for the network that the others differ from."""
    if row["difference"] is None:
        return "-"
    middle, low, high = (100 * row[key] for key in ("difference", "difference_low", "difference_high"))
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
