"""Shot cuts by TransNetV2 (Soucek and Lokoc, 2020), from a TorchScript file of yours: does a long video cut?

The network takes (1, 100, 27, 48, 3) uint8 and gives a logit a frame, alone or first of several outputs. As its
authors do, the video is padded by its first and last frame and seen in windows of 100 frames; the middle 50 count.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from longtake.data import video
from longtake.errors import UserError
from longtake.metrics.extractors.base import file_hash
from longtake.metrics.extractors.torchscript import load_script

WINDOW, KEPT, SIZE = 100, 50, (27, 48)
MARGIN = (WINDOW - KEPT) // 2
LEVEL = 0.5
"""Probability from which a frame is a cut."""


class CutDetector:
    """The network.

    Raises:
        UserError: not a TorchScript file, or it does not do as TransNetV2 does.
    """

    name = "transnetv2"

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.path, self.device = Path(path), torch.device(device)
        self.network, self.hash = load_script(path, self.device), file_hash(path)

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Cut probability of each of 100 frames (100, 27, 48, 3) uint8: (100,)."""
        try:
            output = self.network(torch.from_numpy(frames)[None].to(self.device))
        except RuntimeError as error:
            raise UserError(f"{self.path} fails on 100 frames: {str(error).strip().splitlines()[-1]}") from None
        logits = output[0] if isinstance(output, tuple | list) else output
        if not isinstance(logits, torch.Tensor) or logits.numel() != WINDOW:
            raise UserError(f"{self.path} must return one logit a frame, as TransNetV2 does")
        return logits.float().sigmoid().flatten().cpu().numpy()


class CutMeter:
    """Cut probabilities of a stream of frames, in constant memory but for one number a frame."""

    def __init__(self, detector: CutDetector):
        self.detector = detector
        self.waiting: np.ndarray | None = None
        self.found: list[np.ndarray] = []
        self.seen = 0

    def push(self, frames: np.ndarray) -> None:
        """Take in the next frames (t, H, W, 3) uint8."""
        small = video.resize(frames, SIZE, "stretch")
        self.seen += len(small)
        before = np.repeat(small[:1], MARGIN, 0) if self.waiting is None else self.waiting
        self.waiting = np.concatenate([before, small])
        self._look()

    def _look(self) -> None:
        assert self.waiting is not None
        while len(self.waiting) >= WINDOW:
            self.found.append(self.detector(np.ascontiguousarray(self.waiting[:WINDOW]))[MARGIN : MARGIN + KEPT])
            self.waiting = self.waiting[KEPT:]

    def probabilities(self) -> np.ndarray:
        """One a frame, (T,), once all frames were pushed."""
        assert self.waiting is not None
        missing = self.seen - KEPT * len(self.found)
        if missing > 0:
            windows = -(-missing // KEPT)
            padding = MARGIN + windows * KEPT + MARGIN - len(self.waiting)
            self.waiting = np.concatenate([self.waiting, np.repeat(self.waiting[-1:], padding, 0)])
            self._look()
        return np.concatenate(self.found)[: self.seen]
