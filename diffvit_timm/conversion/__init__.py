"""How plain attention becomes differential: weights, calibration, distillation, report."""
