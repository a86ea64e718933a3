"""A prepared dataset on disk: what every other part of the package reads.

A library is a folder:

    library.json    size, one fps, counts, classes, conditions present, audio and state settings, split, hash
    index.jsonl     one row a video (see `Row`)
    videos/         H.264, 4:4:4, short GOP, so that random clips decode fast; stills are 1-frame rows
    audio/          mono FLAC at `samples_per_frame * fps` Hz, where there is sound
    states/         float32 .npy of shape (frames, dims), values in [0, 1], where there are states
    cache/          decoded frames and derived tensors; safe to delete at any time
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from longtake.config import from_dict
from longtake.data import video
from longtake.errors import UserError

FORMAT = 1
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Row:
    """One video of a library. Files are relative to the library's folder."""

    id: str
    file: str
    frames: int
    seconds: float
    split: str = "train"
    label: str | None = None
    captions: tuple[tuple[float, float, str], ...] = ()
    """Timed spans (t0, t1, text) in seconds; several may overlap."""
    audio: str | None = None
    states: str | None = None
    group: str | None = None
    """Videos of one group (a performer, a source file) never fall on both sides of the split."""
    source: str | None = None
    """Where it came from, for people to read."""

    @staticmethod
    def from_json(line: str) -> Row:
        raw = json.loads(line)
        raw["captions"] = tuple((float(a), float(b), str(t)) for a, b, t in raw.get("captions", ()))
        return Row(**raw)

    def to_json(self) -> str:
        return json.dumps({k: v for k, v in asdict(self).items() if v not in (None, ())})


@dataclass(frozen=True)
class Header:
    """`library.json`."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    fps: float
    classes: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    """Which of label, caption, audio, states every row has."""
    samples_per_frame: int | None = None
    """Audio samples a video frame, S; the sample rate is S * fps."""
    state_names: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    split_seed: int = 0
    format: int = FORMAT
    hash: str = ""
    """SHA-256 over the header, the rows and every media file: two libraries with one hash hold the same data."""


class Library:
    """An opened library.

    Args:
        path: the folder.

    Raises:
        UserError: the folder is not a library, or of a newer format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        header = self.path / "library.json"
        if not header.is_file():
            raise UserError(
                f"{self.path} is not a prepared library (no library.json); "
                f"make one with: longtake data prepare {self.path} -o LIBRARY --size 64"
            )
        try:
            raw = json.loads(header.read_text(encoding="utf-8"))
            newer = raw.get("format", 0) > FORMAT
            lines = (self.path / "index.jsonl").read_text(encoding="utf-8").splitlines()
            self.rows = [] if newer else [Row.from_json(line) for line in lines]
            root = self.path.resolve()
            for file in (f for row in self.rows for f in (row.file, row.audio, row.states) if f):
                if not (root / file).resolve().is_relative_to(root):
                    raise ValueError(f"{file} lies outside it")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path} is a damaged library ({error}); prepare or copy it again") from None
        if newer:
            raise UserError(
                f"{self.path} has library format {raw['format']}, this version reads up to {FORMAT}; "
                "update longtake"
            )
        self.header = from_dict(Header, raw, str(header))

    fps = property(lambda self: self.header.fps)
    classes = property(lambda self: self.header.classes)
    hash = property(lambda self: self.header.hash)

    def split(self, name: str) -> list[int]:
        """Row numbers of one split, in index order."""
        return [i for i, row in enumerate(self.rows) if row.split == name]

    def label(self, row: int) -> int:
        """Class index of a row, -1 if it has none."""
        name = self.rows[row].label
        return self.classes.index(name) if name is not None else -1

    def frames(self, row: int, indices: Iterable[int]) -> np.ndarray:
        """Decode frames of one video: uint8 (n, H, W, 3). See `data.clips` for the cached way."""
        return video.read_frames(self.path / self.rows[row].file, list(indices))

    def audio(self, row: int) -> np.ndarray:
        """The row's sound: float32 (frames, S) in [-1, 1], S samples a frame."""
        item, per_frame = self.rows[row], self.header.samples_per_frame
        assert item.audio is not None
        assert per_frame is not None
        wave = video.read_audio(self.path / item.audio, rate=round(per_frame * self.fps))
        out = np.zeros(item.frames * per_frame, np.float32)
        out[: min(len(wave), len(out))] = wave[: len(out)]
        return out.reshape(item.frames, per_frame)

    def states(self, row: int) -> np.ndarray:
        """The row's states: float32 (frames, D) in [0, 1]."""
        item = self.rows[row]
        assert item.states is not None
        return np.load(self.path / item.states, allow_pickle=False)


class LibraryWriter:
    """Builds a library beside its final place and moves it there when it is complete.

    Use as a context manager; nothing is left behind if the block fails. Media go to the paths that
    `media(kind, id)` names, rows through `add`.

    Raises:
        UserError: at once, if the folder is not empty or cannot be made.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: float, **header):
        self.path = Path(path)
        self.header = Header(size=size, fps=fps, **header)
        self.rows: list[Row] = []
        with self._explained():
            if self.path.is_symlink() or not self.path.name:  # a folder can be moved to neither `link` nor `.`
                self.path = Path(os.path.realpath(self.path))
            if self.path.exists() and any(self.path.iterdir() if self.path.is_dir() else [self.path]):
                raise UserError(f"{self.path} exists already and is not empty; choose another folder or remove it")
            self.folder = self.path.with_name(f".{self.path.name}.partial")
            missing = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)  # only to see that it can be, before hours of work
            for place in missing:
                with suppress(OSError):  # another command may have put something there
                    place.rmdir()

    def __enter__(self) -> LibraryWriter:
        with self._explained():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        return self

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"the library {self.path} cannot be written ({why}); choose another folder") from error

    def media(self, kind: str, id: str) -> Path:
        """Where a row's `video`, `audio` or `states` file belongs."""
        folder, suffix = {
            "video": ("videos", ".mp4"),
            "audio": ("audio", ".flac"),
            "states": ("states", ".npy"),
        }[kind]
        (self.folder / folder).mkdir(exist_ok=True)
        return self.folder / folder / f"{id}{suffix}"

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        if not self.rows:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError(f"nothing to write to {self.path}: no video was accepted")
        rows = sorted(self.rows, key=lambda row: row.id)
        header = self._complete(rows)
        index = "".join(row.to_json() + "\n" for row in rows)
        (self.folder / "index.jsonl").write_text(index, encoding="utf-8")
        (self.folder / "library.json").write_text(json.dumps(asdict(header), indent=1) + "\n", encoding="utf-8")
        if self.path.exists():
            self.path.rmdir()
        os.replace(self.folder, self.path)

    def _complete(self, rows: list[Row]) -> Header:
        fields = asdict(self.header)
        fields["classes"] = fields["classes"] or tuple(sorted({r.label for r in rows if r.label is not None}))
        present = {
            "label": all(r.label is not None for r in rows),
            "caption": all(r.captions for r in rows),
            "audio": all(r.audio for r in rows),
            "states": all(r.states for r in rows),
        }
        fields["conditions"] = tuple(name for name, everywhere in present.items() if everywhere)
        fields["counts"] = {
            "videos": len(rows),
            "frames": sum(r.frames for r in rows),
            **{name: sum(r.split == name for r in rows) for name in SPLITS},
        }
        fields["hash"] = ""
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=list).encode())
        for row in rows:
            digest.update(row.to_json().encode())
            for file in filter(None, (row.file, row.audio, row.states)):
                digest.update(_file_digest(self.folder / file))
        fields["hash"] = digest.hexdigest()
        return Header(**fields)


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def shots_for_test(count: int, share: float, seed: int | tuple[int, ...]) -> set[int]:
    """Which of `count` recorded shots are for test: about a share of them, at least one, never all."""
    kept = min(max(1, round(share * count)), count - 1)
    return set(np.random.default_rng(seed).permutation(count)[:kept].tolist())
