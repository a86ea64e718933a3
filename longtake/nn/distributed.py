"""The few collective operations that layers need; each does nothing in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def active() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if active() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes (in place; equal shapes everywhere)."""
    if active():
        dist.all_reduce(x)
    return x


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return all_reduce_sum(x.clone())

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return summed_over_processes(grads[0].contiguous())


def summed_over_processes(x: Tensor) -> Tensor:
    """The sum of `x` over all processes; gradients of every process's loss reach every process's `x`."""
    return _Summed.apply(x) if active() else x  # pyright: ignore[reportReturnType]


def gather_rows(x: Tensor) -> Tensor:
    """`x` (N, ...) of all processes behind each other in rank order: (N * processes, ...); equal shapes."""
    if not active():
        return x
    parts = [torch.empty_like(x) for _ in range(processes())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def own_rows(x: Tensor) -> Tensor:
    """This process's part (N, ...) of what `gather_rows` made; equal shapes."""
    return x.chunk(processes())[dist.get_rank()] if active() else x


def whole(x: Tensor) -> Tensor:
    """`x` put together, if the processes hold a part each; then every process must ask for it."""
    gather = getattr(x, "full_tensor", None)  # of a DTensor
    return gather() if gather else x


def load_whole(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole tensors into a network of whose weights the processes may hold a part each."""
    own = network.state_dict()
    network.load_state_dict({k: cut_like(v, own[k]) if k in own else v for k, v in state.items()})


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: this process's part of it, or itself."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor  # here: it takes half a second

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)


def broadcast(x: Tensor) -> Tensor:
    """Replaces `x` by that of the first process (in place)."""
    if active():
        dist.broadcast(x, src=0)
    return x
