"""Tables and figures of many runs: ablations, scaling laws, timing."""
