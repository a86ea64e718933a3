"""What the training of every transformer over tokens has in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from longtake.nn.schedule import warmup_cosine


def adamw(network: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays the weights of linear layers alone."""
    matrices = {id(m.weight): m.weight for m in network.modules() if isinstance(m, nn.Linear)}
    rest = [p for p in network.parameters() if id(p) not in matrices]
    groups = [
        {"params": list(matrices.values()), "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


@dataclass(frozen=True)
class TransformerStageConfig:
    """How a transformer is trained."""

    steps: int
    """Updates."""
    batch: int
    """Clips or sequences an update and process."""
    lr: float
    """Learning rate of AdamW (betas 0.9, 0.95)."""
    weight_decay: float = 0.01
    """Of the matrices; biases, norms, embeddings and positions are spared."""
    warmup: int = 0
    """Updates over which the learning rate rises from 0."""
    decay: bool = False
    """Let the learning rate fall to a tenth along a cosine."""
    clip: float | None = None
    """Largest gradient norm."""
    ema: float | None = None
    """Decay of averaged weights; the papers have none."""
    keep_best: bool = False
    """Take the weights of the lowest validation loss instead of the last."""

    def optimiser(self, network: nn.Module) -> torch.optim.AdamW:
        """See `adamw`."""
        return adamw(network, self.lr, self.weight_decay)

    def factor(self, step: int) -> float:
        """On the learning rate at a step."""
        return warmup_cosine(step, self.steps, self.warmup, self.decay)
