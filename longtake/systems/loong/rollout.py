"""From a model of 65 frames to minutes of video (paper section 3.3, Fig. 4).

The first window is made from the text alone; of every window the last 5 frames are decoded, encoded anew as the
beginning of a clip, and continued. At paper size: 65 frames from 4,352 tokens, then 60 frames a window from 512
given and 3,840 new tokens, so positions never leave those of training.

Shapes: B videos, R rows of the language model (B, or 2 B under guidance); t h w token grid of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.nn.attention import causal_mask
from longtake.rollout.cuts import common_cuts
from longtake.rollout.given import count_first_frames, first_frames
from longtake.rollout.labels import draw_labels, labels_at
from longtake.rollout.llama import LlamaDecoder
from longtake.rollout.rng import Rng
from longtake.rollout.sampling import sample
from longtake.story import Story

if TYPE_CHECKING:
    from longtake.systems.loong.system import Loong


def windows(system: Loong, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Frames (B, 3, n, H, W), window by window; given frames come first, as they were given.

    A window takes the text in force at its first new frame. Where a story cuts, a first window begins. Tokens of
    the j-th latent slice that is sampled take the uniform numbers j h w, j h w + 1 ..., whatever window it is in.
    """
    tokenizer, total = system.tokenizer, stories[0].frames or 0
    _, h, w = tokenizer.grid(system.config.frames, *system.config.size)
    cuts, writer = common_cuts(stories), Writer(system, len(stories))
    labels = draw_labels(rng, system.info.class_counts, max(1, len(system.info.classes)))
    scene, done, sampled = Scene(system, len(stories)), 0, 0
    given = read_given(system, stories)
    if given is not None:
        yield given
        scene.begin_with(given)
        done = given.shape[2]
    while done < total:
        if done in cuts:
            scene = Scene(system, len(stories))
        limit = min([cut for cut in cuts if cut > done] + [total])
        context = scene.context()
        count = scene.latents_for(limit - done)
        uniforms = rng.uniform("token", range(sampled * h * w, (sampled + count) * h * w))
        texts = _texts(system, stories, labels, done)
        tokens = writer(texts, context, uniforms, scene.place(context))
        frames = scene.add(context, tokens.view(-1, count, h, w))[:, :, : limit - done]
        yield frames
        done, sampled = done + frames.shape[2], sampled + count


class Scene:
    """What a window needs to know of those before it: bounded, whatever the length.

    Args:
        system: whose tokenizer and settings are used.
        videos: B.

    Raises:
        UserError: a context that is no clip of the tokenizer or leaves nothing to add.
    """

    def __init__(self, system: Loong, videos: int):
        self.tokenizer, self.extend = system.tokenizer, system.settings.extend
        self.window, h, w = self.tokenizer.grid(system.config.frames, *system.config.size)
        self.kept_frames = system.settings.context
        self.kept = self.tokenizer.latents(self.kept_frames)
        if self.kept >= self.window:
            raise UserError(
                f"context={self.kept_frames} leaves nothing new in the {system.config.frames} frames of a window",
                code=2,
            )
        self.history = torch.zeros(videos, 0, h, w, dtype=torch.long, device=system.device)
        self.tail: Tensor | None = None  # the last frames, (B, 3, n, H, W)
        self.passed = 0  # latent slices of the scene so far
        self.whole = True  # whether the history can stand at the start of a window as it is

    def begin_with(self, frames: Tensor) -> None:
        """Go on from given frames (B, 3, n, H, W): all of them, or the last few if they fill a window."""
        if self.tokenizer.latents(frames.shape[2]) >= self.window:
            frames = frames[:, :, -self.kept_frames :]
        self.history = self.tokenizer.tokenize(frames.to(self.history.device))
        self.passed = self.history.shape[1]
        self.tail = frames[:, :, -self.kept_frames :]

    def context(self) -> Tensor:
        """Tokens (B, m, h, w) that the next window starts with."""
        if self.whole or self.extend == "grow":
            return self.history
        if self.extend == "raw":
            return self.history[:, -self.kept :]
        assert self.tail is not None
        return self.tokenizer.tokenize(self.tail.to(self.history.device))

    def place(self, context: Tensor) -> int:
        """The latent slice of the language model's positions at which the context stands."""
        return self.passed - context.shape[1] if self.extend == "grow" else 0

    def latents_for(self, frames: int) -> int:
        """Latent slices of the next window: as many as it has room for, or as `frames` more frames need."""
        have = self.history.shape[1] if self.whole else self.kept
        time = self.tokenizer.config.compression[0]
        needed = -(-frames // time) if have else 1 + -(-(frames - 1) // time)
        return min(self.window - have, needed)

    def add(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Take in the new tokens (B, n, h, w) of a window; returns their frames (B, 3, n', H, W).

        The decoder sees what the language model saw, or, where that was not encoded anew, the tokens themselves in
        their order. The frames of the context are made a second time with it, and cut off.
        """
        seen = context if self.extend == "reencode" else self.history
        both = torch.cat([seen, tokens], 1)
        frames = self.tokenizer.detokenize(both)[:, :, self.tokenizer.frames(seen.shape[1]) :]
        self.history = both[:, -self.window :]
        tail = frames if self.tail is None else torch.cat([self.tail.to(frames), frames], 2)
        self.tail = tail[:, :, -self.kept_frames :].clamp(-1, 1)
        self.passed, self.whole = self.passed + tokens.shape[1], False
        return frames


class Writer:
    """Samples the tokens of windows; under guidance both branches are rows of one pass and share the cache.

    Args:
        system: whose language model and settings are used.
        videos: B.
    """

    def __init__(self, system: Loong, videos: int):
        settings, config = system.settings, system.config
        self.system, self.scale = system, settings.guidance_scale
        self.guided = self.scale != 1 and system.texts is not None
        self.sampling = settings.sampling()
        window, h, w = system.tokenizer.grid(config.frames, *config.size)
        self.area = h * w
        most = len(system.vocabulary.prefix([])) + (system.texts.length if system.texts else 0)
        slices = 2 * window if settings.extend == "grow" else window
        rows, length = videos * (1 + self.guided), most + slices * self.area
        self.decoder = LlamaDecoder(system.lm, rows, length, settings.precision, system.vocabulary.video)

    def __call__(self, texts: list[str], context: Tensor, uniforms: Tensor, place: int = 0) -> Tensor:
        """New codes (B, n) after those of `context` (B, m, h, w).

        Args:
            texts: one a video.
            context: codes the video tokens start with.
            uniforms: (B, n), one number a token.
            place: latent slices by which the positions of video tokens are moved on.
        """
        ids, device = self.system.vocabulary.video, context.device
        rows = self.system.prefixes(texts)
        if self.guided:
            rows += self.system.prefixes(texts, [True] * len(texts))
        prefix, starts = (x.to(device) for x in self.system.vocabulary.aligned(rows))
        given = (context.flatten(1) + ids.start).repeat(1 + self.guided, 1)
        held, count = prefix.shape[1] + given.shape[1], uniforms.shape[1]
        places = torch.arange(held + count, device=device) - starts[:, None]
        places[:, prefix.shape[1] :] += place * self.area
        seen = places >= 0 if starts.any() else None  # nothing sees what fills up a row
        tokens, uniforms = torch.empty(len(texts), count, dtype=torch.long, device=device), uniforms.to(device)
        self.decoder.cache.reset()
        inputs, mask = torch.cat([prefix, given], 1), _prefill_mask(seen, held)
        for i in range(count):
            end = held + i
            new = places[:, end - inputs.shape[1] : end]
            logits = self._guide(self.decoder.extend(inputs, new, mask))
            tokens[:, i] = sample(logits, uniforms[:, i], self.sampling)
            inputs = (tokens[:, i : i + 1] + ids.start).repeat(1 + self.guided, 1)
            mask = None if seen is None else seen[:, None, None, : end + 1]
        return tokens

    def _guide(self, logits: Tensor) -> Tensor:
        """Classifier-free guidance (Ho and Salimans, 2022): logits (R, V) of both branches -> (B, V)."""
        if not self.guided:
            return logits
        told, untold = logits.chunk(2)
        return untold + self.scale * (told - untold)


def _prefill_mask(seen: Tensor | None, count: int) -> Tensor | None:
    """Causal attention that leaves out what fills up a row, (R, 1, n, n); that sees itself, to stay finite."""
    if seen is None:
        return None
    mask = causal_mask(count, 0, seen.device) & seen[:, None, None, :count]
    return mask | torch.eye(count, dtype=torch.bool, device=seen.device)


def count_given(system: Loong, stories: list[Story]) -> int:
    """How many frames a video goes on from: 1 and then whole latent slices; 0 if none are given."""
    given, time = count_first_frames(stories), system.config.tokenizer.compression[0]
    return 1 + (given - 1) // time * time if given else 0


def read_given(system: Loong, stories: list[Story]) -> Tensor | None:
    """The given first frames (B, 3, n, H, W) that a video goes on from, None if there are none."""
    frames = first_frames(stories, system.config.size)
    return None if frames is None else frames[:, :, : count_given(system, stories)]


def _texts(system: Loong, stories: list[Story], labels: Tensor, frame: int) -> list[str]:
    """What is in force at a frame: the prompt, or the class, which is drawn where the story has none."""
    if system.config.lm.condition == "label":
        return [system.info.classes[i] for i in labels_at(stories, labels, frame).tolist()]
    return [found[0] if (found := story.at("prompt", frame)) else "" for story in stories]
