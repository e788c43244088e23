"""Differential attention layers, two-dimensional position embeddings, and hooks to observe the layers of a network."""
