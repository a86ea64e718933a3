"""Where pixels come from before they are a library: files, folders, archives, arrays.

An `Entry` is one file of a folder or an archive. Archives are never unpacked: members are read into
memory, or, for codecs that need a file, into a temporary file of our own naming, so a member's name can
point nowhere. A `Media` gives the frames of one video, whatever holds them.
"""

from __future__ import annotations

import lzma
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from longtake.data import video
from longtake.errors import UserError

DAMAGED = (
    *(OSError, EOFError, ValueError, RuntimeError),  # of these, text that is no UTF-8 and unknown methods are kinds
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
"""What the standard library raises on archives and members that are damaged, cut short or locked."""


def printable(text: str) -> str:
    """Text that can be written anywhere: bytes of a file name that are no UTF-8 become `\\udc..`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Entry:
    """One file: its path within the source, how to read it, and where it lies if it is a plain file.

    The path is relative and printable: what is made of it (names, classes, groups) can be written to any file.
    """

    path: PurePosixPath
    read: Callable[[], bytes]
    file: Path | None = None

    def content(self) -> bytes:
        """The bytes, or a `UserError` that names the file."""
        try:
            return self.read()
        except DAMAGED as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error


def entries(source: Path) -> list[Entry]:
    """All files of a folder, a zip, a tar, or the one file itself, by path; hidden ones are left out.

    Of members of one path the last counts: that is how an archive is brought up to date (`tar -r`).

    Raises:
        UserError: there is no such source, or it is an archive that is damaged or of another kind.
    """
    if source.is_dir():
        found = list(_folder(source))
    elif source.suffix.lower() == ".zip":
        found = list(_zip(source))
    elif source.suffix.lower() == ".tar":
        found = list(_tar(source))
    elif source.name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")):
        raise UserError(f"{source} is compressed and cannot be read in any order; unpack it to a folder first")
    elif source.is_file():
        found = [_plain(source, source.name)]
    else:
        raise UserError(f"{source} does not exist; give a folder, a zip, a tar or a video")
    hidden = ("__MACOSX", ".")
    shown = {e.path: e for e in found if not any(part.startswith(hidden) for part in e.path.parts)}
    return sorted(shown.values(), key=lambda entry: entry.path.as_posix())


def _plain(file: Path, path: str) -> Entry:
    return Entry(_path(path), file.read_bytes, file)


def _path(name: str) -> PurePosixPath:
    """Within the source, also where an archive calls its members `/a.mp4`."""
    return PurePosixPath(printable(name).lstrip("/"))


def _folder(source: Path) -> Iterator[Entry]:
    seen: set[str] = set()
    for place, folders, files in os.walk(source, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        for name in files:
            file = Path(place) / name
            yield _plain(file, file.relative_to(source).as_posix())


def _zip(source: Path) -> Iterator[Entry]:
    try:
        archive = zipfile.ZipFile(source)
    except DAMAGED as error:
        raise UserError(f"{source} is not a readable zip: {error}") from error
    for member in archive.infolist():
        if not member.is_dir():
            yield Entry(_path(member.filename), lambda m=member: archive.read(m))


def _tar(source: Path) -> Iterator[Entry]:
    def read(offset: int, size: int) -> bytes:
        with source.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                if member.isfile():
                    start, size = member.offset_data, member.size
                    yield Entry(_path(member.name), lambda start=start, size=size: read(start, size))
    except DAMAGED as error:
        raise UserError(f"{source} is not a readable tar: {error}") from error


@dataclass(frozen=True)
class Facts:
    """What is known of a media before its frames are decoded; `fps` is None where there is no clock."""

    frames: int
    fps: float | None
    seconds: float | None = None
    variable_rate: bool = False
    sound: bool = False


class Media(Protocol):
    """The frames, and perhaps the sound, of one video."""

    def survey(self) -> Facts: ...

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, or the frame number where there is no clock; uint8 (H, W, 3))."""
        ...

    def sound(self, rate: int) -> np.ndarray:
        """Mono float32 (samples,) at `rate`."""
        ...


@dataclass(frozen=True)
class VideoMedia:
    """A video file; a member of an archive is copied to a temporary file while it is read."""

    entry: Entry

    @contextmanager
    def _file(self) -> Iterator[Path]:
        if self.entry.file is not None:
            yield self.entry.file
            return
        with tempfile.TemporaryDirectory(prefix="longtake-") as folder:
            file = Path(folder) / f"member{self.entry.path.suffix}"
            file.write_bytes(self.entry.content())
            try:
                yield file
            except UserError as error:
                raise UserError(str(error).replace(str(file), self.entry.path.as_posix())) from error

    def survey(self) -> Facts:
        with self._file() as file:
            info = video.probe(file)
        return Facts(info.frames, info.fps, info.seconds, info.variable_rate, info.audio_rate is not None)

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        with self._file() as file:
            yield from video.iterate_timed(file)

    def sound(self, rate: int) -> np.ndarray:
        with self._file() as file:
            return video.read_audio(file, rate)


@dataclass(frozen=True)
class PictureMedia:
    """Pictures in order: a still, or the frames of a video."""

    pictures: tuple[Entry, ...]

    def survey(self) -> Facts:
        return Facts(len(self.pictures), None)

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        for number, entry in enumerate(self.pictures):
            source = entry.content() if entry.file is None else entry.file
            yield float(number), video.read_image(source, name=entry.path.as_posix())

    def sound(self, rate: int) -> np.ndarray:
        raise UserError("pictures have no sound")


@dataclass(frozen=True)
class ArrayMedia:
    """Frames [start, stop) of a uint8 (N, H, W, 3) data set in an HDF5 file."""

    file: Path
    key: str
    start: int
    stop: int

    def survey(self) -> Facts:
        return Facts(self.stop - self.start, None)

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        import h5py

        with h5py.File(self.file) as file:
            data = file[self.key]
            assert isinstance(data, h5py.Dataset)
            for number in range(self.start, self.stop):
                yield float(number - self.start), data[number]

    def sound(self, rate: int) -> np.ndarray:
        raise UserError("arrays have no sound")


@dataclass(frozen=True)
class Item:
    """One video to be prepared. `name` is its path within the source, which people know it by."""

    name: str
    media: Media
    label: str | None = None
    split: str | None = None
    group: str | None = None
    captions: tuple[tuple[float | None, float | None, str], ...] = ()
    """(t0, t1, text) in seconds; None means the start or the end of the video."""
    still: bool = False

    def with_split(self, split: str) -> Item:
        return replace(self, split=split)
