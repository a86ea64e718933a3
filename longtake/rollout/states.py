"""The trajectory of a story, frame by frame."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from longtake.errors import UserError
from longtake.story import Story


def read_states(path: str | Path, names: tuple[str, ...]) -> np.ndarray:
    """A trajectory file: float32 (frames, len(names)) in [0, 1], a row a frame, a column a name in their order.

    .npy holds the array; .csv the rows, with or without a line of names.

    Raises:
        UserError: no such file, another format or shape, numbers outside [0, 1].
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                rows = np.load(file, allow_pickle=False)
            if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "biuf":
                raise UserError(f"{path} holds no array of numbers; save one with numpy.save", code=2)
        elif path.suffix.lower() == ".csv":
            lines = path.read_text(encoding="utf-8").splitlines()
            heading = 1 if lines and any(c.isalpha() and c not in "eE" for c in lines[0]) else 0
            rows = np.loadtxt(lines[heading:], delimiter=",", ndmin=2) if lines[heading:] else np.empty((0, 0))
        else:
            raise UserError(f"{path} is no trajectory: give a .npy or .csv file", code=2)
        rows = np.asarray(rows, np.float32)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"cannot read the trajectory {path}: {error}", code=2) from None
    if rows.ndim != 2 or rows.shape[1] != len(names) or not len(rows):
        wanted = ", ".join(names)
        raise UserError(f"{path} has shape {rows.shape}; a row a frame and the columns {wanted} are wanted", code=2)
    if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1):
        raise UserError(f"{path} has numbers outside [0, 1]; scale each column to that range", code=2)
    return rows


def states_of(story: Story, names: tuple[str, ...], given: int = 0) -> np.ndarray:
    """The states of a resolved story: float32 (frames, len(names)) in [0, 1], NaN where no trajectory tells them.

    Each trajectory runs from the start of its entry until the next entry that names one, or the story's end, and
    must last that long; what it has beyond is cut off. One from the story's start may also have `given` rows, those
    of the frames that the video is given to start with.

    Raises:
        UserError: as `read_states`, or a trajectory that is too short.
    """
    assert story.frames is not None
    assert story.fps is not None
    track = np.full((story.frames, len(names)), np.nan, np.float32)
    entries = [entry for entry in story.timeline if entry.states is not None]
    begins = [min(round(entry.start * story.fps), story.frames) for entry in entries]
    for entry, begin, end in zip(entries, begins, [*begins, story.frames][1:], strict=True):
        if begin == end:
            continue
        rows = read_states(str(entry.states), names)
        if begin == 0 and len(rows) == given:
            end = min(end, given)
        if len(rows) < end - begin:
            raise UserError(
                f"{entry.states} has {len(rows)} rows and is to run for {end - begin} frames; give a longer "
                "trajectory or make the story shorter",
                code=2,
            )
        track[begin:end] = rows[: end - begin]
    return track
