"""Model cards: what an exported model was trained on, how good it is, how to use it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from ..config.schema import FILE_FORMATS, CardConfig, TaskConfig
from ..tasks.base import Task
from ..tasks.metrics import Results


class TrainedRun(NamedTuple):
    """Facts about a run for its model cards.

    Args:
        step: steps done.
        command: the command line.
        versions: package versions.
        rows: rows of the dataset by task and split.
        results: evaluation after this step; empty if there was none.
        stopped: step after which each stopped task was stopped.
        best_by: metric by which this checkpoint was chosen as the best, if it was.
        calibrations: of the same evaluation, by task, as `Calibrated.to_json` gives them.
    """

    step: int
    command: str
    versions: Mapping[str, str]
    rows: Mapping[str, Mapping[str, int]]
    results: Results
    stopped: Mapping[str, int]
    best_by: str | None = None
    calibrations: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def model_card(
    task: Task,
    config: TaskConfig,
    encoder: str,
    run: TrainedRun,
    card: CardConfig,
    merged: bool = True,
) -> str:
    """The text of README.md, with the metadata of the Hugging Face hub.

    Args:
        task: the exported task.
        config: configuration of the task.
        encoder: `model.encoder`.
        run: facts about the run.
        card: license and language.
        merged: whether full weights were exported; otherwise an adapter and a head.
    """
    results = run.results.get(task.name, {})
    on_hub = config.dataset not in FILE_FORMATS and not Path(config.dataset).exists()
    dataset = config.dataset if on_hub else ", ".join(_names(config))
    data = ModelCardData(
        library_name="transformers" if merged else "peft",
        license=card.license,
        language=card.language or None,
        pipeline_tag=task.type.hub_name,
        base_model=encoder if "://" not in encoder and not Path(encoder).exists() else None,
        datasets=[config.dataset] if on_hub else None,
        metrics=list(results) or None,
        tags=["multitask", task.type.name],
        model_name=task.name if results else None,
        eval_results=[
            EvalResult(
                task_type=task.type.hub_name,
                dataset_type=config.dataset if on_hub else task.name,
                dataset_name=task.name,
                dataset_config=config.subset,
                dataset_split=config.validation_split,
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in results.items()
        ]
        or None,
    )
    rows = run.rows[task.name]
    table = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in results.items())
    measured = (
        f"On {rows['validation']:,} rows of `{config.validation_split}`:\n\n| metric | value |\n|---|---|\n{table}"
    )
    others = [name for name in run.rows if name != task.name]
    trained_with = f"together with {', '.join(others)}" if others else "alone"
    versions = ", ".join(f"{package} {number}" for package, number in run.versions.items())
    labels = f"\n- Labels: {', '.join(task.labels)}" if task.labels else ""
    inputs = ", ".join(f"`{name}`" for name in config.inputs)
    steps = f"{run.step:,}" + (f", the best by `{run.best_by}`" if run.best_by else "")
    if stopped := run.stopped.get(task.name):
        steps += (
            f"; on this task up to step {stopped:,}, as it no longer improved; the encoder went on with the others"
        )
    subset = f", {config.subset}" if config.subset else ""
    return f"""---
{data.to_yaml()}
---

# {task.name}

`{encoder}`, fine-tuned on the task {task.name} ({task.type.name.replace("_", " ")}) {trained_with}.

- Data: {dataset}{subset}; {rows["train"]:,} rows of `{config.train_split}`; inputs {inputs}, \
label `{config.label_column}`{labels}
- Steps: {steps}
- Command: `{run.command}`
- Versions: {versions}

## Results

{measured if results else "It was not evaluated."}
{_calibration(run.calibrations.get(task.name))}
## Use

```python
{task.type.usage(task.name, len(config.inputs)) if merged else _use_adapter(task, encoder)}
```
"""


def _calibration(found: Mapping[str, Any] | None) -> str:
    """What to do with the logits, and what it changes."""
    if found is None:
        return ""
    errors, thresholds = found["errors"], found["thresholds"]
    reading = "softmax" if thresholds is None else "sigmoid"
    text = (
        f"\n## Calibration\n\nDivide the logits by {found['temperature']:.4g} before the {reading} (`calibration` in "
        f"config.json): the expected calibration error is then {errors['after']:.3f} in place of "
        f"{errors['before']:.3f}. The temperature was fitted on the {found['num_rows']:,} rows on which this is "
        f"measured; on rows that it was not fitted on, the error is {errors['crossfitted']:.3f}.\n"
    )
    if thresholds is not None:
        lines = "\n".join(f"| {label} | {value:.3f} |" for label, value in thresholds.items())
        three = found["metrics"]
        changes = "; ".join(
            f"{name} {three['before'][name]:.4f} without, {three['after'][name]:.4f} with, "
            f"{three['crossfitted'][name]:.4f} with those fitted on other rows"
            for name in three["after"]
        )
        text += f"\nA label is there where its probability is above its threshold ({changes}):\n\n"
        text += f"| label | threshold |\n|---|---|\n{lines}\n"
    return text


def _names(config: TaskConfig) -> list[str]:
    files = config.data_files or {}
    paths = [path for value in files.values() for path in ([value] if isinstance(value, str) else value)]
    return [Path(path).name for path in paths] or [Path(config.dataset).name]


def _use_adapter(task: Task, encoder: str) -> str:
    auto, place, imports = task.type.auto_class.__name__, f'"{encoder}"', ""
    if encoder.startswith("package://"):  # a folder inside a package that anyone can install
        package, _, folder = encoder.removeprefix("package://").partition("/")
        imports, place = "from importlib.resources import files\n\n", f'str(files("{package}") / "{folder}")'
    elif Path(encoder).exists():  # on the machine of the one who trained
        place = f'"path/to/{Path(encoder).name}"'
    return f"""{imports}from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, {auto}

config = AutoConfig.from_pretrained("{task.name}")
model = {auto}.from_pretrained({place}, config=config)
model.load_state_dict(load_file("{task.name}/adapter/head.safetensors"), strict=False)
PeftModel.from_pretrained(model.base_model, "{task.name}/adapter")  # puts the adapter into the encoder's layers"""
