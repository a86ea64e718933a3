"""How clips are drawn from a library.

A draw is a pure function of (seed, sample number): stopping, resuming or splitting a batch over processes
never changes which clips are seen, and "the data position" is just the step number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from longtake.data.library import Library
from longtake.errors import UserError
from longtake.rollout.rng import Rng


class Mode(Protocol):
    """Which frames of a video make one clip."""

    def span(self, frames: int) -> int:
        """Frames a video must have at least."""
        ...

    def starts(self, length: int, frames: int) -> int:
        """How many different places a clip can start at: the weight of a video in the draw."""
        ...

    def indices(self, length: int, frames: int, start: int, noise: Noise) -> np.ndarray:
        """Frame numbers of the clip, ascending, int64 (frames,)."""
        ...


class Noise(NamedTuple):
    """The random numbers of one sample: `integer(name, high)` is uniform in [0, high)."""

    rng: Rng
    id: int

    def integer(self, name: str, high: int) -> int:
        return int(self.rng.integers(name, self.id, high)[0])

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
        return self.rng.uniform(name, self.id, shape)[0].numpy()


@dataclass(frozen=True)
class Step:
    """Every `s`-th frame from a random start, s drawn in [min, max] for each clip (step sampling)."""

    min: int = 1
    max: int = 1

    def span(self, frames: int) -> int:
        return (frames - 1) * self.min + 1

    def starts(self, length: int, frames: int) -> int:
        return max(0, length - self.span(frames) + 1)

    def indices(self, length: int, frames: int, start: int, noise: Noise) -> np.ndarray:
        largest = min(self.max, (length - 1) // max(1, frames - 1)) if frames > 1 else self.min
        step = self.min + noise.integer("step", largest - self.min + 1)
        if step > self.min:  # a longer clip has fewer starts: draw the start again among them
            start = noise.integer("start", length - (frames - 1) * step)
        return start + step * np.arange(frames)


@dataclass(frozen=True)
class UniformBins:
    """The video in equal bins, one random frame of each (uniform sampling, EncGAN3 section 3.4)."""

    def span(self, frames: int) -> int:
        return frames

    def starts(self, length: int, frames: int) -> int:
        return int(length >= frames)

    def indices(self, length: int, frames: int, start: int, noise: Noise) -> np.ndarray:
        edges = np.linspace(0, length, frames + 1).astype(np.int64)
        return edges[:-1] + (noise.uniform("bins", (frames,)) * np.diff(edges)).astype(np.int64)


@dataclass(frozen=True)
class Sparse:
    """First and last frame a random distance apart, the others at random between them (StyleGAN-V 3.3).

    A `distance` n draws it uniformly in [frames - 1, n] (the paper); a tuple draws it from that set
    (the official code: 2, 4, 8, 16, 32).
    """

    distance: int | tuple[int, ...] = 32

    def span(self, frames: int) -> int:
        return max(frames, min(self.distances(frames)) + 1)

    def starts(self, length: int, frames: int) -> int:
        return max(0, length - self.span(frames) + 1)

    def distances(self, frames: int) -> list[int]:
        """Distances between first and last frame that can be drawn."""
        every = range(frames - 1, self.distance + 1) if isinstance(self.distance, int) else self.distance
        return [d for d in every if d >= frames - 1]

    def indices(self, length: int, frames: int, start: int, noise: Noise) -> np.ndarray:
        if frames == 1:
            return np.array([noise.integer("start", length)])
        fitting = [d for d in self.distances(frames) if d < length]
        distance = fitting[noise.integer("distance", len(fitting))]
        first = noise.integer("start", length - distance)
        inner = 1 + np.argsort(noise.uniform("inner", (distance - 1,)), kind="stable")[: frames - 2]
        return first + np.concatenate([[0], np.sort(inner), [distance]]).astype(np.int64)


@dataclass(frozen=True)
class Window:
    """Consecutive frames from any start; a video counts once every `stride` places (R2's 24-frame windows)."""

    stride: int = 16

    def span(self, frames: int) -> int:
        return frames

    def starts(self, length: int, frames: int) -> int:
        return 0 if length < frames else -(-(length - frames + 1) // self.stride)

    def indices(self, length: int, frames: int, start: int, noise: Noise) -> np.ndarray:
        first = noise.integer("start", length - frames + 1)
        return first + np.arange(frames)


@dataclass(frozen=True)
class Held:
    """Consecutive frames, also of a video that has fewer than the clip: its last frame is held to the end.

    `times` tells held frames from others: they repeat the last one's. Clips start at a video's beginning, and then
    every `stride` frames as long as they are full; None: only at its beginning (R3's sequences of latent spaces).
    """

    least: int
    """Frames that a video must have."""
    stride: int | None = None

    def span(self, frames: int) -> int:
        return self.least

    def starts(self, length: int, frames: int) -> int:
        if length < self.least:
            return 0
        return 1 if self.stride is None else 1 + max(0, length - frames) // self.stride

    def indices(self, length: int, frames: int, start: int, noise: Noise) -> np.ndarray:
        return np.minimum(start * (self.stride or 1) + np.arange(frames), length - 1)


@dataclass(frozen=True)
class Chain:
    """`clips` successive clips of one video, `overlap` frames shared by neighbours, one clip a step.

    Batch element b follows its own video; the Batch key `first` marks the first clip of a chain (LEncGAN).
    """

    clips: int
    overlap: int = 0

    def span(self, frames: int) -> int:
        return frames + (self.clips - 1) * (frames - self.overlap)

    def starts(self, length: int, frames: int) -> int:
        return max(0, length - self.span(frames) + 1)

    def indices(self, length: int, frames: int, start: int, noise: Noise) -> np.ndarray:
        return start + np.arange(frames)


@dataclass(frozen=True)
class Still:
    """One frame of any video or still, uniformly over all frames."""

    def span(self, frames: int) -> int:
        return 1

    def starts(self, length: int, frames: int) -> int:
        return length

    def indices(self, length: int, frames: int, start: int, noise: Noise) -> np.ndarray:
        return np.array([start])


@dataclass(frozen=True)
class ClipSpec:
    """What a stage wants to see: `frames` frames of `size` (height, width), and which conditions with them."""

    frames: int
    size: tuple[int, int]
    mode: Step | UniformBins | Sparse | Window | Held | Chain | Still = field(default_factory=Step)
    conditions: tuple[str, ...] = ()

    def __post_init__(self):
        if isinstance(self.mode, Still) and self.frames != 1:
            raise ValueError(f"still images have 1 frame, not {self.frames}")
        if isinstance(self.mode, Sparse) and not self.mode.distances(self.frames):
            raise ValueError(f"no distance of {self.mode} holds {self.frames} frames")
        if isinstance(self.mode, Chain) and not 0 <= self.mode.overlap < self.frames:
            raise ValueError(f"clips of {self.frames} frames cannot share {self.mode.overlap} with the next")


@dataclass(frozen=True)
class Draw:
    """How often a step sees a spec. `batch` is per process.

    every: present on every n-th step. share: present on this share of the steps, chosen at random; of all
    draws with a share exactly one is present in a step (their shares must add up to 1).
    """

    spec: ClipSpec
    batch: int
    every: int = 1
    share: float | None = None


class Clip(NamedTuple):
    """The address of one clip: everything needed to read it."""

    id: int
    row: int
    indices: np.ndarray
    first: bool
    number: int | None
    """Its place among all clips of the spec, where these can be counted (`ClipPicker.countable`): the key of
    `derive`."""


class ClipPicker:
    """Draws clips for one spec from one split.

    Args:
        library: where from.
        spec: what.
        split: "train" or "test".
        seed: of the draw.
        name: of the draw; draws of different names are independent.

    Raises:
        UserError: the library cannot meet the spec; the message names what is missing.
    """

    def __init__(self, library: Library, spec: ClipSpec, split: str, seed: int | str, name: str):
        self.library, self.spec = library, spec
        self.rng = Rng([f"{seed}/{name}"])
        have = library.header
        for condition in spec.conditions:
            if condition not in have.conditions:
                known = ", ".join(have.conditions) or "none"
                raise UserError(f"{library.path} has no {condition} on every video (it has: {known})")
        wanted, size = spec.size, have.size
        if wanted[0] > size[0] or wanted[1] > size[1] or wanted[0] * size[1] != wanted[1] * size[0]:
            raise UserError(
                f"{library.path} holds {size[0]}x{size[1]} frames and this model wants {wanted[0]}x{wanted[1]}; "
                f"prepare it again with --size {wanted[0]}x{wanted[1]}"
            )
        rows = library.split(split)
        self.rows = [i for i in rows if library.rows[i].frames >= spec.mode.span(spec.frames)]
        self.weights = [spec.mode.starts(library.rows[i].frames, spec.frames) for i in self.rows]
        if not self.rows:
            longest = max((library.rows[i].frames for i in rows), default=0)
            need = spec.mode.span(spec.frames)
            raise UserError(
                f"{library.path} has no {split} video of {need} frames or more for {name} "
                f"({len(rows)} videos, the longest has {longest}); prepare longer videos or train on shorter clips"
            )
        self.ends = np.cumsum(self.weights)
        self.total = int(self.ends[-1])

    @property
    def countable(self) -> bool:
        """Whether a start says everything about a clip, so that things derived from it can be kept: so it does for
        a `Step` that is fixed, `Held` and `Still`."""
        mode = self.spec.mode
        return isinstance(mode, Still | Held) or (isinstance(mode, Step) and mode.min == mode.max)

    def pick(self, id: int) -> Clip:
        """The clip with this sample number, uniform over every place a clip can start."""
        first, offset, key = True, 0, id
        if isinstance(self.spec.mode, Chain):
            key, position = divmod(id, self.spec.mode.clips)
            first, offset = position == 0, position * (self.spec.frames - self.spec.mode.overlap)
        noise = Noise(self.rng, key)
        number = noise.integer("clip", self.total)
        place = int(np.searchsorted(self.ends, number, side="right"))
        start = number - int(self.ends[place]) + self.weights[place]
        return self._clip(id, place, start, offset, first, number if self.countable else None, noise)

    def at(self, number: int) -> Clip:
        """The clip with this place among all countable clips, whatever its sample number."""
        place = int(np.searchsorted(self.ends, number, side="right"))
        start = number - int(self.ends[place]) + self.weights[place]
        return self._clip(number, place, start, 0, True, number, Noise(self.rng, number))

    def _clip(self, id, place, start, offset, first, number, noise) -> Clip:
        row = self.rows[place]
        length = self.library.rows[row].frames
        indices = self.spec.mode.indices(length, self.spec.frames, start, noise) + offset
        return Clip(id, row, indices, first, number)

    def ids(self, step: int, batch: int, rank: int = 0, world: int = 1) -> list[int]:
        """Sample numbers of one process's batch at one step (a chain's clips follow each other in time)."""
        places = range(rank * batch, (rank + 1) * batch)
        if isinstance(self.spec.mode, Chain):
            chain, position = divmod(step, self.spec.mode.clips)
            return [(chain * batch * world + p) * self.spec.mode.clips + position for p in places]
        return [step * batch * world + p for p in places]


def present(draws: dict[str, Draw], step: int, seed: int | str, in_turn: bool = False) -> list[str]:
    """Names of the draws that a step sees; `in_turn`: those with a share take turns, longer clips first."""
    shared = {name: draw.share for name, draw in draws.items() if draw.share is not None}
    chosen = None
    if shared:
        if abs(sum(shared.values()) - 1) > 1e-6:
            raise ValueError(f"the shares of {', '.join(shared)} add up to {sum(shared.values()):g}, not 1")
        if in_turn:
            chosen = sorted(shared, key=lambda name: -draws[name].spec.frames)[step % len(shared)]
        else:
            u = float(Rng([seed]).uniform("share", step)[0])
            edges = np.cumsum(list(shared.values()))
            chosen = list(shared)[min(int(np.searchsorted(edges, u, side="right")), len(shared) - 1)]
    return [n for n, d in draws.items() if (n == chosen if d.share is not None else step % d.every == 0)]
