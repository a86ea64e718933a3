"""Counting operations: all clips or a few, once or averaged over what comes now and then."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from longtake.systems.ccvs.config import SIZES as CCVS
from longtake.systems.loong.config import SIZES as LOONG
from longtake.systems.tats.config import SIZES as TATS
from longtake.train.dryrun import count_flops, describe
from longtake.train.flops import flop_counter
from longtake.train.recipe import Recipe


def test_the_whole_batch_costs_what_two_clips_scaled_do(library):
    tiny = TATS["tiny"]
    recipe = vqgan_and_prior(library, discriminator_start=0)
    counted = count_flops(recipe, 1)
    assert {name: steps for name, (steps, _) in counted.items()} == {
        "vqgan": 60,
        "prior": tiny.prior_stage.steps,
    }
    told = [float(x) for x in re.findall(r"PFLOP in all|([\d.]+) GFLOP an update", describe(recipe)) if x]
    expected = [flops / 1e9 for _, flops in counted.values()]
    assert told[0] == pytest.approx(expected[0], rel=0.02, abs=0.06)
    assert told[1] < expected[1]  # which counts the making of its tokens too


def test_what_switches_on_in_the_midst_counts_from_then_on(library):
    costs = [
        count_flops(vqgan_and_prior(library, discriminator_start=n), 1)["vqgan"][1] for n in (0, 30, 50, 10**6)
    ]
    for start, cost in zip((30, 50), costs[1:3], strict=True):
        share = (cost - costs[3]) / (costs[0] - costs[3])
        assert share == pytest.approx(1 - start / 60, abs=0.06)


def test_what_is_kept_is_derived_once(library):
    """The more often the same clips come, the less an update costs."""
    few, many = (count_flops(vqgan_and_prior(library, steps=n), 1)["prior"][1] for n in (20, 2000))
    assert few > 1.5 * many


def test_penalties_by_second_derivatives_are_counted(library):
    tiny = CCVS["tiny"]
    costs = []
    for r1_every in (1, 10**6):
        stage = replace(tiny.autoencoder_stage, steps=4, r1_every=r1_every, gan_start=1)
        config = replace(tiny, autoencoder_stage=stage, prior=replace(tiny.prior, layers=0))
        costs.append(count_flops(Recipe("ccvs", "tiny", config, str(library), ""), 1)["autoencoder"][1])
    assert costs[0] > costs[1]


def vqgan_and_prior(library, discriminator_start: int = 0, steps: int = 20) -> Recipe:
    tiny = TATS["tiny"]
    first = replace(tiny.vqgan_stage, steps=60, discriminator_start=discriminator_start)
    prior = replace(tiny.prior, condition="none")
    config = replace(tiny, vqgan_stage=first, prior=prior, prior_stage=replace(tiny.prior_stage, steps=steps))
    return Recipe("tats", "tiny", config, str(library), "")


def test_what_comes_now_and_then_counts_as_often_as_it_comes(library):
    """Stages of clips see pictures, which cost less, in a share of their updates."""
    tiny = LOONG["tiny"]
    costs = {}
    for stills in (0.0, 0.5):
        stage = replace(tiny.lm_stage, stills=stills, steps=(0, 0, 40))
        config = replace(tiny, tokenizer_stage=replace(tiny.tokenizer_stage, steps=(0, 0, 0)), lm_stage=stage)
        counted = count_flops(Recipe("loong", "tiny", config, str(library), "", seed=1), 40)
        costs[stills] = counted["lm_9"][1]
    one = replace(tiny.lm_stage, steps=(40, 0, 0), batch=(tiny.lm_stage.batch[0],) * 3)
    config = replace(tiny, tokenizer_stage=replace(tiny.tokenizer_stage, steps=(0, 0, 0)), lm_stage=one)
    picture = count_flops(Recipe("loong", "tiny", config, str(library), "", seed=1), 1)["lm_1"][1]
    share = (costs[0.0] - costs[0.5]) / (costs[0.0] - picture)
    assert 0.25 < share < 0.75


def counted(run) -> int:
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_counts_whatever_kernel_runs_it(dropout):
    """Two products forward, four backward, of queries, keys and values of 64 places."""
    q, k, v = (torch.randn(2, 3, 64, 16, requires_grad=True) for _ in range(3))

    def run() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout).sum().backward()

    assert counted(run) == 6 * 2 * (2 * 3 * 64 * 64 * 16)


def test_recurrent_layers_count():
    lstm, x = nn.LSTM(8, 16), torch.randn(5, 3, 8)
    assert counted(lambda: lstm(x)[0].sum().backward()) == 3 * 2 * 15 * (64 * 8 + 64 * 16)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_divide_the_cost_of_a_convolution(kind):
    x, costs = torch.randn(2, 8, 9, 9, requires_grad=True), []
    for groups in (1, 4):
        layer = kind(8, 16, 3, stride=2, padding=1, groups=groups)
        forward, both = counted(lambda: layer(x)), counted(lambda: layer(x).sum().backward())  # noqa: B023
        assert both == 3 * forward
        costs.append(both)
    assert costs[0] == 4 * costs[1]
