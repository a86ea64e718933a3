"""Sample libraries that are made on the user's machine: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from longtake.data import atari
from longtake.data.library import Library
from longtake.errors import UserError

_SAMPLES = {"atari": atari.build}


def sample(
    name: str,
    output: str | Path,
    minutes: float = 10.0,
    size: int = 64,
    seed: int = 0,
    games: Iterable[str] | None = None,
    test: float = 0.1,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Library:
    """Make a sample library.

    Args:
        name: `atari`, the only one so far.
        output: the library's folder; it must not exist or be empty.
        minutes: of video, all games together.
        size: height and width of a frame in pixels.
        seed: the same seed gives the same library, file for file.
        games: which games, from `atari_games.GAMES`; all of them if None.
        test: share of each game's shots that is kept for test; at least one shot, never all.
        workers: processes; the library does not depend on it.
        progress: called with (frames done, frames wanted, game) when a game is done.

    Raises:
        UserError: no such sample or game, an impossible length, size or share, or a missing package.
    """
    if name not in _SAMPLES:
        raise UserError(f"there is no sample library {name!r}; choose from: {', '.join(_SAMPLES)}", 2)
    return _SAMPLES[name](output, minutes, size, seed, games, test, workers, progress)
