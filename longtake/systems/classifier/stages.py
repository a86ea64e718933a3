"""How the classifier is trained: the class of a clip, and what was done to its time.

A class can often be told from one still, and features that see nothing else would not notice a frozen or shuffled
video. So each clip is played in five ways, and the network must also tell which is which. All ways of one clip are
in one batch: they differ in nothing but time, which is what the gradient then is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.data.batch import Batch
from longtake.data.clips import ClipSpec, Draw
from longtake.nn.schedule import warmup_cosine
from longtake.rollout.rng import Rng
from longtake.systems.base import Engine, Losses, Stage

if TYPE_CHECKING:
    from longtake.systems.classifier.system import Classifier

PLAYED = ("forward", "double speed", "reversed", "shuffled", "frozen")


def play(frames: Tensor, order: Tensor) -> Tensor:
    """Play every clip in all ways.

    Args:
        frames: (B, 3, 2 * count, H, W).
        order: (B, count) numbers whose ranks are the order of a shuffled clip.

    Returns:
        (B * 5, 3, count, H, W), the ways of a clip one after the other.
    """
    forward = torch.arange(order.shape[1], device=frames.device).expand_as(order)
    ways = (forward, 2 * forward, forward.flip(1), order.argsort(1), torch.zeros_like(forward))
    played = [clip[:, way[i]] for i, clip in enumerate(frames) for way in ways]
    return torch.stack(played)


class ClassifierStage(Stage):
    """Cross-entropy of the class plus cross-entropy of the way of playing."""

    name = "classifier"
    trains = ("classifier",)
    best_by = "val/loss"

    def __init__(self, system: Classifier):
        self.system, self.network = system, system.network
        self.config = config = system.config.stage
        self.steps, self.ema = config.steps, config.ema
        conditions = ("label",) if system.config.classes else ()
        spec = ClipSpec(2 * system.config.frames, system.config.size, conditions=conditions)
        self.clips = {"clips": Draw(spec, config.batch)}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        parameters = self.network.parameters()
        return {
            "classifier": torch.optim.AdamW(parameters, lr=self.config.lr, weight_decay=self.config.weight_decay)
        }

    def schedule(self, step: int) -> float:
        return warmup_cosine(step, self.steps, self.config.warmup)

    def _figures(self, batch: Batch, rng: Rng) -> Losses:
        ids, count, device = batch["id"].tolist(), self.system.config.frames, batch["frames"].device
        way = torch.arange(len(PLAYED), device=device).repeat(len(ids))
        order = rng.uniform("order", ids, (count,))[0].to(device)
        output = self.network(play(batch["frames"], order))
        motion = F.cross_entropy(output.played.float(), way)
        losses = {"motion": motion, "motion_accuracy": (output.played.argmax(1) == way).float().mean()}
        total = self.config.motion_weight * motion
        if output.classes is not None:
            label = batch["label"].repeat_interleave(len(PLAYED))
            losses["class"] = F.cross_entropy(output.classes.float(), label)
            losses["class_accuracy"] = (output.classes.argmax(1) == label).float().mean()
            total = total + losses["class"]
        return {"loss": total, **losses}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update("classifier", lambda b: self._figures(b, engine.rng), batches["clips"], 1.0)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        figures = self._figures(batches["clips"], Rng(["validation"]))
        return {f"val/{name}": float(value) for name, value in figures.items()}
