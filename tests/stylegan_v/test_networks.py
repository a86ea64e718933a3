"""Sizes and properties of the networks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from longtake.systems.base import ModelInfo
from longtake.systems.stylegan_v.config import MOCOGAN_SIZES, SIZES
from longtake.systems.stylegan_v.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    VideoDiscriminator,
    batch_deviation,
)
from longtake.systems.stylegan_v.layers import upsample
from longtake.systems.stylegan_v.motion import MotionConfig, RecurrentMotion
from longtake.systems.stylegan_v.synthesis import Synthesis, SynthesisConfig, resolutions
from longtake.systems.stylegan_v.system import MoCoGANSG2, StyleGANV

PUBLISHED = {
    64: (31_158_031, 24_739_840),
    128: (31_863_698, 25_214_848),
    256: (32_105_941, 25_333_568),
    512: (37_615_064, 30_315_328),
    1024: (37_708_539, 30_344_992),
}


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_as_many_as_in_the_released_models(size):
    paper = SIZES["paper"]
    base = 16_384 if size < 512 else 32_768
    config = replace(
        paper,
        size=(size, size),
        synthesis=replace(paper.synthesis, base=base),
        discriminator=replace(paper.discriminator, base=base),
    )
    with torch.device("meta"):
        system = StyleGANV(config, ModelInfo(25.0, config.size))
    assert (count(system.generator), count(system.discriminator)) == PUBLISHED[size]


def test_the_video_discriminator_is_as_large_as_the_released_one():
    with torch.device("meta"):
        small, large = VideoDiscriminator((128, 128)), VideoDiscriminator((256, 256))
        assert small(torch.empty(1, 3, 16, 128, 128)).shape == (1, 1, 1, 5, 5)
        assert large(torch.empty(1, 3, 16, 256, 256)).shape == (1, 1, 1, 13, 13)
    assert round(count(small) / 1e6, 2) == 11.06
    assert round(count(large) / 1e6, 1) == 25.2


@pytest.mark.parametrize("name", [*SIZES, *(f"mocogan-{n}" for n in MOCOGAN_SIZES)])
def test_every_size_can_be_built(name):
    sizes, cls = (MOCOGAN_SIZES, MoCoGANSG2) if name.startswith("mocogan") else (SIZES, StyleGANV)
    config = sizes[name.removeprefix("mocogan-")]
    with torch.device("meta"):
        system = cls(config, ModelInfo(15.0, config.size, ("a", "b")))
    assert all(count(network) for network in system.networks.values())
    assert len(system.stages()[0].optimisers()) == 2


def test_resolutions():
    assert resolutions((64, 64)) == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    assert resolutions((48, 48)) == [(6, 6), (12, 12), (24, 24), (48, 48)]
    assert resolutions((36, 64)) == [(9, 16), (18, 32), (36, 64)]


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (48, 48), (36, 64), (34, 34)])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_any_size_is_made_and_judged(size, frames):
    synthesis = Synthesis(SynthesisConfig(256, 8), size, 6, 4)
    made = synthesis(torch.randn(2, 4), synthesis.modulate(torch.randn(2, synthesis.styles, 6)))
    assert made.shape == (2, 3, *size)
    critic = Discriminator(DiscriminatorConfig(base=256, most=8, embedding=4), size, frames)
    times = torch.arange(frames).expand(2, -1)
    logits = critic(torch.randn(2, 3, frames, *size), times, torch.zeros(2, 0))
    assert logits.shape == (2,)


def test_the_discriminator_sees_gaps_and_not_times():
    torch.manual_seed(0)
    critic = Discriminator(DiscriminatorConfig(base=128, most=8), (16, 16), 3)
    frames, label = torch.randn(2, 3, 3, 16, 16), torch.zeros(2, 0)
    times = torch.tensor([[0.0, 3.0, 9.0], [5.0, 6.0, 20.0]])
    logits = critic(frames, times, label)
    torch.testing.assert_close(critic(frames, times + 100.25, label), logits)
    assert (critic(frames, times * 2, label) - logits).abs().min() > 1e-4
    assert torch.isfinite(critic(frames, times * 1000, label)).all()  # gaps longer than any that it tells apart
    blind = Discriminator(DiscriminatorConfig(base=128, most=8, time=False), (16, 16), 3)
    torch.testing.assert_close(blind(frames, times * 2, label), blind(frames, times, label))


def test_the_order_of_frames_counts():
    critic = Discriminator(DiscriminatorConfig(base=128, most=8, time=False), (16, 16), 3)
    frames = torch.randn(2, 3, 3, 16, 16)
    one, other = (critic(x, torch.zeros(2, 3), torch.zeros(2, 0)) for x in (frames, frames.flip(2)))
    assert (one - other).abs().min() > 1e-4


def test_deviation_is_taken_over_groups_that_divide_the_batch():
    x = torch.randn(6, 2, 3, 3)
    groups = x.view(3, 2, -1)  # the largest divisor of 6 that is at most 4
    expected = groups.var(0, unbiased=False).add(1e-8).sqrt().mean(1)
    torch.testing.assert_close(batch_deviation(x, 4)[:, 0, 0, 0], expected.repeat(3))
    assert float(batch_deviation(x[:1], 4).abs().max()) < 1e-3


def test_upsampling_keeps_brightness_inside():
    torch.testing.assert_close(upsample(torch.ones(1, 2, 4, 4))[..., 1:-1, 1:-1], torch.ones(1, 2, 6, 6))


def test_mixed_precision_does_not_round_the_picture():
    torch.manual_seed(0)
    synthesis, first = Synthesis(SynthesisConfig(256, 8), (32, 32), 6, 4), []
    for block in synthesis.blocks[1:]:
        torch.nn.init.zeros_(block.rgb.weight)
    synthesis.blocks[0].rgb.register_forward_hook(lambda module, given, made: first.append(made))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = synthesis(torch.randn(2, 4), synthesis.modulate(torch.randn(2, synthesis.styles, 6)))
    assert first[0].dtype == torch.bfloat16
    torch.testing.assert_close(made, upsample(upsample(upsample(first[0].float()))), rtol=1e-5, atol=1e-6)


def test_recurrent_tokens_go_on_where_they_were():
    torch.manual_seed(0)
    motion = RecurrentMotion(MotionConfig(codes="lstm", noise=4, width=6, spacing=1.0), 2)
    noise, label = torch.randn(2, 9, 4), torch.eye(2)
    whole, _ = motion.tokens(noise, label)
    first, state = motion.tokens(noise[:, :5], label)
    rest, _ = motion.tokens(noise[:, 5:], label, state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)


def test_training_sees_what_generation_makes():
    """Tokens from a later start are those of the whole trajectory."""
    torch.manual_seed(0)
    motion = StyleGANV(SIZES["tiny"], ModelInfo(15.0, (16, 16))).generator.motion
    noise, label = torch.randn(1, 40 + motion.reach, 16), torch.zeros(1, 0)
    times = torch.tensor([[163.0, 170.5]], dtype=torch.float64)
    whole = motion(noise, label, torch.tensor([0]), times)
    part = motion(noise[:, 20:], label, torch.tensor([20]), times)
    torch.testing.assert_close(part, whole)


@pytest.mark.parametrize(("labels", "alike"), [("apart", False), ("joined", True)])
def test_the_class_is_told_apart_from_the_gaps(labels, alike):
    """Among the numbers of the gaps, as released, a class changes next to nothing at the beginning."""
    torch.manual_seed(0)
    critic = Discriminator(DiscriminatorConfig(base=256, most=64, embedding=64, labels=labels), (32, 32), 3, 4)
    times, label = torch.tensor([[0.0, 5, 9]] * 4), torch.eye(4)
    with torch.no_grad():
        assert critic.condition is not None
        vectors = F.normalize(critic.condition(critic.known(times, label), label))
    likeness = (vectors @ vectors.T)[~torch.eye(4, dtype=torch.bool)]
    assert (float(likeness.mean()) > 0.95) == alike
