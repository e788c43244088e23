"""Kernels of differential attention, one file per device. `differential_attention` chooses between them."""
