"""How much moves, and whether a video freezes or repeats itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def frame_differences(video: Tensor) -> Tensor:
    """Mean absolute difference of successive frames: (B, 3, T, H, W) in [-1, 1] -> (B, T-1), in [0, 2]."""
    return (video[:, :, 1:] - video[:, :, :-1]).abs().mean((1, 3, 4))


class MotionMeter:
    """Motion of a stream of frames, in constant memory but for one number a frame.

    `push` takes chunks (B, 3, t, H, W); `differences` is (B, T-1) in the end.
    """

    def __init__(self):
        self.last: Tensor | None = None
        self.parts: list[np.ndarray] = []
        self.signatures: list[np.ndarray] = []

    def push(self, chunk: Tensor) -> None:
        """Take in the next frames."""
        joined = chunk if self.last is None else torch.cat([self.last, chunk], 2)
        if joined.shape[2] > 1:
            self.parts.append(frame_differences(joined).numpy())
        self.last = chunk[:, :, -1:].clone()
        coarse = torch.nn.functional.adaptive_avg_pool3d(chunk, (None, 8, 8))  # type: ignore[arg-type]
        self.signatures.append(coarse.permute(0, 2, 1, 3, 4).flatten(2).half().numpy())

    @property
    def differences(self) -> np.ndarray:
        """(B, T-1)"""
        return np.concatenate(self.parts, 1)

    @property
    def signature(self) -> np.ndarray:
        """Every frame averaged to 8x8: (B, T, 192) float16."""
        return np.concatenate(self.signatures, 1)


def longest_still(differences: np.ndarray, threshold: float = 1e-3) -> int:
    """Length in frames of the longest stretch whose frames do not change.

    Args:
        differences: (T-1,) of one video.
        threshold: of the mean absolute difference, on [-1, 1]; a quarter of one grey level in 256.
    """
    longest = run = 0
    for still in differences < threshold:
        run = run + 1 if still else 0
        longest = max(longest, run)
    return longest + 1 if longest else 0


def longest_repeat(signature: np.ndarray, least_lag: int = 8, tolerance: float = 0.01) -> int:
    """Length in frames of the longest stretch that equals, frame by frame, the stretch `lag` frames before.

    A loop of period p shows as a repeat at lag p. A still scene repeats trivially, so frames count only where
    something moves between the two.

    Args:
        signature: (T, D) coarse frames of one video, in [-1, 1].
        least_lag: shortest lag looked at.
        tolerance: largest mean absolute difference that counts as equal.
    """
    x = signature.astype(np.float32)
    moving = np.abs(np.diff(x, axis=0)).mean(1)
    longest = 0
    for lag in range(least_lag, len(x) // 2 + 1):
        equal = np.abs(x[lag:] - x[:-lag]).mean(1) < tolerance
        passed = np.convolve(moving, np.ones(lag), "valid")[: len(equal)]  # change within the lag
        run = 0
        for same in equal & (passed > tolerance * lag / 2):
            run = run + 1 if same else 0
            longest = max(longest, run)
    return longest
