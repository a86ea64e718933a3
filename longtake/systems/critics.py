"""What the training of a tokenizer of videos against critics has in common: TATS's and Loong's.

Shapes: B batch, T H W frames, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longtake.data.batch import Batch
from longtake.nn.losses import discriminator_loss
from longtake.nn.quantize import Quantised
from longtake.nn.video import pick_frame
from longtake.systems.base import Engine, Losses, Stage


class Reconstruction(NamedTuple):
    """A clip and what the tokenizer makes of it."""

    real: Tensor
    """(B, 3, T, H, W) in [-1, 1]"""
    made: Tensor
    """likewise"""
    quantised: Quantised


class View(NamedTuple):
    """What a critic sees of a clip and of its reconstruction."""

    critic: nn.Module
    weight: float
    real: Tensor
    fake: Tensor


class CriticStage(Stage):
    """A tokenizer against a critic of single frames and one of clips.

    One forward pass serves both updates: the critics see the reconstruction that the generator's update made. (The
    official code of TATS runs the autoencoder a second time for them, which updates codebook averages and batch
    statistics twice a batch.)
    """

    config: Any
    """With `lr`, `betas`, `clip`, `perceptual_weight`, `gan_weight` (of both critics) and `gan_loss`."""

    tokenizer: Any
    """A VQGAN of either kind."""

    def __init__(self, tokenizer: nn.Module, networks: dict[str, nn.Module], perceptual: nn.Module | None):
        self.tokenizer, self.perceptual = tokenizer, perceptual
        self.critics = (networks["image_discriminator"], networks["video_discriminator"])

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        critics = [p for critic in self.critics for p in critic.parameters()]
        adam = {"lr": self.config.lr, "betas": self.config.betas}
        return {
            "generator": torch.optim.Adam(self.tokenizer.parameters(), **adam),
            "discriminator": torch.optim.Adam(critics, **adam),
        }

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """A batch through the tokenizer."""
        raise NotImplementedError

    def losses(self, result: Reconstruction, frame: Tensor, adversarial: bool) -> Losses:
        """All terms of the generator but the codebook's; `frame` (B,) is the one that the image critic sees."""
        raise NotImplementedError

    def perceived(self, result: Reconstruction, frame: Tensor) -> Losses:
        """The perceptual distance of one frame a clip, if there is one."""
        if self.perceptual is None:
            return {}
        distance = self.perceptual(pick_frame(result.made, frame), pick_frame(result.real, frame)).mean()
        return {"perceptual": self.config.perceptual_weight * distance}

    def scaled(self, x: Tensor) -> Tensor:
        """Pixels as critics see them."""
        return x

    def play(self, batch: Batch, engine: Engine, adversarial: bool) -> dict[str, float]:
        """An update of the generator, and one of the critics if they take part and one of them counts."""
        judged = self.config.gan_weight[: 1 + (batch["frames"].shape[2] > 1)]  # no critic of clips sees pictures
        adversarial = adversarial and any(judged)
        if self.perceptual is not None:
            self.perceptual.to(engine.device)
        made: list[tuple[Tensor, Tensor, Tensor]] = []

        def generator(batch: Batch) -> Losses:
            result = self.reconstruct(batch)
            frame = engine.rng.integers("frame", batch["id"].tolist(), result.real.shape[2])[0]
            frame = frame.to(result.real.device)
            losses = self.losses(result, frame, adversarial)
            made.append((result.real, result.made.detach().float(), frame))
            q = result.quantised
            total = sum(losses.values(), start=q.commitment_loss)
            codes = {"codebook/perplexity": q.perplexity, "codebook/used": q.used}
            return {"loss": total, **losses, "commitment": q.commitment_loss, **codes}

        logs = engine.update("generator", generator, batch, self.config.clip)
        if adversarial:
            real, fake, frame = (torch.cat(parts) for parts in zip(*made, strict=True))
            pair = Batch(id=batch["id"], frames=real, fake=fake, frame=frame)
            logs |= engine.update("discriminator", self._discriminator, pair, self.config.clip)
        return logs

    def views(self, real: Tensor, fake: Tensor, frame: Tensor) -> Iterator[View]:
        """One frame a clip for its critic and, where there are several, the clip for the other."""
        pairs: list[tuple[Tensor, Tensor]] = [(pick_frame(real, frame), pick_frame(fake, frame))]
        if real.shape[2] > 1:
            pairs.append((real, fake))
        for critic, weight, pair in zip(self.critics, self.config.gan_weight, pairs, strict=False):
            if weight:
                yield View(critic, weight, *map(self.scaled, pair))

    def _discriminator(self, batch: Batch) -> Losses:
        loss = torch.zeros((), device=batch["frames"].device)
        logits = []
        for critic, weight, real_x, fake_x in self.views(batch["frames"], batch["fake"], batch["frame"]):
            real, fake = critic(real_x).logits, critic(fake_x).logits
            loss = loss + weight * discriminator_loss(real, fake, self.config.gan_loss)
            logits.append(torch.stack([real.mean(), fake.mean()]))
        real_mean, fake_mean = torch.stack(logits).mean(0)
        return {"loss": loss, "real_logit": real_mean, "fake_logit": fake_mean}
