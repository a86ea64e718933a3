"""Learning rates over a training."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: int, decay: bool = True) -> float:
    """Factor on the learning rate: linear warm-up, then constant or a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if not decay:
        return 1.0
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
