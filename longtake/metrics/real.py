"""Features of real videos, computed once for a library, a protocol and an extractor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from longtake.data import video
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.metrics.extractors.base import Extractor
from longtake.metrics.motion import MotionMeter
from longtake.metrics.protocol import ClipKind, Protocol
from longtake.metrics.queue import FeatureQueue, Slot, gather
from longtake.metrics.records import Record, StoredRecord, usable, write_record
from longtake.rollout.rng import Rng

MOVING = 64
"""Real videos whose motion is measured."""
RATE_TOLERANCE = 0.01
"""Share by which frame rates may differ: files round theirs, and 29.97 is as good as 30."""
Progress = Callable[[int, int], None]


def real_rows(library: Library, protocol: Protocol, least: int) -> list[int]:
    """Rows of the real videos of a protocol for clips of `least` frames: of those that are long enough, at most as
    many as the protocol takes."""
    rows = _long_enough(library, protocol, least)
    first = protocol.real_choice == "first"
    return rows[: protocol.real_videos] if first else spread(rows, protocol.real_videos)


def _long_enough(library: Library, protocol: Protocol, least: int) -> list[int]:
    splits = ("train", "test") if protocol.real_split == "all" else (protocol.real_split,)
    return [i for split in splits for i in library.split(split) if library.rows[i].frames >= least]


def spread(rows: list[int], most: int) -> list[int]:
    """At most so many of some rows, evenly spread; a library is in the order of names, so that its first rows would
    be its first classes."""
    return rows if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def starts(protocol: Protocol, kind: ClipKind, length: int, row: int, seed: int) -> list[int]:
    """Where the real clips of one video start."""
    room = length - kind.span
    if protocol.real_start == "first":
        return [0]
    if protocol.real_start == "random":
        rng = Rng([seed])
        return [int(rng.integers(f"real/{kind.name}/{i}", row, room + 1)[0]) for i in range(protocol.clips_a_video)]
    count = min(protocol.clips_a_video, 1 + room // kind.span)
    return [round(i * room / max(1, count - 1)) for i in range(count)]


def real_clips(library: Library, protocol: Protocol, kind: ClipKind) -> int:
    """How many real clips of a kind a protocol draws."""
    return real_counts(library, protocol, kind)[1]


def real_counts(library: Library, protocol: Protocol, kind: ClipKind) -> tuple[int, int]:
    """How many real videos clips of a kind are drawn from, and how many clips."""
    rows = real_rows(library, protocol, kind.span)
    return len(rows), sum(len(starts(protocol, kind, library.rows[row].frames, row, 0)) for row in rows)


def real_features(
    library: Library,
    protocol: Protocol,
    extractor: Extractor,
    size: tuple[int, int],
    frames: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Record:
    """Features of the real clips of a protocol.

    Args:
        library: where from.
        protocol: which clips.
        extractor: of clips, or of single frames.
        size: (height, width) of the model's frames; larger real ones are resized to it.
        frames: length of the videos they are compared with: longer kinds of clips are left out.
        seed: of random starts.
        progress: called with (videos done, videos).

    Returns:
        `clip/<kind>` (N, D) with `of/<kind>` (N,) row numbers, or `frames` (N, D) with `of/frames` for extractors
        of single frames. Kept in the library's cache folder.
    """
    key = {
        "library": library.hash,
        "split": [protocol.real_split, protocol.real_videos, protocol.real_choice],
        "starts": [protocol.real_start, protocol.clips_a_video],
        "clips": [[k.name, k.frames, k.stride] for k in protocol.clips],
        "extractor": [extractor.name, extractor.hash, extractor.preprocessing],
        "size": size,
        "frames": frames,
        "seed": seed,
        "version": 2,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = library.path / "cache" / f"real-{digest[:16]}.npz"
    if path.is_file():
        return dict(StoredRecord(path))
    found = _compute(library, protocol, extractor, size, frames, seed, progress)
    _keep(path, found)
    return found


def _keep(path: Path, found: Record) -> None:
    """A library that cannot be written to is computed again next time."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_record(path, found)
    except OSError:
        pass


def _compute(library, protocol, extractor, size, frames, seed, progress) -> Record:
    single = extractor.most == 1
    kinds = [k for k in (protocol.clips[:1] if single else protocol.clips) if k.span <= frames]
    kinds = [k for k in kinds if single or usable(extractor, k.frames)]
    # A kind has videos of its own: those that are long enough for it are counted, then not all of them are taken.
    chosen = [(kind, set(real_rows(library, protocol, kind.span))) for kind in kinds]
    rows = [row for row in _long_enough(library, protocol, 1) if any(row in own for _, own in chosen)]
    slots: dict[str, list[Slot]] = {}
    of: dict[str, list[int]] = {}
    with FeatureQueue(extractor) as queue:
        for number, row in enumerate(rows):
            for kind in [kind for kind, own in chosen if row in own]:
                key = "frames" if single else f"clip/{kind.name}"
                for start in starts(protocol, kind, library.rows[row].frames, row, seed):
                    clip = clip_of(library, row, range(start, start + kind.span, kind.stride), size)
                    for part in [frame[None] for frame in clip] if single else [clip]:
                        slots.setdefault(key, []).append(queue.put(part))
                        of.setdefault(key, []).append(row)
            if progress:
                progress(number + 1, len(rows))
        queue.flush()
    found: dict[str, np.ndarray] = {}
    for key, filled in slots.items():
        found[key] = gather(filled).features
        found[f"of/{key.removeprefix('clip/')}"] = np.array(of[key])
    return found


def clip_of(library: Library, row: int, indices: range, size: tuple[int, int]) -> np.ndarray:
    """Frames of a library's video at another size: uint8 (n, H, W, 3)."""
    clip = library.frames(row, indices)
    return clip if clip.shape[1:3] == tuple(size) else video.resize(clip, size, "stretch")


def check_size(library: Library, size: tuple[int, int]) -> None:
    """A library must hold frames at least as large as the model's, in the same proportions.

    Raises:
        UserError: it does not.
    """
    have = library.header.size
    if have[0] < size[0] or have[1] < size[1] or have[0] * size[1] != have[1] * size[0]:
        raise UserError(
            f"{library.path} holds {have[0]}x{have[1]} frames and the videos have {size[0]}x{size[1]}; "
            f"prepare the library with --size {size[0]}x{size[1]} or larger",
            code=2,
        )


def check_rate(library: Library, fps: float) -> None:
    """Videos must have as many frames a second as the library they are compared with, within a percent.

    Raises:
        UserError: they have not.
    """
    if abs(fps / library.fps - 1) > RATE_TOLERANCE:
        raise UserError(
            f"the videos have {fps:g} frames a second and {library.path} has {library.fps:g}, so neither their "
            f"clips nor their motion can be compared; prepare the library with --fps {fps:g}, or make videos with "
            f"--fps {library.fps:g}, which continuous-time systems can, and measure their folder",
            code=2,
        )


def real_motion(library: Library, rows: list[int], size: tuple[int, int], frames: int) -> list[MotionMeter]:
    """Motion of real videos, at most `MOVING` evenly spread ones, cut to `frames`."""
    meters = []
    for row in spread(rows, MOVING):
        meter, length = MotionMeter(), min(library.rows[row].frames, frames)
        for start in range(0, length, 256):
            clip = clip_of(library, row, range(start, min(start + 256, length)), size)
            meter.push(torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float().div_(127.5).sub_(1))
        meters.append(meter)
    return meters
