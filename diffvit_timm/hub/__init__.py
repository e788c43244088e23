"""Runs on the Hub, their model cards, and export to other formats."""
