"""What Loong trains and in which order: the tokenizer on ever longer clips, then the language model so too.

Shapes: B batch, F frames of a clip, t latent slices, h w rows and columns of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.data.batch import Batch
from longtake.data.clips import ClipSpec, Draw, Still
from longtake.data.text import main_caption
from longtake.nn.losses import generator_loss
from longtake.nn.schedule import warmup_cosine
from longtake.nn.video import psnr, tiled
from longtake.story import Entry, Story
from longtake.systems.base import Engine, Losses, Stage
from longtake.systems.critics import CriticStage, Reconstruction
from longtake.systems.loong.losses import by_range, early_weights, weighted_mean
from longtake.systems.training import adamw

if TYPE_CHECKING:
    from longtake.systems.loong.system import Loong


def draws(
    frames: int,
    size: tuple[int, int],
    batch: int,
    stills: float,
    still_batch: int,
    conditions: tuple[str, ...] = (),
) -> dict[str, Draw]:
    """Pictures alone, clips alone, or each on its share of the updates; a picture is any frame or still."""
    still = ClipSpec(1, size, Still(), conditions)
    if frames == 1:
        return {"stills": Draw(still, batch)}
    clip = ClipSpec(frames, size, conditions=conditions)
    if not stills:
        return {"clips": Draw(clip, batch)}
    return {"stills": Draw(still, still_batch, share=stills), "clips": Draw(clip, batch, share=1 - stills)}


def only(batches: dict[str, Batch]) -> tuple[str, Batch]:
    """The one draw that a step sees."""
    ((name, batch),) = batches.items()
    return name, batch


class TokenizerStage(CriticStage):
    """Reconstruction, codebook, perceptual and adversarial losses on clips of one length (section 4.1).

    The paper names no losses; these are those of MAGVIT-v2's family.
    """

    trains = ("tokenizer", "image_discriminator", "video_discriminator")

    def __init__(self, system: Loong, number: int):
        super().__init__(system.tokenizer, system.networks, system.perceptual())
        self.config = config = system.config.tokenizer_stage
        self.name = f"tokenizer_{system.config.lengths[number]}"
        self.steps, self.ema = config.steps[number], config.ema
        self.before, self.total = sum(config.steps[:number]), sum(config.steps)
        frames, batch = system.config.lengths[number], config.batch[number]
        self.clips = draws(frames, system.config.size, batch, config.stills, config.batch[0])

    def schedule(self, step: int) -> float:
        return warmup_cosine(self.before + step, self.total, self.config.warmup, self.config.decay)

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        _, batch = only(batches)
        return self.play(batch, engine, self.before + engine.step >= self.config.discriminator_start)

    def reconstruct(self, batch: Batch) -> Reconstruction:
        result = self.tokenizer(batch["frames"])
        return Reconstruction(batch["frames"], result.video, result.quantised)

    def losses(self, result: Reconstruction, frame: Tensor, adversarial: bool) -> Losses:
        config, (real, made, _) = self.config, result
        error = made.float() - real
        losses = {"l1": config.l1_weight * error.abs().mean()}
        if config.l2_weight:
            losses["l2"] = config.l2_weight * error.square().mean()
        losses |= self.perceived(result, frame)
        if adversarial:
            views = self.views(real, made, frame)
            fooled = [view.weight * generator_loss(view.critic(view.fake).logits) for view in views]
            losses["adversarial"] = sum(fooled, start=torch.zeros((), device=real.device))
        return losses

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        name, batch = only(batches)
        frames = batch["frames"]
        result = self.tokenizer(frames)
        prefix = "val/still_" if name == "stills" and len(self.clips) > 1 else "val/"
        return {
            f"{prefix}l1": float((result.video - frames).abs().mean()),
            f"{prefix}psnr": float(psnr(frames, result.video)),
            f"{prefix}codebook_used": float(result.quantised.used),
        }

    def preview(self, batches: dict[str, Batch]) -> Tensor:
        """Originals above reconstructions, up to four clips side by side."""
        frames = only(batches)[1]["frames"][:4]
        pair = torch.stack([frames, self.tokenizer(frames).video.float()])
        return tiled(pair)


class LMStage(Stage):
    """Next-token prediction on the frozen tokenizer's tokens, jointly on pictures and clips of one length.

    Equation 1, and equation 2 where clips are longer than the early frames. Equation 2 does not say how pictures
    weigh beside clips: an update sees either, and both losses are means.
    """

    trains, frozen, shards = ("lm",), ("tokenizer",), ("lm",)

    def __init__(self, system: Loong, number: int):
        self.config, self.system = system.config.lm_stage, system
        config, frames = self.config, system.config.lengths[number]
        self.name, self.steps, self.ema = f"lm_{frames}", config.steps[number], config.ema
        asked = {"label": ("label",), "text": ("caption",)}.get(system.config.lm.condition, ())
        size, batch = system.config.size, config.batch[number]
        self.clips = draws(frames, size, batch, config.stills, config.batch[0], asked)
        self.derive_key = "tokens"

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        """Tokens (B, t, h, w) of the clips, in 16 bits where these do."""
        tokens = self.system.tokenizer.tokenize(batch["frames"])
        return {"tokens": tokens.to(torch.int16 if self.system.vocabulary.codes <= 1 << 15 else torch.int32)}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"lm": adamw(self.system.lm, self.config.lr, self.config.weight_decay)}

    def schedule(self, step: int) -> float:
        return warmup_cosine(step, self.steps, self.config.warmup, self.config.decay)

    def _loss(self, batch: Batch) -> Losses:
        tokens = batch["tokens"].long()
        losses, right = self.system.predict(self.system.prefixes_of(batch), tokens)
        latents, area = tokens.shape[1], tokens[0, 0].numel()
        early = self.system.tokenizer.latents(self.system.config.early)
        weights = early_weights(latents * area, early * area, self.config.early_weight, losses.device)
        ranges = {f"nll/{name}": value for name, value in by_range(losses, latents, early).items()}
        return {"loss": weighted_mean(losses, weights), "nll/all": losses.mean(), **ranges, "accuracy": right}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        _, batch = only(batches)
        dropped = engine.rng.uniform("text", batch["id"].tolist())[0] < self.config.text_dropout
        logs = engine.update("lm", self._loss, Batch(**{**batch, "dropped": dropped}), self.config.clip)
        if "stills" in batches and len(self.clips) > 1:  # pictures and clips each have their curves
            logs = {k.replace("nll/", "nll/still_"): v for k, v in logs.items()}
        return logs

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        name, batch = only(batches)
        losses = self._loss(batch)
        prefix = "val/still_" if name == "stills" and len(self.clips) > 1 else "val/"
        ranges = {f"{prefix}nll_{k[4:]}": float(v) for k, v in losses.items() if k.startswith("nll/")}
        return {**ranges, f"{prefix}accuracy": float(losses["accuracy"])}

    def preview(self, batches: dict[str, Batch]) -> Tensor:
        """Up to four new clips, as long as this stage's, side by side."""
        _, batch = only(batches)
        frames = max(draw.spec.frames for draw in self.clips.values())
        spans = batch.get("caption", [[] for _ in range(4)])[:4]
        told = [(Entry(prompt=main_caption(own)),) for own in spans]
        takes = "prompt" in self.system.accepts
        stories = [Story(frames=frames, seed=i, timeline=own if takes else ()) for i, own in enumerate(told)]
        return torch.cat(list(torch.cat(list(self.system.generate(stories)), 2)), 3)
