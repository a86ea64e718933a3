"""Configuration of the classifier and its named sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassifierStageConfig:
    """How it is trained."""

    steps: int = 3000
    """Updates."""
    batch: int = 8
    """Clips an update and process, each played in five ways."""
    lr: float = 2e-3
    """Learning rate of AdamW, a tenth of it at the end of a cosine."""
    weight_decay: float = 0.02
    """Of all weights."""
    warmup: int = 100
    """Updates over which the learning rate rises from 0."""
    motion_weight: float = 1.0
    """Weight of telling what was done to time, against telling the class."""
    ema: float | None = 0.99
    """Decay of averaged weights."""


@dataclass(frozen=True)
class ClassifierConfig:
    """A 3-D residual network that tells the class of a clip and what was done to its time."""

    frames: int = 16
    """Frames of a clip; training reads twice as many, for double speed."""
    size: tuple[int, int] = (64, 64)
    """(height, width) it looks at; frames of another size are resized with an antialiasing filter."""
    width: int = 16
    """Channels of the first level."""
    levels: int = 4
    """Levels; channels double and time, height and width are halved from one to the next."""
    blocks: int = 1
    """Residual blocks a level."""
    classes: bool = True
    """Tell the library's classes; False for a library without."""
    stage: ClassifierStageConfig = ClassifierStageConfig()
    """The one stage."""


SIZES = {
    "tiny": ClassifierConfig(
        frames=8, size=(16, 16), width=4, levels=2, stage=ClassifierStageConfig(steps=20, batch=4, warmup=2)
    ),
    "small": ClassifierConfig(),
    "base": ClassifierConfig(size=(112, 112), width=32, levels=5, blocks=2),
}
SIZES["paper"] = SIZES["base"]
"""No paper describes this network; the thesis fine-tunes a 3D ResNeXt-101 a dataset for the same purpose."""
