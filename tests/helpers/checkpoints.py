"""A small folder that looks like a checkpoint."""

import json
import random
from pathlib import Path

from multitask.checkpoints.manifest import write_manifest


def make_checkpoint(folder: Path, step: int, large: int = 0, average: float | None = None) -> Path:
    """A folder with a manifest and a few files, one of them as large as wanted (in bytes)."""
    folder = folder / f"step-{step:08d}"
    (folder / "encoder").mkdir(parents=True)
    rng = random.Random(str(folder))
    with (folder / "model.safetensors").open("wb") as file:
        for start in range(0, large or 3000, 1 << 20):  # so many bytes at once are too many for a large one
            file.write(rng.randbytes(min(1 << 20, (large or 3000) - start)))
    (folder / "optimizer.safetensors").write_bytes(rng.randbytes(5000))
    (folder / "encoder" / "config.json").write_text(json.dumps({"step": step}))
    (folder / "empty").write_bytes(b"")
    (folder / "state.json").write_text(json.dumps({"step": step, "average": average}))
    write_manifest(folder, step=step)
    return folder
