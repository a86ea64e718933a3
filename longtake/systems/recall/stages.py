"""What the recall family trains: discriminators, then encoder and generator, apart or together.

Shapes: B clips, T frames, H W height, width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from longtake.data.batch import Batch
from longtake.data.clips import Chain, ClipSpec, Draw, Step, UniformBins, Window
from longtake.nn.distributed import gather_rows, own_rows, processes
from longtake.nn.schedule import warmup_cosine
from longtake.nn.video import tiled
from longtake.rollout.rng import Rng
from longtake.systems.base import Engine, Losses, Stage
from longtake.systems.recall.latents import CLIP, Codes, LatentSpace
from longtake.systems.recall.losses import (
    absolute_error,
    fake_loss,
    kl_losses,
    motion_error,
    real_loss,
    total,
)
from longtake.systems.recall.lstm import MIDDLE

if TYPE_CHECKING:
    from longtake.systems.recall.system import AR2, R2, ClipGAN, EncGAN3, LEncGAN

CRITICS = ("image_discriminator", "video_discriminator")
Part = Literal["encoder", "generator"]


@dataclass(frozen=True)
class Made:
    """What one pass made of a batch."""

    targets: list[Tensor]
    """The real clips (B, 3, 16, H, W) that the discriminators see."""
    rebuilt: list[Tensor]
    """Clips from encoded codes, one for each target; none without an encoder."""
    space: LatentSpace | None
    """The latent spaces of all encoded clips."""
    stitched: Tensor | None = None
    """A clip joined of two."""
    noise: Tensor | None = None
    """Clips from codes of noise."""


class ClipGANStage(Stage):
    """One update: discriminators; then encoder and generator, one after the other, each with a pass of its own
    (section 3.3.2), or both at once (section 4.4.2).

    Codes from clips and from noise go through the generator in one batch, so that batch norm sees in training the
    mixture that its running statistics are of; but where the encoder learns by itself there are none of noise.
    """

    joint = False
    """Whether encoder and generator learn together."""
    noise = True
    """Whether there are clips of noise."""
    average = False
    """Whether losses of several made clips are averaged."""

    def __init__(self, system: ClipGAN, draw: Draw):
        self.system, self.config, self.name = system, system.config.stage, system.name
        self.steps, self.ema = self.config.steps, self.config.ema
        self.trains = tuple(n for n in ("encoder", "generator", *CRITICS) if n in system.networks)
        self.clips = {"clips": draw}

    @abstractmethod
    def encoded(self, batch: Batch) -> list[Tensor]:
        """The clips (B, 3, 16, H, W) of a batch that are encoded."""

    def targets(self, batch: Batch) -> list[Tensor]:
        """The clips that should be made of them, or of noise."""
        return self.encoded(batch)

    def stitch(self, batch: Batch, rebuilt: list[Tensor]) -> Tensor | None:
        """A clip joined of two, if there is one."""
        return None

    @abstractmethod
    def reconstruction(self, batch: Batch, made: Made, part: Part) -> Losses:
        """The unweighted reconstruction terms of a network's loss."""

    def encode(self, batch: Batch, clips: Tensor) -> LatentSpace:
        """Latent spaces of the encoded clips, one after another along the batch."""
        return self.system.encode(clips)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        nets = self.system.networks
        groups = {"discriminators": CRITICS, "encoder": ("encoder",), "generator": ("generator",)}
        if self.joint:
            groups = {"discriminators": CRITICS, "encoder_generator": ("encoder", "generator")}
        elif "encoder" not in nets:
            groups.pop("encoder")
        adam = {"lr": self.config.lr, "betas": self.config.betas}
        return {
            name: torch.optim.Adam([p for n in members for p in nets[n].parameters()], **adam)
            for name, members in groups.items()
        }

    def schedule(self, step: int) -> float:
        return warmup_cosine(step, self.config.steps, 0, self.config.decay)

    def make(self, batch: Batch, engine: Engine, update: str) -> Made:
        """One pass; its noise is addressed by the update it belongs to."""
        clips, ids = self.encoded(batch), batch["id"].tolist()
        parts, space = [], None
        if clips:
            with torch.set_grad_enabled(torch.is_grad_enabled() and update != "generator"):
                space = self.encode(batch, torch.cat(clips))
            parts.append(space.at(self._noise(engine.rng, update, ids, len(clips)).to(engine.device)))
        noisy = self.noise and update != "encoder"  # whose loss sees none of it
        if noisy:
            parts.append(self._noise(engine.rng, f"{update}/noise", ids, 1).to(engine.device))
        made = list(self.system.decode(Codes.cat(parts)).split(len(ids)))
        noise = made.pop() if noisy else None
        return Made(self.targets(batch), made, space, self.stitch(batch, made), noise)

    def _noise(self, rng: Rng, stream: str, ids: list[int], clips: int) -> Codes:
        """Standard normal codes of `clips` clips for each sample, those of the first clips first."""
        config = self.system.config.generator
        content = rng.normal(f"{stream}/content", ids, (clips, config.content))[0]
        motion = rng.normal(f"{stream}/motion", ids, (clips, config.motion))[0]
        return Codes(content.transpose(0, 1).flatten(0, 1), motion.transpose(0, 1).flatten(0, 1)[..., None])

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        batch, clip = batches["clips"], self.config.clip
        logs = engine.update("discriminators", lambda b: self._discriminators(b, engine), batch, clip)
        if self.joint:
            return logs | engine.update("encoder_generator", lambda b: self._joint(b, engine), batch, clip)
        if "encoder" in self.trains:
            logs |= engine.update("encoder", lambda b: self._encoder(b, engine), batch, clip)
        return logs | engine.update("generator", lambda b: self._generator(b, engine), batch, clip)

    def _discriminators(self, batch: Batch, engine: Engine) -> Losses:
        """Eq. 3.5 and 3.6, 4.5 to 4.7, 5.2."""
        with torch.no_grad():
            made = self.make(batch, engine, "discriminators")
        losses: Losses = {}
        for name, real, fake in self._views(batch, made, engine, "discriminators"):
            logits = self._judge(name, [*real, *fake])
            good, bad = logits[: len(real)], logits[len(real) :]
            losses[name] = total([real_loss(x) for x in good], True) + total(
                [fake_loss(x) for x in bad], self.average
            )
            short = name.split("_")[0]
            losses[f"{short}/real_logit"] = torch.stack(good).mean()
            losses[f"{short}/fake_logit"] = torch.stack(bad).mean()
        return {"loss": losses["image_discriminator"] + losses["video_discriminator"], **losses}

    def _views(self, batch: Batch, made: Made, engine: Engine, update: str):
        """What each discriminator sees: its name, real and made examples. One frame of every clip is seen, drawn
        for real and made ones apart; stitched clips are judged as clips only."""
        ids = batch["id"].tolist()
        alone = [*made.rebuilt, *([made.noise] if made.noise is not None else [])]
        clips = [*alone, *([made.stitched] if made.stitched is not None else [])]
        yield "video_discriminator", made.targets, clips

        def frames(which: list[Tensor], kind: str) -> list[Tensor]:
            numbers = engine.rng.integers(f"{update}/frame/{kind}", ids, CLIP, (len(which),))[0]
            return [x[torch.arange(len(x)), :, numbers[:, i]] for i, x in enumerate(which)]

        yield "image_discriminator", frames(made.targets, "real"), frames(alone, "made")

    def _judge(self, name: str, examples: list[Tensor]) -> list[Tensor]:
        return list(self.system.networks[name](torch.cat(examples)).split(len(examples[0])))

    def _adversarial(self, batch: Batch, made: Made, engine: Engine, update: str) -> Tensor:
        """The generator's terms of Eq. 3.4, 4.4 and 5.1."""
        views = self._views(batch, made, engine, update)
        losses = [total([real_loss(x) for x in self._judge(name, fake)], self.average) for name, _, fake in views]
        return torch.stack(losses).sum()

    def _reconstruction(self, batch: Batch, made: Made, part: Part) -> Losses:
        """Weighted terms; none without an encoder."""
        weight = self.config.reconstruction_weight
        return {k: weight * v for k, v in self.reconstruction(batch, made, part).items()} if made.rebuilt else {}

    def _divergence(self, made: Made, engine: Engine) -> Losses:
        assert made.space is not None
        weight = self.config.kl_weight * min(1.0, (engine.step + 1) / max(1, self.config.kl_warmup))
        content, motion = kl_losses(made.space)
        return {"kl_content": weight * content, "kl_motion": weight * motion}

    def _encoder(self, batch: Batch, engine: Engine) -> Losses:
        """Eq. 3.1 (3.9)."""
        made = self.make(batch, engine, "encoder")
        losses = self._reconstruction(batch, made, "encoder") | self._divergence(made, engine)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _generator(self, batch: Batch, engine: Engine) -> Losses:
        """Eq. 3.4 (3.10), from a fresh pass through which the encoder does not learn."""
        made = self.make(batch, engine, "generator")
        losses = self._reconstruction(batch, made, "generator")
        losses["adversarial"] = self._adversarial(batch, made, engine, "generator")
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _joint(self, batch: Batch, engine: Engine) -> Losses:
        """Eq. 4.4 and 5.1."""
        made = self.make(batch, engine, "joint")
        losses = self._reconstruction(batch, made, "generator") | self._divergence(made, engine)
        losses["adversarial"] = self._adversarial(batch, made, engine, "joint")
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        """Error of clips made of mean codes, and of clips made of noise: a posterior that says nothing of its clip
        leaves the two alike."""
        batch = batches["clips"]
        target = torch.cat(self.targets(batch))
        noise = self._noise(Rng(["validation"]), "noise", batch["id"].tolist(), len(target) // len(batch["id"]))
        figures = {"val/l1_noise": float(absolute_error(self.system.decode(noise.to(target.device)), target))}
        clips = self.encoded(batch)
        if not clips:
            return figures
        space = self.encode(batch, torch.cat(clips))
        content, motion = kl_losses(space)
        figures["val/l1"] = float(absolute_error(self.system.decode(space.mean()), target))
        figures["val/kl_content"], figures["val/kl_motion"] = float(content), float(motion)
        return figures

    def preview(self, batches: dict[str, Batch]) -> Tensor:
        """Up to four real clips above what is made of them, or of noise."""
        batch = Batch(**{k: v[:4] for k, v in batches["clips"].items()})
        clips, target = self.encoded(batch)[:1], self.targets(batch)[0]
        if clips:
            codes = self.encode(batch, clips[0]).mean()
        else:
            codes = self._noise(Rng(["preview"]), "noise", batch["id"].tolist(), 1).to(target.device)
        pair = torch.stack([target, self.system.decode(codes).float()])
        return tiled(pair)


class EncGAN3Stage(ClipGANStage):
    """Discriminators, encoder, generator, in this order (section 3.3.2, Algorithm 1)."""

    def __init__(self, system: EncGAN3):
        self.own = config = system.config
        mode = UniformBins() if config.sampling == "bins" else Step(*config.step)
        super().__init__(system, Draw(ClipSpec(CLIP, config.size, mode), config.stage.batch))

    def encoded(self, batch: Batch) -> list[Tensor]:
        return [batch["frames"]] if self.own.encode else []

    def targets(self, batch: Batch) -> list[Tensor]:
        return [batch["frames"]]

    def reconstruction(self, batch: Batch, made: Made, part: Part) -> Losses:
        target = self.own.encoder_target if part == "encoder" else self.own.generator_target
        error = motion_error if target == "motion" else absolute_error
        return {"reconstruction": error(made.rebuilt[0], made.targets[0])}


class LEncGANStage(ClipGANStage):
    """Clips of a chain one after another, each starting from the LSTM states of the one before (section 4.2).

    Algorithm 4 encodes the clip before once more for its states; here they are kept from the update before, so that
    they reach back to the chain's first clip. They are detached either way. Each process holds those of all, since
    one writes the checkpoint from which all go on. Validation encodes every clip as the first of a chain.
    There are no clips of noise (sections 3.2 and 3.3).
    """

    noise = False

    def __init__(self, system: LEncGAN):
        self.own, self.encode_after = system.config, system.encode_after
        chain = Chain(self.own.clips, overlap=1)
        super().__init__(system, Draw(ClipSpec(CLIP, self.own.size, chain), self.own.stage.batch))
        self.carried: Tensor | None = None
        self.passed: list[Tensor] = []

    def encoded(self, batch: Batch) -> list[Tensor]:
        return [batch["frames"]]

    def encode(self, batch: Batch, clips: Tensor) -> LatentSpace:
        space, state = self.encode_after(clips, batch.get("state"))
        self.passed.append(state.detach())
        return space

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        batch = batches["clips"]
        if self.carried is not None:
            kept = own_rows(self.carried) * (~batch["first"])[:, None, None]
            batch = Batch(**batch, state=kept)
        self.passed = []
        logs = super().step({"clips": batch}, engine)
        last = self.passed[-(len(self.passed) // 3) :]  # of the generator's pass, a part of the batch each
        self.carried, self.passed = gather_rows(torch.cat(last)).cpu(), []
        return logs

    def reconstruction(self, batch: Batch, made: Made, part: Part) -> Losses:
        x, y = made.rebuilt[0], made.targets[0]
        losses = {"reconstruction": absolute_error(x, y)}
        if self.own.reference != "none":
            frame = 0 if self.own.reference == "first" else MIDDLE
            losses["reference"] = absolute_error(x[:, :, frame], y[:, :, frame])
        return losses

    def state_dict(self) -> dict:
        return {"carried": self.carried}

    def load_state_dict(self, state: dict) -> None:
        """Of as many chains as there are now; other chains begin with zeros, even if they are under way."""
        carried = state["carried"]
        whole = carried is not None and len(carried) == self.config.batch * processes()
        self.carried = carried if whole else None


class R2Stage(ClipGANStage):
    """Two neighbouring clips, each encoded by itself, and a clip stitched of both (section 4.4, Algorithm 6)."""

    average = True

    def __init__(self, system: R2):
        self.own = config = system.config
        self.terms = config.terms
        self.joint, self.noise = self.terms.joint, self.terms.noise
        spec = ClipSpec(config.stride + CLIP, config.size, Window(CLIP))
        super().__init__(system, Draw(spec, config.stage.batch))

    def encoded(self, batch: Batch) -> list[Tensor]:
        frames, stride = batch["frames"], self.own.stride
        return [frames[:, :, :CLIP], frames[:, :, stride:]]

    def stitch(self, batch: Batch, rebuilt: list[Tensor]) -> Tensor | None:
        return join(rebuilt[0], rebuilt[1], self.own.stride) if self.own.r_3vd else None

    def reconstruction(self, batch: Batch, made: Made, part: Part) -> Losses:
        losses: Losses = {}
        pairs = list(zip(made.rebuilt, made.targets, strict=True))
        r = self.own.reference
        if self.terms.reference:
            losses["reference"] = total([absolute_error(x[:, :, r], y[:, :, r]) for x, y in pairs], True)
        if self.terms.clips:
            losses["reconstruction"] = total([absolute_error(x, y) for x, y in pairs], True)
        if self.terms.stitched and made.stitched is not None:
            losses["stitched"] = absolute_error(
                made.stitched, join(made.targets[0], made.targets[1], self.own.stride)
            )
        return losses


class AR2Stage(ClipGANStage):
    """The next clip, which begins 8 frames later, from this one (section 5.3, Algorithm 9).

    Eq. 5.1 leaves the stitched clip out of the generator's loss, and 5.2 adds what Algorithm 9 averages; here the
    three made clips count in both losses, averaged. Line 11 of the algorithm makes its clip of noise.
    """

    joint, average = True, True

    def __init__(self, system: AR2):
        self.beta, self.stride = system.config.beta, system.stride
        spec = ClipSpec(self.stride + CLIP, system.config.size, Window(CLIP))
        super().__init__(system, Draw(spec, system.config.stage.batch))

    def encoded(self, batch: Batch) -> list[Tensor]:
        return [batch["frames"][:, :, :CLIP]]

    def targets(self, batch: Batch) -> list[Tensor]:
        return [batch["frames"][:, :, self.stride :]]

    def stitch(self, batch: Batch, rebuilt: list[Tensor]) -> Tensor:
        return join(batch["frames"][:, :, :CLIP], rebuilt[0], self.stride)

    def reconstruction(self, batch: Batch, made: Made, part: Part) -> Losses:
        x, y, r = made.rebuilt[0], made.targets[0], self.stride
        return {
            "reference": absolute_error(x[:, :, r], y[:, :, r], self.beta),
            "reconstruction": absolute_error(x, y, self.beta),
        }


def join(first: Tensor, second: Tensor, stride: int) -> Tensor:
    """The clip around the place where `second` goes on from `first`, `stride` frames after its beginning.

    Half of it, or what there is, comes before: frames 0..7 of either at the thesis's stride of 8.
    """
    before = min(CLIP // 2, stride)
    return torch.cat([first[:, :, stride - before : stride], second[:, :, : CLIP - before]], 2)
