"""Kernels of differential attention, one file a device; `differential_attention` chooses."""
