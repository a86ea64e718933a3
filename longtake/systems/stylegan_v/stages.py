"""The one training stage: a GAN of clips of a few frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longtake.data.batch import Batch
from longtake.data.clips import ClipSpec, Draw
from longtake.nn.distributed import all_reduce_sum, processes
from longtake.nn.precision import wide
from longtake.story import Story
from longtake.systems.base import Engine, Losses, Stage
from longtake.systems.stylegan_v.augment import Adaptation, augment
from longtake.systems.stylegan_v.losses import (
    default_gamma,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    path_lengths,
)
from longtake.systems.stylegan_v.motion import finest

if TYPE_CHECKING:
    from longtake.systems.stylegan_v.config import StyleGANVConfig
    from longtake.systems.stylegan_v.system import StyleGANV

PATH_DECAY = 0.01
PREVIEW = 32


def draw_times(config: StyleGANVConfig, span: Tensor) -> Tensor:
    """Times (B, F) of clips to be made, within the horizon: drawn as those of real clips (section 3.3), but the
    first is any real number (released code). Of consecutive frames it is whole.

    `span`: frames (B,) from the first to the last of each, int64, those of real clips: of short videos these are
    shorter, and the discriminator is told the gaps.
    """
    frames, batch, device = config.frames, len(span), span.device
    latest = config.horizon - 1 - span
    share = torch.rand(batch, device=device, dtype=finest(device))
    if config.sampling == "consecutive":
        first = (share * (latest + 1)).floor().minimum(latest)  # all equally likely
        return first[:, None] + torch.arange(frames, device=device)
    offset = share * latest
    if frames == 1:
        return offset[:, None]
    # A random order of 1 ... span - 1: those from the span on come last.
    order = torch.rand(batch, config.longest, device=device)
    beyond = torch.arange(1, config.longest + 1, device=device) >= span[:, None]
    inner = order.masked_fill(beyond, 2.0).argsort(1)[:, : frames - 2] + 1
    whole = torch.cat([torch.zeros_like(span)[:, None], inner.sort(1).values, span[:, None]], 1)
    return offset[:, None] + whole


class GANStage(Stage):
    """Non-saturating loss, R1 every 16th update, adaptive augmentation; path length and style mixing as options.

    In the order of the released code: generator, path length, discriminator (on newly made clips), R1. Labels of
    made clips are those of the real ones beside them.
    """

    name = "gan"

    def __init__(self, system: StyleGANV):
        self.system, self.config, self.settings = system, system.config, system.config.stage
        self.trains = tuple(system.networks)
        self.steps, self.ema = self.settings.steps, self.settings.ema
        self.adaptation = Adaptation(self.settings.augment)
        self.path_mean = 0.0
        conditions = ("label",) if system.config.condition == "label" else ()
        spec = ClipSpec(self.config.frames, self.config.size, self.config.mode, conditions)
        self.clips = {"clips": Draw(spec, self.settings.batch)}

    @property
    def gamma(self) -> float:
        """Weight of R1."""
        if self.settings.gamma is not None:
            return self.settings.gamma
        return default_gamma(self.config.size, self.settings.batch * processes())

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam, its rates corrected for the updates that regularisation adds (StyleGAN2 appendix B)."""

        def adam(groups: list[dict[str, Any]], every: int) -> torch.optim.Optimizer:
            c = every / (every + 1)
            for group in groups:
                group["lr"] *= c
            betas = (self.settings.betas[0] ** c, self.settings.betas[1] ** c)
            return torch.optim.Adam(groups, betas=betas, eps=1e-8)

        nets, lr = self.system.networks, self.settings.lr
        critics: list[dict[str, Any]] = [{"params": list(nets["discriminator"].parameters()), "lr": lr}]
        if "video_discriminator" in nets:
            slow = list(nets["video_discriminator"].parameters())
            critics.append({"params": slow, "lr": lr * self.settings.video_lr})
        return {
            "generator": adam(
                [{"params": list(nets["generator"].parameters()), "lr": lr}], self.settings.path_every
            ),
            "discriminator": adam(critics, self.settings.gamma_every),
        }

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        clips = batches["clips"]
        if self.settings.mirror:
            clips = mirrored(clips, engine)
        logs = engine.update("generator", self._generator, clips)
        if self.settings.path_weight and engine.step % self.settings.path_every == 0:
            path = engine.update("generator", self._path_length, clips)
            logs |= {k: v for k, v in path.items() if k.startswith("path")}
        logs |= engine.update("discriminator", self._discriminator, clips)
        if self.gamma and engine.step % self.settings.gamma_every == 0:
            logs["r1"] = engine.update("discriminator", self._penalty, clips)["r1"]
        self.adaptation.correct(engine.step, len(clips["id"]))
        return logs | {"augment": self.adaptation.p}

    def _imagine(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """New clips with the labels of a batch: frames, times, labels and styles (B, L, W)."""
        generator = self.system.generator
        label = self.system.one_hot(batch["label"])
        real = batch["times"].to(label.device)
        times = draw_times(self.config, real[:, -1] - real[:, 0])
        z, noise, first = generator.draw(times, self.config.longest)
        ws = generator.mapping(z, label).unsqueeze(1).expand(-1, generator.synthesis.styles, -1)
        if self.settings.mixing:
            ws = self._mixed(ws, label)
        return generator(ws, noise, first, times, label), times, label, ws

    def _mixed(self, ws: Tensor, label: Tensor) -> Tensor:
        """Styles of which, with the probability of mixing, those from a random layer on are of other noise."""
        count = ws.shape[1]
        noise = torch.randn(len(ws), self.config.mapping.noise).to(ws.device)
        other = self.system.generator.mapping(noise, label, track=False)
        start = torch.randint(1, count, (len(ws), 1), device=ws.device)
        start = torch.where(torch.rand(len(ws), 1, device=ws.device) < self.settings.mixing, start, count)
        own = torch.arange(count, device=ws.device) < start
        return torch.where(own.unsqueeze(-1), ws, other.unsqueeze(1))

    def _judge(self, frames: Tensor, times: Tensor, label: Tensor) -> list[Tensor]:
        """Logits of every discriminator, that of frames or clips first; they see augmented frames."""
        frames = augment(frames, self.adaptation.p, self.settings.augment)
        return self.system.judge(frames, times, label)

    def _generator(self, batch: Batch) -> Losses:
        frames, times, label, _ = self._imagine(batch)
        logits = self._judge(frames, times, label)
        return {"loss": total([generator_loss(wide(x)) for x in logits])}

    def _path_length(self, batch: Batch) -> Losses:
        frames, _, _, ws = self._imagine(batch)
        lengths = path_lengths(frames, ws, torch.randn_like(frames))
        mean = (
            float(all_reduce_sum(lengths.detach().mean())) / processes()
        )  # the same in all, as one of them is kept
        mean = self.path_mean + PATH_DECAY * (mean - self.path_mean)
        self.path_mean = mean
        penalty = (lengths - mean).square().mean()
        weight = self.settings.path_weight * self.settings.path_every
        return {"loss": weight * penalty, "path_length": lengths.mean(), "path_penalty": penalty}

    def _discriminator(self, batch: Batch) -> Losses:
        with torch.no_grad():
            frames, times, label, _ = self._imagine(batch)
        fake = self._judge(frames, times, label)
        real = self._judge(batch["frames"], batch["times"], label)
        self.adaptation.see(real[0])
        loss = total([discriminator_loss(wide(r), wide(f)) for r, f in zip(real, fake, strict=True)])
        return {"loss": loss, "real_logit": real[0].mean(), "fake_logit": fake[0].mean()}

    def _penalty(self, batch: Batch) -> Losses:
        """R1, by frames as they are before augmentation; a video discriminator has none (released code)."""
        frames = batch["frames"].detach().requires_grad_(True)
        logits = self._judge(frames, batch["times"], self.system.one_hot(batch["label"]))[0]
        penalty = gradient_penalty(logits, frames).mean()
        return {"loss": penalty * (self.gamma / 2 * self.settings.gamma_every), "r1": penalty}

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        """How the discriminator takes clips it has not seen: near `real_logit` while it does not learn by heart."""
        clips = batches["clips"]
        frames, times, label, _ = self._imagine(clips)
        real = self.system.judge(clips["frames"], clips["times"], label)[0]
        fake = self.system.judge(frames, times, label)[0]
        return {"val/real_logit": float(real.mean()), "val/fake_logit": float(fake.mean())}

    def preview(self, batches: dict[str, Batch]) -> Tensor:
        """Four new videos side by side."""
        stories = [Story(frames=PREVIEW, seed=i) for i in range(4)]
        return torch.cat(list(torch.cat(list(self.system.generate(stories)), 2)), 3)

    def state_dict(self) -> dict[str, Any]:
        return {"augment": self.adaptation.state_dict(), "path_mean": self.path_mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adaptation.load_state_dict(state["augment"])
        self.path_mean = state["path_mean"]


def total(losses: list[Tensor]) -> Tensor:
    """The sum of the means."""
    return torch.stack([loss.mean() for loss in losses]).sum()


def mirrored(clips: Batch, engine: Engine) -> Batch:
    """Half of the videos, chosen by their sample numbers, mirrored."""
    turned = engine.rng.integers("mirror", clips["id"].tolist(), 2)[0].bool()
    frames = clips["frames"]
    flipped = torch.where(turned.to(frames.device).view(-1, 1, 1, 1, 1), frames.flip(-1), frames)
    return Batch(**{**clips, "frames": flipped})
