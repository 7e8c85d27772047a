"""The steps of a run, one after the other, in the loop or prepared by processes beside it."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from .batches import Step, StepDataset
from .mixture import Mixture
from .signals import leave_signals_to_parent


class StepLoader:
    """The steps of a run with their numbers.

    What has been prepared when `use` gives it another mixture is thrown away and made anew.

    Args:
        dataset: gives a step as this device sees it.
        first: how many steps are done already.
        last: the number of the last step.
        num_workers: processes that prepare them; 0 prepares them in the loop. None takes one where an accelerator
            computes, and none on the CPU: there, making a batch takes a five-hundredth of the time that the model
            takes for it, and the process would take more from the model's cores.
        device: where the model computes.
    """

    def __init__(self, dataset: StepDataset, first: int, last: int, num_workers: int | None = 0, device: str = "cpu"):
        self.dataset, self.first, self.last = dataset, first, last
        self.options: dict[str, Any] = {
            "num_workers": int(device != "cpu") if num_workers is None else num_workers,
            "pin_memory": device == "cuda",  # for faster copies
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
