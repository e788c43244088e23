"""The registered Diff-ViT variants, and conversion of any plain ViT."""
