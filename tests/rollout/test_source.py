"""Source videos, read piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longtake.data import video
from longtake.errors import UserError
from longtake.rollout.given import first_frames
from longtake.rollout.source import SourceVideo, check_length
from longtake.story import Story


@pytest.fixture
def path(tmp_path):
    """30 frames at 10 a second, each of one grey that grows by 8 a frame."""
    frames = np.broadcast_to(8 * np.arange(30, dtype=np.uint8)[:, None, None, None], (30, 16, 16, 3))
    video.write_video(tmp_path / "source.mp4", [np.ascontiguousarray(frames)], 10.0, crf=0, pixel_format="yuv444p")
    return tmp_path / "source.mp4"


def greys(frames: torch.Tensor) -> list[float]:
    return ((frames[0, :, 0, 0] + 1) * 127.5).round().tolist()


def test_frames_at_their_own_rate(path):
    source = SourceVideo(Story(frames=8, fps=10.0, source_video=str(path)), (16, 16))
    assert source.frames == 30
    assert source.read(3, 6).shape == (3, 3, 16, 16)
    assert greys(source.read(3, 6)) == pytest.approx([24, 32, 40], abs=2)


def test_frames_at_the_stories_rate(path):
    slow = SourceVideo(Story(frames=8, fps=5.0, source_video=str(path)), (8, 8))
    assert slow.frames == 15
    assert greys(slow.read(0, 3)) == pytest.approx([8, 24, 40], abs=2)
    assert slow.read(14, 15).shape == (3, 1, 8, 8)


def test_a_story_longer_than_its_source_is_refused(path):
    story = Story(frames=25, fps=10.0, source_video=str(path))
    check_length(story, SourceVideo(story, (16, 16)), 25, "r2")
    with pytest.raises(UserError, match=r"has 30 frames, of which r2 can re-create 24; ask for at most 24"):
        check_length(story, SourceVideo(story, (16, 16)), 24, "r2")


@pytest.mark.parametrize("fps", [10.0, 7.0, 24.0])
def test_given_frames_are_those_of_a_source_video(path, fps):
    source = SourceVideo(Story(frames=8, fps=fps, source_video=str(path)), (8, 8))
    given = first_frames([Story(frames=99, fps=fps, first_frames=str(path))], (8, 8))
    assert given is not None
    assert torch.equal(given[0], source.read(0, source.frames))
