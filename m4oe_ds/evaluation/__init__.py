"""Inference with every sample exactly once, metrics with patient-clustered intervals."""
