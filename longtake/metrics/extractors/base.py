"""What every extractor is to the metrics."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Features(NamedTuple):
    """What an extractor says of N clips."""

    features: np.ndarray
    """(N, D) float32"""
    probabilities: np.ndarray | None
    """(N, K) float32 class probabilities, None where it has no classes."""


class Extractor(Protocol):
    """A frozen network. It takes clips as bytes, so that resizing and value range are its own business, done as
    its weights expect and told in `preprocessing`."""

    @property
    def name(self) -> str:
        """Stands in the name of every figure, as in FVD[i3d-k400]."""
        ...

    @property
    def hash(self) -> str:
        """SHA-256 of its weights."""
        ...

    @property
    def preprocessing(self) -> str:
        """In words: value range, resizing filter, size."""
        ...

    @property
    def dim(self) -> int | None:
        """Number of features D, None until it has seen a clip."""
        ...

    @property
    def least(self) -> int:
        """Fewest frames of a clip; 1 for networks of single frames."""
        ...

    @property
    def most(self) -> int | None:
        """Most frames of a clip, None for any number."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes where they are the library's, else empty."""
        ...

    def __call__(self, clips: np.ndarray) -> Features:
        """Clips (N, T, H, W, 3) uint8."""
        ...


def as_video(clips: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (N, T, H, W, 3) -> float (N, 3, T, H, W), still 0..255."""
    return torch.from_numpy(np.ascontiguousarray(clips)).to(device).permute(0, 4, 1, 2, 3).float()


def resize_frames(video: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """Bilinear, align_corners False: (N, 3, T, H, W) -> (N, 3, T, *size)."""
    if tuple(video.shape[3:]) == tuple(size):
        return video
    n, _, t = video.shape[:3]
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=antialias)
    return frames.unflatten(0, (n, t)).transpose(1, 2)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
