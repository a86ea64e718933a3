"""Memory-mapped caches beside a library: decoded frames, decoded sound, and what a stage derives from clips."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake.data import video
from longtake.data.library import Library
from longtake.files import write_text


class FrameCache:
    """Frames of a library at one size, decoded once into a memory-mapped uint8 file when they fit `budget`.

    Over budget, or where the folder cannot be written, frames are decoded (and resized) at every access:
    slower, never different.

    Args:
        library: where from.
        size: (height, width); smaller than the library's means antialiased resizing.
        budget: bytes the decoded frames may take on disk.
        progress: called with (videos done, videos) while decoding.
    """

    def __init__(
        self,
        library: Library,
        size: tuple[int, int],
        budget: int,
        progress: Callable[[int, int], None] | None = None,
    ):
        self.library, self.size = library, size
        self.offsets = _offsets(library)
        shape = (int(self.offsets[-1]), *size, 3)
        path = library.path / "cache" / f"frames-{size[0]}x{size[1]}-{library.hash[:16]}.u8"

        def decode(memory: np.memmap) -> None:
            for i, row in enumerate(library.rows):
                memory[self.offsets[i] : self.offsets[i + 1]] = self._read(i, range(row.frames))
                if progress:
                    progress(i + 1, len(library.rows))

        self.memory = _decoded(path, np.uint8, shape, decode, budget)

    def _read(self, row: int, indices: Sequence[int] | range) -> np.ndarray:
        frames = self.library.frames(row, indices)
        return frames if frames.shape[1:3] == self.size else video.resize(frames, self.size, "stretch")

    def frames(self, row: int, indices: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3) of these frame numbers of one video."""
        if self.memory is not None:
            return np.asarray(self.memory[self.offsets[row] + indices])
        return self._read(row, [int(i) for i in indices])


class SoundCache:
    """Sound of a library, decoded once into a memory-mapped file of 16 bits, as the library's files have, when it
    fits `budget`; over budget, or where the folder cannot be written, whole files are decoded at every access."""

    def __init__(self, library: Library, budget: int):
        self.library = library
        self.offsets = _offsets(library)
        path = library.path / "cache" / f"sound-{library.hash[:16]}.i16"

        def decode(memory: np.memmap) -> None:
            for i in range(len(library.rows)):
                memory[self.offsets[i] : self.offsets[i + 1]] = np.clip(
                    np.rint(library.audio(i) * 32768), -32768, 32767
                )

        shape = (int(self.offsets[-1]), library.header.samples_per_frame or 0)
        self.memory = _decoded(path, np.int16, shape, decode, budget)

    def sound(self, row: int, indices: np.ndarray) -> np.ndarray:
        """float32 (n, S) in [-1, 1] of these frame numbers of one video."""
        if self.memory is not None:
            return self.memory[self.offsets[row] + indices].astype(np.float32) / 32768
        return self.library.audio(row)[indices]


class DerivedCache:
    """What `stage.derive` made of countable clips, kept on disk: made once, read ever after.

    Args:
        folder: the library's cache folder.
        key: what the tensors depend on (library hash, weights hash, spec ...); any change is another cache.
        clips: how many clips there are.
        budget: bytes it may take; over budget nothing is kept, and the results are the same.
    """

    def __init__(self, folder: Path, key: dict, clips: int, budget: int):
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.folder, self.clips, self.budget = folder / f"derived-{digest[:16]}", clips, budget
        self.files: dict[str, np.memmap] = {}
        self.known: np.memmap | None = None

    def _open(self, tensors: dict[str, Tensor]) -> bool:
        """Map the files once the first result tells their shapes; False when they are over budget."""
        if self.known is not None:
            return True
        arrays = {name: t[0].cpu().numpy() for name, t in tensors.items()}
        if sum(a.nbytes for a in arrays.values()) * self.clips > self.budget or not _writable(self.folder):
            return False
        for name, array in arrays.items():
            self.files[name] = _map(self.folder / name, array.dtype, (self.clips, *array.shape))
        self.known = _map(self.folder / "known", np.dtype(np.uint8), (self.clips,))
        layout = {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()}
        write_text(self.folder / "layout.json", json.dumps(layout))
        return True

    def reopen(self) -> None:
        """Map what an earlier run left."""
        layout = self.folder / "layout.json"
        if self.known is None and layout.is_file():
            for name, (dtype, shape) in json.loads(layout.read_text(encoding="utf-8")).items():
                self.files[name] = _map(self.folder / name, np.dtype(dtype), (self.clips, *shape))
            self.known = _map(self.folder / "known", np.dtype(np.uint8), (self.clips,))

    def missing(self, numbers: list[int | None]) -> list[int]:
        """Positions in `numbers` that are not kept."""
        self.reopen()
        known = self.known
        return [i for i, n in enumerate(numbers) if n is None or known is None or not known[n]]

    def put(self, numbers: list[int | None], tensors: dict[str, Tensor]) -> None:
        """Keep the rows of `tensors` whose clip is countable."""
        places = [n for n in numbers if n is not None]
        if not places or not self._open(tensors) or self.known is None:
            return
        kept = [i for i, n in enumerate(numbers) if n is not None]
        for name, tensor in tensors.items():
            self.files[name][places] = tensor[kept].cpu().numpy()
        self.known[places] = 1  # after the data: a kill between the two loses work, never truth

    def get(self, numbers: list[int]) -> dict[str, Tensor]:
        """Kept rows, (n, ...) each."""
        return {name: torch.from_numpy(np.asarray(file[numbers])) for name, file in self.files.items()}


def _offsets(library: Library) -> np.ndarray:
    """Where each video's frames begin in a file of all, and where they end."""
    return np.concatenate([[0], np.cumsum([row.frames for row in library.rows])])


def _decoded(
    path: Path,
    dtype: type,
    shape: tuple[int, ...],
    decode: Callable[[np.memmap], None],
    budget: int,
) -> np.memmap | None:
    """The file, decoded if it is not there; None if it is over budget or cannot be written."""
    if int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize > budget:
        return None
    if not path.exists():
        if not _writable(path.parent):
            return None
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            memory = np.memmap(partial, dtype, "w+", shape=shape)
            decode(memory)
            memory.flush()
            del memory  # Windows renames no file that is mapped
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return np.memmap(path, dtype, "r", shape=shape)


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    with path.open("ab") as file:  # "w+" would wipe what another process has just written
        file.truncate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return np.memmap(path, dtype, "r+", shape=shape)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
