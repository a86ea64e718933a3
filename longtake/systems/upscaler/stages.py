"""How the upscaler is trained: clips made small are to be made large again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.data.batch import Batch
from longtake.data.clips import ClipSpec, Draw
from longtake.nn.schedule import warmup_cosine
from longtake.nn.video import psnr, tiled
from longtake.systems.base import Engine, Losses, Stage
from longtake.systems.upscaler.network import resize

if TYPE_CHECKING:
    from longtake.systems.upscaler.system import Upscaler


def changes(video: Tensor) -> Tensor:
    """Differences of successive frames: (B, 3, T, H, W) -> (B, 3, T - 1, H, W)."""
    return video[:, :, 1:] - video[:, :, :-1]


def flicker(made: Tensor, video: Tensor) -> Tensor:
    """Mean absolute error of the differences of successive frames, both (B, 3, T, H, W)."""
    return (changes(made) - changes(video)).abs().mean()


class UpscalerStage(Stage):
    """Mean squared error of frames and of their differences."""

    name = "upscaler"
    trains = ("upscaler",)

    def __init__(self, system: Upscaler):
        self.network, self.config = system.network, system.config.stage
        self.steps, self.ema = self.config.steps, self.config.ema
        self.factor = system.config.factor
        self.clips = {"clips": Draw(ClipSpec(system.config.frames, system.config.size), self.config.batch)}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"upscaler": torch.optim.Adam(self.network.parameters(), lr=self.config.lr)}

    def schedule(self, step: int) -> float:
        return warmup_cosine(step, self.steps, self.config.warmup)

    def _small(self, video: Tensor) -> Tensor:
        height, width = video.shape[3:]
        return resize(video, (height // self.factor, width // self.factor)).clamp(-1, 1)

    def _loss(self, batch: Batch) -> Losses:
        video = batch["frames"]
        made = self.network(self._small(video)).float()
        error = (made - video).square().mean()
        changed = self.config.flicker_weight * (changes(made) - changes(video)).square().mean()
        return {"loss": error + changed, "error": error, "changes": changed}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update("upscaler", self._loss, batches["clips"], 1.0)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        """Beside those of bicubic enlargement, which it has to beat."""
        video = batches["clips"]["frames"]
        small = self._small(video)
        arms = {"": self.network(small).float(), "bicubic_": resize(small, (video.shape[3], video.shape[4]))}
        figures = {}
        for name, made in arms.items():
            figures[f"val/{name}psnr"] = float(psnr(video, made))
            figures[f"val/{name}flicker"] = float(flicker(made.clamp(-1, 1), video))
        return figures

    def preview(self, batches: dict[str, Batch]) -> Tensor:
        """Bicubic enlargement above the network's above originals, up to four clips side by side."""
        video = batches["clips"]["frames"][:4]
        small = self._small(video)
        rows = torch.stack([resize(small, (video.shape[3], video.shape[4])), self.network(small).float(), video])
        return tiled(rows)
