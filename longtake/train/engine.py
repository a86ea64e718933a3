"""The one place that knows about devices, precision, processes and averaging."""

from __future__ import annotations

import atexit
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from longtake.data.batch import Batch, split, to_device
from longtake.errors import UserError
from longtake.nn.distributed import all_reduce_sum, whole
from longtake.nn.precision import fast_bfloat16
from longtake.rollout.rng import Rng
from longtake.systems.base import Losses, Stage
from longtake.train import sharding
from longtake.train.ema import EMA


def make_fabric(precision: str, device: str, shard: bool = False) -> Fabric:
    """Fabric for this process; under torchrun it joins the others (gloo on CPU, nccl on CUDA).

    With `shard` networks can be cut over them (`sharding.py`).

    On a CPU without bfloat16 arithmetic, "bf16" trains in 32 bits.

    Raises:
        UserError: "16" on a CPU.
    """
    kind, index = torch.device(device).type, torch.device(device).index
    if precision == "16" and kind == "cpu":
        raise UserError("loop.precision=16 needs a GPU; use 32 or bf16 on a CPU", code=2)
    if precision == "bf16" and kind == "cpu" and not fast_bfloat16():
        precision = "32"
    mixed: Any = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]
    processes = torch.distributed.is_torchelastic_launched()
    if processes:
        atexit.register(_leave)
    return Fabric(
        accelerator=kind,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]) if processes else [index] if kind == "cuda" and index else 1,
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]) if processes else 1,
        strategy="auto" if not processes else sharding.strategy() if shard else "ddp",
        precision=mixed,
    )


def _leave() -> None:
    """End gloo's threads before the interpreter ends, which aborts otherwise (Fabric does so for nccl only)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class FabricEngine:
    """Gives a stage its updates (see `systems.base.Engine`).

    Gradients are averaged over processes here and not by wrapped modules, so that a stage may call any part
    of a network, any number of times, with double backward or without.
    """

    def __init__(self, fabric: Fabric, networks: dict[str, nn.Module], stage: Stage, accumulate: int, seed: int):
        self.fabric, self.stage, self.accumulate = fabric, stage, accumulate
        self.step = 0
        self.device = fabric.device
        self.rng = Rng([f"{seed}/{stage.name}"])
        self.optimisers: dict[str, Any] = {n: fabric.setup_optimizers(o) for n, o in stage.optimisers().items()}
        self.rates = {name: [g["lr"] for g in o.param_groups] for name, o in self.optimisers.items()}
        self.networks = {name: networks[name] for name in stage.trains}
        self.ema = EMA(self.networks, stage.ema) if stage.ema is not None else None
        self.parameters = {
            name: [p for group in o.param_groups for p in group["params"]] for name, o in self.optimisers.items()
        }
        owned = {name: {id(p) for p in ps} for name, ps in self.parameters.items()}
        self.averages = {
            name: [n for n, net in self.networks.items() if any(id(p) in ids for p in net.parameters())]
            for name, ids in owned.items()
        }

    def begin(self, step: int) -> None:
        """Set the clock: learning rates, and the generator that dropout draws from."""
        self.step = step
        seed = int(self.rng.bits("torch", step)[0]) + self.fabric.global_rank
        torch.manual_seed(seed)
        for name, optimiser in self.optimisers.items():
            for group, rate in zip(optimiser.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * self.stage.schedule(step)

    def update(
        self, optimiser: str, loss_fn: Callable[[Batch], Losses], batch: Batch, clip: float | None = None
    ) -> dict[str, float]:
        """See `systems.base.Engine.update`."""
        current, parameters = self.optimisers[optimiser], self.parameters[optimiser]
        totals: dict[str, torch.Tensor] = {}
        with self._only(parameters):
            for part in split(batch, self.accumulate):
                with self.fabric.autocast():
                    losses = loss_fn(to_device(part, self.device))
                self.fabric.backward(losses["loss"] / self.accumulate)
                for key, value in losses.items():
                    totals[key] = totals.get(key, 0) + torch.as_tensor(value).detach().float() / self.accumulate
            self._synchronise(parameters)
            module = next(iter(self.networks.values()))
            norm: Any = self.fabric.clip_gradients(module, current, max_norm=clip or 1e30, error_if_nonfinite=False)
            current.step()
            current.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.averages[optimiser], self.step)
        logs = {key: float(value) for key, value in totals.items() if key != "loss"}
        logs |= {f"{optimiser}/loss": float(totals["loss"]), f"{optimiser}/grad_norm": float(whole(norm))}
        if self._scales and not math.isfinite(logs[f"{optimiser}/grad_norm"]):
            del logs[f"{optimiser}/grad_norm"]  # float16 overflowed: the scaler leaves the update out
        return logs

    @property
    def _scales(self) -> bool:
        """Whether losses are scaled, as in float16."""
        return getattr(self.fabric.strategy.precision, "scaler", None) is not None

    @contextmanager
    def _only(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Only these parameters receive gradients."""
        chosen = {id(p) for p in parameters}
        everything = [p for ps in self.parameters.values() for p in ps]
        for p in everything:
            p.requires_grad_(id(p) in chosen)
        try:
            yield
        finally:
            for p in everything:
                p.requires_grad_(True)

    def _synchronise(self, parameters: list[nn.Parameter]) -> None:
        """Mean of the gradients over processes, in one message; those of cut weights are means already."""
        parameters = [p for p in parameters if not sharding.is_cut(p)]
        if self.fabric.world_size == 1 or not parameters:
            return
        have = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self.device)
        some = (all_reduce_sum(have) > 0).tolist()  # what no process has a gradient of stays as it is
        parameters = [p for p, used in zip(parameters, some, strict=True) if used]
        if not parameters:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = all_reduce_sum(torch.cat([g.reshape(-1) for g in grads])) / self.fabric.world_size
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def share_buffers(self) -> None:
        """Give every process the first one's buffers: running statistics differ between them otherwise."""
        if self.fabric.world_size > 1:
            for network in self.networks.values():
                for buffer in network.buffers():
                    buffer.copy_(self.fabric.broadcast(buffer, src=0))

    def mean(self, logs: dict[str, float]) -> dict[str, float]:
        """Logged figures, averaged over processes."""
        if self.fabric.world_size == 1 or not logs:
            return logs
        values = all_reduce_sum(torch.tensor(list(logs.values()), device=self.device)) / self.fabric.world_size
        return dict(zip(logs, values.tolist(), strict=True))

    def averaged(self):
        """Context in which the networks hold their averaged weights, where the stage has any."""
        return self.ema.swapped() if self.ema else nullcontext()
