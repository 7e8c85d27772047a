"""Which LoRA adapters the tokens of a call go through."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor

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
            result = result + torch.cat([self.update(*of_range) for of_range in zip(parts, own, strict=True)], dim=-2)
        else:
            common = [name for names, _ in route for name in names]
        return result + self.update(x, common) if common else result

    def update(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """What the adapters add: the sum of alpha / rank * B A dropout(x)."""
        low_rank = [self.scaling[name] * self.lora_A[name](self.lora_dropout[name](x)) for name in names]
        updates = [self.lora_B[name](low) for name, low in zip(names, low_rank, strict=True)]
        return updates[0] if len(updates) == 1 else torch.stack(updates).sum(dim=0)
