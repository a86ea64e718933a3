"""The class of a story at a frame, told or drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.rollout.rng import Rng
from longtake.story import Story


def draw_labels(rng: Rng, counts: Sequence[int], classes: int) -> Tensor:
    """One of `classes` (B,) a video, as often as the training library's `counts`; all alike if these are not known
    or none was seen."""
    weights = torch.tensor(counts if any(counts) else [1] * classes, dtype=torch.float64)
    edges = (weights / weights.sum()).cumsum(0)
    drawn = torch.searchsorted(edges, rng.uniform("label", 0).double(), right=True)
    return drawn.clamp_max(len(weights) - 1)


def labels_at(stories: list[Story], drawn: Tensor, frame: int) -> Tensor:
    """Class (B,) in force at a frame; `drawn` (B,) where the story tells none."""
    told = torch.cat([story.window(frame, 1)["label"][:, 0] for story in stories])
    return torch.where(told < 0, drawn, told)
