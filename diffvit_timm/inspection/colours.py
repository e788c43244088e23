"""Colours of all figures, which colour-blind readers can tell apart (Okabe and Ito 2008)."""

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
LINES = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
ATTENTION = {"diff": BLUE, "diff_v2": GREEN, "plain": VERMILION, "gated": "#CC79A7", "dna": "#E69F00"}

# Colour maps of non-negative amounts, and of signed values: blue to red, white at 0.
AMOUNT, SIGNED = "viridis", "RdBu_r"
