"""A classifier of a library's own footage: it measures videos and makes none.

Inception score, class coherence and Frechet distances need features of the footage at hand; this one is trained by
`longtake train` like everything else and used by `longtake evaluate --extractor MODEL`.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from longtake.errors import UserError
from longtake.nn.resnet3d import ResNet3d
from longtake.systems.base import ModelInfo, Stage, Trainable
from longtake.systems.classifier.config import SIZES, ClassifierConfig
from longtake.systems.classifier.stages import PLAYED, ClassifierStage


class Output(NamedTuple):
    """What the network says of clips."""

    features: Tensor
    """(B, D)"""
    classes: Tensor | None
    """(B, K) logits, None without classes."""
    played: Tensor
    """(B, 5) logits of the way of playing."""


class ClassifierNetwork(nn.Module):
    """Clips (B, 3, T, H, W) in [-1, 1], any T -> features and logits."""

    def __init__(self, config: ClassifierConfig, classes: int):
        super().__init__()
        self.backbone = ResNet3d(config.width, config.levels, config.blocks)
        self.classes = nn.Linear(self.backbone.features, classes) if config.classes else None
        self.played = nn.Linear(self.backbone.features, len(PLAYED))

    def forward(self, clips: Tensor) -> Output:
        features = self.backbone(clips)
        classes = None if self.classes is None else self.classes(features)
        return Output(features, classes, self.played(features))


class Classifier(Trainable):
    """See the module."""

    name: ClassVar[str] = "classifier"
    config_class: ClassVar[type] = ClassifierConfig
    sizes: ClassVar[dict] = SIZES
    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig, info: ModelInfo):
        super().__init__(config, info)
        if config.classes and len(info.classes) < 2:
            raise UserError(
                "a classifier needs a library with two classes or more; "
                "config.classes=false trains it on motion alone"
            )
        self.network = ClassifierNetwork(config, len(info.classes))
        self.networks = {"classifier": self.network}

    def stages(self) -> list[Stage]:
        return [ClassifierStage(self)]
