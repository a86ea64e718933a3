"""The planner: layouts of sequences, the loss over them, and running plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from recall_parts import made, recorded

from longtake.data.batch import Batch
from longtake.errors import UserError
from longtake.systems.recall.config import R3_SIZES, PlannerConfig
from longtake.systems.recall.planner import CLASS, LENGTH, PADDING, TOKEN, MixedPlan, Plan, Planner, lay_out

D = 12
CONFIG = PlannerConfig(2, 2, dropout=0.0, frames=56)
"""Six tokens at most."""


def planner(**config) -> Planner:
    torch.manual_seed(0)
    network = Planner(replace(CONFIG, **config), D, 2).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network


def sequences(n: int = 3, length: int = 5) -> torch.Tensor:
    """Token i of row b is 10 b + i, everywhere."""
    value = 10.0 * torch.arange(n)[:, None] + torch.arange(length)
    return value[..., None].expand(n, length, D)


def shown(layout, row: int) -> list:
    names = {PADDING: "-", CLASS: "class ", LENGTH: "length "}
    return [
        float(v[0]) if k == TOKEN else names[int(k)] + (str(int(i)) if k != PADDING else "")
        for v, k, i in zip(layout.values[row], layout.kinds[row], layout.ids[row], strict=True)
    ]


def test_zeros():
    """Eq. 5.5."""
    layout = lay_out("zeros", sequences(), torch.tensor([2, 4, 3]), torch.tensor([0, 1, 0]), 6)
    assert [shown(layout, b) for b in range(2)] == [[0, 1, "-", "-"], [10, 11, 12, 13]]
    assert float(layout.values[0, 2:].abs().sum()) == 0


def test_another_sequence_of_the_class():
    """Eq. 5.6; row 1 is alone in its class."""
    layout = lay_out("sequence", sequences(), torch.tensor([2, 4, 3]), torch.tensor([0, 1, 0]), 6)
    assert [shown(layout, b) for b in range(3)] == [
        [0, 1, 20, 21, 22, "-"],
        [10, 11, 12, 13, 10, 11],
        [20, 21, 22, 0, 1, "-"],
    ]


def test_classes_and_lengths():
    """Eq. 5.7."""
    layout = lay_out("mixed", sequences(), torch.tensor([2, 4, 3]), torch.tensor([0, -1, 0]), 9)
    assert shown(layout, 0) == ["class 0", "length 2", 0, 1, "length 3", 20, 21, 22, "-"]
    assert shown(layout, 1) == ["class -1", "length 4", 10, 11, 12, 13, "length 4", 10, 11]


def stage_of(kind: str = "zeros"):
    base = R3_SIZES["tiny"]
    system = made("r3", planner=replace(base.planner, format=kind, dropout=0.0, frames=56))
    return system, system.stages()[1]


def told(frames: list[int]) -> Batch:
    """Sequences of videos of so many frames."""
    times = torch.stack([torch.arange(56).clamp_max(n - 1) for n in frames])
    tokens = torch.randn(len(frames), 6, 24, generator=torch.Generator().manual_seed(1))
    return Batch(id=torch.arange(len(frames)), times=times, tokens=tokens, label=torch.zeros(len(frames)).long())


def test_each_token_is_predicted_from_those_before_it():
    """Eq. 5.3; what lies beyond a video's end counts neither as input nor as target."""
    system, stage = stage_of()
    batch = told([56, 35])  # 6 tokens, and 3
    loss = recorded(stage, batch).losses["planner"]["loss"]
    errors = []
    for row, n in ((0, 6), (1, 3)):
        for i in range(1, n):
            predicted = system.planner.head(system.planner(batch["tokens"][row : row + 1, :i]))[0, -1]
            errors.append(F.smooth_l1_loss(predicted, batch["tokens"][row, i]))
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    other = told([56, 35])
    other["tokens"][1, 3:] += 5
    torch.testing.assert_close(recorded(stage, other).losses["planner"]["loss"], loss)


def test_lengths_are_predicted_in_the_mixed_format():
    system, stage = stage_of("mixed")
    losses = recorded(stage, told([40, 24])).losses["planner"]  # 4 tokens, and 2
    net, tokens = system.planner, told([40, 24])["tokens"]
    layout = lay_out("mixed", tokens, torch.tensor([4, 2]), torch.tensor([0, 0]), net.places)
    features = net(layout.values, layout.kinds, layout.ids)
    places = [(0, 0, 4), (0, 5, 2), (1, 0, 2), (1, 3, 4)]
    logits = torch.stack([net.length_head(features[b, i]) for b, i, _ in places])
    expected = F.cross_entropy(logits, torch.tensor([n for *_, n in places]))
    torch.testing.assert_close(losses["length"], expected)
    torch.testing.assert_close(losses["loss"], losses["plan"] + losses["length"])


def test_derived_tokens_are_the_encoders(library):
    system, stage = stage_of()
    frames = torch.rand(2, 3, 56, 16, 16) * 2 - 1
    tokens = stage.derive(Batch(frames=frames))["tokens"]
    assert tokens.shape == (2, 6, 24)
    torch.testing.assert_close(tokens[1:, 2], system.encode(frames[1:, :, 16:32]).token())


@torch.no_grad()
@pytest.mark.parametrize("width", [None, 16])
def test_a_cached_plan_equals_the_whole_network(width):
    """Also past the last trained position, where the last tokens slide."""
    net, tokens = planner(width=width), torch.randn(2, 2, D)
    plan = Plan(net, tokens)
    for _ in range(9):
        predicted = plan.next()
        whole = net.head(net(tokens[:, -5:]))[:, -1]
        torch.testing.assert_close(predicted, whole, rtol=1e-4, atol=1e-5)
        tokens = torch.cat([tokens, (predicted + 1)[:, None]], 1)
        plan.append(predicted + 1)
    assert plan.window.shape[1] == 5, "the last of six places never learns to predict"


@torch.no_grad()
def test_a_mixed_plan_cycles_through_sequences():
    """Eq. 5.8: a complete second sequence becomes the first."""
    net = planner(format="mixed")
    plan = MixedPlan(net, torch.randn(1, 2, D), label=1, seed=3)
    lengths = iter([3, 2, 3])
    plan.lengths[0] = 3
    plan._draw_length = lambda features, least: next(lengths)
    held, begun = [], []
    for _ in range(7):
        plan.append(plan.next())
        begun.append(plan.begins)
        held.append([(n, s.shape[1]) for n, s in zip(plan.lengths, plan.sequences, strict=True)])
    assert held[:4] == [[(3, 3)], [(3, 3), (3, 1)], [(3, 3), (3, 2)], [(3, 3), (3, 3)]]
    assert held[4:] == [[(3, 3), (2, 1)], [(3, 3), (2, 2)], [(2, 2), (3, 1)]]
    assert begun == [False, True, False, False, True, False, True]


@torch.no_grad()
@pytest.mark.parametrize("format", ["zeros", "mixed"])
def test_plans_read_trained_places_only(format, monkeypatch):
    """Training leaves the last place without a loss, so no plan may predict from it."""
    net = planner(format=format)
    seen = []
    hidden = net.hidden
    monkeypatch.setattr(
        net,
        "hidden",
        lambda x, cache=None: seen.append((cache.length if cache else 0) + x.shape[1]) or hidden(x, cache),
    )
    tokens = torch.randn(1, 3, D)
    plan = Plan(net, tokens) if format == "zeros" else MixedPlan(net, tokens, label=1, seed=5)
    for _ in range(40):
        plan.append(plan.next())
    assert max(seen) == net.places - 1


@torch.no_grad()
def test_drawn_lengths_are_possible():
    net = planner(format="mixed")
    drawn = {MixedPlan(net, torch.randn(1, 3, D), label=-1, seed=s).lengths[0] for s in range(20)}
    assert drawn <= {4, 5, 6}
    assert len(drawn) > 1


def test_the_published_size():
    """1.36 billion parameters (Tab. 5.3)."""
    config = R3_SIZES["paper"]
    token = 2 * (config.generator.content + config.generator.motion)
    with torch.device("meta"):
        net = Planner(config.planner, token, 0)
    assert token == 1536
    assert round(sum(p.numel() for p in net.parameters()) / 1e9, 2) == 1.36
    assert config.planner.tokens == 124
    assert (config.planner_stage.lr, config.planner_stage.batch) == (5e-5, 30)


def test_bad_configurations_say_what_is_wrong():
    with pytest.raises(UserError, match="width 24 cannot be split into 5 heads"):
        made("r3", planner=PlannerConfig(2, 5, frames=40))
    with pytest.raises(ValueError, match="frames is 16, which holds 1 clips"):
        PlannerConfig(frames=16)
