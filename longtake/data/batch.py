"""A batch: the fixed keys every stage and rollout speaks, and how clips become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.data.clips import Clip, ClipSpec
from longtake.data.library import Library
from longtake.data.text import clipped


class Batch(dict[str, Any]):
    """B clips of T frames: a dict that holds the keys its spec asked for. Derived keys are a stage's own.

    frames   (B, 3, T, H, W) float in [-1, 1]
    times    (B, T) in source frames of the library's fps
    label    (B,) int64 class index, -1 where there is none; (B, T) in a story's window
    caption  for each clip its spans (t0, t1, text), in seconds of the video
    audio    (B, T, S) float in [-1, 1], S samples a frame
    states   (B, T, D) float in [0, 1]
    video    (B,) row number in the library
    start    (B,) first source frame
    first    (B,) bool: the first clip of a chain
    id       (B,) sample number: addressed noise of a training step is keyed by it
    """


def to_float(frames: np.ndarray) -> Tensor:
    """uint8 (..., T, H, W, 3) -> float (..., 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(np.moveaxis(frames, -1, -4)).float().div_(127.5).sub_(1)


def to_uint8(video: Tensor) -> np.ndarray:
    """float (3, T, H, W) in [-1, 1], clamped -> uint8 (T, H, W, 3)."""
    scaled = video.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return np.ascontiguousarray(scaled.to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy())


def address(
    library: Library,
    spec: ClipSpec,
    clips: list[Clip],
    sound: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Batch:
    """Everything about these clips but their frames; `sound` gives (n, S) of a row's frames, if asked for."""
    fps = library.fps
    times = np.stack([c.indices for c in clips])
    batch = Batch(
        times=torch.from_numpy(times),
        label=torch.tensor([library.label(c.row) for c in clips]),
        video=torch.tensor([c.row for c in clips]),
        start=torch.from_numpy(times[:, 0].copy()),
        first=torch.tensor([c.first for c in clips]),
        id=torch.tensor([c.id for c in clips]),
    )
    if "caption" in spec.conditions:
        batch["caption"] = [
            clipped(library.rows[c.row].captions, c.indices[0] / fps, (c.indices[-1] + 1) / fps) for c in clips
        ]
    if "audio" in spec.conditions:
        assert sound is not None
        batch["audio"] = torch.stack([torch.from_numpy(sound(c.row, c.indices)) for c in clips])
    if "states" in spec.conditions:
        batch["states"] = torch.stack([torch.from_numpy(library.states(c.row)[c.indices]) for c in clips])
    return batch


def split(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into `parts` of equal size along B, whatever the keys."""
    size = len(batch["id"])
    if size % parts:
        raise ValueError(f"a batch of {size} cannot be split into {parts} equal parts")
    n = size // parts
    return [Batch(**{k: v[i * n : (i + 1) * n] for k, v in batch.items()}) for i in range(parts)]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move every tensor of a batch."""
    return Batch(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
