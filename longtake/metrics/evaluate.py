"""Measure a model: generate videos, look at what moves over time, reconstruct held-out footage.

Distribution distances need feature extractors and come with them; what is here needs nothing but the frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake import __version__
from longtake.data.batch import to_float
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.metrics.motion import MotionMeter, longest_repeat, longest_still
from longtake.metrics.result import Figure, Result
from longtake.rollout.write import write_videos
from longtake.story import Entry, Story
from longtake.systems.base import System
from longtake.systems.folder import inference_state, weights_hash

TAIL = 128
"""Frames at the end of a video whose motion is reported on its own."""


def evaluate(
    system: System,
    data: str,
    output: str,
    videos: int = 8,
    frames: int = 1024,
    batch: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Generate `videos` videos of `frames` frames and compare their motion with the test split's.

    Labels are those of test videos spread evenly over the split, source videos likewise (a system that needs
    them sees the test footage; the protocol says so). Writes result.json, the videos, a contact sheet a batch.

    Raises:
        UserError: no test videos, or another frame size than the model's.
    """
    library = Library(data)
    rows = library.split("test")
    if not rows:
        raise UserError(f"{data} has no test videos to compare with; prepare it with a larger --test share")
    if tuple(library.header.size) != tuple(system.info.size):
        have, want = library.header.size, system.info.size
        raise UserError(f"{data} holds {have[0]}x{have[1]} frames, the model makes {want[0]}x{want[1]}")
    frames = min(frames, system.max_frames or frames)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [rows[i * len(rows) // videos] for i in range(videos)]
    rows = list(dict.fromkeys(chosen))  # real and generated videos have the same mix of classes
    stories = [_story(system, library, row, frames, seed + i) for i, row in enumerate(chosen)]
    fake = MotionTable()
    for begin in range(0, videos, batch):
        fake.add(_generate(system, stories[begin : begin + batch], folder, begin, progress, videos * frames))
    real = MotionTable()
    for row in rows:
        length = min(library.rows[row].frames, frames)
        meter = MotionMeter()
        meter.push(to_float(library.frames(row, range(length)))[None])
        real.add(meter)
    result = Result(
        model={"system": system.name, "weights": weights_hash(inference_state(system))},
        protocol={
            "name": "motion",
            "frames": frames,
            "fake_videos": videos,
            "real_videos": len(rows),
            "split": "test",
            "library": library.hash,
            "size": list(system.info.size),
            "range": "[-1, 1] after clamping",
            "seeds": [seed, seed + videos - 1],
            "labels": [s.timeline[0].label if s.timeline else None for s in stories],
            "settings": system.settings.__dict__,
            "sees_test_video": "source_video" in system.requires,
            "longtake": __version__,
            "torch": torch.__version__,
        },
        figures=_figures(fake, real, frames),
    )
    result.write(folder / "result.json")
    return result


class MotionTable:
    """One row a video: its frame differences and its repeats."""

    def __init__(self):
        self.differences: list[np.ndarray] = []
        self.still: list[int] = []
        self.repeat: list[int] = []

    def add(self, meter: MotionMeter) -> None:
        """Take in every video of a meter."""
        if not meter.parts:
            return
        for row, signature in zip(meter.differences, meter.signature, strict=True):
            self.differences.append(row)
            self.still.append(longest_still(row))
            self.repeat.append(longest_repeat(signature))

    def motion(self, part: slice = slice(None)) -> np.ndarray:
        """Mean frame difference of each video over a part of it."""
        return np.array([d[part].mean() for d in self.differences])


def _story(system: System, library: Library, row: int, frames: int, seed: int) -> Story:
    """A story with the conditions of one test video."""
    item = library.rows[row]
    story = Story(frames=frames, seed=seed)
    if "label" in system.accepts and item.label in system.info.classes:
        story = replace(story, timeline=(Entry(label=item.label),))
    if "source_video" in system.requires:
        story = replace(story, source_video=str(library.path / item.file))
    return story


def _generate(system, stories, folder: Path, begin: int, progress, total: int) -> MotionMeter:
    """One group of videos, streamed to disk and to a meter."""
    meter, frames = MotionMeter(), stories[0].frames or 0
    done = begin * frames
    paths = [folder / f"video-{begin + i:03d}.mp4" for i in range(len(stories))]

    def seen(chunk: Tensor) -> None:
        nonlocal done
        meter.push(chunk.clamp(-1, 1))
        done += chunk.shape[2] * len(stories)
        if progress:
            progress(done, total)

    chunks = system.generate(stories)
    write_videos(chunks, paths, system.info.fps, frames, folder / f"sheet-{begin:03d}.png", seen)
    return meter


def _figures(fake: MotionTable, real: MotionTable, frames: int) -> dict[str, Figure]:
    """Motion of fake and real, of the tail, its ratio, and the longest stills and repeats."""
    figures = {}
    if fake.differences:
        figures["motion"] = _figure(fake.motion(), "mean |frame difference| on [-1, 1]")
    if real.differences:
        figures["motion_real"] = _figure(real.motion(), "mean |frame difference| on [-1, 1]")
    if fake.differences and real.differences:
        level = max(float(real.motion().mean()), 1e-9)
        figures["motion_ratio"] = _figure(fake.motion() / level, "of real")
        if frames > TAIL:
            figures[f"motion_ratio_last_{TAIL}"] = _figure(fake.motion(slice(-TAIL, None)) / level, "of real")
    for name, table in (("", fake), ("_real", real)):
        figures[f"longest_still{name}"] = Figure(
            float(max(table.still, default=0)), None, "frames", len(table.still)
        )
        longest = float(max(table.repeat, default=0))
        figures[f"longest_repeat{name}"] = Figure(longest, None, "frames", len(table.repeat))
    return figures


def _figure(values: np.ndarray, unit: str) -> Figure:
    """The mean over videos with a 95 % bootstrap interval (1,000 resamples, fixed seed)."""
    picks = np.random.default_rng(0).integers(0, len(values), (1000, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    interval = (float(low), float(high)) if len(values) > 1 else None
    return Figure(float(values.mean()), interval, unit, len(values))
