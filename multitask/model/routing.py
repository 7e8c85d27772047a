"""Which LoRA adapters the tokens of a call go through."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn import functional as F

# Ranges of a packed row's tokens: names of the adapters that each goes through, and its tokens. One range alone is all
# tokens of a call, whatever its number says.
Route = Sequence[tuple[Sequence[str], int]]


class Routing:
    """The route of the call that is being computed; one object for all layers of an encoder."""

    def __init__(self) -> None:
        self.route: Route = []


@contextmanager
def route_to(routing: Routing, route: Route) -> Iterator[None]:
    """Within, tokens go along this route."""
    before, routing.route = routing.route, route
    try:
        yield
    finally:
        routing.route = before


class RoutedLinear(Linear):
    """PEFT's LoRA on a linear layer, where ranges of tokens can go through different adapters.

    All tokens go through the layer itself at once; each range adds its low-rank product. PEFT by itself chooses
    adapters for whole batch entries, and only in inference (`adapter_names`).
    """

    routing: Routing

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        route = self.routing.route
        if len(route) > 1:
            common = [name for name in route[0][0] if all(name in names for names, _ in route)]
            parts = x.split([count for _, count in route], dim=-2)
            own = [[name for name in names if name not in common] for names, _ in route]
            if self.can_be_grouped(x, own):
                updates = self.grouped_update(x, [name for (name,) in own], [count for _, count in route])
            else:
                updates = torch.cat([self.update(*of_range) for of_range in zip(parts, own, strict=True)], dim=-2)
            result = result + updates
        else:
            common = [name for names, _ in route for name in names]
        return result + self.update(x, common) if common else result

    def can_be_grouped(self, x: Tensor, names: Sequence[Sequence[str]]) -> bool:
        """Whether one product for all ranges is possible and faster than one for each.

        In bfloat16 on a CPU, 8 and 32 ranges of MiniLM's steps take 0.86 to 0.94 of the time; in float32 0.91 to 1.11.
        On a GPU it was not measured, so ranges are computed one by one there.
        """
        is_half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if x.device.type != "cpu" or not is_half or any(len(of) != 1 for of in names):
            return False
        shapes = {(self.r[of], self.scaling[of], type(self.lora_dropout[of])) for (of,) in names}
        base: Any = self.base_layer
        sizes = [*base.weight.shape, *(self.r[of] for (of,) in names)]
        return len(shapes) == 1 and all(size % 8 == 0 for size in sizes)  # rows of 16 bytes, as the kernel wants them

    def grouped_update(self, x: Tensor, names: Sequence[str], counts: Sequence[int]) -> Tensor:
        """What adapters of one shape add, each to its range of tokens."""
        ends = torch.tensor(counts, device=x.device).cumsum(0).to(torch.int32)
        parts: list[Any] = [self.lora_A, self.lora_B]
        weights = ([part[name].weight for name in names] for part in parts)
        a, b = (torch.stack(of_part).mT.bfloat16() for of_part in weights)
        low_rank = F.grouped_mm(self.lora_dropout[names[0]](x).flatten(0, -2).bfloat16(), a, offs=ends)
        return self.scaling[names[0]] * F.grouped_mm(low_rank, b, offs=ends).unflatten(0, x.shape[:-1])

    def update(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """What the adapters add: the sum of alpha / rank * B A dropout(x)."""
        low_rank = [self.scaling[name] * self.lora_A[name](self.lora_dropout[name](x)) for name in names]
        updates = [self.lora_B[name](low) for name, low in zip(names, low_rank, strict=True)]
        return updates[0] if len(updates) == 1 else torch.stack(updates).sum(dim=0)
