"""Conversion of plain attention into differential attention: weights, calibration, distillation and a report."""
