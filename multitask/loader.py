"""The steps of a run, one after the other, prepared in the background."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from .batches import Step, StepDataset
from .mixture import Mixture
from .signals import leave_signals_to_parent


class StepLoader:
    """The steps of a run with their numbers, prepared in the background.

    What has been prepared when `use` gives it another mixture is thrown away and made anew.

    Args:
        dataset: gives a step as this device sees it.
        first: how many steps are done already.
        last: the number of the last step.
        num_workers: processes that prepare them; 0 prepares them in the loop.
    """

    def __init__(self, dataset: StepDataset, first: int, last: int, num_workers: int = 0):
        self.dataset, self.first, self.last = dataset, first, last
        self.options: dict[str, Any] = {
            "num_workers": num_workers,
            "pin_memory": torch.cuda.is_available(),  # for faster copies
            "worker_init_fn": leave_signals_to_parent,
        }

    def use(self, mixture: Mixture, last: int) -> None:
        """From the next step on, takes rows as a mixture says, up to another last step."""
        self.dataset.mixture, self.last = mixture, last

    def __iter__(self) -> Iterator[tuple[int, Step]]:
        done = self.first
        while done < self.last:
            mixture, remaining = self.dataset.mixture, range(done, self.last)
            for step in DataLoader(self.dataset, batch_size=None, sampler=remaining, **self.options):
                done += 1
                yield done, step
                if self.dataset.mixture is not mixture:
                    break
