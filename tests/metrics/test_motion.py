"""What counts as motion, stillness and repetition."""

import numpy as np
import pytest
import torch
from conftest import moving_square
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.data.batch import to_float
from longtake.metrics.motion import MotionMeter, frame_differences, longest_repeat, longest_still


def video(frames: int = 60, seed: int = 3) -> torch.Tensor:
    return to_float(moving_square(seed, frames))[None]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_the_meter_does_not_care_how_frames_arrive(sizes):
    clip = video(sum(sizes))
    meter = MotionMeter()
    for chunk in clip.split(sizes, 2):
        meter.push(chunk)
    if clip.shape[2] > 1:
        assert np.allclose(meter.differences, frame_differences(clip).numpy())
    assert meter.signature.shape[1] == clip.shape[2]


def test_motion_of_a_known_step():
    clip = torch.zeros(1, 3, 3, 4, 4)
    clip[:, :, 1:] = 0.5
    assert frame_differences(clip).tolist() == [[0.5, 0.0]]


def test_a_frozen_stretch_is_found_and_measured():
    clip = torch.rand(1, 3, 60, 8, 8, generator=torch.Generator().manual_seed(0))
    assert longest_still(frame_differences(clip)[0].numpy()) == 0
    clip[:, :, 20:45] = clip[:, :, 20:21].clone()
    assert longest_still(frame_differences(clip)[0].numpy()) == 25


@pytest.mark.parametrize("period", [10, 17])
def test_a_loop_is_found(period):
    clip = torch.cat([video()[:, :, :period]] * 6, 2)
    meter = MotionMeter()
    meter.push(clip)
    assert longest_repeat(meter.signature[0]) >= 4 * period


def test_neither_motion_nor_stillness_is_a_repeat():
    noise = torch.rand(1, 3, 80, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    still = video()[:, :, :1].expand(-1, -1, 80, -1, -1)
    for clip in (noise, still):
        meter = MotionMeter()
        meter.push(clip)
        assert longest_repeat(meter.signature[0]) == 0
