"""Pushing runs to the Hugging Face Hub, model cards, and export to other formats."""
