"""What test videos sound like and how things move in them, as files for the stories of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from longtake.data import video
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.systems.base import System

KINDS = ("audio", "states")


def kinds_told(system: System, library: Library, asked: Iterable[str]) -> tuple[str, ...]:
    """The kinds that the model is told: those it requires, and those that are asked for.

    Raises:
        UserError: the model does not take one of them, the library has none, or runs at another rate.
    """
    kinds = tuple(kind for kind in KINDS if kind in system.requires or kind in asked)
    for kind in kinds:
        if kind not in system.accepts | system.requires:
            raise UserError(f"{system.name} takes no {kind} here; leave --told {kind} out", code=2)
        if kind not in library.header.conditions:
            raise UserError(
                f"{library.path} has no {kind} that {system.name} could be told; choose another library"
            )
    missing = set(names_told(system, library)) - set(library.header.state_names)
    if "states" in kinds and missing:
        raise UserError(f"{library.path} has no states {', '.join(sorted(missing))}, which {system.name} follows")
    if kinds:
        check_rate(system, library, "told")
    return kinds


def check_rate(system: System, library: Library, what: str) -> None:
    """Whether frames of the library last as long as the model's, so that what is given or told fits.

    Raises:
        UserError: they do not.
    """
    if abs(library.fps / system.info.fps - 1) > 1e-3:
        raise UserError(
            f"{library.path} has {library.fps:g} frames a second and the model {system.info.fps:g}, so what is "
            f"{what} would not fit; prepare the library with --fps {system.info.fps:g}"
        )


def names_told(system: System, library: Library) -> tuple[str, ...]:
    """The states that the model follows."""
    return getattr(system, "state_names", library.header.state_names)


def write_told(system: System, library: Library, row: int, frames: int, kinds: Iterable[str], folder: Path) -> dict:
    """The first `frames` frames' sound and states of a video as files; their paths by kind."""
    paths = {}
    for kind in kinds:
        path = folder / (f"{row}.flac" if kind == "audio" else f"{row}.npy")
        if not path.exists() and kind == "audio":
            wave = library.audio(row)[:frames]
            video.write_audio(path, wave.reshape(-1), round(wave.shape[1] * library.fps))
        elif not path.exists():
            columns = [library.header.state_names.index(name) for name in names_told(system, library)]
            np.save(path, library.states(row)[:frames, columns])
        paths[kind] = str(path)
    return paths
