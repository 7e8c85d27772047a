"""Loads the batches of a run step by step, in the training process or in worker processes."""

import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ..mixture.mixture import Mixture, Rows
from .packing import Pass, Step, num_labelled, pack, share_out, split_into_passes
from .split import Split
from .static_shapes import split_statically, static_pass


class StepDataset(Dataset[Step]):
    """The steps of a run on one device; item s is step s, a function of s.

    Each task's rows, ordered by length, are dealt out to the R devices in turns (`share_out`). A share that does not
    fit into one pass is split into several, the same number on every device.

    Args:
        mixture: chooses the rows of each step.
        splits: training rows of each task.
        streams: the tasks that read each stream of rows; None for one each.
        pad_token_id: fills `input_ids`.
        max_tokens_per_pass: limit of tokens in a pass; of padded ones with static shapes.
        num_devices: R.
        device: r.
        static_shapes: whether passes hold one task each, in the few shapes of `static_shapes.py`.
        num_steps: of the run, over which the share of teachers falls to nothing.
    """

    def __init__(
        self,
        mixture: Mixture,
        splits: Mapping[str, Split],
        pad_token_id: int,
        max_tokens_per_pass: int,
        num_devices: int = 1,
        device: int = 0,
        static_shapes: bool = False,
        streams: Mapping[str, Sequence[str]] | None = None,
        num_steps: int = 1,
    ):
        self.mixture, self.tasks, self.pad_token_id = mixture, splits, pad_token_id
        streams = streams or {task: [task] for task in splits}
        self.readers = {stream: {task: splits[task] for task in names} for stream, names in streams.items()}
        self.splits = {stream: splits[names[0]] for stream, names in streams.items()}
        self.max_tokens_per_pass, self.num_devices, self.device = max_tokens_per_pass, num_devices, device
        self.static_shapes, self.num_steps = static_shapes, num_steps

    def leave_out(self, tasks: Collection[str]) -> None:
        """Stopped tasks no longer count; rows that other tasks read too go on."""
        self.readers = {
            stream: {
                task: replace(split, has_label=np.zeros(len(split), bool)) if task in tasks else split
                for task, split in of.items()
            }
            for stream, of in self.readers.items()
        }

    def __getitem__(self, step: int) -> Step:
        rows = self.mixture(step)
        shares = share_out(rows, self.splits, self.num_devices, step)
        return Step(
            passes=(self._static_passes if self.static_shapes else self._passes)(shares, step / self.num_steps),
            examples={t: num_labelled(split, rows[s]) for s, of in self.readers.items() for t, split in of.items()},
            tokens=sum(int(self.splits[task].tokens[r].sum()) for task, r in rows.items()),
        )

    def _passes(self, shares: Sequence[Mapping[str, Rows]], own_share: float) -> list[Pass]:
        plans = [split_into_passes(share, self.splits, self.max_tokens_per_pass) for share in shares]
        num_passes = max(len(plan) for plan in plans)
        own = plans[self.device] + [{}] * (num_passes - len(plans[self.device]))
        nothing = np.empty(0, np.int64)
        parts = [{stream: part.get(stream, nothing) for stream in self.splits} for part in own]
        return [pack(part, self.splits, self.readers, own_share) for part in parts]

    def _static_passes(self, shares: Sequence[Mapping[str, Rows]], own_share: float) -> list[Pass]:
        """A task has as many passes as the device with most of them needs, and at least one, so that all devices call
        the same modules in the same order."""
        passes = []
        for stream, task, split in (
            (stream, t, split) for stream, of in self.readers.items() for t, split in of.items()
        ):
            most = -(-self.mixture.most_rows(stream) // self.num_devices)
            plans = [split_statically(share[stream], split, most, self.max_tokens_per_pass) for share in shares]
            for number in range(max(1, *(len(plan) for plan in plans))):
                own = plans[self.device][number : number + 1]
                rows = own[0] if own else np.empty(0, np.int64)
                limits = self.pad_token_id, most, self.max_tokens_per_pass
                passes.append(static_pass(self.tasks, task, rows, *limits, own_share))
        return passes


class StepLoader:
    """Iterates over the numbered steps of a run.

    Steps that were prepared before `use` changed the mixture are discarded and prepared again.

    Args:
        dataset: the steps on this device.
        first: number of steps already done.
        last: the number of the last step.
        num_workers: worker processes; 0 prepares steps in the training process. None uses one worker with an
            accelerator and none on a CPU, where a worker would take more time from the model's cores than it saves.
        device: type of the device of the model.
    """

    def __init__(self, dataset: StepDataset, first: int, last: int, num_workers: int | None = 0, device: str = "cpu"):
        self.dataset, self.first, self.last = dataset, first, last
        self.options: dict[str, Any] = {
            "num_workers": int(device != "cpu") if num_workers is None else num_workers,
            "pin_memory": device == "cuda",  # for faster copies
            "worker_init_fn": leave_signals_to_parent,
            "collate_fn": as_it_is,
        }

    def use(self, mixture: Mixture, last: int, stopped: Collection[str] = ()) -> None:
        """Changes the mixture, the last step and the tasks that no longer count, from the next step on."""
        self.dataset.mixture, self.last = mixture, last
        if stopped:
            self.dataset.leave_out(stopped)

    def is_due(self, step: int, every: int | None) -> bool:
        """Whether something that happens every `every` steps and after the last one is due after this step."""
        return step == self.last or bool(every and step % every == 0)

    def examples(self, step: int) -> dict[str, float]:
        """Number of rows of each task up to this step, for the log."""
        readers, given = self.dataset.readers, self.dataset.mixture.given
        return {f"train/{task}/examples": given(stream, step) for stream, of in readers.items() for task in of}

    def __iter__(self) -> Iterator[tuple[int, Step]]:
        done = self.first
        while done < self.last:
            mixture, remaining = self.dataset.mixture, range(done, self.last)
            for step in DataLoader(self.dataset, batch_size=None, sampler=remaining, **self.options):
                done += 1
                yield done, step
                if self.dataset.mixture is not mixture:
                    break


def as_it_is(step: Step) -> Step:
    """Replaces PyTorch's `default_convert`, which would turn arrays that stay on the host into tensors."""
    return step


def leave_signals_to_parent(worker: int) -> None:
    """For worker processes: a signal sent to the process group must not end them before the step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
