"""Frames that the user gives a video to start with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from longtake.data import video
from longtake.data.batch import to_float
from longtake.data.layouts import PICTURES
from longtake.errors import UserError
from longtake.rollout.source import on_screen
from longtake.story import Story

MOST = 512
"""Most given frames: they are encoded at once."""


def count_first_frames(stories: list[Story]) -> int:
    """How many first frames stories that are told together give; 0 if none gives any.

    Raises:
        UserError: a file that cannot be read, one that is too long or leaves nothing to generate, or stories that
            give different numbers of frames.
    """
    if all(story.first_frames is None for story in stories):
        return 0
    if any(story.first_frames is None for story in stories):
        raise UserError("one video starts with given frames and another does not; give all or none", code=2)
    counts = [len(_wanted(story)) for story in stories]
    if len(set(counts)) > 1:
        shown = ", ".join(map(str, counts))
        raise UserError(f"videos made together must start with equally many frames, got {shown}", code=2)
    for story, count in zip(stories, counts, strict=True):
        if count > MOST:
            raise UserError(f"{story.first_frames} gives {count} frames; cut it to the last {MOST} at most", code=2)
        if count >= (story.frames or 0):
            text = f"{story.first_frames} gives {count} frames and the video is to have {story.frames}"
            raise UserError(f"{text}; ask for more --frames", code=2)
    return counts[0]


def first_frames(stories: list[Story], size: tuple[int, int]) -> Tensor | None:
    """The given first frames (B, 3, n, H, W) in [-1, 1] of stories that are told together; None if there are none.

    Videos are brought to the stories' frame rate (the frame on screen at each instant) and, like pictures, resized
    and cropped to `size` (height, width). A picture is one frame. Raises as `count_first_frames`.
    """
    if not count_first_frames(stories):
        return None
    return to_float(np.stack([video.resize(_read(story), size, "crop") for story in stories]))


def first_sound(story: Story, samples: int) -> np.ndarray | None:
    """The sound of a resolved story's given first frames: float32 (n, samples) in [-1, 1], silence where the file's
    ends early; None where it has none, or there are no such frames.

    Args:
        story: with its rate.
        samples: a frame.
    """
    path = story.first_frames
    if path is None or _is_picture(Path(path)) or video.probe(path).audio_rate is None:
        return None
    assert story.fps is not None
    count = len(_wanted(story)) * samples
    wave = video.read_audio(path, round(samples * story.fps))[:count]
    return np.pad(wave, (0, count - len(wave))).reshape(-1, samples)


def last_frame(stories: list[Story], size: tuple[int, int]) -> Tensor | None:
    """The given last frames (B, 3, H, W) in [-1, 1] of stories that are told together; None if there are none.

    Pictures are resized and cropped to `size` (height, width).

    Raises:
        UserError: a file that is no picture, or some stories that give one and some that do not.
    """
    paths = [story.last_frame for story in stories if story.last_frame is not None]
    if not paths:
        return None
    if len(paths) < len(stories):
        raise UserError("one video ends at a given frame and another does not; give all or none", code=2)
    for path in paths:
        if not _is_picture(Path(path)):
            raise UserError(f"{path} is no picture; give a .png or .jpg that the video is to end at", code=2)
    pictures = np.stack([video.resize(video.read_image(Path(path))[None], size, "crop") for path in paths])
    return to_float(pictures)[:, :, 0]


def _is_picture(path: Path) -> bool:
    return PICTURES.fullmatch(path.suffix.lower()) is not None


def _wanted(story: Story) -> list[int]:
    """Numbers of the file's frames, at the story's rate."""
    path = Path(str(story.first_frames))
    if _is_picture(path):
        return [0]
    return on_screen(video.probe(path), story.fps)


def _read(story: Story) -> np.ndarray:
    """uint8 (n, H, W, 3)."""
    path = Path(str(story.first_frames))
    if _is_picture(path):
        return video.read_image(path)[None]
    return video.read_frames(path, _wanted(story))
