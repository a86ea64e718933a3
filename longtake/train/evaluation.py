"""The metrics of `longtake evaluate` while a model is still in training, to pick its best weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lightning_fabric import Fabric

from longtake.data.library import Library
from longtake.errors import UserError
from longtake.metrics.evaluate import check_counts, evaluate, knows
from longtake.metrics.extractors.registry import DEFAULT_EXTRACTOR, make_extractor
from longtake.metrics.protocol import find_protocol
from longtake.metrics.real import real_clips
from longtake.metrics.records import kinds_within, usable
from longtake.metrics.sources import ModelSource
from longtake.systems.base import System, Trainable


@dataclass(frozen=True)
class EvaluationSettings:
    """Generate and measure videos during the last stage, the first that can make any."""

    every: int | None = None
    """Updates between two evaluations; None: never."""
    extractor: str = DEFAULT_EXTRACTOR
    """As `--extractor` of `longtake evaluate`."""
    protocol: str = "stylegan-v"
    """Its real clips are training videos by default; conditions come from them too, so that no test video has a
    say in what is kept."""
    videos: int = 256
    """Generated videos."""
    frames: int = 16
    """Frames of each."""
    batch: int = 8
    """Videos generated together."""
    given: int = 0
    """First frames of training videos that are given, for systems that go on from some (R3: 16)."""
    best_by: Literal["FVD16", "FVD128", "KVD16", "KVD128", "FID", "KID"] | None = "FVD16"
    """The figure whose lowest value marks the weights that are kept; None leaves that to the stage's own."""

    def __post_init__(self):
        for name in ("every", "videos", "frames", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value} but must be at least 1; leave every out for no evaluation")


class TrainingEvaluation:
    """Evaluations of one run.

    Args:
        settings: what and how often.
        library: real videos.
        folder: of the run; results go to `evaluations/` in it.
        fabric: whose device the extractor uses, and whose processes share the work.

    Raises:
        UserError: an unknown extractor or protocol, too few videos, a figure that the settings do not give.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        system: Trainable,
        library: Library,
        folder: Path,
        fabric: Fabric,
    ):
        if not isinstance(system, System):
            raise UserError(f"loop.evaluation cannot be used: a {system.name} makes no videos", code=2)
        self.settings, self.library, self.folder = settings, library, folder / "evaluations"
        self.protocol = replace(find_protocol(settings.protocol), bootstrap=0)
        self.first, self.barrier = fabric.global_rank == 0, fabric.barrier
        self.extractor = make_extractor(settings.extractor, fabric.device)
        source = self._source(system)
        check_counts(source, library, self.protocol, [self.extractor])
        self.best_by = f"{settings.best_by}[{self.extractor.name}]" if settings.best_by else None
        enough = [
            k
            for k in kinds_within(self.protocol, source.frames)
            if real_clips(library, self.protocol, k) >= self.protocol.least_videos
        ]
        kinds = [k.name for k in enough if usable(self.extractor, k.frames)]
        given = [f"{d}{k}" for k in kinds for d in ("FVD", "KVD")] if self.extractor.most != 1 else ["FID", "KID"]
        if settings.best_by and settings.best_by not in given:
            raise UserError(
                f"loop.evaluation.best_by is {settings.best_by}, but {self.extractor.name} on {source.frames} "
                f"frames gives {', '.join(given)}",
                code=2,
            )

    def due(self, done: int) -> bool:
        """Whether an update is one after which to evaluate."""
        return self.settings.every is not None and done % self.settings.every == 0

    def _source(self, system: System) -> ModelSource:
        wanted = self.settings
        to_bytes = self.protocol.to_bytes
        return ModelSource(
            system, self.library, wanted.videos, wanted.frames, 0, to_bytes, given=wanted.given, split="train"
        )

    def __str__(self) -> str:
        wanted = self.settings
        shown = f"{wanted.videos} videos of {wanted.frames} frames, {self.protocol.name}"
        return f"{shown}, {self.extractor.name} {self.extractor.hash[:16]}"

    @property
    def fits(self) -> bool:
        """Whether the extractor knows the footage."""
        return knows(self.extractor, self.library)

    def __call__(self, system: System, name: str) -> dict[str, float]:
        """Figures of the model as it is now; empty in all processes but the first. Its folder keeps the result and
        a few videos."""
        folder = self.folder / name
        if self.first and folder.exists():  # of a run that was killed before its checkpoint
            shutil.rmtree(folder, ignore_errors=True)
        self.barrier()
        source, batch = self._source(system), self.settings.batch
        result = evaluate(source, self.library, folder, self.protocol, [self.extractor], batch, keep=4)
        if result is None:
            return {}
        shutil.rmtree(folder / "records")
        return {key: figure.value for key, figure in result.figures.items()}
