"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Averaged copies of networks; buffers are copied, not averaged.

    The first updates average over fewer steps, or the random start would stay in the mean for long: the decay
    of update n, counted from 0, is min(decay, (1 + n) / (10 + n)).

    Args:
        networks: by name.
        decay: weight of the past an update, in the long run.
    """

    def __init__(self, networks: dict[str, nn.Module], decay: float):
        self.networks, self.decay = networks, decay
        self.averaged = {name: copy.deepcopy(net).requires_grad_(False) for name, net in networks.items()}

    @torch.no_grad()
    def update(self, names: list[str], step: int) -> None:
        """Move the averages of these networks one step towards their weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name in names:
            net, mean = self.networks[name], self.averaged[name]
            for a, b in zip(mean.parameters(), net.parameters(), strict=True):
                a.lerp_(b.to(a.dtype), 1 - decay)
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
