"""CCVS as one system (Le Moing et al., "CCVS: Context-aware Controllable Video Synthesis", NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.rollout.given import count_first_frames
from longtake.rollout.labels import draw_labels, labels_at
from longtake.rollout.rng import Rng
from longtake.story import Story
from longtake.systems.base import Losses, ModelInfo, Stage, System
from longtake.systems.ccvs.autoencoder import Autoencoder
from longtake.systems.ccvs.config import SIZES, CCVSConfig, CCVSSettings
from longtake.systems.ccvs.discriminators import Discriminator
from longtake.systems.ccvs.losses import VGG19Distance, is_vgg19, token_loss
from longtake.systems.ccvs.prior_stages import PriorStage, SoundStage, StateStage
from longtake.systems.ccvs.rollout import ImageSpace, autoregress
from longtake.systems.ccvs.sampling import FrameRegressor, FrameSampler
from longtake.systems.ccvs.stages import AutoencoderStage
from longtake.systems.ccvs.tokenizers import SoundTokenizer, StateTokenizer
from longtake.systems.ccvs.transformer import AnnotatedTransformer, Layout
from longtake.systems.foreign import WEIGHTS, read_foreign
from longtake.systems.perceptual import load_perceptual


class CCVS(System):
    """An autoencoder that decodes frames with the help of those before, and a transformer over their codes."""

    name: ClassVar[str] = "ccvs"
    config_class: ClassVar[type] = CCVSConfig
    settings_class: ClassVar[type] = CCVSSettings
    sizes: ClassVar[dict] = SIZES
    accepts = frozenset({"label", "states", "audio", "first_frames", "last_frame"})
    config: CCVSConfig
    settings: CCVSSettings

    def __init__(self, config: CCVSConfig, info: ModelInfo):
        super().__init__(config, info)
        self.settings = CCVSSettings()
        self.kept: tuple[str, ...] = ()
        """Discriminators that a saved folder holds too, so that training can begin from them (`convert`)."""
        prior, kind = config.prior, config.prior.annotation
        self._check_library()
        self.accepts = frozenset(
            {"first_frames"}
            | ({"label"} if prior.label else set())
            | ({kind} if kind != "none" else set())
            | ({"last_frame"} if prior.end_share else set())
        )
        alone = config.autoencoder_stage.unconditional or not config.autoencoder.context
        begins = alone and (prior.label or prior.start)
        self.requires = frozenset(
            (set() if begins else {"first_frames"}) | ({"last_frame"} if prior.end_share == 1 else set())
        )
        self.state_names = config.states.names or info.state_names
        states, state_codes = 0, 0
        self.autoencoder = Autoencoder(config.autoencoder)
        self.networks = {"autoencoder": self.autoencoder}
        if kind == "states":
            states, state_codes = len(self.state_names), config.states.codes
            grid = config.grid if config.states.estimated else None
            sizes = config.autoencoder.latent, grid, config.states.hidden
            self.states = StateTokenizer(states, state_codes, *sizes)
            self.networks["states"] = self.states
        if kind == "audio":
            states, state_codes = SoundTokenizer.token_count(), config.sound.codes
            self.sound = SoundTokenizer(config.sound.codes, config.sound.latent, config.sound.hidden)
            self.networks["sound"] = self.sound
        vectors = config.autoencoder.latent if config.autoencoder.quantiser == "none" else 0
        codes = 0 if vectors else config.autoencoder.codes
        classes = len(info.classes) if prior.label else 0
        self.layout = Layout(config.frames, config.grid, codes, states, state_codes, prior.start, classes)
        if prior.layers:
            sizes = prior.layers, prior.heads, prior.width, prior.dropout
            self.prior = AnnotatedTransformer(self.layout, *sizes, prior.positions, vectors)
            self.networks["prior"] = self.prior
        critic, length = config.discriminator, config.autoencoder_stage.frames
        for name, frames in (("image_discriminator", None), ("video_discriminator", length)):
            self.networks[name] = Discriminator(config.size, critic.width, critic.multipliers, frames)

    def _check_library(self) -> None:
        """What the footage must have for what annotates it."""
        config, info = self.config, self.info
        if config.prior.label and not info.classes:
            raise UserError("a model of classes needs a library with classes; use config.prior.label=false")
        kind, names = config.prior.annotation, config.states.names
        if kind == "states" and not names and not info.state_names:
            raise UserError("states need a library that has them, or their names in config.states.names")
        missing = [n for n in names or () if info.state_names and n not in info.state_names]
        if kind == "states" and missing:
            known = ", ".join(info.state_names)
            raise UserError(f"config.states.names has {missing[0]!r}, which the library has not (it has {known})")
        if kind == "audio" and not info.samples_per_frame:
            raise UserError("a prior annotated by sound needs a library whose videos all have it")

    @property
    def inference(self) -> tuple[str, ...]:
        return tuple(n for n in self.networks if not n.endswith("discriminator") or n in self.kept)

    @property
    def seam_period(self) -> int | None:
        """Windows of one new frame join at every frame, which is no seam to look for."""
        new = self.settings.new
        return new if new > 1 and self.config.frames % new == 0 else None

    def stages(self) -> list[Stage]:
        stages: list[Stage] = [AutoencoderStage(self)]
        if "states" in self.networks and self.config.states.estimated:
            stages.append(StateStage(self))
        if "sound" in self.networks:
            stages.append(SoundStage(self))
        return [*stages, PriorStage(self)] if self.config.prior.layers else stages

    def perceptual(self) -> nn.Module | None:
        """The distance of features of the first stage, if the recipe names one."""
        path = self.config.autoencoder_stage.perceptual
        if not path:
            return None
        if Path(path).suffix in WEIGHTS and Path(path).is_file():
            state = read_foreign(path)
            if isinstance(state, dict) and is_vgg19(state):
                return VGG19Distance(state)
        return load_perceptual(path).requires_grad_(False)

    def seen_latents(self, frames: Tensor) -> Tensor:
        """Frames (B, 3, H, W) in [-1, 1] -> quantised latents (B, D, h, w)."""
        tokens = self.autoencoder.tokens(self.autoencoder.encode(frames)[0])
        return self.autoencoder.latents(tokens, self.config.grid)

    def tokenize(self, video: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [-1, 1] -> codes (B, T, n), or vectors (B, T, n, D) without a codebook.

        Frame by frame, so that only one frame's features are held at once.
        """
        return torch.stack([self.autoencoder.tokens(self.autoencoder.encode(x)[0]) for x in video.unbind(2)], 1)

    def chosen_states(self, states: Tensor) -> Tensor:
        """The library's states (..., D) -> those that the model knows (..., S)."""
        return states[..., [self.info.state_names.index(name) for name in self.state_names]]

    def no_codes(self, batch: int) -> Tensor:
        """Codes (B, 0, n) or vectors (B, 0, n, D) of no frames."""
        if self.layout.codes:
            return torch.zeros(batch, 0, self.layout.size, dtype=torch.long, device=self.device)
        return torch.zeros(batch, 0, self.layout.size, self.config.autoencoder.latent, device=self.device)

    def opening(self, labels: Tensor | None, batch: int, distance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids (B, p) of class and start token, and places (B, p) of these and of an end frame, if there is one."""
        ids = self.layout.prefix(labels, batch).to(self.device)
        places = torch.zeros_like(ids)
        if distance is not None:
            places = torch.cat([places, self.layout.end_places(distance[:, None].cpu()).to(places)], 1)
        return ids, places

    def predict(
        self,
        labels: Tensor | None,
        codes: Tensor,
        states: Tensor | None = None,
        goal: Tensor | None = None,
        distance: Tensor | None = None,
    ) -> Losses:
        """Cross-entropy of the codes, and of the states beside it (equation 8, released code), of whole clips.

        The first token of a clip that begins with nothing is not predicted.

        Args:
            labels: (B,) or None.
            codes: (B, t, n).
            states: (B, t, s) or None.
            goal, distance: codes (B, n) of an end frame and its distance (B,) from the first, or None.
        """
        layout, batch = self.layout, len(codes)
        ids, places = self.opening(labels, batch, distance)
        if goal is not None:
            ids = torch.cat([ids, goal], 1)
        tokens = layout.join(states, codes)
        first = ids.shape[1]
        ids = torch.cat([ids, tokens], 1)
        frames = layout.frame_places(0, codes.shape[1]).to(places).expand(batch, -1)
        places = torch.cat([places, frames], 1)
        logits = self.prior.predict(ids[:, :-1], places[:, :-1])[:, max(0, first - 1) :]
        targets = tokens[:, 0 if first else 1 :]
        told = (
            torch.arange(tokens.shape[1], device=tokens.device)[0 if first else 1 :] % layout.stride < layout.states
        )
        loss = token_loss(logits[:, ~told, : layout.codes], targets[:, ~told])
        accuracy = (logits[:, ~told, : layout.codes].argmax(-1) == targets[:, ~told]).float().mean()
        losses = {"loss": loss, "frame_loss": loss, "accuracy": accuracy}
        if layout.states:
            own = token_loss(logits[:, told, : layout.state_codes], targets[:, told] - layout.codes)
            losses |= {"loss": loss + self.config.prior_stage.annotation_weight * own, "state_loss": own}
        return losses

    def sampler(self, batch: int) -> FrameSampler | FrameRegressor:
        """What makes windows of codes, or of vectors."""
        if self.layout.codes:
            return FrameSampler(self.prior, batch, self.settings)
        return FrameRegressor(self.prior, batch)

    def draw_labels(self, rng: Rng) -> Tensor | None:
        """A class (B,) for each video that is told none; None where there are no classes."""
        if not self.layout.classes:
            return None
        return draw_labels(rng, self.info.class_counts, self.layout.classes)

    def labels(self, stories: list[Story], drawn: Tensor | None, frame: int) -> Tensor | None:
        """Class (B,) in force at a frame."""
        return None if drawn is None else labels_at(stories, drawn, frame)

    def check(self, story: Story) -> Story:
        if not self.config.prior.layers:
            raise UserError(
                "this model has an autoencoder but no transformer; train one with --init autoencoder=MODEL"
            )
        story = super().check(story)
        frames, window = cast(int, story.frames), self.config.frames
        if story.last_frame is not None and frames < 2:
            raise UserError("a video that ends at a given frame needs 2 frames or more", code=2)
        least = self.config.prior.end_distance
        if story.last_frame is not None and frames <= least:
            raise UserError(
                f"this model was only trained towards end frames {least} frames away or more: with one it makes at "
                f"least {least + 1} frames",
                code=2,
            )
        if self.config.prior.end_share == 1 and frames > window:
            raise UserError(
                f"this model was only trained towards end frames: it makes at most {window} frames", code=2
            )
        return story

    @property
    def codebook_size(self) -> int:
        return self.layout.codes

    def reconstruct(self, clips: Iterable[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Frame by frame from their codes, with those made before as context; the first frame is given, and decoded
        with its own features as context (as in the paper's Table 1, "Reconstruction")."""
        self.eval()
        space = ImageSpace(self.autoencoder, self.config.grid, self.config.autoencoder.context)
        for clip, real in clips:
            clip = clip.to(self.device)
            tokens = self.tokenize(clip)
            made: list[Tensor] = []
            if not space.held:
                space.show(clip[:, :, :1])
                latents = self.autoencoder.latents(tokens[:, 0], self.config.grid)
                made.append(self.autoencoder.decode(latents, space.held).frames)
            made += [space.decode(frame) for frame in tokens[:, len(made) :].unbind(1)]
            yield clip, torch.stack(made, 2), tokens if self.layout.codes else tokens.new_zeros(1), real

    def given_frames(self, stories: list[Story]) -> int:
        return count_first_frames(stories)

    def compile(self) -> None:
        """The transformer's step is what takes the time; convolutions are fast as they are."""
        self.settings = replace(self.settings, compile=True)

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `ccvs.rollout.autoregress`."""
        return autoregress(self, stories, rng)
