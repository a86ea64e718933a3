"""Configuration of the upscaler and its named sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UpscalerStageConfig:
    """How it is trained."""

    steps: int = 3000
    """Updates."""
    batch: int = 4
    """Clips an update and process."""
    lr: float = 1e-3
    """Learning rate of Adam, a tenth of it at the end of a cosine."""
    warmup: int = 50
    """Updates over which the learning rate rises from 0."""
    flicker_weight: float = 1.0
    """Weight of the error of frame differences, against that of frames."""
    ema: float | None = 0.998
    """Decay of averaged weights."""


@dataclass(frozen=True)
class UpscalerConfig:
    """A temporal convolutional network that adds to bicubic enlargement what it lacks."""

    factor: int = 2
    """Enlargement."""
    frames: int = 8
    """Frames of a training clip."""
    size: tuple[int, int] = (96, 96)
    """(height, width) of the large training clips; any size can be enlarged afterwards."""
    width: int = 24
    """Channels."""
    blocks: int = 3
    """Residual blocks of two convolutions."""
    stage: UpscalerStageConfig = UpscalerStageConfig()
    """The one stage."""

    def __post_init__(self):
        if self.factor < 2 or any(s % self.factor for s in self.size):
            raise ValueError(f"a size of {self.size} cannot be made {self.factor} times smaller")


SIZES = {
    "tiny": UpscalerConfig(size=(16, 16), frames=4, width=8, blocks=1, stage=UpscalerStageConfig(20, 2, warmup=2)),
    "small": UpscalerConfig(),
    "base": UpscalerConfig(factor=4, size=(256, 256), width=64, blocks=8),
}
SIZES["paper"] = SIZES["base"]
"""Loong takes super-resolution off the shelf and gives no details; this network is ours."""
