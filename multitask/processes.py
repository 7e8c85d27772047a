"""What one process does for all."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .errors import UserError


def from_main_process(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """What `work()` gives on the main process, on all; it may look and write where one process must do so for all.

    Raises:
        UserError: on all processes, if it was raised on the main one.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = work()
        except UserError as error:
            found[1] = str(error)
    result, mistake = broadcast_object_list(found)
    if mistake:
        raise UserError(mistake)
    return result


def check_share(batch_size: int, num_processes: int) -> None:
    """Whether each process gets an example of a step.

    Raises:
        UserError: if there are too few.
    """
    if batch_size < num_processes:
        raise UserError(
            f"training.batch_size: {batch_size} examples a step cannot be shared by {num_processes} processes"
        )
