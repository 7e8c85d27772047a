"""The project's W&B workspace as code: a section for each task, the mixture, agreement, efficiency and checkpoints.

    python -m dashboards.workspace --config configs/glue_csqa.yaml

replaces nothing: it publishes a view of its own in the project that the configuration names, and prints its address.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations

import wandb
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as ws

from multitask.cli.arguments import read_command
from multitask.config.schema import Config
from multitask.errors import UserError, first_line, mistakes_in_one_line
from multitask.tasks.base import TASK_TYPES
from multitask.tracking.trackers import AGREEMENT


def build(config: Config, entity: str) -> ws.Workspace:
    """The workspace of a mixture; nothing is sent anywhere.

    Args:
        config: names the tasks, their metrics and the project.
        entity: the W&B user or team that the project belongs to.
    """
    metrics = {
        name: task.metrics or TASK_TYPES[task.type].metrics[: TASK_TYPES[task.type].num_default_metrics]
        for name, task in config.tasks.items()
    }
    return ws.Workspace(
        entity=entity,
        project=config.tracking.project,
        name=f"multitask: {', '.join(config.tasks)}"[:120],
        sections=sections(
            metrics,
            has_uploads=config.checkpoints.remote is not None,
            agreement=config.tracking.agreement if _is_agreement_measured(config) else None,
            has_loss_weights=config.training.loss_balancing != "static",
        ),
        settings=ws.WorkspaceSettings(x_axis="step"),
    )


def _is_agreement_measured(config: Config) -> bool:
    if config.training.agreement_steps == 0:
        return False
    scope = config.adapters.scope if config.adapters else "frozen" if config.model.freeze_encoder else "all"
    return len(config.tasks) > 1 and scope not in ("per_task", "frozen")


def sections(
    metrics: Mapping[str, Sequence[str]], has_uploads: bool, agreement: str | None, has_loss_weights: bool
) -> list[ws.Section]:
    """The sections for tasks with their metrics; `agreement` is `tracking.agreement`, None if it is not measured."""
    found = []
    for task, names in metrics.items():
        of_task = [_lines(f"{task}: validation", *(f"eval/{task}/{name}" for name in names))]
        of_task.append(_lines(f"{task}: loss", f"train/{task}/loss", f"eval/{task}/loss"))
        of_task.append(panels.WeavePanelSummaryTable(table_name=f"predictions/{task}"))
        found.append(ws.Section(name=task, panels=of_task, is_open=True))
    mixture = [
        _lines("Average over tasks", "eval/average"),
        _lines("Training loss", "train/loss"),
        _lines("Training loss of each task", *(f"train/{task}/loss" for task in metrics)),
        _lines("Examples given", *(f"train/{task}/examples" for task in metrics)),
        _lines("Learning rate", "train/learning_rate"),
        _lines("Gradient norm, before clipping", "train/grad_norm"),
    ]
    if has_loss_weights:
        mixture.append(_lines("Factor of each loss", *(f"train/{task}/loss_weight" for task in metrics)))
    cosines = [_lines("Cosine between the gradients of two tasks, average", f"{AGREEMENT}/average")]
    if agreement in ("pairs", "layers"):
        pairs = (f"{AGREEMENT}/{a}/{b}" for a, b in combinations(metrics, 2))
        cosines.append(_lines("Cosine between two tasks' gradients", *pairs))
    if agreement == "layers":
        pattern = f"{AGREEMENT}/[^/]+/[^/]+/[^/]+"
        cosines.append(panels.LinePlot(title="The same in each layer", x="step", metric_regex=pattern))
    efficiency = [
        _lines("Tokens per second", "train/tokens_per_second"),
        _lines("Padding, share of the tokens", "train/padding_share"),
        _lines("Seconds of an evaluation", "eval/seconds"),
        _lines("Seconds of the run, and those that remain", "train/elapsed_seconds", "train/remaining_seconds"),
    ]
    checkpoints = [_lines("Seconds that training waited", "checkpoint/seconds")]
    checkpoints += [_lines("Seconds of an upload", "checkpoint/upload_seconds")] if has_uploads else []
    rest = {"mixture": mixture, "efficiency": efficiency, "checkpoints": checkpoints}
    rest |= {"agreement": cosines} if agreement else {}
    return found + [ws.Section(name=name, panels=some, is_open=name == "mixture") for name, some in rest.items()]


def _lines(title: str, *names: str) -> panels.LinePlot:
    return panels.LinePlot(title=title, x="step", y=list(names))


def main(arguments: list[str]) -> None:
    """Publishes the workspace of a mixture.

    Raises:
        UserError: without an API key, and if the service does not take it.
    """
    config = read_command(arguments).config
    if not wandb.login(prompt=False, verify=False):
        raise UserError("W&B has no API key; `wandb login`, or set WANDB_API_KEY")
    try:
        workspace = build(config, wandb.Api().default_entity)
        workspace.save()
    except Exception as error:
        raise UserError(f"W&B does not take the workspace: {type(error).__name__}: {first_line(error)}") from error
    print(workspace.url)


if __name__ == "__main__":
    with mistakes_in_one_line(is_debugged="--debug" in sys.argv):
        main(sys.argv[1:])
