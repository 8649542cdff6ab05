"""Calibration: what 4-bit matrices are made of when the inputs that they will see are known."""
