"""Addressed noise: every random number has a name and a place, none is drawn in passing.

A number is a pure function of (video seed, stream, index, position), so the same seed gives the same video
whatever the chunk size, the batch or the device, and frame 90,000 costs what frame 0 costs. The generator is
Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), always run on the CPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MULTIPLY = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_LOW = np.uint64(0xFFFFFFFF)


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox4x32 with ten rounds. counter (..., 4), key (..., 2), both uint32 values; returns uint32 (..., 4)."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k = [key[..., i].astype(np.uint64) for i in range(2)]
    for _ in range(10):
        a, b = c[0] * _MULTIPLY[0], c[2] * _MULTIPLY[1]
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & _LOW, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & _LOW]
        k = [(k[0] + _WEYL[0]) & _LOW, (k[1] + _WEYL[1]) & _LOW]
    return np.stack(c, -1).astype(np.uint32)


def _key(seed: int | str, stream: str) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint32)


class Rng:
    """Noise for a batch of videos, one seed each.

    `index` is the absolute place of the noise in its stream (a token's position, a frame's number): an int
    gives shape (B, *shape), a sequence of n ints gives (B, n, *shape).
    """

    def __init__(self, seeds: Sequence[int | str]):
        self.seeds = list(seeds)

    def bits(self, stream: str, index: int | Sequence[int], shape: Sequence[int] = ()) -> np.ndarray:
        """Uniform uint32 words (B, [n,] *shape)."""
        indices = np.atleast_1d(np.asarray(index, np.uint64))
        size = math.prod(shape)
        blocks = -(-size // 4)
        counter = np.zeros((1, len(indices), blocks, 4), np.uint32)
        counter[..., 0] = (indices & _LOW)[None, :, None]
        counter[..., 1] = (indices >> np.uint64(32))[None, :, None]
        counter[..., 2] = np.arange(blocks)
        keys = np.stack([_key(seed, stream) for seed in self.seeds])
        words = philox(counter, keys[:, None, None]).reshape(len(keys), len(indices), -1)[..., :size]
        words = words.reshape(len(keys), len(indices), *shape)
        return words[:, 0] if isinstance(index, int) else words

    def uniform(self, stream: str, index: int | Sequence[int], shape: Sequence[int] = ()) -> Tensor:
        """Uniform float32 in [0, 1): (B, [n,] *shape)."""
        words = self.bits(stream, index, shape)
        return torch.from_numpy((words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24))

    def normal(self, stream: str, index: int | Sequence[int], shape: Sequence[int] = ()) -> Tensor:
        """Standard normal float32 by the Box-Muller transform: (B, [n,] *shape)."""
        words = self.bits(stream, index, (*shape, 2)).astype(np.float64)
        radius = np.sqrt(-2 * np.log((words[..., 0] + 0.5) * 2.0**-32))
        return torch.from_numpy((radius * np.cos(words[..., 1] * (2 * np.pi * 2.0**-32))).astype(np.float32))

    def integers(self, stream: str, index: int | Sequence[int], high: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform int64 in [0, high): (B, [n,] *shape)."""
        words = self.bits(stream, index, shape).astype(np.uint64)
        return torch.from_numpy(((words * np.uint64(high)) >> np.uint64(32)).astype(np.int64))
