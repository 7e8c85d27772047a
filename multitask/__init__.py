"""One shared encoder, many tasks; `run_multitask.py` puts the rooms of this package together."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference.predictor import Predictor

__all__ = ["Predictor"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads `Predictor`, and PyTorch with it, when it is asked for."""
    if name == "Predictor":
        from .inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
