"""Measuring and looking: everything that is done with a model but training it."""
