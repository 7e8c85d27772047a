"""Measuring a model on validation rows, and showing where it is wrong."""
