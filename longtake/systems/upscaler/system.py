"""An upscaler of a library's footage: it enlarges the videos of any system, as they are made.

Loong (section 3.3) leaves fine detail to super-resolution off the shelf, without affecting content and motion; this
one is trained by `longtake train` and used by `longtake generate --upscale MODEL` (`rollout.upscale`).
"""

from __future__ import annotations

from typing import ClassVar

from longtake.systems.base import ModelInfo, Stage, Trainable
from longtake.systems.upscaler.config import SIZES, UpscalerConfig
from longtake.systems.upscaler.network import UpscalerNetwork
from longtake.systems.upscaler.stages import UpscalerStage


class Upscaler(Trainable):
    """See the module."""

    name: ClassVar[str] = "upscaler"
    config_class: ClassVar[type] = UpscalerConfig
    sizes: ClassVar[dict] = SIZES
    config: UpscalerConfig

    def __init__(self, config: UpscalerConfig, info: ModelInfo):
        super().__init__(config, info)
        self.network = UpscalerNetwork(config)
        self.networks = {"upscaler": self.network}

    def stages(self) -> list[Stage]:
        return [UpscalerStage(self)]
