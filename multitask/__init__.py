"""Bricks of the multi-task trainer; `run_multitask.py` puts them together."""

from .predictor import Predictor

__all__ = ["Predictor"]
__version__ = "0.1.0"
