"""What a trained network attends to: attention maps, rollout, statistics, faithfulness, figures."""
