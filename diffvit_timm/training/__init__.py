"""One trainer for every recipe, on accelerate."""
