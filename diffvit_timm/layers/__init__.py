"""Differential attention, position embeddings of two dimensions, and how to watch layers."""
