"""What a video shows and when: length, seed and a timeline of conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from longtake.config import from_dict, read_yaml
from longtake.data.batch import Batch
from longtake.errors import UserError

TIMED = ("label", "prompt", "audio", "states")
"""Conditions that an entry of the timeline can carry."""
WHOLE = ("first_frames", "last_frame", "source_video")
"""Conditions of a whole video: files."""


@dataclass(frozen=True)
class Entry:
    """From `start` on (seconds), until an entry sets the same condition again."""

    start: float = 0.0
    label: str | None = None
    """A class name of the model."""
    prompt: str | None = None
    """What is to be seen, in words."""
    audio: str | None = None
    """A sound file that plays from `start`."""
    states: str | None = None
    """A trajectory file (.npy or .csv, one row a frame, values in [0, 1]) that runs from `start`."""
    cut: bool = False
    """Begin a new scene here: nothing of what was shown before is continued."""


@dataclass(frozen=True)
class Story:
    """One video to be made.

    Exactly one of `frames` and `seconds` is given; `resolve` turns seconds into frames at the model's fps.
    """

    frames: int | None = None
    seconds: float | None = None
    seed: int = 0
    fps: float | None = None
    """Frames a second of the result; None means the model's own (only continuous-time systems take another)."""
    timeline: tuple[Entry, ...] = ()
    first_frames: str | None = None
    """A video or image whose frames the result starts with."""
    last_frame: str | None = None
    """An image the result ends at."""
    source_video: str | None = None
    """A video that the system re-creates (R2)."""
    classes: tuple[str, ...] = field(default=(), repr=False)
    """Class names, filled in by `resolve`."""

    def conditions(self) -> set[str]:
        """Names of all conditions that this story uses."""
        used = {name for name in TIMED for entry in self.timeline if getattr(entry, name) is not None}
        cuts = {"cut"} if any(entry.cut for entry in self.timeline) else set()
        return used | cuts | {name for name in WHOLE if getattr(self, name) is not None}

    def cuts(self) -> list[int]:
        """Frames at which new scenes begin, of a resolved story."""
        assert self.fps is not None
        return sorted({round(entry.start * self.fps) for entry in self.timeline if entry.cut} - {0})

    def resolve(self, fps: float, classes: tuple[str, ...]) -> Story:
        """Settle length, fps and class names against a model.

        Raises:
            UserError: no length or two, an unordered timeline, an unknown class.
        """
        if (self.frames is None) == (self.seconds is None):
            raise UserError("a story needs a length: give either frames or seconds", code=2)
        rate = fps if self.fps is None else self.fps
        if not 0 < rate < math.inf or not math.isfinite(self.seconds or 0):
            raise UserError("fps must be above 0, and it and seconds finite", code=2)
        frames = self.frames if self.frames is not None else round((self.seconds or 0) * rate)
        if frames < 1:
            raise UserError(f"a story of {frames} frames shows nothing; ask for at least 1", code=2)
        starts = [entry.start for entry in self.timeline]
        if starts != sorted(starts) or not all(0 <= s < math.inf for s in starts):
            raise UserError(f"timeline entries must start at 0 or later and in order, got {starts}", code=2)
        for entry in self.timeline:
            if entry.label is not None and entry.label not in classes:
                known = ", ".join(classes) or "this model has no classes"
                raise UserError(f"{entry.label!r} is not a class of this model; it knows: {known}", code=2)
        return replace(self, frames=frames, seconds=None, fps=rate, classes=classes)

    def throughout(self, **conditions: str) -> Story:
        """The same story with these conditions in force throughout, in place of what its timeline says of them."""
        if not conditions:
            return self
        nothing = dict.fromkeys(conditions)
        always = replace(Entry(), **conditions)
        return replace(self, timeline=(always, *(replace(e, **nothing) for e in self.timeline)))

    def told(self, **given: Any) -> Story:
        """The same story with what is given, None left out: fields are replaced, a length by either length, and
        conditions of the timeline hold throughout."""
        known = {name: value for name, value in given.items() if value is not None}
        timed = {name: str(known.pop(name)) for name in TIMED if name in known}
        files = {name: str(known[name]) for name in WHOLE if name in known}
        if "frames" in known or "seconds" in known:
            known = {"frames": None, "seconds": None, **known}
        return replace(self, **{**known, **files}).throughout(**timed)

    def at(self, name: str, frame: int) -> tuple[Any, int] | None:
        """The value of a condition in force at a frame and the frame it came into force, or None."""
        assert self.fps is not None
        found = None
        for entry in self.timeline:
            begin = round(entry.start * self.fps)
            if begin <= frame and getattr(entry, name) is not None:
                found = getattr(entry, name), begin
        return found

    def window(self, start: int, n: int) -> Batch:
        """Conditions of frames start..start+n-1 as a batch of one: `label` is (1, n), -1 where none is set."""
        names = [self.at("label", frame) for frame in range(start, start + n)]
        label = [self.classes.index(found[0]) if found else -1 for found in names]
        return Batch(times=torch.arange(start, start + n)[None], label=torch.tensor([label]))


def read_story(path: str | Path) -> Story:
    """Read a story from YAML: the fields of `Story`, `timeline` a list of entries with the fields of `Entry`.

    Raises:
        UserError: no such file, invalid YAML, unknown fields.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the story {path}: {getattr(error, 'strerror', error)}", code=2) from None
    raw = read_yaml(text, str(path))
    if isinstance(raw, dict):
        raw = dict(raw)
        raw.pop("classes", None)
        entries = raw.pop("timeline", None) or []
        if not isinstance(entries, list):
            raise UserError(f"{path}: timeline must be a list of entries", code=2)
        timeline = tuple(from_dict(Entry, e, f"{path}: timeline entry {i + 1}") for i, e in enumerate(entries))
        return replace(from_dict(Story, raw, str(path)), timeline=timeline)
    raise UserError(f"{path} is not a story; it must hold settings such as {fields(Story)[0].name}: 1024", code=2)
