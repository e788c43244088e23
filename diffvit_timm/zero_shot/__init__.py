"""CLIP as a zero-shot classifier, compared with supervised networks."""
