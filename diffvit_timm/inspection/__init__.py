"""Inspection of trained networks: attention maps, rollout, statistics, faithfulness, figures."""
