"""Bricks of the multi-task trainer; `run_multitask.py` puts them together."""

__version__ = "0.1.0"
