"""The two baselines that a reference arm must beat before arms are compared (docs/design.md, section 10)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longtake.data import video
from longtake.data.library import Library
from longtake.metrics.sources import FolderSource

NAMES = ("frozen", "mean")


def baseline(name: str, library: Library, folder: Path, count: int, frames: int) -> FolderSource:
    """Videos of which the first frame stays, or the mean of training videos.

    Args:
        name: "frozen": a frame of a test video, all the time; "mean": the mean training video, the same every time.
        folder: where they are written, frame by frame as `count` videos of `frames` frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == "mean":
        rows = [i for i in library.split("train") if library.rows[i].frames >= frames]
        rows = [rows[i * len(rows) // 32] for i in range(32)] if len(rows) > 32 else rows  # of every class
        total = np.zeros((frames, *library.header.size, 3))
        for row in rows:
            total += library.frames(row, range(frames))
        clip = (total / max(1, len(rows))).round().astype(np.uint8)
    else:
        rows = library.split("test")
    for n in range(count):
        if name == "frozen":
            row = rows[n % len(rows)]
            still = library.frames(row, [n // len(rows) * 97 % library.rows[row].frames])
            clip = np.repeat(still, frames, 0)
        path = folder / f"{n:04d}.mp4"
        if not path.exists():
            video.write_video(path, [clip], library.fps, crf=10, pixel_format="yuv444p")
    return FolderSource(folder, count, frames, frames)
