"""The registered Diff-ViT variants, and the conversion of any plain ViT."""
