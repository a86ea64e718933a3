"""The Python interface: `load` a model, `generate` a video, save it while it is being made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from longtake.config import from_dict, to_dict
from longtake.data.batch import to_uint8
from longtake.errors import UserError
from longtake.rollout.sound import sound_of
from longtake.rollout.stream import regroup
from longtake.rollout.upscale import Enlarges, upscale
from longtake.rollout.write import write_videos
from longtake.story import Entry, Story, read_story
from longtake.systems.base import System
from longtake.systems.folder import load as load
from longtake.systems.folder import load_trainable
from longtake.systems.foreign import WEIGHTS
from longtake.systems.upscaler.pictures import PictureModel

__all__ = ["Entry", "Story", "Video", "configure", "generate", "load", "load_upscaler", "read_story"]

Progress = Callable[[int, int], None]


class Video:
    """One or several videos of equal length that are made as they are read; nothing is kept.

    Attributes:
        system, stories: what makes them and what they show.
        count, frames_total, fps, size: how many, how long, how fast, (height, width).
        given: frames at the beginning that were given, not generated; metrics leave them out.

    Args:
        chunk: frames a chunk; None: as they come.
        upscaler: enlarges the frames (`load_upscaler`).
    """

    def __init__(
        self,
        system: System,
        stories: Sequence[Story],
        chunk: int | None = None,
        upscaler: Enlarges | None = None,
    ):
        self.system, self.chunk, self.upscaler = system, chunk, upscaler
        self.stories = [system.check(story) for story in stories]
        self.count = len(self.stories)
        self.frames_total: int = self.stories[0].frames or 0
        self.fps: float = self.stories[0].fps or system.info.fps
        factor = upscaler.factor if upscaler else 1
        self.size = (system.info.size[0] * factor, system.info.size[1] * factor)

    @property
    def given(self) -> int:
        return self.system.given_frames(self.stories)

    def chunks(self) -> Iterator[Tensor]:
        """Float (count, 3, t, H, W) in [-1, 1]; each call makes the same videos again."""
        if self.upscaler is None:
            return self.system.generate(self.stories, self.chunk)
        large = upscale(self.system.generate(self.stories), self.upscaler, self.system.device)
        return regroup(large, self.frames_total, self.chunk)

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 (count, H, W, 3), frame by frame."""
        for chunk in self.chunks():
            for frames in zip(*(to_uint8(one) for one in chunk), strict=True):
                yield np.stack(frames)

    def tensor(self) -> Tensor:
        """Everything at once: float (count, 3, T, H, W) in [-1, 1]."""
        return torch.cat(list(self.chunks()), 2)

    def save(
        self,
        path: str | Path,
        progress: Progress | None = None,
        sheet: str | Path | None = None,
        first: int | None = None,
    ) -> list[Path]:
        """Stream to mp4; no half-written file is ever left under a final name.

        Args:
            path: of the video; several videos become name-000.mp4, name-001.mp4 ...
            progress: called with (frames done, frames).
            sheet: also write a contact sheet of evenly spaced frames, one row a video, as PNG.
            first: number of the first video when they are written in groups; None: 0, and one alone has none.

        Returns:
            The files written.

        Raises:
            UserError: a suffix that cannot be written, a folder that does not exist or is not writable.
        """
        paths = self._paths(Path(path), first)
        done = 0

        def seen(chunk: Tensor) -> None:
            nonlocal done
            done += chunk.shape[2]
            if progress:
                progress(done, self.frames_total)

        write_videos(self.chunks(), paths, self.fps, self.frames_total, sheet, self._sounds(), seen)
        return paths

    def _sounds(self) -> list[np.ndarray | None] | None:
        """The sound that steers each video, to be heard with it."""
        samples = self.system.info.samples_per_frame
        if samples is None:
            return None
        return [sound_of(story, samples) if "audio" in story.conditions() else None for story in self.stories]

    def _paths(self, path: Path, first: int | None) -> list[Path]:
        if path.suffix.lower() != ".mp4":
            raise UserError(f"cannot write {path}: choose a name that ends in .mp4", code=2)
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}", code=2)
        if self.count == 1 and first is None:
            return [path]
        numbers = range(first or 0, (first or 0) + self.count)
        return [path.with_name(f"{path.stem}-{i:03d}{path.suffix}") for i in numbers]


def generate(
    model: System | str | Path,
    frames: int | None = None,
    *,
    seconds: float | None = None,
    seed: int | None = None,
    label: str | None = None,
    prompt: str | None = None,
    audio: str | Path | None = None,
    states: str | Path | None = None,
    first_frames: str | Path | None = None,
    last_frame: str | Path | None = None,
    source_video: str | Path | None = None,
    fps: float | None = None,
    story: Story | str | Path | None = None,
    videos: int = 1,
    chunk: int | None = None,
    upscaler: str | Path | None = None,
) -> Video:
    """Make a video, or several with the seeds seed, seed + 1 ...

    Args:
        model: a loaded system, or what `load` takes.
        frames: the length in frames.
        seconds: the length in seconds; one of the two, or neither with a story.
        seed: of the first video; None: the story's, or 0.
        label: a class shown throughout.
        prompt: what is to be seen, in words.
        audio: a sound file that steers the video.
        states: a trajectory, .npy or .csv, one row a frame, values in [0, 1].
        first_frames: a video or a picture to go on from.
        last_frame: a picture to end at.
        source_video: a video to re-create.
        fps: frames a second, of systems in continuous time.
        story: a `Story` or a YAML file; other arguments that are given replace its fields.
        videos: how many, made together.
        chunk: frames a chunk; changes memory, never a frame.
        upscaler: a trained upscaler that enlarges the frames, see `load_upscaler`.

    Example:
        >>> longtake.generate("tats-atari", frames=1024, seed=3).save("out.mp4")  # doctest: +SKIP
    """
    system = model if isinstance(model, System) else load(model)
    told = story if isinstance(story, Story) else read_story(story) if story else Story()
    told = told.told(
        frames=frames,
        seconds=seconds,
        seed=seed,
        fps=fps,
        label=label,
        prompt=prompt,
        audio=audio,
        states=states,
        first_frames=first_frames,
        last_frame=last_frame,
        source_video=source_video,
    )
    if videos < 1:
        raise UserError(f"videos is {videos} but must be at least 1", code=2)
    large = load_upscaler(upscaler, system.device) if upscaler else None
    return Video(system, [replace(told, seed=told.seed + i) for i in range(videos)], chunk, large)


def load_upscaler(name: str | Path, device: torch.device | str = "cpu") -> Enlarges:
    """The network of a trained upscaler: a folder, a bundled name or a Hub id; or a file of weights of a picture
    model that the package spandrel knows (`systems/upscaler/pictures.py`).

    Raises:
        UserError: nothing of that name, or it is no upscaler.
    """
    if Path(name).suffix in WEIGHTS:
        return PictureModel(Path(name), device)
    made = load_trainable(name, device)
    if made.name != "upscaler":
        raise UserError(f"{name} is a {made.name}, not an upscaler; train one with system: upscaler", code=2)
    return cast(Enlarges, made.networks["upscaler"])


def configure(system: System, settings: dict) -> System:
    """Choose generation settings by name, for example {"temperature": 0.9}; returns the system.

    Raises:
        UserError: a setting this system does not have, or a value of the wrong type.
    """
    known = to_dict(system.settings)
    system.settings = from_dict(system.settings_class, {**known, **settings}, f"settings of {system.name}")
    return system
