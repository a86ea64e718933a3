"""Spectrogram patches: level, pitch and time are where they should be."""

from __future__ import annotations

import math

import pytest
import torch

from longtake.data.audio import BANDS, COLUMNS, spectrogram

RATE, SAMPLES = 16_000, 1_067  # 15 frames a second, not a whole number of samples a column


def tone(frequency: float, frames: int = 8, level: float = 1.0) -> torch.Tensor:
    time = torch.arange(frames * SAMPLES) / RATE
    return (level * torch.sin(2 * math.pi * frequency * time)).view(frames, SAMPLES)


def test_shape_and_range():
    patches = spectrogram(torch.rand(2, 5, SAMPLES) * 2 - 1)
    assert patches.shape == (2, 5, BANDS, COLUMNS)
    assert float(patches.abs().max()) <= 1
    assert (spectrogram(torch.zeros(1, 3, SAMPLES)) == -1).all()


@pytest.mark.parametrize("frequency", [540, 2050, 6050])
def test_a_tone_is_in_its_band(frequency):
    patches = spectrogram(tone(frequency))[2:-2]
    assert (patches.argmax(1) == int(frequency / (RATE / 2) * BANDS)).all()


def test_levels_are_decibels():
    """20 dB less is half a unit of the 80 dB less in [-1, 1]."""
    loud, quiet = (spectrogram(tone(3010, level=level))[2:-2].amax(1) for level in (0.5, 0.05))
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, 0.5), atol=1e-3, rtol=0)


def test_a_click_is_in_its_frame_and_column():
    for frame, share in ((1, 0.1), (3, 0.5), (6, 0.95)):
        sound = torch.zeros(8, SAMPLES)
        sound[frame, int(share * SAMPLES)] = 1
        energy = spectrogram(sound).mean(1)
        place = int(energy.argmax())
        assert abs(place - (frame * COLUMNS + int(share * COLUMNS))) <= 1


def test_frames_far_from_a_change_do_not_see_it():
    a = torch.rand(10, SAMPLES, generator=torch.Generator().manual_seed(0)) - 0.5
    b = a.clone()
    b[7:] = 0
    assert torch.equal(spectrogram(a)[:6], spectrogram(b)[:6])
    assert not torch.equal(spectrogram(a)[7], spectrogram(b)[7])
    torch.testing.assert_close(spectrogram(a[None].expand(2, -1, -1))[1], spectrogram(a))
