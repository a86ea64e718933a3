"""A library of real Atari games, played by scripts on the Arcade Learning Environment.

Every shot is one unbroken run of one game at 15 frames a second: one frame is four of the emulator's, of
which the last two are merged by their maximum, because the console shows some sprites in every other
frame only. With it go the game's sound, the player's place and moves, and a caption for every second.
`docs/atari.md` describes the result.
"""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtake.data import video
from longtake.data.atari_games import GAMES, Game, Move, Second, View
from longtake.data.library import Library, LibraryWriter, Row, shots_for_test
from longtake.errors import UserError

FPS = 15
REPEAT = 4
"""Emulator frames a video frame."""
SAMPLES_PER_FRAME = 2048
"""The emulator makes 512 samples for each of its frames."""
PLANNED = 2048
"""Frames of a shot, about: a game's frames are shared out evenly, and a shot is shorter if the game ends."""
STATE_NAMES = ("x", "y", "right", "up", "fire")
WITHHELD = 6
"""One in so many captions is kept whole for test shots only."""
STICKY = 0.25
"""Chance that the emulator repeats the last action instead of taking the new one, every emulator frame."""
QUIET = 128
"""The level of the emulator's unsigned samples at silence."""


@dataclass
class Shot:
    """One run of a game."""

    frames: np.ndarray
    """uint8 (T, size, size, 3)."""
    wave: np.ndarray
    """float32 (T * SAMPLES_PER_FRAME,) in [-1, 1]."""
    states: np.ndarray
    """float32 (T, 5) in [0, 1], see `STATE_NAMES`; x, y from the picture's upper left corner."""
    words: list[tuple[str, str]]
    """(what, where) of every second, the last one perhaps shorter."""


@dataclass(frozen=True)
class Job:
    """All shots of one game, made one after another by one process."""

    name: str
    frames: int
    size: int
    seed: int
    test: float


def build(
    output: str | Path,
    minutes: float,
    size: int,
    seed: int,
    games: Iterable[str] | None,
    test: float,
    workers: int,
    progress: Callable[[int, int, str], None] | None,
) -> Library:
    """Record the library; the arguments are those of `samples.sample`."""
    names = sorted(set(games)) if games is not None else sorted(GAMES)
    _check(names)
    _import_ale()
    each = max(2, round(minutes * 60 * FPS / len(names)))
    header: dict[str, Any] = {
        "samples_per_frame": SAMPLES_PER_FRAME,
        "state_names": STATE_NAMES,
        "split_seed": seed,
    }
    with LibraryWriter(output, (size, size), float(FPS), **header) as writer:
        for kind in ("video", "audio", "states"):
            writer.media(kind, "any")  # makes the folder before several processes write to it
        jobs = [Job(name, each, size, seed, test) for name in names]
        done = 0
        for name, rows in _run(writer, jobs, workers):
            for row in rows:
                writer.add(row)
            done += sum(row.frames for row in rows)
            if progress is not None:
                progress(done, max(done, each * len(names)), name)
    return Library(output)


def play(name: str, frames: int, size: int, seed: int | tuple[int, ...]) -> Shot:
    """Play one shot.

    Args:
        name: one of `GAMES`.
        frames: length at most; shorter if the game ends.
        size: height and width in pixels.
        seed: decides everything random in it.
    """
    ale_py, game = _import_ale(), GAMES[name]
    rng = np.random.default_rng(seed)
    ale = ale_py.ALEInterface()
    ale.setBool("sound_obs", True)
    ale.setInt("random_seed", int(rng.integers(1 << 31)))
    ale.setFloat("repeat_action_probability", STICKY)
    ale.loadROM(ale_py.roms.get_rom_path(name))
    ale.setMode(int(rng.choice(ale.getAvailableModes())))
    ale.reset_game()
    player = _Player(ale, {action.name: action for action in ale.getLegalActionSet()}, game, rng)
    for _ in range(int(rng.integers(game.warm_up + 1))):
        player.step()
    # Pictures are resized in portions: a whole shot of native ones would take 200 MB.
    taken, parts, pictures = [], [], []
    while len(taken) < frames and not ale.game_over():
        step = player.step()
        taken.append(step)
        pictures.append(step.picture)
        step.picture = step.picture[:0]
        if len(pictures) == 64:
            parts.append(video.resize(np.stack(pictures), (size, size), "stretch"))
            pictures = []
    if pictures:
        parts.append(video.resize(np.stack(pictures), (size, size), "stretch"))
    wave = np.concatenate([step.sound for step in taken])
    states = np.stack([_state(game, step) for step in taken])
    return Shot(np.concatenate(parts), wave, states, list(_words(game, taken, states)))


@dataclass
class _Step:
    picture: np.ndarray
    """uint8 (h, w, 3), cropped, native size."""
    sound: np.ndarray
    ram: np.ndarray
    move: Move
    reward: float
    died: bool


class _Player:
    """Plays a game by its policy, one video frame a `step`."""

    def __init__(self, ale: Any, actions: dict[str, Any], game: Game, rng: np.random.Generator):
        self.ale, self.actions, self.game, self.rng = ale, actions, game, rng
        self.whim, self.until = rng.random(3), 0

    def step(self) -> _Step:
        ale = self.ale
        if self.until == 0:
            self.whim, self.until = self.rng.random(3), int(self.rng.integers(8, 40))
        self.until -= 1
        view = View(ale.getRAM().astype(int), ale.getScreenRGB(), self.whim, float(self.rng.random()))
        move = self.game.policy(view)
        action = self.actions[_action_name(move)]
        lives, reward, sounds, screens = ale.lives(), 0.0, [], []
        for i in range(REPEAT):
            reward += ale.act(action)
            sounds.append(ale.getAudio())
            if i >= REPEAT - 2:
                screens.append(ale.getScreenRGB())
        died = ale.lives() < lives
        ram = ale.getRAM().astype(int)
        for byte, least in self.game.hold.items():
            if ram[byte] < least:
                ale.setRAM(byte, least)
        top, bottom, left, right = self.game.crop
        picture = np.maximum(*screens)[top:bottom, left:right]
        wave = (np.concatenate(sounds).astype(np.float32) - QUIET) / 128
        return _Step(picture, wave, ram, move, reward, died)


def _action_name(move: Move) -> str:
    right, up, fire = move
    name = ("DOWN", "", "UP")[up + 1] + ("LEFT", "", "RIGHT")[right + 1] + ("FIRE" if fire else "")
    return name or "NOOP"


def _state(game: Game, step: _Step) -> np.ndarray:
    top, bottom, left, right = game.crop
    x, y = game.position(step.ram)
    # A pixel's centre is half a pixel after its index.
    place = (x + 0.5 - left) / (right - left), (y + 0.5 - top) / (bottom - top)
    moves = (step.move[0] + 1) / 2, (step.move[1] + 1) / 2, step.move[2]
    return np.clip(np.array((*place, *moves), np.float32), 0, 1)


def _words(game: Game, steps: list[_Step], states: np.ndarray) -> Iterator[tuple[str, str]]:
    ram, moves = np.stack([step.ram for step in steps]), np.array([step.move for step in steps])
    reward = np.array([step.reward for step in steps])
    ends = np.flatnonzero([step.died for step in steps]) - game.late
    for start in range(0, len(steps), FPS):
        part = slice(start, start + FPS)
        x, y = states[part, :2].mean(0).tolist()
        died = bool(((ends >= start) & (ends < start + FPS)).any())
        yield game.describe(Second(ram[part], moves[part], reward[part], died, x, y))


def captions(words: list[tuple[str, str]], frames: int, split: str) -> tuple[tuple[float, float, str], ...]:
    """Timed spans (t0, t1, text) in seconds that cover a shot without gaps; equal neighbours are one span.

    A caption is "what where". In training shots a `withheld` one says only what happens; the whole is
    kept for test. So test has compositions of known words that no training shot shows as a caption.
    """
    spans: list[tuple[float, float, str]] = []
    for second, (what, where) in enumerate(words):
        text = f"{what} {where}"
        if split == "train" and withheld(text):
            text = what
        start, end = float(second), min(second + 1.0, frames / FPS)
        if spans and spans[-1][2] == text:
            start = spans.pop()[0]
        spans.append((start, end, text))
    return tuple(spans)


def withheld(text: str) -> bool:
    """Whether a caption is for test only: a fixed pseudo-random choice by its CRC-32, whatever the seed."""
    return zlib.crc32(text.encode()) % WITHHELD == 0


def _record(folder: Path, job: Job) -> list[Row]:
    """Play a game until its frames are reached and write the media; returns the rows."""
    planned = max(2, round(job.frames / PLANNED))
    longest = -(-job.frames // planned)
    key = (job.seed, zlib.crc32(job.name.encode()))
    made, left, lengths = [], job.frames, []
    while left > 0 or len(made) < 2:
        shot = play(job.name, min(longest, max(left, longest // 2)), job.size, (*key, len(made)))
        made.append(_write(folder, f"{job.name}-{len(made):03d}", shot))
        lengths.append(len(shot.frames))
        left -= lengths[-1]
    tests = shots_for_test(len(made), job.test, key)
    rows = []
    for number, (media, words) in enumerate(made):
        split, frames = "test" if number in tests else "train", lengths[number]
        rows.append(
            Row(
                id=f"{job.name}-{number:03d}",
                frames=frames,
                seconds=frames / FPS,
                split=split,
                label=job.name,
                captions=captions(words, frames, split),
                source=f"ALE {job.name}, seed {job.seed}, shot {number}",
                **media,
            )
        )
    return rows


def _write(folder: Path, id: str, shot: Shot) -> tuple[dict[str, str], list[tuple[str, str]]]:
    media = {"file": f"videos/{id}.mp4", "audio": f"audio/{id}.flac", "states": f"states/{id}.npy"}
    with video.VideoWriter(folder / media["file"], FPS, crf=12, gop=12, pixel_format="yuv444p") as writer:
        writer.write(shot.frames)
    video.write_audio(folder / media["audio"], shot.wave, SAMPLES_PER_FRAME * FPS)
    np.save(folder / media["states"], shot.states)
    return media, shot.words


def _run(writer: LibraryWriter, jobs: list[Job], workers: int) -> Iterator[tuple[str, list[Row]]]:
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield job.name, _record(writer.folder, job)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures = {pool.submit(_record, writer.folder, job): job.name for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _check(names: list[str]) -> None:
    unknown = [name for name in names if name not in GAMES]
    if unknown or not names:
        what = f"no game {unknown[0]!r}" if unknown else "no game named"
        raise UserError(f"{what} for the Atari library; choose from: {', '.join(sorted(GAMES))}", 2)


def _import_ale() -> Any:
    try:
        import ale_py
        import ale_py.roms
    except ImportError:
        raise UserError("the Atari games need the package ale-py; install it with: pip install ale-py") from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py
