"""One shared encoder, many tasks; `run_multitask.py` puts the rooms of this package together.

from multitask import Predictor, train
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference.predictor import Predictor

__all__ = ["Predictor", "train"]
__version__ = "0.1.0"


def train(config: str | Path, **settings: Any) -> dict[str, Any]:
    """Trains as `run_multitask.py` does, from Python or a notebook; may be called again in the same process.

        results = train("configs/quickstart.yaml", training={"max_steps": 50}, tracking={"report_to": []})

    Args:
        config: a YAML file.
        settings: sections of the configuration with values that override those of the file, nested as in the file.

    Returns:
        The content of metrics.json: `step`, `tasks` (metrics by task), `average`, `losses`, `run_seconds`.

    Raises:
        UserError: for a mistake in the configuration or the data.
        KeyboardInterrupt: after Ctrl-C; the run is saved and can be resumed.
    """
    from run_multitask import run

    return run(config, settings)


def __getattr__(name: str) -> Any:
    """Loads `Predictor`, and PyTorch with it, when it is asked for."""
    if name == "Predictor":
        from .inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
