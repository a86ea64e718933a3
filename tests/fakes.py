"""Four miniature systems that stretch the contracts in the ways the later papers will.

- TinyGAN: three optimisers, carried state from clip to clip (LEncGAN), lazy counters in the stage's state.
- TinyContinuous: a generator of frames at any time and rate (StyleGAN-V), clips of a few sparse frames.
- TinyRecall: its rollout needs a source video and it owns a window of 24 frames (R2).
- TinyImageVideo: images and clips in one step, a frozen stage reused, derived tensors (Loong, CCVS).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.data import video
from longtake.data.batch import Batch, to_float
from longtake.data.clips import Chain, ClipSpec, Draw, Sparse, Still, Window
from longtake.rollout.rng import Rng
from longtake.story import Story
from longtake.systems.base import Engine, Losses, ModelInfo, Stage, System

SIZE = (16, 16)


@dataclass(frozen=True)
class TinyConfig:
    """Shared by the fakes."""

    size: tuple[int, int] = SIZE
    """Frame size."""
    width: int = 8
    """Channels."""
    steps: int = 6
    """Updates of each stage."""
    batch: int = 2
    """Clips a batch."""
    norm: bool = False
    """Batch statistics in the generator."""


@dataclass(frozen=True)
class NoSettings:
    """Nothing to choose."""


class Tiny(System):
    """What the fakes share."""

    config_class: ClassVar[type] = TinyConfig
    settings_class: ClassVar[type] = NoSettings
    sizes: ClassVar[dict] = {"tiny": TinyConfig()}

    def __init__(self, config: TinyConfig, info: ModelInfo):
        super().__init__(config, info)
        self.settings = NoSettings()


def adam(*nets: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for net in nets for p in net.parameters()], lr=1e-3)


class FrameDecoder(nn.Module):
    """Code (..., C) -> frames (..., 3, 16, 16)."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 3 * 16 * 16), nn.Tanh())

    def forward(self, code: Tensor) -> Tensor:
        return self.body(code).unflatten(-1, (3, *SIZE))


class ChainStage(Stage):
    """Discriminator, encoder, generator, each with its own optimiser; the LSTM's state is inherited, detached."""

    name = "gan"
    trains = ("encoder", "generator", "discriminator")
    best_by = "val/error"
    ema = 0.9

    def __init__(self, system: TinyGAN):
        self.system, self.steps = system, system.config.steps
        self.clips = {"clips": Draw(ClipSpec(4, SIZE, Chain(3, overlap=1)), system.config.batch)}
        self.carried: tuple[Tensor, Tensor] | None = None
        self.regularised = 0

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {n: adam(self.system.networks[n]) for n in self.trains}

    def _codes(self, batch: Batch) -> Tensor:
        """(B, T, C), starting from the inherited state unless a chain begins."""
        x = batch["frames"].movedim(1, 2).flatten(2)
        state = self.carried
        if state is not None:
            keep = (~batch["first"]).float().view(1, -1, 1)
            state = (state[0] * keep, state[1] * keep)
        codes, (h, c) = self.system.encoder(x, state)
        self.next = (h.detach(), c.detach())
        return codes

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        net = self.system

        def critic(batch: Batch) -> Losses:
            fake = net.generator(self._codes(batch).detach()).movedim(2, 1)
            noise = engine.rng.normal("noise", batch["id"].tolist(), (4, net.config.width))[0]
            made = net.generator(noise).movedim(2, 1)
            real, false = net.discriminator(batch["frames"].flatten(1)), net.discriminator(fake.flatten(1))
            other = net.discriminator(made.flatten(1))
            return {"loss": F.softplus(-real).mean() + F.softplus(false).mean() + F.softplus(other).mean()}

        def reconstruct(batch: Batch) -> Losses:
            return {"loss": F.l1_loss(net.generator(self._codes(batch)).movedim(2, 1), batch["frames"])}

        clips = batches["clips"]
        logs = engine.update("discriminator", critic, clips)
        logs |= engine.update("encoder", reconstruct, clips)
        logs |= engine.update("generator", reconstruct, clips)
        self.carried = self.next
        self.regularised += engine.step % 2
        return logs

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        carried, self.carried = self.carried, None
        fake = self.system.generator(self._codes(batches["clips"])).movedim(2, 1)
        self.carried = carried
        return {"val/error": float(F.l1_loss(fake, batches["clips"]["frames"]))}

    def state_dict(self) -> dict:
        return {"carried": self.carried, "regularised": self.regularised}

    def load_state_dict(self, state: dict) -> None:
        self.carried = None if state["carried"] is None else tuple(state["carried"])
        self.regularised = state["regularised"]


class TinyGAN(Tiny):
    name = "tiny-gan"
    max_frames = 12

    def __init__(self, config: TinyConfig, info: ModelInfo):
        super().__init__(config, info)
        self.encoder = nn.LSTM(3 * 16 * 16, config.width, batch_first=True)
        self.generator = FrameDecoder(config.width)
        self.discriminator = nn.Linear(4 * 3 * 16 * 16, 1)
        self.networks = {"encoder": self.encoder, "generator": self.generator, "discriminator": self.discriminator}

    @property
    def inference(self) -> tuple[str, ...]:
        return ("generator",)

    def stages(self) -> list[Stage]:
        return [ChainStage(self)]

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        for block in range(3):
            code = rng.normal("code", range(4 * block, 4 * block + 4), (self.config.width,))
            yield self.generator(code).movedim(2, 1)


class SparseStage(Stage):
    """Regression on single frames at sparse times."""

    name = "generator"
    trains = ("generator",)
    ema = 0.5

    def __init__(self, system: TinyContinuous):
        self.system, self.steps = system, system.config.steps
        self.clips = {"clips": Draw(ClipSpec(3, SIZE, Sparse(8)), system.config.batch)}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"generator": adam(self.system.networks["generator"])}

    def _loss(self, batch: Batch) -> Losses:
        time = batch["times"].float()
        made = self.system.at(torch.zeros(len(time), self.system.config.width - 2), time)
        return {"loss": F.l1_loss(made, batch["frames"])}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update("generator", self._loss, batches["clips"], clip=1.0)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        return {"val/error": float(self._loss(batches["clips"])["loss"])}


class TinyContinuous(Tiny):
    name = "tiny-continuous"
    any_fps = True
    accepts = frozenset({"label"})

    def __init__(self, config: TinyConfig, info: ModelInfo):
        super().__init__(config, info)
        self.generator = FrameDecoder(config.width)
        self.networks = {"generator": self.generator}

    def stages(self) -> list[Stage]:
        return [SparseStage(self)]

    def at(self, content: Tensor, time: Tensor) -> Tensor:
        """Content (B, C-2), times (B, T) in source frames -> (B, 3, T, H, W)."""
        phase = torch.stack([torch.sin(time / 7), torch.cos(time / 7)], -1)
        code = torch.cat([content[:, None].expand(-1, time.shape[1], -1), phase], -1)
        return self.generator(code).movedim(2, 1)

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        frames, rate = stories[0].frames or 0, self.info.fps / (stories[0].fps or 1)
        content = rng.normal("content", 0, (self.config.width - 2,))
        for start in range(0, frames, 5):
            labels = torch.cat([s.window(start, 5)["label"] for s in stories])
            time = (torch.arange(start, start + 5) * rate)[None].expand(len(stories), -1)
            yield self.at(content, time + 100.0 * labels)


class WindowStage(Stage):
    """Two overlapping clips cut from one window of 24 frames."""

    name = "recall"
    trains = ("coder",)

    def __init__(self, system: TinyRecall):
        self.system, self.steps = system, system.config.steps
        self.clips = {"pairs": Draw(ClipSpec(24, SIZE, Window(16)), system.config.batch)}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"coder": adam(self.system.coder)}

    def _loss(self, batch: Batch) -> Losses:
        first, second = batch["frames"][:, :, :16], batch["frames"][:, :, 8:]
        one, two = self.system.recall(first), self.system.recall(second)
        return {
            "loss": F.l1_loss(one, first) + F.l1_loss(two, second),
            "seam": F.l1_loss(one[:, :, 8:], two[:, :, :8]),
        }

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update("coder", self._loss, batches["pairs"])

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        return {"val/error": float(self._loss(batches["pairs"])["loss"])}


class TinyRecall(Tiny):
    name = "tiny-recall"
    requires = frozenset({"source_video"})

    def __init__(self, config: TinyConfig, info: ModelInfo):
        super().__init__(config, info)
        self.coder = nn.Conv3d(3, 3, (1, 3, 3), padding=(0, 1, 1))
        self.networks = {"coder": self.coder}

    def stages(self) -> list[Stage]:
        return [WindowStage(self)]

    def recall(self, clip: Tensor) -> Tensor:
        return self.coder(clip)

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        source = [video.read_frames(s.source_video, range(s.frames or 0)) for s in stories]
        frames = torch.stack([to_float(s) for s in source])
        for start in range(0, frames.shape[2], 8):
            yield self.recall(frames[:, :, start : start + 8])


class ImageStage(Stage):
    """An image coder, from stills and the frames of clips alike."""

    name = "coder"
    trains = ("coder",)

    def __init__(self, system: TinyImageVideo):
        self.system, self.steps = system, system.config.steps
        still, clip = ClipSpec(1, SIZE, Still()), ClipSpec(4, SIZE)
        self.clips = {
            "stills": Draw(still, 2 * system.config.batch, share=0.25),
            "clips": Draw(clip, system.config.batch, share=0.75),
        }

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"coder": adam(self.system.coder)}

    def _loss(self, batch: Batch) -> Losses:
        frames = batch["frames"].movedim(1, 2)
        return {"loss": F.l1_loss(self.system.decode(self.system.encode(frames)), frames)}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        ((_, batch),) = batches.items()
        return engine.update("coder", self._loss, batch)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        losses = [float(self._loss(batch)["loss"]) for batch in batches.values()]
        return {"val/error": sum(losses) / len(losses)}


class VideoStage(Stage):
    """A predictor of the next frame's code, on codes the frozen coder derived."""

    name = "predictor"
    trains = ("predictor",)
    frozen = ("coder",)
    best_by = "val/error"

    def __init__(self, system: TinyImageVideo):
        self.system, self.steps = system, system.config.steps
        self.clips = {"clips": Draw(ClipSpec(4, SIZE), system.config.batch)}

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        return {"codes": self.system.encode(batch["frames"].movedim(1, 2))}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"predictor": adam(self.system.predictor)}

    def _loss(self, batch: Batch) -> Losses:
        codes = batch["codes"]
        return {"loss": F.mse_loss(self.system.predictor(codes[:, :-1]), codes[:, 1:])}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update("predictor", self._loss, batches["clips"])

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        return {"val/error": float(self._loss(batches["clips"])["loss"])}


class TinyImageVideo(Tiny):
    name = "tiny-image-video"

    def __init__(self, config: TinyConfig, info: ModelInfo):
        super().__init__(config, info)
        self.coder = nn.ModuleDict({"in": nn.Linear(3 * 16 * 16, config.width), "out": FrameDecoder(config.width)})
        self.predictor = nn.Linear(config.width, config.width)
        self.networks = {"coder": self.coder, "predictor": self.predictor}

    def stages(self) -> list[Stage]:
        return [ImageStage(self), VideoStage(self)]

    def encode(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, C)."""
        return self.coder["in"](frames.flatten(2))

    def decode(self, codes: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, 3, H, W)."""
        return self.coder["out"](codes)

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        code = rng.normal("code", 0, (1, self.config.width))
        for step in range(1, (stories[0].frames or 0) + 1):
            yield self.decode(code).movedim(2, 1)
            code = self.predictor(code) + 0.1 * rng.normal("code", step, (1, self.config.width))


FAKES = {cls.name: cls for cls in (TinyGAN, TinyContinuous, TinyRecall, TinyImageVideo)}
