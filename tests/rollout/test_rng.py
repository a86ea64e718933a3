"""Addressed noise: known answers, and the same number however it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.rollout.rng import Rng, philox

indices = st.integers(0, 2**40)
shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
seeds = st.one_of(st.integers(0, 2**63), st.text(max_size=5))


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, answer):
    """The vectors of the Random123 distribution (Salmon et al., SC 2011)."""
    words = philox(np.array(counter, np.uint32), np.array(key, np.uint32))
    assert words.tolist() == answer


@given(st.lists(seeds, min_size=1, max_size=3), st.lists(indices, min_size=1, max_size=4), shapes)
@settings(max_examples=40, deadline=None)
def test_same_number_alone_in_a_range_and_in_a_batch(batch, places, shape):
    together = Rng(batch)
    for draw in (Rng.uniform, Rng.normal, lambda r, s, i, n: r.integers(s, i, 1000, n)):
        whole = draw(together, "noise", places, shape)
        assert whole.shape == (len(batch), len(places), *shape)
        for b, seed in enumerate(batch):
            for i, place in enumerate(places):
                assert torch.equal(draw(Rng([seed]), "noise", place, shape)[0], whole[b, i])


def test_a_range_is_its_indices():
    rng = Rng([7])
    whole = rng.uniform("token", range(100, 164))
    assert torch.equal(whole[:, 30:], rng.uniform("token", range(130, 164)))


def test_streams_seeds_and_indices_differ():
    rng = Rng([0, 1])
    base = rng.uniform("a", 0, (64,))
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base, rng.uniform("b", 0, (64,)))
    assert not torch.equal(base, rng.uniform("a", 1, (64,)))
    assert not torch.equal(base, rng.uniform("a", 2**32, (64,)))


@pytest.mark.parametrize("other", ["stream", "seed", "index"])
def test_independence(other):
    """Correlations over 40,000 numbers stay within 4 standard deviations of 0."""
    n = 40_000
    one = Rng([3]).normal("x", 0, (n,))[0]
    two = {
        "stream": Rng([3]).normal("y", 0, (n,)),
        "seed": Rng([4]).normal("x", 0, (n,)),
        "index": Rng([3]).normal("x", 1, (n,)),
    }[other][0]
    assert abs(float((one * two).mean())) < 4 / n**0.5


def test_moments():
    n = 100_000
    u = Rng([11]).uniform("u", range(n))[0].double()
    assert 0 <= float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1
    assert abs(float(u.mean()) - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert abs(float(u.var()) - 1 / 12) < 1e-3
    z = Rng([11]).normal("z", range(n))[0].double()
    assert abs(float(z.mean())) < 4 / n**0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((z**3).mean())) < 4 * (15 / n) ** 0.5
    assert abs(float((z**4).mean()) - 3) < 4 * (96 / n) ** 0.5


def test_uniform_has_a_flat_histogram():
    n, bins = 64_000, 32
    counts = torch.histc(Rng([5]).uniform("u", 0, (n,)), bins, 0, 1)
    statistic = float(((counts - n / bins) ** 2 / (n / bins)).sum())
    assert statistic < 62  # the 99.9 % point of chi-square with 31 degrees of freedom is 61.1


@given(st.integers(1, 50), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_integers_are_uniform_and_inside(high, seed):
    n = 200 * high
    drawn = Rng([seed]).integers("i", range(n), high)[0]
    counts = torch.bincount(drawn, minlength=high).double()
    assert len(counts) == high
    assert int(drawn.min()) >= 0
    statistic = float(((counts - 200) ** 2 / 200).sum())
    assert statistic < high + 6 * (2 * high) ** 0.5 + 12
