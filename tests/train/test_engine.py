"""One update: micro-batches, gradients, clipping, averages, rates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from longtake.data.batch import Batch
from longtake.systems.base import Stage
from longtake.train.ema import EMA
from longtake.train.engine import FabricEngine, make_fabric


class Pair(Stage):
    """Two networks, an optimiser each; plain SGD, so that an update is its gradient."""

    name, steps, trains = "pair", 10, ("one", "two")

    def __init__(self, networks: dict[str, nn.Module], ema: float | None = None):
        self.networks, self.ema, self.clips = networks, ema, {}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {n: torch.optim.SGD(self.networks[n].parameters(), lr=0.5) for n in self.trains}

    def schedule(self, step: int) -> float:
        return 1 / (1 + step)

    def step(self, batches, engine):
        raise NotImplementedError

    def validate(self, batches):
        raise NotImplementedError


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"one": nn.Linear(4, 4), "two": nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1))}


def made(
    accumulate: int = 1, ema: float | None = None, precision: str = "32"
) -> tuple[FabricEngine, dict[str, Any]]:
    nets = networks()
    engine = FabricEngine(make_fabric(precision, "cpu"), nets, Pair(nets, ema), accumulate, seed=0)
    engine.begin(0)
    return engine, nets


def batch(n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(id=torch.arange(n), x=torch.randn(n, 4, generator=generator))


def test_accumulation_changes_nothing():
    results = []
    for accumulate in (1, 2, 3):
        engine, nets = made(accumulate)

        def loss(part, nets=nets):
            return {"loss": nets["one"](part["x"]).square().mean(), "size": torch.tensor(float(len(part["x"])))}

        logs = engine.update("one", loss, batch())
        assert logs["size"] == 6 / accumulate
        results.append((logs["one/loss"], logs["one/grad_norm"], nets["one"].weight.detach().clone()))
    for value, norm, weight in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-6)
        assert norm == pytest.approx(results[0][1], rel=1e-6)
        assert torch.allclose(weight, results[0][2], atol=1e-7)


def test_what_no_process_uses_stays_without_a_gradient(monkeypatch):
    """Or an optimiser would move it by its momentum, as one process does not."""
    engine, nets = made()
    nets["one"](torch.ones(2, 4)).sum().backward()
    nets["two"][1](torch.randn(4, 1)).sum().backward()
    own = nets["one"].weight.grad.clone()
    sums = []  # the other process has gradients of the first network's bias only

    def all_reduce_sum(tensor):
        sums.append(tensor)
        return tensor + torch.tensor([0.0, 1, 0, 0, 0, 0]) if len(sums) == 1 else 2 * tensor

    monkeypatch.setattr("longtake.train.engine.all_reduce_sum", all_reduce_sum)
    monkeypatch.setattr(type(engine.fabric), "world_size", 2)
    nets["one"].bias.grad = None
    engine._synchronise([p for net in nets.values() for p in net.parameters()])
    assert torch.equal(nets["one"].weight.grad, own)
    assert torch.equal(nets["one"].bias.grad, torch.zeros(4)), "used by the other process"
    assert nets["two"][0].weight.grad is None
    assert nets["two"][0].bias.grad is None


def test_only_the_optimisers_parameters_get_gradients():
    engine, nets = made()
    before = copy.deepcopy({n: net.state_dict() for n, net in nets.items()})
    seen = {}

    def loss(part):
        out = nets["two"](nets["one"](part["x"]))
        seen.update({n: [p.requires_grad for p in net.parameters()] for n, net in nets.items()})
        return {"loss": out.sum() + nets["two"][0](part["x"]).square().sum()}

    engine.update("one", loss, batch())
    assert seen == {"one": [True] * 2, "two": [False] * 4}
    assert all(p.grad is None for net in nets.values() for p in net.parameters())
    assert all(p.requires_grad for net in nets.values() for p in net.parameters())
    assert not torch.equal(nets["one"].weight, before["one"]["weight"])
    assert torch.equal(nets["two"][0].weight, before["two"]["0.weight"])


def test_a_loss_that_fails_leaves_the_parameters_trainable():
    engine, nets = made()

    def loss(part):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        engine.update("one", loss, batch())
    assert all(p.requires_grad for net in nets.values() for p in net.parameters())


def test_clipping_bounds_the_update_and_reports_the_whole_norm():
    engine, nets = made()
    start = [p.detach().clone() for p in nets["one"].parameters()]

    def loss(part):
        return {"loss": 100 * nets["one"](part["x"]).sum()}

    logs = engine.update("one", loss, batch(), clip=0.1)
    moved = torch.cat(
        [(a - b.detach()).flatten() for a, b in zip(start, nets["one"].parameters(), strict=True)]
    ).norm()
    assert logs["one/grad_norm"] > 100
    assert float(moved) == pytest.approx(0.5 * 0.1, rel=1e-3)


def test_the_schedule_scales_every_rate():
    engine, _ = made()
    engine.begin(4)
    assert engine.step == 4
    assert [g["lr"] for g in engine.optimisers["one"].param_groups] == [0.1]
    engine.begin(0)
    assert [g["lr"] for g in engine.optimisers["one"].param_groups] == [0.5]


def test_the_clock_fixes_what_dropout_draws():
    engine, _ = made()
    drawn = []
    for step in (3, 4, 3):
        engine.begin(step)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_averages_follow_the_formula_and_copy_buffers():
    nets = networks()
    ema = EMA({"two": nets["two"]}, 0.9)
    expected = nets["two"][0].weight.detach().clone()
    for step, decay in ((0, 0.1), (1, 2 / 11), (500, 0.9)):
        with torch.no_grad():
            nets["two"][0].weight.add_(torch.randn(1, 4))
            nets["two"][1].running_mean.add_(1)
        ema.update(["two"], step)
        expected = decay * expected + (1 - decay) * nets["two"][0].weight.detach()
    mean = ema.averaged["two"]
    assert torch.allclose(mean["0.weight"], expected, atol=1e-6)
    assert float(mean["1.running_mean"]) == 3
    own = nets["two"][0].weight.detach().clone()
    with ema.swapped():
        assert torch.allclose(nets["two"][0].weight, expected, atol=1e-6)
    assert torch.equal(nets["two"][0].weight, own)


def test_an_update_moves_the_averages_of_its_own_networks_only():
    engine, nets = made(ema=0.5)
    assert engine.ema is not None
    before = nets["one"].weight.detach().clone()
    engine.step = 100
    engine.update("one", lambda part: {"loss": nets["one"](part["x"]).square().mean()}, batch())
    averaged = engine.ema.averaged
    assert torch.allclose(averaged["one"]["weight"], (before + nets["one"].weight) / 2, atol=1e-7)
    assert torch.equal(averaged["two"]["0.weight"], nets["two"][0].weight)
    expected = averaged["one"]["weight"].clone()
    with engine.averaged():
        assert torch.equal(nets["one"].weight, expected)
    assert not torch.equal(nets["one"].weight, expected)
    assert not averaged["one"]["weight"].requires_grad


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(monkeypatch):
    monkeypatch.setattr("longtake.train.engine.fast_bfloat16", lambda: True)
    engine, nets = made(precision="bf16")
    dtypes = []

    def loss(part):
        out = nets["one"](part["x"])
        dtypes.append(out.dtype)
        return {"loss": out.float().square().mean()}

    engine.update("one", loss, batch())
    assert dtypes == [torch.bfloat16]
    assert nets["one"].weight.dtype == torch.float32


def test_noise_is_addressed_by_run_and_stage():
    one, two = made()[0], made()[0]
    assert torch.equal(one.rng.uniform("x", [5, 6]), two.rng.uniform("x", [5, 6]))
    nets = networks()
    other = FabricEngine(make_fabric("32", "cpu"), nets, Pair(nets), 1, seed=1)
    assert not torch.equal(one.rng.uniform("x", 5), other.rng.uniform("x", 5))
