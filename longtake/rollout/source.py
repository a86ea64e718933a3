"""A video that a rollout re-creates, read piece by piece."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from longtake.data import video
from longtake.errors import UserError
from longtake.story import Story


class SourceVideo:
    """The source video of a resolved story, at the story's rate (the frame on screen at each instant).

    Only what is asked for is decoded: memory does not grow with the video's length.

    Args:
        story: with `source_video` and its rate.
        size: (height, width) to which frames are resized and cropped.

    Raises:
        UserError: not a video.
    """

    def __init__(self, story: Story, size: tuple[int, int]):
        self.path, self.size = Path(str(story.source_video)), size
        info = video.probe(self.path)
        self.last, self.rate = info.frames - 1, info.fps / (story.fps or info.fps)
        self.frames = max(1, round(info.frames / self.rate))
        """How many there are at the story's rate."""

    def read(self, start: int, stop: int) -> Tensor:
        """Frames start .. stop - 1: (3, n, H, W) in [-1, 1]."""
        numbers = [min(int((i + 0.5) * self.rate), self.last) for i in range(start, stop)]
        frames = video.resize(video.read_frames(self.path, numbers), self.size, "crop")
        return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


def check_length(story: Story, source: SourceVideo, most: int, what: str) -> None:
    """Refuse a story that is longer than what can be made of its source.

    Raises:
        UserError: more frames are asked for than `most`.
    """
    if (story.frames or 0) > most:
        raise UserError(
            f"{source.path} has {source.frames} frames, of which {what} can re-create {most}; "
            f"ask for at most {most} frames, or give a longer video",
            code=2,
        )
