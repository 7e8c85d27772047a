"""One encoder that all tasks share, one head per task, made of the classes that `transformers` ships."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import UserError
from .encoder import Inputs, compute_together, modules_to_call, regroup, words_looked_up


class Plan(NamedTuple):
    """What the encoder is called with for tasks that use the same adapters.

    Args:
        adapters: their names.
        batches: of each task, as it came.
        groups: of sequences that the encoder computes together.
        places: where each task's tokens are in the groups; none, if the groups are the batches.
    """

    adapters: list[str]
    batches: dict[str, Inputs]
    groups: list[Inputs]
    places: dict[str, Tensor]


class MultitaskModel(nn.Module):
    """Task models that hold the same encoder: `model({task: inputs}) -> {task: logits}`.

    Each task model is an ordinary `transformers` model (`model.tasks[NAME]`) whose encoder modules are those of the
    first one, so the encoder's weights exist once. A pooler stays with its task: it is where a head begins, and some
    classes of a family have one where others have not.
    """

    def __init__(self) -> None:
        super().__init__()
        # First, so that the encoder's parameters carry one name that belongs to no task.
        self.encoder = nn.ModuleDict()
        self.tasks = nn.ModuleDict()
        self.log_variances = nn.ModuleDict()  # one number for each task, where losses are balanced by uncertainty
        self.adapters: dict[str, list[str]] = {}  # names of the LoRA adapters that each task uses
        self.lora_layers: list[Any] = []  # the encoder's layers that hold them
        self.is_groupable = True  # whether the encoder can compute apart from the heads
        self.computed_tokens = 0  # by the encoder so far, padding included

    def add_task(self, name: str, model: PreTrainedModel) -> None:
        """Takes a task model in; its own encoder gives way to the shared one, which is the first task's."""
        self.tasks[name] = model
        self.share_encoder()
        stacks = [module for module in self.encoder.modules() if isinstance(module, nn.ModuleList)]
        # Where Accelerate looks for the layers that FSDP shares out; `transformers` names those of some families only.
        self._no_split_modules = sorted({type(layer).__name__ for stack in stacks for layer in stack})

    def share_encoder(self) -> None:
        """Lets every task hold the encoder modules of the first one."""
        first: Any = next(iter(self.tasks.values()))
        for name, child in shared_children(first):
            self.encoder[name] = child
            for model in self.tasks.values():
                setattr(model.base_model, name, child)

    def add_log_variances(self) -> None:
        """Gives each task a number to learn, from 0: the logarithm of how its labels vary around what is predicted."""
        for name in self.tasks:
            self.log_variances[name] = nn.ParameterList([nn.Parameter(torch.zeros(1))])

    def log_variance(self, task: str) -> nn.Parameter:
        """That number of a task, shape (1,)."""
        (parameter,) = self.log_variances[task].parameters()
        return parameter

    def forward(self, batches: Mapping[str, Inputs], max_tokens: int | None = None) -> dict[str, Tensor]:
        """Runs the encoder and a task's head on each task's batch.

        Args:
            batches: keyword arguments of each task's model, `input_ids` and `attention_mask` among them; of no rows
                where a device has no example of a task in this pass.
            max_tokens: lets the encoder compute sequences of about one length together, whichever task they belong
                to, with no more padded tokens than so many or than the batches have. None computes each batch by
                itself, in its own shape.

        Returns:
            Logits of each task, shape (rows, outputs), or (rows, tokens, outputs) from heads that say something of
            each token, where what they say of padding means nothing. Those of no rows still depend on the task's own
            parameters (on all, if no task has rows), so that every process takes part in the same gradient exchange.
        """
        filled = {task: inputs for task, inputs in batches.items() if len(inputs["input_ids"])}
        plans = self._plans(filled, max_tokens)
        ids = [group["input_ids"] for plan in plans for group in plan.groups]
        self.computed_tokens += sum(of_group.numel() for of_group in ids)
        first: Any = next(iter(self.tasks.values()))
        logits: dict[str, Tensor] = {}
        with words_looked_up(first.get_input_embeddings(), ids):
            for plan in plans:
                self.use_adapters(plan.adapters)
                logits |= self._logits(plan)
        for task in batches.keys() - filled.keys():
            logits[task] = _no_rows(self.head_parameters(task) if filled else self.parameters())
        return {task: logits[task] for task in batches}

    def _plans(self, batches: Mapping[str, Inputs], max_tokens: int | None) -> list[Plan]:
        by_adapters: dict[tuple[str, ...], dict[str, Inputs]] = {}
        for task, inputs in batches.items():
            by_adapters.setdefault(tuple(self.adapters.get(task, [])), {})[task] = inputs
        first: Any = next(iter(self.tasks.values()))
        all_tokens, plans = _num_tokens(batches), []
        for adapters, own in by_adapters.items():
            groups: list[Inputs] = list(own.values())
            places: dict[str, Tensor] = {}
            is_shared = len({id(inputs) for inputs in own.values()}) < len(own)
            if self.is_groupable and (is_shared or max_tokens is not None):
                share = max_tokens and max(_num_tokens(own), max_tokens * _num_tokens(own) // all_tokens)
                groups, places = regroup(own, first.config.pad_token_id or 0, share)
            plans.append(Plan(list(adapters), own, groups, places))
        return plans

    def _logits(self, plan: Plan) -> dict[str, Tensor]:
        """Those of a plan's tasks, whose adapters are in use."""
        models: dict[str, Any] = {task: self.tasks[task] for task in plan.batches}
        if plan.places:
            outputs = compute_together(models, modules_to_call(self.encoder), plan.batches, plan.groups, plan.places)
        else:
            outputs = {task: model(**plan.batches[task]) for task, model in models.items()}
        return {task: logits_of(output) for task, output in outputs.items()}

    def use_adapters(self, names: list[str]) -> None:
        """Lets the encoder compute with these adapters; which of them are trained stays as it is."""
        for layer in self.lora_layers:
            layer._active_adapter = names  # PEFT's own way, `set_adapter`, also freezes the others

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one adapter; none, if there is no such adapter."""
        parts = [part for layer in self.lora_layers for part in (layer.lora_A, layer.lora_B) if name in part]
        return [parameter for part in parts for parameter in part[name].parameters()]

    def head_parameters(self, task: str) -> list[nn.Parameter]:
        """The parameters that only `task` uses, those of its own adapter among them."""
        shared = set(self.encoder.parameters()) - set(self.adapter_parameters(task))
        own = [parameter for parameter in self.tasks[task].parameters() if parameter not in shared]
        return own + ([self.log_variance(task)] if task in self.log_variances else [])


def _num_tokens(batches: Mapping[str, Inputs]) -> int:
    return sum(inputs["input_ids"].numel() for inputs in batches.values())


def shared_children(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The parts of a task's model that tasks share, by name: all of the encoder but its pooler."""
    return [(name, child) for name, child in model.base_model.named_children() if name != "pooler"]


def logits_of(output: ModelOutput) -> Tensor:
    """What a task's model says, as one tensor; of question answering the logits of start and end side by side."""
    if "start_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    return output["logits"]


def _no_rows(parameters: Iterable[nn.Parameter]) -> Tensor:
    # With FSDP a layer's parameters are whole within the layer alone, which exchanges their gradients by itself.
    trained = [parameter for parameter in parameters if parameter.requires_grad and not isinstance(parameter, DTensor)]
    # The factor gives each parameter a gradient of its own, of zeros. That of a sum alone is one number, expanded, and
    # PyTorch/XLA keeps it as a view: what other passes add to it ends up summed in that number, for all parameters.
    return torch.stack([(0 * parameter).sum() for parameter in trained]).sum().expand(0, 1)


def checkpoint_gradients(model: MultitaskModel) -> None:
    """Lets the encoder's layers compute their activations again in the backward pass instead of keeping them.

    The backward pass comes when all tasks have been computed, so each layer must be told again which adapters it had.

    Raises:
        UserError: if the encoder's family in `transformers` cannot.
    """

    @contextmanager
    def with_adapters(names: list[str]) -> Iterator[None]:
        model.use_adapters(names)
        yield

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        """Called as a layer computes; around its first and its second computation."""
        names = model.lora_layers[0]._active_adapter if model.lora_layers else []
        return nullcontext(), with_adapters(names)

    for task_model in model.tasks.values():
        assert isinstance(task_model, PreTrainedModel)
        if not task_model.supports_gradient_checkpointing:
            family = task_model.config.model_type
            raise UserError(f"training.gradient_checkpointing: {family} does not support it in transformers")
        task_model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        # Meant for `use_reentrant`; it would lead gradients through a frozen encoder down to its embeddings.
        task_model.disable_input_require_grads()
