"""The self-supervised views against the official code's, and their laws."""

from __future__ import annotations

import pytest
import torch
from goldens import Golden

from longtake.rollout.rng import Rng
from longtake.systems.ccvs.augmentation import (
    AugmentationConfig,
    augment,
    gaussian_blur,
    invert_flow,
    make_view,
    smooth,
)
from longtake.systems.ccvs.flow import backwarp


def test_flow_inversion_is_the_official_one():
    golden = Golden("ccvs_flow_inversion")
    inside, overflow = (golden.inputs[f"flow_{name}"][None] for name in ("inside", "overflow"))
    golden.check("inverse_inside", invert_flow(inside)[0])
    golden.check("inverse_inside", invert_flow(inside, official_wrap=True)[0])
    golden.check("quirk_inverse_overflow", invert_flow(overflow, official_wrap=True)[0])
    golden.check("corrected_inverse_overflow", invert_flow(overflow)[0])


@pytest.mark.parametrize("name", ["zoomin", "zoomout"])
def test_a_view_is_the_official_one(name):
    golden = Golden(f"ccvs_augmentation_{name}")
    i = golden.inputs
    hidden = (i["occlusion_field"] > 0)[None, None]
    for quirk, prefix in ((False, "corrected"), (True, "quirk")):
        args = (i["image"][None], i["elastic_flow"][None], hidden, i["zoom"][None], i["blur_sigma"][None])
        view = make_view(*(x.float() if x.is_floating_point() else x for x in args), official_wrap=quirk)
        golden.check("context", view.context)
        golden.check("target", view.target[0])
        golden.check(f"{prefix}_flow", view.flow[0])
        assert (view.occluded[0, 0] != golden.out[f"{prefix}_occluded"].bool()).float().mean() < 0.005


def test_the_flow_undoes_the_distortion():
    """Where nothing is occluded the context warped by the flow is close to the target, closer than unwarped."""
    axis = torch.linspace(0, 6, 32)
    frames = torch.stack([axis.sin()[:, None] * axis.cos(), (axis[:, None] + axis).sin(), axis.expand(32, 32) / 6])
    frames = frames.expand(4, 3, 32, 32)
    config = AugmentationConfig(alpha=1.0, blur=0.1, occluded=0.0)
    view = augment(frames, Rng([0]), [0, 1, 2, 3], config)
    seen = ~view.occluded.expand_as(frames)
    before = (view.context - view.target)[seen].square().mean()
    after = (backwarp(view.context, view.flow) - view.target)[seen].square().mean()
    assert after < 0.15 * before


def test_views_are_addressed_by_sample_numbers():
    frames = torch.rand(3, 3, 16, 16)
    config = AugmentationConfig(alpha=1.0)
    together = augment(frames, Rng([0]), [5, 6, 7], config)
    alone = augment(frames[1:2], Rng([0]), [6], config)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2].float(), b.float(), rtol=0, atol=1e-5)
    other = augment(frames[1:2], Rng([0]), [9], config)
    assert not torch.allclose(other.context, alone.context)


def test_strength_of_the_fields():
    """About 5.4 pixels at alpha 3, sigma 0.1, whatever the size; about half of the context is hidden."""
    config = AugmentationConfig()
    for size in (32, 64):
        noise = torch.rand(64, 2, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
        field = smooth(noise, config.sigma * size) * config.alpha * size
        assert float(field.square().mean().sqrt()) == pytest.approx(5.4, rel=0.15)
    view = augment(torch.rand(32, 3, 32, 32), Rng([0]), list(range(32)), config)
    assert 0.35 < float(view.occluded.float().mean()) < 0.7


def test_every_frame_has_its_own_blur():
    frames = torch.rand(2, 3, 16, 16)
    both = gaussian_blur(frames, torch.tensor([0.2, 1.9]))
    assert torch.allclose(both[:1], gaussian_blur(frames[:1], torch.tensor([0.2])), atol=1e-6)
    assert both[1].std() < 0.5 * frames[1].std()
    assert torch.allclose(gaussian_blur(torch.ones(1, 1, 8, 8), torch.tensor([1.0])), torch.ones(1, 1, 8, 8))
