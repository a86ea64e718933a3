"""What is kept of one generated video: features of its clips and windows, its motion, its first and last frame.

A record is a small file. Whatever is computed of many videos is computed from their records, so an evaluation can
be killed and taken up, or divided over processes, and gives the same figures; and no video is ever held whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from longtake.metrics.cuts import CutDetector, CutMeter
from longtake.metrics.extractors.base import Extractor
from longtake.metrics.images import psnr, ssim
from longtake.metrics.motion import MotionMeter
from longtake.metrics.protocol import ClipKind, Protocol
from longtake.metrics.queue import FeatureQueue, Slot, gather

MOST_DECIBEL = 100.0
"""PSNR of equal frames, which is infinite otherwise."""
Record = Mapping[str, np.ndarray]
"""differences (T-1,), signature (T, 192), first and last (H, W, 3) uint8; and for each extractor E of clips
`E/clip/<kind>` (1, D), `E/windows` (W, D), `E/classes` (W, K); of frames `E/frames` (16, D). With a
reference also psnr and ssim (T,); with texts text (16,); among samples of one condition opening (16, H, W, 3);
with a cut detector cuts (T,)."""


def kinds_within(protocol: Protocol, frames: int) -> list[ClipKind]:
    """The protocol's clips that a video of so many frames holds."""
    return [kind for kind in protocol.clips if kind.span <= frames]


def usable(extractor: Extractor, frames: int) -> bool:
    """Whether an extractor takes clips of so many frames."""
    return extractor.least <= frames and (extractor.most is None or frames <= extractor.most)


class VideoMeter:
    """Measures one video from a stream of its frames.

    Args:
        protocol: which clips and windows.
        queues: one an extractor.
        frames: length of the video, given frames not counted.
        opening: keep the first window's frames.
        cuts: looks for shot cuts.
    """

    def __init__(
        self,
        protocol: Protocol,
        queues: list[FeatureQueue],
        frames: int,
        opening: bool = False,
        cuts: CutDetector | None = None,
    ):
        self.protocol, self.queues, self.frames = protocol, queues, frames
        self.motion = MotionMeter()
        self.first: np.ndarray | None = None
        self.last: np.ndarray | None = None
        self.seen = 0
        self.held: dict[str, list[np.ndarray]] = {}
        self.slots: dict[str, list[Slot]] = {}
        self.kinds = kinds_within(protocol, frames)
        self.against: list[tuple[np.ndarray, np.ndarray]] = []
        self.opening: list[np.ndarray] | None = [] if opening else None
        self.cuts = CutMeter(cuts) if cuts else None

    def push(self, frames: np.ndarray, reference: np.ndarray | None = None) -> None:
        """Take in the next frames (t, H, W, 3) uint8, and the real ones they should equal, where there are any."""
        if not len(frames):
            return
        if reference is not None:
            self.against.append((psnr(frames, reference).clip(max=MOST_DECIBEL), ssim(frames, reference)))
        signed = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float().div_(127.5).sub_(1)
        self.motion.push(signed)
        if self.cuts is not None:
            self.cuts.push(frames)
        self.first = frames[0].copy() if self.first is None else self.first
        self.last = frames[-1].copy()
        for offset, frame in enumerate(frames):
            self._frame(self.seen + offset, frame)
        self.seen += len(frames)

    def _frame(self, number: int, frame: np.ndarray) -> None:
        window = self.protocol.window
        if self.opening is not None and number < window:
            self.opening.append(frame)
        self._collect("windows", frame, window, all_of_them=True)
        if number < window:
            self._collect("frames", frame, window, single=True)
        for kind in self.kinds:
            if number < kind.span and number % kind.stride == 0:
                self._collect(f"clip/{kind.name}", frame, kind.frames)

    def _collect(
        self, key: str, frame: np.ndarray, length: int, all_of_them: bool = False, single: bool = False
    ) -> None:
        held = self.held.setdefault(key, [])
        held.append(frame)
        if len(held) < length:
            return
        clip = np.stack(held)
        self.held[key] = []
        for queue in self.queues:
            name = queue.extractor.name
            if single and queue.extractor.most == 1:
                self.slots.setdefault(f"{name}/{key}", []).extend(queue.put(one[None]) for one in clip)
            elif not single and usable(queue.extractor, length):
                self.slots.setdefault(f"{name}/{key}", []).append(queue.put(clip))

    def record(self) -> dict[str, np.ndarray]:
        """The record, once the queues are flushed."""
        assert self.first is not None
        assert self.last is not None
        found = {"differences": self.motion.differences[0], "signature": self.motion.signature[0]}
        found |= {"first": self.first, "last": self.last}
        if self.cuts is not None:
            found["cuts"] = self.cuts.probabilities()
        if self.opening is not None:
            found["opening"] = np.stack(self.opening)
        if self.against:
            found |= {"psnr": np.concatenate([p for p, _ in self.against])}
            found |= {"ssim": np.concatenate([s for _, s in self.against])}
        for key, slots in self.slots.items():
            features = gather(slots)
            found[key] = features.features
            if key.endswith("/windows") and features.probabilities is not None:
                found[key.removesuffix("windows") + "classes"] = features.probabilities
        return found


def write_record(path: Path, record: Record) -> None:
    """Write one record, complete or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **record)  # type: ignore[arg-type]
    os.replace(partial, path)


class StoredRecord(Record):
    """A record in its file: an array is read when it is asked for, and not kept."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def names(self) -> list[str]:
        with np.load(self.path, allow_pickle=False) as file:
            return list(file.files)

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.names:
            raise KeyError(key)
        with np.load(self.path, allow_pickle=False) as file:
            return file[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
