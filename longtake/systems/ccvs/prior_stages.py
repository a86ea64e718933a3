"""The other stages of CCVS: tokenizers of annotations, then the transformer (paper section 3.3)."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.data.batch import Batch
from longtake.data.clips import ClipSpec, Draw, Still
from longtake.story import Story
from longtake.systems.base import Engine, Losses, Stage
from longtake.systems.ccvs.tokenizers import patches_of

if TYPE_CHECKING:
    from longtake.systems.ccvs.system import CCVS


HEARD = 2
"""Frames that clips with sound are longer: the neighbours of the first and the last, which are heard with these."""


class StateStage(Stage):
    """States of single frames from their quantised latents: squared error, and the codebook's loss."""

    name = "states"
    trains = ("states",)
    frozen = ("autoencoder",)

    def __init__(self, system: CCVS):
        self.system, self.config, self.steps = system, system.config.states, system.config.states.steps
        spec = ClipSpec(1, system.config.size, Still(), ("states",))
        self.clips = {"frames": Draw(spec, self.config.batch)}
        self.best_by = "val/state_error"

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        parameters = self.system.states.parameters()
        return {"states": torch.optim.Adam(parameters, lr=self.config.lr, betas=(0.5, 0.9))}

    def _estimate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Estimated and true states (B, S)."""
        with torch.no_grad():
            latents = self.system.seen_latents(batch["frames"][:, :, 0])
        return self.system.states.estimate(latents), self.system.chosen_states(batch["states"])[:, 0]

    def _loss(self, batch: Batch) -> Losses:
        found, true = self._estimate(batch)
        error = F.mse_loss(found.float(), true)
        quantiser = self.system.states.quantise(found).commitment_loss
        return {"loss": error + quantiser, "state_error": error, "quantiser": quantiser}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update("states", self._loss, batches["frames"])

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        found, true = self._estimate(batches["frames"])
        return {"val/state_error": float(F.mse_loss(found.float(), true))}


class SoundStage(Stage):
    """Reconstruction of one spectrogram patch a frame: squared error, and the codebook's loss.

    The released code adds a perceptual distance of VGG-19 between patches, which is left out.
    """

    name = "sound"
    trains = ("sound",)

    def __init__(self, system: CCVS):
        self.system, self.config = system, system.config.sound
        self.steps, self.ema = self.config.steps, self.config.ema
        spec = ClipSpec(system.config.frames + HEARD, system.config.size, conditions=("audio",))
        self.clips = {"clips": Draw(spec, self.config.batch)}
        self.best_by = "val/sound_error"

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        parameters = self.system.sound.parameters()
        return {"sound": torch.optim.Adam(parameters, lr=self.config.lr, betas=(0.0, 0.99))}

    def _loss(self, batch: Batch) -> Losses:
        sound = batch["audio"]
        patches = patches_of(sound).unflatten(0, sound.shape[:2])[:, 1:-1].flatten(0, 1)
        made, quantised = self.system.sound(patches)
        error = F.mse_loss(made.float(), patches)
        codes = {"codebook/perplexity": quantised.perplexity, "codebook/used": quantised.used}
        return {"loss": error + quantised.commitment_loss, "sound_error": error, **codes}

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        return engine.update("sound", self._loss, batches["clips"])

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        losses = self._loss(batches["clips"])
        return {
            "val/sound_error": float(losses["sound_error"]),
            "val/codebook_used": float(losses["codebook/used"]),
        }


class PriorStage(Stage):
    """Next-token prediction on the frozen autoencoder's codes and what annotates them (equation 8)."""

    name = "prior"
    trains = ("prior",)

    def __init__(self, system: CCVS):
        self.system, self.config, self.layout = system, system.config.prior_stage, system.layout
        self.steps, self.ema = self.config.steps, self.config.ema
        self.best_by = "val/loss" if self.config.keep_best else None
        self.kind, prior = system.config.prior.annotation, system.config.prior
        self.frozen = ("autoencoder", *(n for n in ("states", "sound") if n in system.networks))
        conditions = ["label"] if prior.label else []
        if self.kind == "audio" or (self.kind == "states" and not system.config.states.estimated):
            conditions.append(self.kind)
        frames = system.config.frames + HEARD * (self.kind == "audio")
        spec = ClipSpec(frames, system.config.size, conditions=tuple(conditions))
        self.clips = {"clips": Draw(spec, self.config.batch)}
        if system.config.autoencoder.quantiser != "none":  # vectors would fill the disk
            self.derive = self._derived
            self.derive_key = ", ".join(system.state_names) if self.kind == "states" else ""

    def _derived(self, batch: Batch) -> dict[str, Tensor]:
        """Codes (B, N, n) of the clips, and what annotates them (B, N, s); int32 for the cache.

        Made here, in full precision, and not within the loss, where autocast would choose other tokens.
        """
        system, kind = self.system, self.kind
        frames = batch["frames"]
        codes = system.tokenize(frames[:, :, 1:-1] if kind == "audio" else frames)
        found = {"codes": codes.int()}
        if kind == "audio":
            found["annotation"] = system.sound.tokens(batch["audio"])[:, 1:-1].int()
        elif kind == "states" and system.config.states.estimated:
            latents = system.autoencoder.latents(codes.flatten(0, 1), system.config.grid)
            states = system.states.tokens(system.states.estimate(latents))
            found["annotation"] = states.unflatten(0, codes.shape[:2]).int()
        elif kind == "states":
            found["annotation"] = system.states.tokens(system.chosen_states(batch["states"])).int()
        return found

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"prior": self.config.optimiser(self.system.prior)}

    def schedule(self, step: int) -> float:
        return self.config.factor(step)

    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        share = self.system.config.prior.end_share
        ends = float(engine.rng.uniform("end", engine.step)[0]) < share

        def loss(batch: Batch) -> Losses:
            distance = None
            if ends:  # at any distance that the end of a video may have
                least = self.system.config.prior.end_distance
                drawn = engine.rng.integers("distance", batch["id"].tolist(), self.layout.frames - least)
                distance = least + drawn[0]
            return self._losses(batch, distance)

        return engine.update("prior", loss, batches["clips"], self.config.clip)

    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        """Losses without and with an end frame, each that is trained (`free_` and `end_` where both are), and their
        mean, by which the best weights are chosen."""
        batch, share = batches["clips"], self.system.config.prior.end_share
        last = torch.full((len(batch["id"]),), self.layout.frames - 1)
        modes = {"free_": None} if share < 1 else {}
        modes |= {"end_": last} if share else {}
        found = {
            prefix: {name: float(value) for name, value in self._losses(batch, distance).items()}
            for prefix, distance in modes.items()
        }
        figures = {f"val/{name}": fmean(own[name] for own in found.values()) for name in next(iter(found.values()))}
        if len(found) > 1:
            figures |= {
                f"val/{prefix}{name}": value for prefix, own in found.items() for name, value in own.items()
            }
        return figures

    def _losses(self, batch: Batch, distance: Tensor | None) -> Losses:
        """Losses of whole clips; with `distance` (B,) of clips less their last frame, towards the frame that far
        from the first."""
        labels = batch["label"] if self.system.config.prior.label else None
        if self.layout.codes:
            codes = batch["codes"].long()
        else:
            frames = batch["frames"]
            with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
                codes = self.system.tokenize(frames)
        states, goal = batch["annotation"].long() if self.kind != "none" else None, None
        if distance is not None:
            distance = distance.to(codes.device)
            goal = codes[torch.arange(len(codes), device=codes.device), distance]
            codes, states = codes[:, :-1], None if states is None else states[:, :-1]
        if not self.layout.codes:
            return self._regress(labels, codes, goal, distance)
        return self.system.predict(labels, codes, states, goal, distance)

    def _regress(
        self, labels: Tensor | None, vectors: Tensor, goal: Tensor | None, distance: Tensor | None
    ) -> Losses:
        """Mean squared error of latent vectors (Table 5, last row)."""
        ids, places = self.system.opening(labels, len(vectors), distance)
        prefix = 0 if goal is None else goal.shape[1]
        flat = vectors.flatten(1, 2)
        inputs = flat if goal is None else torch.cat([goal, flat], 1)
        every = torch.cat(
            [places, self.layout.frame_places(0, vectors.shape[1]).to(places).expand(len(places), -1)], 1
        )
        made = self.system.prior.predict(ids, every[:, :-1], inputs[:, :-1])
        first = ids.shape[1] + prefix
        targets = flat if first else flat[:, 1:]
        error = F.mse_loss(made[:, max(0, first - 1) :].float(), targets)
        return {"loss": error}

    def preview(self, batches: dict[str, Batch]) -> Tensor | None:
        """Up to four new clips side by side, if they can begin with nothing given."""
        if self.system.requires or self.kind == "audio":
            return None
        stories = [Story(frames=self.layout.frames, seed=i) for i in range(4)]
        return torch.cat(list(torch.cat(list(self.system.generate(stories)), 2)), 3)
