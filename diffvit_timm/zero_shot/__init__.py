"""CLIP as a zero-shot classifier, beside supervised networks."""
