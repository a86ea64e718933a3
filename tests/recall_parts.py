"""What the tests of the recall family share: tiny systems, batches, and an engine that changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from longtake.data.batch import Batch
from longtake.rollout.rng import Rng
from longtake.systems import system_class
from longtake.systems.base import ModelInfo

INFO = ModelInfo(15.0, (16, 16), ("a", "b"), (1, 1))


def made(name: str, info: ModelInfo = INFO, **config) -> Any:
    """A tiny system of that name in evaluation mode, with weights that make every clip another."""
    torch.manual_seed(0)
    cls = system_class(name)
    system = cls(replace(cls.sizes["tiny"], **config), info)
    with torch.no_grad():
        for module in system.networks.values():
            for key, parameter in module.named_parameters():
                if key.endswith("gamma"):
                    parameter.fill_(0.5)
    return system.eval()


def batch(frames: int, n: int = 2, **more) -> Batch:
    generator = torch.Generator().manual_seed(5)
    clips = torch.rand(n, 3, frames, 16, 16, generator=generator) * 2 - 1
    return Batch(frames=clips, id=torch.arange(10, 10 + n), label=torch.arange(n) % 2, **more)


class Recorder:
    """An engine that computes losses and gradients and changes nothing."""

    def __init__(self, stage, step: int = 0):
        self.step, self.device, self.rng = step, torch.device("cpu"), Rng(["0/test"])
        self.stage, self.optimisers = stage, stage.optimisers()
        self.losses: dict[str, Any] = {}

    def update(self, optimiser, loss_fn, batch, clip=None):
        own = {id(p) for group in self.optimisers[optimiser].param_groups for p in group["params"]}
        everything = [p for o in self.optimisers.values() for group in o.param_groups for p in group["params"]]
        for p in everything:
            p.requires_grad_(id(p) in own)
        self.losses[optimiser] = loss_fn(batch)
        for p in everything:
            p.requires_grad_(True)
        return {f"{optimiser}/loss": float(self.losses[optimiser]["loss"].detach())}


def recorded(stage, clips: Batch, step: int = 0) -> Recorder:
    engine = Recorder(stage, step)
    stage.step({next(iter(stage.clips)): clips}, engine)
    return engine
