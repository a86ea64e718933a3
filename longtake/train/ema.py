"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Averaged copies of networks; buffers are copied, not averaged.

    Args:
        networks: by name.
        decay: weight of the past an update.
    """

    def __init__(self, networks: dict[str, nn.Module], decay: float):
        self.networks, self.decay = networks, decay
        self.averaged = {name: copy.deepcopy(net).requires_grad_(False) for name, net in networks.items()}

    @torch.no_grad()
    def update(self, names: list[str]) -> None:
        """Move the averages of these networks one step towards their weights."""
        for name in names:
            net, mean = self.networks[name], self.averaged[name]
            for a, b in zip(mean.parameters(), net.parameters(), strict=True):
                a.lerp_(b.to(a.dtype), 1 - self.decay)
            for a, b in zip(mean.buffers(), net.buffers(), strict=True):
                a.copy_(b)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the networks hold their averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, net in self.networks.items():
            pairs = zip(
                [*net.parameters(), *net.buffers()],
                [*self.averaged[name].parameters(), *self.averaged[name].buffers()],
                strict=True,
            )
            for a, b in pairs:
                a.data, b.data = b.data, a.data
