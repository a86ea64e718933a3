"""Frames that the user gives a video to start with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake.data import video
from longtake.errors import UserError
from longtake.story import Story

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def first_frames(stories: list[Story], size: tuple[int, int]) -> Tensor | None:
    """The given first frames (B, 3, n, H, W) in [-1, 1] of stories that are told together; None if none gives any.

    Videos are brought to the stories' frame rate (the frame on screen at each instant) and, like pictures, resized
    and cropped to `size` (height, width). A picture is one frame.

    Raises:
        UserError: a file that cannot be read, one that leaves nothing to generate, or stories that give different
            numbers of frames.
    """
    if all(story.first_frames is None for story in stories):
        return None
    given = [_read(story) for story in stories]
    if len({len(frames) for frames in given}) > 1:
        counts = ", ".join(str(len(frames)) for frames in given)
        raise UserError(f"videos made together must start with equally many frames, got {counts}", code=2)
    resized = np.stack([video.resize(frames, size, "crop") for frames in given])
    return torch.from_numpy(resized).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def _read(story: Story) -> np.ndarray:
    """uint8 (n, H, W, 3)."""
    if story.first_frames is None:
        raise UserError("one video starts with given frames and another does not; give all or none", code=2)
    path = Path(story.first_frames)
    if path.suffix.lower() in PICTURES:
        return video.read_image(path)[None]
    info, total = video.probe(path), story.frames or 0
    rate = info.fps / (story.fps or info.fps)
    wanted = [min(int((i + 0.5) * rate), info.frames - 1) for i in range(max(1, round(info.frames / rate)))]
    if len(wanted) >= total:
        raise UserError(
            f"{path} gives {len(wanted)} frames and the video is to have {total}; ask for more --frames", code=2
        )
    return video.read_frames(path, wanted)
