"""Comparisons by a protocol: arms, learning rates tuned per arm, paired seeds, a ledger of runs, and verdicts."""
