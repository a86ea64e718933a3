"""Frames at any time: a video of any length and rate in constant memory (paper sections 3.1 and 4.3).

The styles of a video are put into the weights once, and motion noise is addressed by the number of its token, so a
frame costs the same wherever it lies and is the same however it is asked for. Tokens are made in blocks at fixed
places, and frames a fixed number at a time, because sums in another order would round differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longtake.errors import UserError
from longtake.rollout.labels import draw_labels
from longtake.rollout.rng import Rng
from longtake.story import Story
from longtake.systems.stylegan_v.layers import Modulation
from longtake.systems.stylegan_v.mapping import truncate
from longtake.systems.stylegan_v.motion import AcyclicMotion, RecurrentMotion, Waves, finest

if TYPE_CHECKING:
    from longtake.systems.stylegan_v.system import StyleGANV

BLOCK = 16
"""Tokens that are made together."""
PIXELS = {"cpu": 1 << 15, "cuda": 1 << 20}
"""Most pixels that are made together, at least one frame, at most 16: more are no faster and take more memory."""
CENTRES = 1000
"""Styles of which the centre of a class is the mean."""


def stream(system: StyleGANV, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Chunks (B, 3, n, H, W) of videos at the stories' rate; frames beyond their end are made to fill the last."""
    story = stories[0]
    assert story.frames is not None
    assert story.fps is not None
    if not system.any_fps and system.settings.start % 1:
        raise UserError(f"{system.name} has no frames between frames; give a whole number as start", code=2)
    labels, ws = drawn_labels(system, rng), None
    if system.settings.latent is not None:
        ws, label = read_latent(system, system.settings.latent)
        labels = labels if label is None else torch.full_like(labels, label)
    films = [Film(system, seed, ws) for seed in rng.seeds]
    step = system.info.fps / story.fps
    count = chunk_frames(system.config.size, system.device)
    for begin in range(0, story.frames, count):
        times = torch.arange(begin, begin + count, dtype=torch.float64) * step + system.settings.start
        chunks = []
        for film, told, own in zip(films, stories, labels, strict=True):
            wanted = told.window(begin, count)["label"][0]
            chunks.append(film.frames(times, torch.where(wanted < 0, own, wanted).tolist()))
        yield torch.stack(chunks)


def chunk_frames(size: tuple[int, int], device: torch.device) -> int:
    """Frames that are made together."""
    return max(1, min(16, PIXELS.get(device.type, PIXELS["cuda"]) // (size[0] * size[1])))


def drawn_labels(system: StyleGANV, rng: Rng) -> Tensor:
    """One class (B,) a video, from the frequencies of the training videos; 0 where there are no classes."""
    if not system.classes:
        return torch.zeros(len(rng.seeds), dtype=torch.long)
    return draw_labels(rng, system.info.class_counts, system.classes)


class Film:
    """One video, seen at any times.

    Args:
        system: whose generator makes it.
        seed: of its content and, unless the settings say otherwise, its motion.
        ws: its styles (1, L, W); None: from the seed.
        motion: seed of its motion, whatever the settings say; None: theirs, or the content's.
    """

    def __init__(self, system: StyleGANV, seed: int | str, ws: Tensor | None = None, motion: int | None = None):
        self.system, self.generator, self.settings = system, system.generator, system.settings
        self.z = Rng([seed]).normal("content", 0, (system.config.mapping.noise,)).to(system.device)
        chosen = self.settings.motion_seed if motion is None else motion
        self.rng = Rng([seed if chosen is None else chosen])
        self.given = ws
        self.label: int | None = None

    def frames(self, times: Tensor, labels: list[int]) -> Tensor:
        """Frames (3, n, H, W) in [-1, 1] at `times` (n,) in source frames, in any order, each under its class.

        Raises:
            UserError: no such class.
        """
        parts, begin = [], 0
        for i in range(1, len(labels) + 1):
            if i == len(labels) or labels[i] != labels[begin]:
                self.enter(labels[begin])
                parts.append(self._render(self.codes(times[begin:i])))
                begin = i
        return torch.cat(parts).transpose(0, 1).clamp(-1, 1)

    def enter(self, label: int) -> None:
        """Prepare for frames of a class."""
        if label == self.label:
            return
        if not 0 <= label < max(1, self.system.classes):
            raise UserError(f"there is no class {label}; this model has {self.system.classes}, counted from 0")
        self.label = label
        self.one_hot = self.system.one_hot(torch.tensor([label], device=self.system.device))
        self.blocks: dict[int, Tensor | Waves] = {}
        self.state: tuple[int, tuple[Tensor, Tensor] | None] = (0, None)
        self.ws = self.styles(self.one_hot)
        self.folded: list[Modulation] | None = None
        if self.generator.styler is None:
            self.folded = self.generator.synthesis.fold(self.ws, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        stored = self.generator.synthesis.constant.dtype
        return torch.bfloat16 if self.settings.precision == "bfloat16" else stored

    def styles(self, one_hot: Tensor) -> Tensor:
        """The video's styles (1, L, W), truncated as the settings say."""
        generator, settings = self.generator, self.settings
        if self.given is not None:
            return self.given.to(self.system.device)
        w = generator.mapping(self.z, one_hot)
        centre = generator.mapping.average
        if settings.truncation != 1 and settings.truncation_centre == "class":
            centre = class_centre(self.system, one_hot)
        ws = w.unsqueeze(1).repeat(1, generator.synthesis.styles, 1)
        layers = slice(None, settings.truncation_layers)
        ws[:, layers] = truncate(ws[:, layers], centre, settings.truncation)
        return ws

    def codes(self, times: Tensor) -> Tensor:
        """Motion codes (n, code) at times (n,), in any order; ascending ones cost least."""
        tokens = (times / self.generator.motion.config.spacing).floor().long()
        numbers, counts = tokens.div(BLOCK, rounding_mode="floor").unique_consecutive(return_counts=True)
        parts = []
        for number, part in zip(numbers.tolist(), times.split(counts.tolist()), strict=True):
            at = part[None].to(self.system.device, finest(self.system.device))
            first = torch.tensor([number * BLOCK], device=self.system.device)
            if number not in self.blocks:
                self.blocks = {k: v for k, v in self.blocks.items() if k == number - 1}
                self.blocks[number] = self._block(number)
            made, motion = self.blocks[number], self.generator.motion
            if isinstance(motion, AcyclicMotion):
                assert isinstance(made, Waves)
                parts.append(motion.encoding(made, first, at)[0].float())
            else:
                assert isinstance(made, Tensor)
                parts.append(motion.between(made, first, at)[0].float())
        return torch.cat(parts)

    def _noise(self, first: int, count: int) -> Tensor:
        noise = self.rng.normal("motion", range(first, first + count), (self.generator.noise[1],))
        return noise.to(self.system.device)

    def _block(self, number: int) -> Tensor | Waves:
        """Tokens number * BLOCK ... and the one after them: of the encoding their waves, of an LSTM its states."""
        motion = self.generator.motion
        if isinstance(motion, AcyclicMotion):
            noise = self._noise(number * BLOCK, BLOCK + 1 + motion.reach)
            return motion.encoding.waves(motion.tokens(noise, self.one_hot))
        return self._recurrent_block(motion, number)

    def _recurrent_block(self, motion: RecurrentMotion, number: int) -> Tensor:
        """An LSTM has to go through all blocks before, from the last one it has seen or from the beginning."""
        at, state = self.state if self.state[0] <= number else (0, None)
        while True:
            u, state = motion.tokens(self._noise(at * BLOCK, BLOCK), self.one_hot, state)
            at += 1
            if at > number:
                break
        self.state = at, state
        beyond, _ = motion.tokens(self._noise(at * BLOCK, 1), self.one_hot, state)
        return torch.cat([u, beyond], 1)

    def _render(self, code: Tensor) -> Tensor:
        """Frames (n, 3, H, W) of motion codes (n, code)."""
        if self.folded is not None:
            return self.generator.synthesis(code, self.folded)
        code, modulations = self.generator.modulate(self.ws, code[None])
        return self.generator.synthesis(code.to(self._dtype), modulations)


class Latent(NamedTuple):
    """What a file of styles holds."""

    ws: Tensor
    """(1, L, W)."""
    label: int | None
    """Class under which they were made; None: not told."""


def read_latent(system: StyleGANV, path: str) -> Latent:
    """The styles of `edit.save_latent`.

    Raises:
        UserError: no such file, or styles of another model.
    """
    try:
        held = load_file(Path(path))
        ws = held["ws"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} holds no styles ({error}); give a file that `save_latent` wrote") from None
    wanted = (1, system.generator.synthesis.styles, system.config.mapping.width)
    if ws.shape != wanted:
        raise UserError(f"{path} holds styles of shape {tuple(ws.shape)}, but this model has {wanted}")
    if not ws.isfinite().all() or held.get("label", ws[0, 0, 0]).numel() != 1:
        raise UserError(f"{path} holds styles or a class that are no numbers; write it again with `save_latent`")
    label = int(held["label"]) if "label" in held else None
    if label is not None and not 0 <= label < max(1, system.classes):
        raise UserError(f"{path} holds styles of class {label}, but this model has {system.classes} classes")
    return Latent(ws, label)


def class_centre(system: StyleGANV, one_hot: Tensor) -> Tensor:
    """Mean style (W,) of a class; the official code cannot truncate several videos to theirs."""
    z = Rng(["centre"]).normal("content", range(CENTRES), (system.config.mapping.noise,))[0]
    return system.generator.mapping(z.to(system.device), one_hot.expand(CENTRES, -1)).mean(0)
