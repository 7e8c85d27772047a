"""The page that goes with an exported model: what it was trained on, how good it is, how to use it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..config.schema import FILE_FORMATS, TaskConfig
from ..tasks.base import Task


def model_card(task: Task, config: TaskConfig, encoder: str, state: Mapping[str, Any], merged: bool = True) -> str:
    """A README.md in the form of the hub: metadata that its pages read, then words for people.

    Args:
        task: the exported one.
        config: its configuration.
        encoder: as configured.
        state: of the checkpoint: step, command, versions, rows, results; which tasks were stopped; and `best_by`, by
            which metric it is the best, if it was chosen as that.
        merged: whether the weights are there as a whole; otherwise an adapter and a head are.
    """
    results = (state.get("results") or {}).get(task.name, {})
    on_hub = config.dataset not in FILE_FORMATS and not Path(config.dataset).exists()
    dataset = config.dataset if on_hub else ", ".join(_names(config))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task.type.hub_name,
        base_model=encoder if "://" not in encoder and not Path(encoder).exists() else None,
        datasets=[config.dataset] if on_hub else None,
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
    rows = state["rows"][task.name]
    table = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in results.items())
    measured = (
        f"On {rows['validation']:,} rows of `{config.validation_split}`:\n\n| metric | value |\n|---|---|\n{table}"
    )
    others = [name for name in state["labels"] if name != task.name]
    trained_with = f"together with {', '.join(others)}" if others else "alone"
    versions = ", ".join(f"{package} {number}" for package, number in state["versions"].items())
    labels = f"\n- Labels: {', '.join(task.labels)}" if task.labels else ""
    inputs = ", ".join(f"`{name}`" for name in config.inputs)
    steps = f"{state['step']:,}" + (f", the best by `{state['best_by']}`" if state.get("best_by") else "")
    if stopped := state.get("stopped", {}).get(task.name):
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
label `{config.label}`{labels}
- Steps: {steps}
- Command: `{state["command"]}`
- Versions: {versions}

## Results

{measured if results else "It was not evaluated."}

## Use

```python
{_use(task, config) if merged else _use_adapter(task, encoder)}
```
"""


def _names(config: TaskConfig) -> list[str]:
    files = config.data_files or {}
    paths = [path for value in files.values() for path in ([value] if isinstance(value, str) else value)]
    return [Path(path).name for path in paths] or [Path(config.dataset).name]


def _use_adapter(task: Task, encoder: str) -> str:
    auto = task.type.auto_class.__name__
    return f"""from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, {auto}

config = AutoConfig.from_pretrained("{task.name}")
model = {auto}.from_pretrained("{encoder}", config=config)
model.load_state_dict(load_file("{task.name}/adapter/head.safetensors"), strict=False)
PeftModel.from_pretrained(model.base_model, "{task.name}/adapter")  # puts the adapter into the encoder's layers"""


def _use(task: Task, config: TaskConfig) -> str:
    text = '{"text": "One text.", "text_pair": "Another."}' if len(config.inputs) == 2 else '"A text."'
    asked = {
        "regression": f'pipe({text}, function_to_apply="none")',
        "classification": f"pipe({text})",
        "multi_label_classification": f'pipe({text}, function_to_apply="sigmoid", top_k=None)',
        "token_classification": 'pipe("Words of a sentence.", aggregation_strategy="first")',
    }
    if task.type.name in asked:
        made = f'pipe = pipeline("{task.type.hub_name}", model="{task.name}")'
        return f"from transformers import pipeline\n\n{made}\n{asked[task.type.name]}"
    auto = task.type.auto_class.__name__
    made = (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("{task.name}")\ntokenizer = AutoTokenizer.from_pretrained("{task.name}")\n'
    )
    if task.type.name == "multiple_choice":
        return made + (
            'inputs = tokenizer(["A question?"] * 2, ["one choice", "another"], return_tensors="pt", padding=True)\n'
            "model(**{name: tensor[None] for name, tensor in inputs.items()}).logits.argmax()"
        )
    return made + (
        'inputs = tokenizer("A question?", "A text that holds the answer.", return_tensors="pt")\n'
        "output = model(**inputs)\n"
        "start, end = output.start_logits.argmax(), output.end_logits.argmax()\n"
        'tokenizer.decode(inputs["input_ids"][0, start : end + 1])'
    )
