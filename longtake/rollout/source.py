"""A video that a rollout re-creates, read piece by piece."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from longtake.data import video
from longtake.data.batch import to_float
from longtake.errors import UserError
from longtake.story import Story


def on_screen(info: video.VideoInfo, fps: float | None, start: int = 0, stop: int | None = None) -> list[int]:
    """Which frame of a video is on screen in the middle of each of the frames start .. stop - 1 at another rate.

    Args:
        info: of the video.
        fps: the other rate; None: the video's own.
        stop: None: all that the video lasts for, at least one. Beyond that its last frame stays.
    """
    rate = info.fps / (fps or info.fps)
    stop = max(1, round(info.frames / rate)) if stop is None else stop
    return [min(int((i + 0.5) * rate), info.frames - 1) for i in range(start, stop)]


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
        self.info, self.fps = video.probe(self.path), story.fps
        self.frames = len(on_screen(self.info, self.fps))
        """How many there are at the story's rate."""

    def read(self, start: int, stop: int) -> Tensor:
        """Frames start .. stop - 1: (3, n, H, W) in [-1, 1]."""
        numbers = on_screen(self.info, self.fps, start, stop)
        return to_float(video.resize(video.read_frames(self.path, numbers), self.size, "crop"))


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
