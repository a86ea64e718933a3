"""Clips on their way through an extractor, in full batches and beside the work that makes them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from longtake.metrics.extractors.base import Extractor, Features

WAITING = 3
"""Batches that may wait for the extractor; whoever brings more waits too, so memory is bounded."""


class Slot:
    """Where the features of one clip will stand."""

    def __init__(self):
        self.features: np.ndarray | None = None
        self.probabilities: np.ndarray | None = None


class FeatureQueue:
    """Batches clips of equal shape and runs the extractor in a thread of its own.

    Args:
        extractor: what runs.
        batch: frames a batch, about (a clip of 128 frames weighs as much as eight of 16).
    """

    def __init__(self, extractor: Extractor, batch: int = 256):
        self.extractor, self.batch = extractor, batch
        self.waiting: dict[tuple[int, ...], list[tuple[Slot, np.ndarray]]] = {}
        self.running: list[Future] = []
        self.pool = ThreadPoolExecutor(1)

    def put(self, clip: np.ndarray) -> Slot:
        """Take in one clip (T, H, W, 3) uint8."""
        slot = Slot()
        group = self.waiting.setdefault(clip.shape, [])
        group.append((slot, clip))
        if len(group) * len(clip) >= self.batch:
            self._submit(self.waiting.pop(clip.shape))
        return slot

    def flush(self) -> None:
        """Wait until every slot is filled."""
        for group in self.waiting.values():
            self._submit(group)
        self.waiting = {}
        while self.running:
            self.running.pop(0).result()

    def _submit(self, group: list[tuple[Slot, np.ndarray]]) -> None:
        while len(self.running) >= WAITING:
            self.running.pop(0).result()
        self.running.append(self.pool.submit(self._run, group))

    def _run(self, group: list[tuple[Slot, np.ndarray]]) -> None:
        found: Features = self.extractor(np.stack([clip for _, clip in group]))
        for i, (slot, _) in enumerate(group):
            slot.features = found.features[i]
            slot.probabilities = None if found.probabilities is None else found.probabilities[i]

    def __enter__(self) -> FeatureQueue:
        return self

    def __exit__(self, *_) -> None:
        self.pool.shutdown(cancel_futures=True)


def gather(slots: Iterable[Slot]) -> Features:
    """Filled slots as arrays (n, D) and (n, K)."""
    slots = list(slots)
    features = np.stack([s.features for s in slots if s.features is not None])
    classes = [s.probabilities for s in slots if s.probabilities is not None]
    return Features(features, np.stack(classes) if classes else None)
