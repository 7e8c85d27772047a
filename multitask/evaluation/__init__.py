"""Evaluation on validation rows, and error analysis."""
