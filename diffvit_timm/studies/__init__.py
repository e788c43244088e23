"""Many runs as tables and pictures: ablations, scaling laws, timing."""
