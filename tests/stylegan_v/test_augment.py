"""Adaptive augmentation."""

import math

import pytest
import torch

from longtake.systems.stylegan_v import augment as module
from longtake.systems.stylegan_v.augment import (
    SYM6,
    Adaptation,
    AugmentConfig,
    augment,
    colours,
    geometry,
    resample,
)

IDENTITY = torch.eye(3, dtype=torch.float64)[None]


def test_the_filter_is_orthonormal():
    taps = torch.tensor(SYM6, dtype=torch.float64)
    assert taps.sum() == pytest.approx(math.sqrt(2), abs=1e-9)
    for shift in range(6):
        assert float((taps[2 * shift :] * taps[: 12 - 2 * shift]).sum()) == pytest.approx(
            float(shift == 0), abs=1e-9
        )


@pytest.mark.parametrize("size", [(8, 8), (9, 16)])
def test_a_map_by_nothing_changes_nothing(size):
    images = torch.rand(1, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(resample(images, IDENTITY), images, rtol=0, atol=1e-9)


def inner(images: torch.Tensor) -> torch.Tensor:
    return images[..., 4:-4, 4:-4]


def test_whole_shifts_mirrors_and_quarter_turns():
    images = torch.rand(1, 2, 24, 24, dtype=torch.float64)

    def mapped(rows):
        return resample(images, torch.tensor([rows], dtype=torch.float64))

    def exactly(made, wanted):
        torch.testing.assert_close(inner(made), inner(wanted), rtol=0, atol=1e-9)

    exactly(mapped([[1, 0, 2], [0, 1, -3], [0, 0, 1]]), images.roll((3, -2), (2, 3)))
    # The filter is not quite symmetric: a turned picture is the picture's turn only as far as details are not fine.
    images = torch.nn.functional.interpolate(images[..., :6, :6], scale_factor=4, mode="bicubic")
    turned = mapped([[-1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert (turned - images.flip(3)).abs().max() < 0.02
    turned = mapped([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    assert (turned - images.rot90(-1, (2, 3))).abs().max() < 0.02


@pytest.mark.parametrize("shift", [3, 9])
def test_beyond_the_borders_pictures_mirror(shift):
    wave = torch.cos(torch.arange(24, dtype=torch.float64) / 4)
    images = (wave[:, None] * wave).view(1, 1, 24, 24)
    where = torch.tensor([[[1.0, 0, shift], [0, 1, 0], [0, 0, 1]]], dtype=torch.float64)
    shown = torch.cat([images, images.flip(3)], 3)[..., shift : shift + 24]
    torch.testing.assert_close(resample(images, where), shown, rtol=0, atol=0.03)


def test_frames_of_a_video_are_augmented_alike_and_videos_are_not():
    torch.manual_seed(1)
    frame = torch.rand(1, 3, 1, 16, 16)
    made = augment(frame.expand(6, 3, 4, 16, 16), 0.9, AugmentConfig())
    torch.testing.assert_close(made, made[:, :, :1].expand_as(made))
    assert all((made[i] - made[j]).abs().max() > 0.05 for i in range(6) for j in range(i))


def test_probability():
    frames = torch.rand(4, 3, 2, 16, 16)
    assert augment(frames, 0.0, AugmentConfig()) is frames
    torch.manual_seed(0)
    where = geometry(4000, (16, 16), 0.3, AugmentConfig(geometry=False), frames.device)
    still = (where == torch.eye(3)).flatten(1).all(1).float().mean()
    # Mirrored, turned or shifted with probability 0.3 each, but by nothing in 1/2, 1/4 and 1/16 of the cases.
    assert float(still) == pytest.approx(0.85 * 0.775 * 0.719, abs=0.04)
    matrix = colours(4000, 0.2, frames.device)
    assert float((matrix == torch.eye(4)).flatten(1).all(1).float().mean()) < 0.8
    torch.testing.assert_close(matrix[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(4000, 4))


def test_hue_and_inversion_keep_grey_on_its_axis():
    torch.manual_seed(0)
    grey = torch.tensor([0.3, 0.3, 0.3, 1.0])
    mapped = (colours(100, 1.0, grey.device) @ grey)[:, :3]
    torch.testing.assert_close(mapped, mapped[:, :1].expand(-1, 3), rtol=0, atol=1e-4)


def test_r1_can_look_through_it():
    torch.manual_seed(0)
    frames = torch.rand(2, 3, 1, 6, 6, dtype=torch.float64, requires_grad=True)

    def fixed(x):
        torch.manual_seed(2)
        return augment(x, 0.9, AugmentConfig()).square().sum((1, 2, 3, 4))

    assert torch.autograd.gradgradcheck(fixed, frames, eps=1e-5, atol=1e-4)


def test_it_adapts_to_how_sure_the_discriminator_is():
    config = AugmentConfig(target=0.6, every=2, videos=100)
    adaptation = Adaptation(config)
    for step in range(4):
        adaptation.see(torch.full((8,), 2.0))
        adaptation.correct(step, 8)
    assert adaptation.p == pytest.approx(4 * 8 / 100)
    held = adaptation.state_dict()
    for step in range(4, 6):
        adaptation.see(torch.tensor([1.0, -1.0] * 4))
        adaptation.correct(step, 8)
    assert adaptation.p == pytest.approx(2 * 8 / 100)
    again = Adaptation(config)
    again.load_state_dict(held)
    assert again.p == pytest.approx(4 * 8 / 100)
    fixed = Adaptation(AugmentConfig(target=None, start=0.2))
    fixed.see(torch.ones(8))
    fixed.correct(3, 8)
    assert fixed.p == 0.2
    assert fixed.active
    assert not Adaptation(AugmentConfig(target=None)).active


def test_videos_that_nothing_moves_are_not_resampled(monkeypatch):
    counts = []
    original = module.resample
    monkeypatch.setattr(module, "resample", lambda x, w: counts.append(len(x)) or original(x, w))
    torch.manual_seed(0)
    augment(torch.rand(64, 3, 1, 8, 8), 0.02, AugmentConfig())
    assert 0 < sum(counts) < 20
