"""A stream of frames to files, while it is being made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from torch import Tensor

from longtake.data import video
from longtake.data.batch import to_uint8

SHOTS = 16
"""Frames of each video on a contact sheet."""


def write_videos(
    chunks: Iterable[Tensor],
    paths: Sequence[Path],
    fps: float,
    frames: int,
    sheet: str | Path | None = None,
    sounds: Sequence[np.ndarray | None] | None = None,
    seen: Callable[[Tensor], None] | None = None,
) -> None:
    """Write videos in lockstep; no half-written file is ever left under a final name.

    Args:
        chunks: (B, 3, t, H, W) each, float in [-1, 1].
        paths: B files, mp4.
        fps: frames a second.
        frames: how many there are in all.
        sounds: float32 (frames, samples a frame) that is heard in each video, None where it is silent.
        sheet: also write a contact sheet of evenly spaced frames, one row a video, as PNG.
        seen: called with every chunk once it is written.
    """
    shown = set(np.linspace(0, frames - 1, min(SHOTS, frames)).astype(int).tolist())
    kept: list[list[np.ndarray]] = [[] for _ in paths]
    done = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(video.VideoWriter(path, fps, *_track(sound, fps)))
            for path, sound in zip(paths, sounds or [None] * len(paths), strict=True)
        ]
        for chunk in chunks:
            for row, writer, one in zip(kept, writers, chunk, strict=True):
                pixels = to_uint8(one)
                writer.write(pixels)
                if sheet:
                    row += [pixels[j] for j in range(len(pixels)) if done + j in shown]
            done += chunk.shape[2]
            if seen:
                seen(chunk)
    if sheet:
        shots = np.stack([shot for row in kept for shot in row])
        video.write_png(sheet, video.contact_sheet(shots, columns=len(kept[0])))


def _track(sound: np.ndarray | None, fps: float) -> tuple[np.ndarray | None, int | None]:
    """Samples and their rate, as the writer wants them."""
    return (None, None) if sound is None else (sound.reshape(-1), round(sound.shape[1] * fps))
