"""Difference maps, codes and latent spaces."""

from __future__ import annotations

import pytest
import torch
from recall_parts import made

from longtake.systems.recall.latents import Codes, LatentSpace, difference_maps, integrate
from longtake.systems.recall.losses import kl_losses


def space(n: int = 2) -> LatentSpace:
    return LatentSpace(torch.randn(n, 8), torch.randn(n, 8), torch.randn(n, 4), torch.randn(n, 4))


@pytest.mark.parametrize("index", [0, 8, 15])
def test_integration_undoes_difference_maps(index):
    clip = torch.randn(2, 3, 16, 4, 4, dtype=torch.float64)
    maps = difference_maps(clip)
    assert torch.equal(maps[:, :, 0], clip[:, :, 0] - clip[:, :, 1])  # Eq. 3.3
    torch.testing.assert_close(integrate(clip[:, :, index], maps, index), clip)


def test_a_token_is_a_latent_space():
    one = space()
    token = one.token()
    assert token.shape == (2, 24)
    again = LatentSpace.of_token(token, 8, 4)
    assert all(torch.equal(getattr(again, n), getattr(one, n)) for n in vars(one))
    wild = LatentSpace.of_token(100 * torch.ones(1, 24), 8, 4)
    assert float(wild.motion_logvar.max()) == 10.0


def test_several_codes_of_one_space_stand_beside_each_other():
    one = space()
    noise = Codes(torch.randn(6, 8), torch.randn(6, 4, 2))
    codes = one.at(noise)
    expected = one.content_mean[1] + (0.5 * one.content_logvar[1]).exp() * noise.content[4]
    torch.testing.assert_close(codes.content[4], expected)
    motion = one.motion_mean[0, :, None] + (0.5 * one.motion_logvar[0, :, None]).exp() * noise.motion[2]
    torch.testing.assert_close(codes.motion[2], motion)


def test_kl_is_that_of_the_distributions():
    one = space()
    content, _ = kl_losses(one)
    theirs = torch.distributions.Normal(one.content_mean, (0.5 * one.content_logvar).exp())
    expected = torch.distributions.kl_divergence(theirs, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(content, expected)


def test_latent_arithmetic():
    """Fig. 3.10, 3.11 and 4.10: the example of docs/systems/recall.md."""
    system = made("r2")
    one, two = (system.encode(torch.rand(1, 3, 16, 16, 16) * 2 - 1).mean() for _ in range(2))
    with torch.no_grad():
        first, second, swapped, summed = (system.decode(c) for c in (one, two, one.with_motion(two), one + two))
        own = system.decode(Codes(one.content, two.motion))
    assert torch.equal(swapped, own)
    assert not torch.equal(swapped, first)
    assert not torch.equal(swapped, second)
    with torch.no_grad():
        content, motion = one.content + two.content, one.motion + two.motion
        assert torch.equal(summed, system.generator(content, motion))
