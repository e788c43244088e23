"""Figures of attention: functions that take numbers and return a matplotlib figure, and `save`."""

from .curves import plot_faithfulness, plot_lambdas, plot_statistics
from .maps import HeadMaps, plot_all_heads, plot_branches, plot_heads, plot_positions
from .overlays import plot_overlays
from .picture import Picture, save
from .predictions import PredictedImage, draw_bars, plot_predictions

__all__ = [
    "HeadMaps",
    "Picture",
    "PredictedImage",
    "draw_bars",
    "plot_all_heads",
    "plot_branches",
    "plot_faithfulness",
    "plot_heads",
    "plot_lambdas",
    "plot_overlays",
    "plot_positions",
    "plot_predictions",
    "plot_statistics",
    "save",
]
