"""What TATS trains and in which order: the VQGAN, then the prior over its tokens.

Shapes: B batch, T H W frames, height, width; t h w token grid; n = t*h*w; V joint vocabulary.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.data.audio import spectrogram
from longtake.data.batch import Batch
from longtake.data.clips import ClipSpec, Draw
from longtake.nn.losses import feature_matching_loss, generator_loss
from longtake.nn.schedule import warmup_cosine
from longtake.nn.transformer import Transformer
from longtake.nn.video import psnr, tiled
from longtake.story import Entry, Story
from longtake.systems.base import Engine, Losses, Stage
from longtake.systems.critics import CriticStage, Reconstruction
from longtake.systems.tats.losses import prior_loss, reconstruction_loss, squared_loss

if TYPE_CHECKING:
    from longtake.systems.tats.config import PriorStageConfig
    from longtake.systems.tats.system import TATS


class VQGANStage(CriticStage):
    """Reconstruction, commitment, perceptual, GAN and feature-matching losses (section 2.1)."""

    name = "vqgan"
    trains = ("vqgan", "image_discriminator", "video_discriminator")

    def __init__(self, system: TATS):
        super().__init__(system.vqgan, system.networks, system.perceptual())
        self.config = config = system.config.vqgan_stage
        self.steps, self.ema = config.steps, config.ema
        before, after = system.vqgan.extra_frames()
        spec = ClipSpec(system.config.frames + before + after, system.config.size)
        self.clips = {"clips": Draw(spec, config.batch)}
        self.quantised = True

    def schedule(self, step: int) -> float:
        return warmup_cosine(step, self.config.steps, self.config.warmup, self.config.decay)

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        self.quantised = engine.step >= self.config.quantise_start or self._has_codebook
        return self.play(batches["clips"], engine, engine.step >= self.config.discriminator_start)

    def reconstruct(self, batch: Batch) -> Reconstruction:
        result = self.tokenizer(batch["frames"], quantise=self.quantised)
        return Reconstruction(self.tokenizer.core(batch["frames"]), result.video, result.quantised)

    def losses(self, result: Reconstruction, frame: Tensor, adversarial: bool) -> Losses:
        config, (real, made, _) = self.config, result
        losses = {"l1": config.l1_weight * reconstruction_loss(real, made)}
        if config.l2_weight:
            losses["l2"] = config.l2_weight * squared_loss(real, made)
        losses |= self.perceived(result, frame)
        return losses | self._adversarial(result, frame) if adversarial else losses

    def _adversarial(self, result: Reconstruction, frame: Tensor) -> Losses:
        total: Losses = {"adversarial": torch.zeros((), device=result.real.device)}
        total["features"] = torch.zeros((), device=result.real.device)
        for critic, weight, real_x, fake_x in self.views(result.real, result.made, frame):
            with torch.no_grad():
                _, real_features = critic(real_x)
            logits, features = critic(fake_x)
            total["adversarial"] = total["adversarial"] + weight * generator_loss(logits)
            matched = feature_matching_loss(features[:-1], real_features[:-1])
            total["features"] = total["features"] + self.config.feature_weight * matched
        return total

    def scaled(self, x: Tensor) -> Tensor:
        """On the official [-0.5, 0.5]."""
        return x / 2

    @property
    def _has_codebook(self) -> bool:
        """Before `quantise_start` there is none, unless it came from another model."""
        return bool(self.tokenizer.codebook.initialised)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        frames = batches["clips"]["frames"]
        result = self.tokenizer(frames, quantise=self._has_codebook)
        video = self.tokenizer.core(frames)
        return {
            "val/l1": float(reconstruction_loss(video, result.video)),
            "val/psnr": float(psnr(video, result.video)),
            "val/codebook_used": float(result.quantised.used),
        }

    def preview(self, batches: dict[str, Batch]) -> Tensor:
        """Originals above reconstructions, up to four clips side by side."""
        frames = batches["clips"]["frames"][:4]
        made = self.tokenizer(frames, quantise=self._has_codebook).video.float()
        pair = torch.stack([self.tokenizer.core(frames), made])
        return tiled(pair)


class SoundStage(Stage):
    """Reconstruction and commitment of spectrograms (section 3.4); no critics, as the authors trained it."""

    name = "sound_vqgan"
    trains = ("sound_vqgan",)

    def __init__(self, system: TATS):
        self.config, self.vqgan = system.config.sound, system.sound
        self.steps, self.ema = self.config.steps, self.config.ema
        spec = ClipSpec(system.config.frames, system.config.size, conditions=("audio",))
        self.clips = {"clips": Draw(spec, self.config.batch)}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        assert self.vqgan is not None
        return {"sound": torch.optim.Adam(self.vqgan.parameters(), lr=self.config.lr, betas=(0.5, 0.9))}

    def _patches(self, batch: Batch) -> Tensor:
        return spectrogram(batch["audio"])[:, None]

    def _loss(self, batch: Batch) -> Losses:
        assert self.vqgan is not None
        patches = self._patches(batch)
        result = self.vqgan(patches)
        l1 = self.config.l1_weight * reconstruction_loss(patches, result.video)
        q = result.quantised
        codes = {"codebook/perplexity": q.perplexity, "codebook/used": q.used}
        return {"loss": l1 + q.commitment_loss, "l1": l1, "commitment": q.commitment_loss, **codes}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update("sound", self._loss, batches["clips"], self.config.clip)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        assert self.vqgan is not None
        patches = self._patches(batches["clips"])
        result = self.vqgan(patches)
        return {
            "val/sound_l1": float(reconstruction_loss(patches, result.video)),
            "val/codebook_used": float(result.quantised.used),
        }


class PriorStage(Stage):
    """Next-token prediction on the frozen VQGAN's tokens (section 2.1), of every slice or of every `every`-th."""

    def __init__(self, system: TATS):
        self.name = system.prior_name
        self.derive_key = f"{self.name}, every {system.config.every}" if system.config.every > 1 else ""
        self._begin(system, system.prior, system.config.prior_stage, system.config.frames * system.config.every)

    def _begin(self, system: TATS, network: Transformer, config: PriorStageConfig, frames: int) -> None:
        self.config, self.system, self.network = config, system, network
        self.trains, self.frozen = (self.name,), ("vqgan", *(["sound_vqgan"] if system.sound is not None else []))
        self.steps, self.ema = config.steps, config.ema
        self.best_by = "val/loss" if config.keep_best else None
        before, after = system.vqgan.extra_frames()
        asked = {"label": ("label",), "text": ("caption",), "audio": ("audio",)}
        conditions = asked.get(system.config.prior.condition, ())
        spec = ClipSpec(frames + before + after, system.config.size, conditions=conditions)
        self.clips = {"clips": Draw(spec, config.batch)}

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        """Tokens (B, t, h, w) of the clips; int32 for the cache."""
        return {"tokens": self.system.vqgan.tokenize(batch["frames"])[:, :: self.system.config.every].int()}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {self.name: self.config.optimiser(self.network)}

    def schedule(self, step: int) -> float:
        return self.config.factor(step)

    def _predict(self, condition: Tensor, tokens: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, n, V) and their targets (B, n) for condition tokens (B, c) and video tokens (B, t, h, w)."""
        return self.system.predict(condition, tokens, batch.get("corner"))

    def _loss(self, batch: Batch) -> Losses:
        condition = self.system.condition_of(batch)
        logits, targets = self._predict(condition, batch["tokens"].long() + self.system.offset, batch)
        accuracy = (logits.argmax(-1) == targets).float().mean()
        return {"loss": prior_loss(logits, targets), "accuracy": accuracy}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        batch = batches["clips"]
        if len(self.corners):
            drawn = engine.rng.integers("crop", batch["id"].tolist(), len(self.corners))[0]
            batch = Batch(**{**batch, "corner": self.corners[drawn]})
        return engine.update(self.name, self._loss, batch, self.config.clip)

    @cached_property
    def corners(self) -> Tensor:
        """Every place of a crop (n, 2), row and column; none where whole slices are seen."""
        (_, rows, columns), (h, w) = self.system.config.grid, self.system.crop
        whole = self.system.config.prior.crop is None
        places = [] if whole else [(r, c) for r in range(rows - h + 1) for c in range(columns - w + 1)]
        return torch.tensor(places, dtype=torch.long).view(-1, 2)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        batch = batches["clips"]
        if len(self.corners):  # the same places every time, spread over the slice
            spread = torch.linspace(0, len(self.corners) - 1, len(batch["id"])).long()
            batch = Batch(**{**batch, "corner": self.corners[spread]})
        losses = self._loss(batch)
        return {"val/loss": float(losses["loss"]), "val/accuracy": float(losses["accuracy"])}

    def preview(self, batches: dict[str, Batch]) -> Tensor | None:
        """Up to four new clips side by side, once all networks can make them."""
        if self.system.sound is not None or (self.system.config.every > 1 and self.name == self.system.prior_name):
            return None
        spans = batches["clips"].get("caption", [[] for _ in range(4)])[:4]
        silent = (Entry(prompt=""),) if self.system.texts else ()
        told = [(Entry(prompt=own[0][2]),) if own else silent for own in spans]
        frames = self.system.config.frames
        stories = [Story(frames=frames, seed=i, timeline=timeline) for i, timeline in enumerate(told)]
        clips = torch.cat(list(self.system.generate(stories)), 2)
        return torch.cat(list(clips), 3)


class InterpolatorStage(PriorStage):
    """The slices between two that are `every` apart, from both ends (section 2.3).

    The paper's code also counts the tokens of the ends, which they themselves can see; only the middle is learned
    from, and only it counts here.
    """

    def __init__(self, system: TATS):
        config = system.config
        self.name = "interpolator"
        frames = (config.every + 1) * config.vqgan.compression[0]
        self._begin(system, system.interpolator, config.interpolator.stage, frames)

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": self.system.vqgan.tokenize(batch["frames"]).int()}

    def _predict(self, condition: Tensor, tokens: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.system.predict_between(condition, tokens)
