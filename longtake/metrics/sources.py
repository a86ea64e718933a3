"""Where the measured videos come from: a model that makes them now, or a folder of files made by anything."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from longtake.data import video
from longtake.data.library import Library, Row
from longtake.data.prepare import read_captions
from longtake.errors import UserError
from longtake.metrics.extractors.base import file_hash
from longtake.metrics.real import RATE_TOLERANCE, clip_of
from longtake.metrics.seam import first_join
from longtake.metrics.told import check_rate, kinds_told, write_told
from longtake.story import Entry, Story
from longtake.systems.base import System
from longtake.systems.folder import inference_state, weights_hash

CHUNK = 64
SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif"}


class Source(Protocol):
    """Videos number 0 .. count-1, all of `frames` frames of one size."""

    count: int
    frames: int
    fps: float
    size: tuple[int, int]
    seam_period: int | None
    """Frames between the places where pieces were joined, None where that is unknown."""
    seam_first: int | None
    """The first of these places, counted from the first measured frame; None: `seam_period`."""
    given: int
    """Frames at the beginning of each video that are not measured, because they were given."""
    per_condition: int
    """So many successive videos are samples of one condition."""

    def identity(self) -> dict[str, Any]:
        """What is measured, for the result."""
        ...

    def conditions(self) -> dict[str, Any]:
        """How it was conditioned, for the protocol."""
        ...

    def stream(self, numbers: range) -> Iterator[list[np.ndarray]]:
        """Chunks of the videos with these numbers, in step: uint8 (t, H, W, 3) each."""
        ...

    def reference(self, number: int, start: int, count: int) -> np.ndarray | None:
        """The real frames that frames start .. of a video should equal, None where there are none."""
        ...

    def text(self, number: int, frame: int) -> str | None:
        """What a video should show at a frame, in words."""
        ...


class ModelSource:
    """Videos of a model, conditioned as test videos are, evenly spread over the split.

    Args:
        system: the model.
        library: whose test videos give labels and source videos.
        count, frames, seed: how many, how long, seeds seed .. seed + count - 1.
        to_bytes: "round" or "truncate".
        per_condition: samples of each test video's conditions.
        split: where conditions come from.
        given: so many first frames of the test video are given; what follows is measured, and compared with what
            really follows if test videos are long enough.
        told: "audio" and "states" of the test video that the model is told beside what it requires.
    """

    def __init__(
        self,
        system: System,
        library: Library,
        count: int,
        frames: int,
        seed: int,
        to_bytes: str,
        per_condition: int = 1,
        given: int = 0,
        split: str = "test",
        told: Sequence[str] = (),
    ):
        _check_division(count, per_condition)
        self.system, self.library, self.split = system, library, split
        self.count, self.to_bytes, self.seed, self.per_condition = count, to_bytes, seed, per_condition
        self.frames = min(frames, system.max_frames or frames)
        self.fps, self.size = system.info.fps, system.info.size
        self.seam_period, self.seam_first = system.seam_period, system.seam_first
        shown: dict[int, str] = {}
        self.given, self.compared, rows = 0, False, library.split(split)
        if not rows:
            raise UserError(
                f"{library.path} has no {split} videos to take conditions from; prepare it with --test 0.2"
            )
        if "first_frames" in system.requires and not given:
            raise UserError(
                f"{system.name} goes on from first frames: say how many to give with --given (in training "
                "loop.evaluation.given), for example 16",
                code=2,
            )
        self.told = kinds_told(system, library, told)
        if given or self.told:
            self.folder = Path(tempfile.mkdtemp(prefix="longtake-given-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        if self.told:
            rows = self._tellers(rows, given + self.frames)
        if "source_video" in system.requires:
            rows = self._long_enough(rows, seed)
        if given:
            rows = self._givers(rows, given, seed)
        if self.given and self.seam_period:  # what is measured begins after the given frames
            self.seam_first = first_join(self.seam_period, self.seam_first, self.given)
        conditions = count // per_condition
        self.rows = [rows[i // per_condition * len(rows) // conditions] for i in range(count)]
        if given:
            shown = {
                row: write_first(library, row, given, self.size, self.folder) for row in sorted(set(self.rows))
            }
        stories = [self._story(row, self.given + self.frames, seed + i) for i, row in enumerate(self.rows)]
        self.stories = [
            system.check(replace(story, first_frames=shown.get(row)))
            for story, row in zip(stories, self.rows, strict=True)
        ]

    def _story(self, row: int, frames: int, seed: int) -> Story:
        """A story with the conditions of one test video."""
        system, library, item = self.system, self.library, self.library.rows[row]
        timeline = _prompts(item, frames / system.info.fps) if "prompt" in system.accepts else []
        if "label" in system.accepts and item.label in system.info.classes:
            timeline = [Entry(label=item.label), *timeline]
        if self.told:
            timeline = [Entry(**write_told(system, library, row, frames, self.told, self.folder)), *timeline]
        source = str(library.path / item.file) if "source_video" in system.requires else None
        return Story(frames=frames, seed=seed, source_video=source, timeline=tuple(timeline))

    def _tellers(self, rows: list[int], frames: int) -> list[int]:
        """Those of the videos that are so long."""
        found = [row for row in rows if self.library.rows[row].frames >= frames]
        if not found:
            kinds = " and ".join(self.told)
            raise UserError(
                f"{self.library.path} has no {self.split} video of {frames} frames, whose {kinds} could be told; "
                "ask for fewer --frames"
            )
        return found

    def _long_enough(self, rows: list[int], seed: int) -> list[int]:
        """Those of the videos that the system can re-create so much of."""
        found, reason = [], None
        for row in rows:
            try:
                self.system.check(self._story(row, self.frames, seed))
            except UserError as error:
                reason = error
            else:
                found.append(row)
        if reason is not None and not found:
            raise reason
        return found

    def _givers(self, rows: list[int], given: int, seed: int) -> list[int]:
        """The videos whose first frames are given: those that can be compared with what follows, if there are any.

        Sets how many frames the system makes of the given ones (whole latent slices), and whether to compare.
        """
        system, library = self.system, self.library
        if "first_frames" not in system.accepts | system.requires:
            raise UserError(f"{system.name} takes no first frames; leave --given out", code=2)
        check_rate(system, library, "given")
        rows = [row for row in rows if library.rows[row].frames >= given]
        if not rows:
            raise UserError(f"{library.path} has no {self.split} video of {given} frames to give the first of", 2)
        told = self._story(rows[0], given + self.frames, seed)
        first = write_first(library, rows[0], given, self.size, self.folder)
        self.given = system.seen_frames([system.check(replace(told, first_frames=first))])
        long = [row for row in rows if library.rows[row].frames >= max(given, self.given) + self.frames]
        self.compared = bool(long)
        return long or rows

    def identity(self) -> dict[str, Any]:
        return {"system": self.system.name, "weights": weights_hash(inference_state(self.system))}

    def conditions(self) -> dict[str, Any]:
        return {
            "seeds": [self.seed, self.seed + self.count - 1],
            "settings": dict(self.system.settings.__dict__),
            "conditions_from": f"{self.split} split, evenly spread",
            "labels": [s.timeline[0].label if s.timeline else None for s in self.stories],
            "prompts": [[e.prompt for e in s.timeline if e.prompt is not None] for s in self.stories],
            "given_frames": self.given,
            "sees_test_video": "source_video" in self.system.requires,
            **({"told": list(self.told)} if self.told else {}),
        }

    def stream(self, numbers: range) -> Iterator[list[np.ndarray]]:
        skip = self.given
        for chunk in self.system.generate([self.stories[i] for i in numbers]):
            made = [as_bytes(one[:, skip:], self.to_bytes) for one in chunk]
            skip = max(0, skip - chunk.shape[2])
            if len(made[0]):
                yield made

    def reference(self, number: int, start: int, count: int) -> np.ndarray | None:
        """The real frames that follow the given ones; a video made without them has none that it should equal."""
        if not self.compared:
            return None
        begin = self.given + start
        return clip_of(self.library, self.rows[number], range(begin, begin + count), self.size)

    def text(self, number: int, frame: int) -> str | None:
        """The prompt in force, None where there is none or it is silent, between two captions."""
        found = self.stories[number].at("prompt", self.given + frame)
        return found[0] or None if found else None


def _check_division(count: int, per_condition: int) -> None:
    if count % per_condition:
        raise UserError(
            f"{count} videos do not divide into {per_condition} a condition; choose --videos a multiple of it", 2
        )


def _prompts(item: Row, seconds: float) -> list[Entry]:
    """What a real video shows, as far as the made one is long; nothing where no caption holds, as in training."""
    entries, told_until = [], 0.0
    for begin, end, text in sorted(item.captions):
        if begin > told_until:
            entries.append(Entry(start=told_until, prompt=""))
        entries.append(Entry(start=begin, prompt=text))
        told_until = end
    entries.append(Entry(start=told_until, prompt=""))
    return [entry for entry in entries if entry.start < seconds]


def as_bytes(one: Tensor, how: str) -> np.ndarray:
    """Float (3, T, H, W) in [-1, 1] -> uint8 (T, H, W, 3), rounded, or cut off as StyleGAN-V does.

    Raises:
        UserError: values that are not numbers, which would turn into black pixels.
    """
    if one.isnan().any():
        raise UserError(
            "the model made frames that are not numbers (NaN), so there is nothing to measure; its weights are "
            "damaged, its training diverged, or its precision is too low"
        )
    scaled = one.float() * 127.5 + (127.5 if how == "round" else 128)
    scaled = scaled.round() if how == "round" else scaled
    return scaled.clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()


def write_first(library: Library, row: int, count: int, size: tuple[int, int], folder: Path) -> str:
    """The first frames of a video as a file of their own, with next to no loss: a picture if it is one frame."""
    frames = clip_of(library, row, range(count), size)
    path = folder / f"{row}{'.png' if count == 1 else '.mp4'}"
    if count == 1:
        video.write_png(path, frames[0])
    else:
        video.write_video(path, [frames], library.fps, crf=0, pixel_format="yuv444p")
    return str(path)


class FolderSource:
    """Video files in a folder, in the order of their names, measured over their first `frames` frames.

    Args:
        folder: where they are.
        count: how many at most; None: all.
        frames: None: `most`, or as many as the shortest has.
        most: the protocol's length.
        seam_period: frames between joins, where known.
        seam_first: the frame at which the second piece begins; None: `seam_period`.
        real: a folder of as many real videos that these should equal, in the order of their names.
        per_condition: so many successive files are samples of one condition.

    A file `captions.csv` in the folder (columns file, text and, if timed, t0 and t1 in seconds) tells what the
    videos should show.

    Raises:
        UserError: no videos, one that is too short or of another size or frame rate (it is named).
    """

    given = 0
    """Whatever its makers were given is in the files, and measured."""

    def __init__(
        self,
        folder: Path,
        count: int | None,
        frames: int | None,
        most: int,
        seam_period: int | None = None,
        real: Path | None = None,
        per_condition: int = 1,
        seam_first: int | None = None,
    ):
        self.folder, self.per_condition = folder, per_condition
        self.files = _videos(folder)[:count]
        self.count = len(self.files)
        _check_division(self.count, per_condition)
        infos = [video.probe(file) for file in self.files]
        self._check_alike(infos)
        shortest = min(range(self.count), key=lambda i: infos[i].frames)
        self.frames = frames or min(most, infos[shortest].frames)
        if infos[shortest].frames < self.frames:
            name, have = self.files[shortest].name, infos[shortest].frames
            raise UserError(f"{folder / name} has {have} frames, {self.frames} are asked for; pass --frames {have}")
        self.size, self.fps = self._size(infos), infos[0].fps
        self.seam_period, self.seam_first = seam_period, seam_first
        self.real = self._real(real) if real else None
        captions = folder / "captions.csv"
        self.captions = read_captions(captions) if captions.is_file() else {}

    def _check_alike(self, infos: list[video.VideoInfo]) -> None:
        """All of one size and, as far as files can tell it, one rate."""
        sizes, rate = [(i.height, i.width) for i in infos], infos[0].fps
        if len(set(sizes)) > 1:
            odd = next(f for f, size in zip(self.files, sizes, strict=True) if size != sizes[0])
            shown = ", ".join(f"{h}x{w}" for h, w in sorted(set(sizes)))
            text = f"the videos in {self.folder} have different sizes ({shown}), for example {odd.name}"
            raise UserError(f"{text}; measure those of one size", code=2)
        for file, info in zip(self.files, infos, strict=True):
            if abs(info.fps / rate - 1) > RATE_TOLERANCE:
                raise UserError(
                    f"the videos in {self.folder} have different frame rates: {self.files[0].name} {rate:g} and "
                    f"{file.name} {info.fps:g} a second; measure those of one rate",
                    code=2,
                )

    def _real(self, folder: Path) -> list[Path]:
        files = _videos(folder)
        if len(files) < self.count:
            raise UserError(
                f"{folder} has {len(files)} videos to compare {self.count} with; it needs as many", code=2
            )
        for file in files[: self.count]:
            info = video.probe(file)
            if info.frames < self.frames or (info.height, info.width) != self.size:
                have = f"{info.frames} frames of {info.height}x{info.width}"
                wanted = f"{self.frames} of {self.size[0]}x{self.size[1]}"
                raise UserError(f"{file} has {have}, it must have {wanted} to be compared with")
            if abs(info.fps / self.fps - 1) > RATE_TOLERANCE:
                rates = f"{info.fps:g} frames a second and the videos have {self.fps:g}"
                raise UserError(f"{file} has {rates}; a reference needs the same rate", code=2)
        return files[: self.count]

    @staticmethod
    def _size(infos: list[video.VideoInfo]) -> tuple[int, int]:
        return infos[0].height, infos[0].width

    @cached_property
    def _hash(self) -> str:
        told = self.folder / "captions.csv"
        return _files_hash([*self.files, told] if told.is_file() else self.files)

    def identity(self) -> dict[str, Any]:
        """Folder and hash of what is in the files, so that no record of other videos is taken for one of these."""
        return {"system": "videos", "folder": self.folder.name, "files": self._hash}

    def conditions(self) -> dict[str, Any]:
        compared = {}
        if self.real:
            compared = {"reference": {"folder": self.real[0].parent.name, "files": _files_hash(self.real)}}
        return {"conditions_from": "unknown: these are files", "sees_test_video": None, **compared}

    def reference(self, number: int, start: int, count: int) -> np.ndarray | None:
        if self.real is None:
            return None
        return video.read_frames(self.real[number], range(start, start + count))

    def text(self, number: int, frame: int) -> str | None:
        spans, time = self.captions.get(self.files[number].name, []), frame / self.fps
        told = [text for a, b, text in spans if (a or 0.0) <= time and (b is None or time < b)]
        return told[-1] or None if told else None

    def stream(self, numbers: range) -> Iterator[list[np.ndarray]]:
        readers = [video.iterate(self.files[i]) for i in numbers]
        left = self.frames
        while left:
            n = min(CHUNK, left)
            yield [np.stack([next(reader) for _ in range(n)]) for reader in readers]
            left -= n


def _files_hash(files: list[Path]) -> str:
    """SHA-256 over names and contents; reading them is nothing beside decoding them."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}/{file_hash(file)}".encode())
    return digest.hexdigest()


def _videos(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        known = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{folder} is neither a model nor a folder of videos ({known})", code=2)
    return files
