"""Weights cut over processes (fully sharded data parallel, PyTorch's FSDP2, through Fabric).

Each process keeps its part of every weight, of its gradient and of the optimiser's moments; blocks are gathered
while they compute. Files hold whole tensors, so a run may go on with another number of processes, sharded or not.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from longtake.nn.distributed import cut_like, whole


def strategy() -> ModelParallelStrategy:
    """Fabric's strategy: every process of the run holds a part."""
    return ModelParallelStrategy(_cut, data_parallel_size=int(os.environ["WORLD_SIZE"]), tensor_parallel_size=1)


def _cut(network: nn.Module, mesh: Any) -> nn.Module:
    """A transformer (with `blocks`): a block is gathered for its own time, the rest for that of a call."""
    parts = mesh["data_parallel"]
    for block in network.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=parts, reshard_after_forward=True)
    # Not even the outermost stays gathered: averaged weights that are swapped in would not be seen.
    fully_shard(network, mesh=parts, reshard_after_forward=True)
    for name in ("hidden", "logits"):  # forward in two halves
        if hasattr(network, name):
            register_fsdp_forward_method(network, name)
    return network


def is_cut(tensor: Any) -> bool:
    """Whether this process holds a part of it only."""
    return isinstance(tensor, DTensor)


def gathered(value: Any) -> Any:
    """Nested dicts and lists with whole tensors for cut ones; every process must ask for it."""
    if isinstance(value, dict):
        return {k: gathered(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [gathered(v) for v in value]
    return whole(value).cpu() if is_cut(value) else value


def cut_moments(optimiser: torch.optim.Optimizer) -> None:
    """Cut what an optimiser has just read from a file of whole tensors."""
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and not is_cut(value):
                state[key] = cut_like(value, parameter)


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds; it shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
