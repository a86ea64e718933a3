"""The first stage of CCVS: encoder, codebook, decoder and flow module (paper section 3.2).

An update has an image part (distorted views of single frames, the image discriminator) and a video part (short
clips decoded frame by frame, the video discriminator). Shapes: B pairs or clips; T frames; H W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.data.batch import Batch
from longtake.data.clips import ClipSpec, Draw, Sparse, Step
from longtake.nn.quantize import EMACodebook, Quantised, unquantised
from longtake.nn.schedule import warmup_cosine
from longtake.nn.video import psnr, tiled
from longtake.systems.base import Engine, Losses, Stage
from longtake.systems.ccvs.augmentation import View, augment
from longtake.systems.ccvs.autoencoder import detached, stacked
from longtake.systems.ccvs.losses import (
    discriminator_loss,
    flow_loss,
    generator_loss,
    mask_loss,
    slope_penalty,
)

if TYPE_CHECKING:
    from longtake.systems.ccvs.system import CCVS


class AutoencoderStage(Stage):
    """Equation 2 on images and on clips, each followed by its discriminator's update and, now and then, penalty.

    Before `context_start` frames are decoded alone.
    """

    name = "autoencoder"
    trains = ("autoencoder", "image_discriminator", "video_discriminator")

    def __init__(self, system: CCVS):
        self.system, self.config = system, system.config.autoencoder_stage
        self.model = system.autoencoder
        self.image_critic = system.networks["image_discriminator"]
        self.video_critic = system.networks["video_discriminator"]
        self.perceptual, self.adversarial = system.perceptual(), False
        self.quantised = False
        self.steps, self.ema = self.config.steps, self.config.ema
        size, config = system.config.size, self.config
        strides = Step(1, max(1, (config.span - 1) // (config.frames - 1)))
        self.clips = {
            "images": Draw(ClipSpec(2, size, Sparse(config.span - 1)), config.image_batch),
            "clips": Draw(ClipSpec(config.frames, size, strides), config.video_batch, every=config.video_every),
        }

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Lazy penalties slow the critics' Adam down as in StyleGAN2 (appendix B there)."""
        c = self.config
        ratio = c.r1_every / (c.r1_every + 1)
        slow = {"lr": c.lr * ratio, "betas": (c.betas[0] ** ratio, c.betas[1] ** ratio)}
        return {
            "generator": torch.optim.Adam(self.model.parameters(), lr=c.lr, betas=c.betas),
            "image_critic": torch.optim.Adam(self.image_critic.parameters(), **slow),
            "video_critic": torch.optim.Adam(self.video_critic.parameters(), **slow),
        }

    def schedule(self, step: int) -> float:
        """The fall begins with the context, whose networks have learned nothing before."""
        c = self.config
        if step < c.context_start:
            return warmup_cosine(step, c.steps, c.warmup, decay=False)
        warmup = 0 if c.context_start else c.warmup
        return warmup_cosine(step - c.context_start, c.steps - c.context_start, warmup, c.decay)

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        if isinstance(self.perceptual, nn.Module):
            self.perceptual.to(engine.device)
        self.adversarial = engine.step >= self.config.gan_start and self.config.gan_weight > 0
        self.quantised = engine.step >= self.config.quantise_start
        if engine.step < self.config.context_start:
            return self._alone_part(batches, engine)
        logs = self._image_part(batches["images"], engine)
        if "clips" in batches:
            logs |= self._video_part(batches["clips"], engine)
        return logs

    def _alone_part(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        """All frames of an update from their codes alone."""
        real = torch.cat([batch["frames"].transpose(1, 2).flatten(0, 1) for batch in batches.values()])
        made: list[tuple[Tensor, Tensor]] = []

        def generator(part: Batch) -> Losses:
            quantised = self._quantise(self.model.encode(part["real"])[0])
            fake = self.model.decode(quantised.values, []).frames
            made.append((part["real"], fake.detach().float()))
            losses = self._reconstruction(part["real"], fake, self.image_critic, fake)
            losses["quantiser"] = self.config.quantiser_weight * quantised.commitment_loss
            codes = {"codebook/perplexity": quantised.perplexity, "codebook/used": quantised.used}
            return {"loss": torch.stack(list(losses.values())).sum(), **losses, **codes}

        whole = Batch(id=torch.arange(len(real)), real=real)
        logs = engine.update("generator", generator, whole, self.config.clip)
        return logs | self._criticise("image", made, engine)

    def _image_part(self, batch: Batch, engine: Engine) -> dict[str, float]:
        made: list[tuple[Tensor, Tensor]] = []

        def generator(part: Batch) -> Losses:
            losses, real, fake = self._image_losses(part, engine)
            made.append((real, fake.detach().float()))
            return losses

        logs = engine.update("generator", generator, batch, self.config.clip)
        return logs | self._criticise("image", made, engine)

    def _video_part(self, batch: Batch, engine: Engine) -> dict[str, float]:
        made: list[tuple[Tensor, Tensor]] = []
        free: list[tuple[Tensor, Tensor]] = []
        shares = engine.rng.uniform("end", engine.step)
        towards_end = float(shares[0]) < self.config.end_share

        def generator(part: Batch) -> Losses:
            losses, fake, alone = self._video_losses(part["frames"], towards_end)
            made.append((part["frames"], fake.detach().float()))
            if alone is not None:
                real = part["frames"].transpose(1, 2).flatten(0, 1)
                free.append((real, alone.detach().float()))
            return losses

        logs = engine.update("generator", generator, batch, self.config.clip)
        logs = {f"video/{k}": v for k, v in logs.items()} | self._criticise("video", made, engine)
        if free:
            logs |= {f"free/{k}": v for k, v in self._criticise("image", free, engine, penalise=False).items()}
        return logs

    def _image_losses(self, batch: Batch, engine: Engine) -> tuple[Losses, Tensor, Tensor]:
        """Two frames of a video from the distorted view of one of them; also both, real and made (2B, 3, H, W)."""
        view, other = self.views(batch, engine)
        real = torch.cat([view.target, other])
        count = len(other)
        z, features = self.model.encode(torch.cat([view.context, real]))
        # Averages would spend codes on distorted views, which are never decoded; published: all are quantised.
        first = count if self.model.config.quantiser == "average" else 0
        quantised = self._quantise(z[first:])
        context = [torch.cat([level[:count]] * 2) for level in features]
        decoded = self.model.decode(quantised.values[count - first :], [context])
        losses = self._reconstruction(real, decoded.frames, self.image_critic, decoded.frames)
        losses["quantiser"] = self.config.quantiser_weight * quantised.commitment_loss
        if decoded.flows:
            own = decoded._replace(
                flows=[flow[:count] for flow in decoded.flows], masks=[mask[:count] for mask in decoded.masks]
            )
            losses["flow"] = self.config.flow_weight * flow_loss(own, view.flow, view.occluded)
            losses["mask"] = self.config.flow_weight * mask_loss(own, view.occluded, self.config.official_mask)
        total = torch.stack(list(losses.values())).sum()
        codes = {"codebook/perplexity": quantised.perplexity, "codebook/used": quantised.used}
        return {"loss": total, **losses, **codes}, real, decoded.frames

    def _quantise(self, z: Tensor) -> Quantised:
        return self.model.quantise(z) if self.quantised or self._has_codebook else unquantised(z)

    @property
    def _has_codebook(self) -> bool:
        """Codes of moving averages are drawn at `quantise_start`, unless they came from another model."""
        codebook = self.model.codebook
        return not isinstance(codebook, EMACodebook) or bool(codebook.initialised)

    def views(self, batch: Batch, engine: Engine) -> tuple[View, Tensor]:
        """A view of one frame of each pair (B, 3, 2, H, W), and the other; either may come first."""
        ids, frames = batch["id"].tolist(), batch["frames"]
        swap = engine.rng.integers("swap", ids, 2)[0].bool().to(frames.device).view(-1, 1, 1, 1)
        one, two = frames.unbind(2)
        view = augment(torch.where(swap, two, one), engine.rng, ids, self.config.augmentation)
        return view, torch.where(swap, one, two)

    def _video_losses(self, clip: Tensor, towards_end: bool) -> tuple[Losses, Tensor, Tensor | None]:
        """Losses of a clip (B, 3, T, H, W); the made clip, and its frames made without context, if asked for."""
        z, features = self.model.encode(clip.transpose(1, 2).flatten(0, 1))
        quantised = self._quantise(z)
        fake = self.roll(clip, quantised.values, features, towards_end)
        count = fake.shape[2] - 1 - towards_end
        real_frames, fake_frames = (x[:, :, 1 : 1 + count].transpose(1, 2).flatten(0, 1) for x in (clip, fake))
        losses = self._reconstruction(real_frames, fake_frames, self.video_critic, fake)
        losses["quantiser"] = self.config.quantiser_weight * quantised.commitment_loss
        alone = None
        if self.config.unconditional:
            alone = self.model.decode(quantised.values, []).frames
            frames = clip.transpose(1, 2).flatten(0, 1)
            free = self._reconstruction(frames, alone, self.image_critic, alone)
            losses |= {f"free_{name}": value for name, value in free.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}, fake, alone

    def roll(self, clip: Tensor, values: Tensor, features: list[Tensor], towards_end: bool) -> Tensor:
        """A clip whose first frame is given and whose others are decoded one by one: (B, 3, T, H, W).

        Each made frame is encoded again to be context of those after it. Gradients go back through the newest
        context, and so along the chain of newest ones; older ones are held fixed. `towards_end`: the last frame is
        real and a context of all others. (The released code means to do this for its point-to-point models, but its
        list of contexts never reaches that frame.)
        """
        frames = clip.shape[2]
        latents = values.unflatten(0, (-1, frames))
        real = stacked(features, frames)
        held, made = [real[0]], [clip[:, :, 0]]
        for t in range(1, frames - towards_end):
            contexts = held[::-1] + ([real[-1]] if towards_end else [])
            made.append(self.model.decode(latents[:, t], contexts).frames)
            held = [detached(context) for context in held]
            if t + 1 < frames - towards_end:
                held.append(self.model.encode(made[-1])[1])
                held = held[-max(1, self.model.config.context) :]
        return torch.stack(made + ([clip[:, :, -1]] if towards_end else []), 2)

    def _reconstruction(self, real: Tensor, fake: Tensor, critic: nn.Module, judged: Tensor) -> Losses:
        """Equations 4 and 6; frames (B, 3, H, W), and what the critic sees of them."""
        losses = {"l1": self.config.l1_weight * F.l1_loss(fake.float(), real)}
        if self.config.l2_weight:
            losses["l2"] = self.config.l2_weight * F.mse_loss(fake.float(), real)
        if self.perceptual is not None:
            losses["perceptual"] = self.config.perceptual_weight * self.perceptual(fake, real).mean()
        if self.adversarial:
            losses["adversarial"] = self.config.gan_weight * generator_loss(critic(judged))
        return losses

    def _criticise(
        self, kind: str, made: list[tuple[Tensor, Tensor]], engine: Engine, penalise: bool = True
    ) -> dict[str, float]:
        """Equation 5 for one critic, and its penalty when that is due."""
        if not self.adversarial:
            return {}
        critic = self.image_critic if kind == "image" else self.video_critic
        real, fake = (torch.cat(parts) for parts in zip(*made, strict=True))
        pair = Batch(id=torch.arange(len(real)), real=real, fake=fake)

        def judge(part: Batch) -> Losses:
            scores = critic(part["real"]), critic(part["fake"])
            means = {f"{kind}/real": scores[0].mean(), f"{kind}/fake": scores[1].mean()}
            return {"loss": discriminator_loss(*scores), **means}

        def penalty(part: Batch) -> Losses:
            r1 = slope_penalty(critic, part["real"])
            return {"loss": self.config.r1 / 2 * self.config.r1_every * r1, f"{kind}/r1": r1}

        logs = engine.update(f"{kind}_critic", judge, pair, self.config.clip)
        every = self.config.r1_every * (self.config.video_every if kind == "video" else 1)
        if penalise and engine.step % every == 0:
            engine.update(f"{kind}_critic", penalty, pair, self.config.clip)
        return logs

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        """Frames of held-out clips made one by one, and made without context."""
        figures: dict[str, float] = {}
        if "clips" in batches:
            clip = batches["clips"]["frames"]
            z, features = self.model.encode(clip.transpose(1, 2).flatten(0, 1))
            quantised = self._quantise(z)
            fake = self.roll(clip, quantised.values, features, False)
            real, made = (x[:, :, 1:].transpose(1, 2).flatten(0, 1) for x in (clip, fake))
            alone = self.model.decode(quantised.values, []).frames
            figures["val/psnr"] = float(psnr(real, made))
            figures["val/psnr_without_context"] = float(psnr(clip.transpose(1, 2).flatten(0, 1), alone))
            figures["val/l1"] = float(F.l1_loss(made, real))
            figures["val/codebook_used"] = float(quantised.used)
        return figures

    def preview(self, batches: dict[str, Batch]) -> Tensor | None:
        """Originals above clips made from their first frames, up to four side by side."""
        if "clips" not in batches:
            return None
        clip = batches["clips"]["frames"][:4]
        z, features = self.model.encode(clip.transpose(1, 2).flatten(0, 1))
        fake = self.roll(clip, self._quantise(z).values, features, False).float()
        return tiled(torch.stack([clip, fake]))
