"""The second stage of R3: the planner over sequences of latent spaces (thesis section 5.4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.data.batch import Batch
from longtake.data.clips import ClipSpec, Draw, Held
from longtake.systems.base import Engine, Losses, Stage
from longtake.systems.recall.losses import plan_loss
from longtake.systems.recall.planner import LENGTH, TOKEN, Layout, lay_out
from longtake.systems.recall.rollout import encode_sequence

if TYPE_CHECKING:
    from longtake.systems.recall.system import R3

LEAST = 24
"""Frames of a video that gives two tokens: one to see, one to predict."""


class PlannerStage(Stage):
    """Each latent space from those before it. The encoder is frozen; sequences are made once and kept."""

    name = "planner"
    trains = ("planner",)
    frozen = ("encoder",)

    def __init__(self, system: R3):
        self.system, self.config, self.planner = system, system.config.planner_stage, system.planner
        self.steps, self.ema = self.config.steps, self.config.ema
        self.best_by = "val/plan" if self.config.keep_best else None
        frames = (system.config.planner.tokens + 1) * system.stride
        spec = ClipSpec(frames, system.config.size, Held(LEAST, self.config.stride))
        self.clips = {"sequences": Draw(spec, self.config.batch)}

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        """Tokens (B, n, D) of all clips, held frames included.

        Video by video: what is kept must not depend, not even by rounding, on what stood beside it in a batch.
        """
        tokens = [encode_sequence(self.system, one) for one in batch["frames"].split(1)]
        return {"tokens": torch.cat(tokens).float()}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {self.name: self.config.optimiser(self.planner)}

    def schedule(self, step: int) -> float:
        return self.config.factor(step)

    def _layout(self, batch: Batch) -> Layout:
        """The batch's sequences, without what was made of held frames."""
        times = batch["times"]
        frames = 1 + (times[:, 1:] > times[:, :-1]).sum(1)
        lengths = frames // self.system.stride - 1
        return lay_out(self.planner.config.format, batch["tokens"], lengths, batch["label"], self.planner.places)

    def _loss(self, batch: Batch) -> Losses:
        planned = self._layout(batch)
        features = self.planner(planned.values, planned.kinds, planned.ids)[:, :-1]
        follows = planned.kinds[:, 1:]
        plan = plan_loss(self.planner.head(features), planned.values[:, 1:], follows == TOKEN)
        if self.planner.config.format != "mixed":
            return {"loss": plan, "plan": plan}
        at = follows == LENGTH
        length = F.cross_entropy(self.planner.length_head(features[at]).float(), planned.ids[:, 1:][at])
        return {"loss": plan + length, "plan": plan, "length": length}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update(self.name, self._loss, batches["sequences"], self.config.clip)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        """The loss beside that of the last token said again, and of the batch's mean token."""
        batch = batches["sequences"]
        losses = {f"val/{k}": float(v) for k, v in self._loss(batch).items() if k != "loss"}
        planned = self._layout(batch)
        known, tokens = planned.kinds == TOKEN, planned.values
        repeated = plan_loss(tokens[:, :-1], tokens[:, 1:], known[:, :-1] & known[:, 1:])
        mean = tokens.sum((0, 1)) / known.sum()
        constant = plan_loss(mean.expand_as(tokens), tokens, known)
        return losses | {"val/plan_repeated": float(repeated), "val/plan_mean": float(constant)}
