"""Verification: an artifact beside PyTorch, by the numbers."""
