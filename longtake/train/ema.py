"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from longtake.nn.distributed import load_whole
from longtake.train.sharding import is_cut, local


class EMA:
    """Averaged weights of networks; buffers are copied, not averaged.

    The first updates average over fewer steps, or the random start would stay in the mean for long: the decay
    of update n, counted from 0, is min(decay, (1 + n) / (10 + n)).

    Args:
        networks: by name; their weights may be cut over processes, and then the averages are cut alike.
        decay: weight of the past an update, in the long run.
    """

    def __init__(self, networks: dict[str, nn.Module], decay: float):
        self.networks, self.decay = networks, decay
        self.averaged = {
            name: {k: v.detach().clone() for k, v in _tensors(net).items()} for name, net in networks.items()
        }

    @torch.no_grad()
    def update(self, names: list[str], step: int) -> None:
        """Move the averages of these networks one step towards their weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name in names:
            net, mean = self.networks[name], self.averaged[name]
            for key, value in net.named_parameters():
                mean[key].lerp_(value.to(mean[key].dtype), 1 - decay)
            for key, value in net.named_buffers():
                mean[key].copy_(value)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """For every network what its `state_dict` would be with averaged weights."""
        return {n: {k: self.averaged[n][k] for k in net.state_dict()} for n, net in self.networks.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take back what `state_dict` gave, of whole tensors."""
        with self.swapped():
            for name, network in self.networks.items():
                load_whole(network, state[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the networks hold their averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, net in self.networks.items():
            for key, own in _tensors(net).items():
                mean = self.averaged[name][key]
                if is_cut(own):  # where sharding keeps them, they must stay
                    kept = local(own).clone()
                    local(own).copy_(local(mean))
                    local(mean).copy_(kept)
                else:
                    own.data, mean.data = mean.data, own.data


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
