"""Sample libraries that are made on the user's machine: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from longtake.data import atari, pusher
from longtake.data.library import Library
from longtake.errors import UserError

SAMPLES = {"atari": atari.build, "pusher": pusher.build}


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
        name: `atari`, or `pusher`, a robot arm and a puck.
        output: the library's folder; it must not exist or be empty.
        minutes: of video, all games together.
        size: height and width of a frame in pixels.
        seed: the same seed gives the same library, file for file.
        games: of Atari, from `atari_games.GAMES`; all of them if None.
        test: share of each game's shots that is kept for test; at least one shot, never all.
        workers: processes; the library does not depend on it.
        progress: called with (frames done, frames wanted, game) when a game is done.

    Raises:
        UserError: no such sample or game, an impossible length, size or share, or a missing package.
    """
    if name not in SAMPLES:
        raise UserError(f"there is no sample library {name!r}; choose from: {', '.join(SAMPLES)}", 2)
    if not minutes > 0:
        raise UserError(f"minutes is {minutes}; give how many minutes of video to record, more than 0", 2)
    if size < 8:
        raise UserError(f"size is {size}; give a frame size of at least 8 pixels", 2)
    if not 0 < test < 1:
        raise UserError(f"test is {test}; give the share of shots to keep for test, between 0 and 1", 2)
    return SAMPLES[name](output, minutes, size, seed, games, test, workers, progress)
