"""From clips of 16 frames to a video of any length (thesis Algorithms 2, 5, 7, 8, 10 and 11).

Shapes: B videos; n candidates of a clip; D width of a token. Clip j of a video takes the noise addressed by j,
whatever the chunks and however many candidates there are: the first is what a rollout without rejection makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.rollout.given import count_first_frames, first_frames
from longtake.rollout.labels import draw_labels, labels_at
from longtake.rollout.reject import best_clips
from longtake.rollout.rng import Rng
from longtake.rollout.source import SourceVideo, check_length
from longtake.story import Story
from longtake.systems.recall.latents import CLIP, Codes, LatentSpace
from longtake.systems.recall.planner import MixedPlan, Plan

if TYPE_CHECKING:
    from longtake.systems.recall.system import AR2, R2, R3, ClipGAN, EncGAN3, GoesOn, LEncGAN

DECODED = 32
"""Most clips of a video that are decoded at once when they are planned first."""


def normal_codes(system: ClipGAN, rng: Rng, clip: int, candidates: int = 1, places: int = 1) -> Codes:
    """Codes of noise for clip number `clip`: `candidates` a video, beside each other, `places` long."""
    config = system.config.generator
    content = rng.normal("content", clip, (candidates, config.content))
    motion = rng.normal("motion", clip, (candidates, places, config.motion))
    return Codes(content.flatten(0, 1), motion.flatten(0, 1).transpose(1, 2)).to(system.device)


def one_clip(system: EncGAN3, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """A single clip, from noise or from the beginning of a source video (Algorithm 2).

    A longer one comes from a motion code of more places (Fig. 3.13), each drawn by itself.
    """
    frames = stories[0].frames or 0
    places = max(1, -(-frames // 4) - 3)
    codes = normal_codes(system, rng, 0, places=places)
    if stories[0].source_video is not None:
        space = system.encode(read_source(system, stories, 0, CLIP))
        mean = system.settings.latent == "mean"
        codes = space.at(Codes(0 * codes.content, 0 * codes.motion) if mean else codes)
    yield system.decode(codes)


def read_source(system: ClipGAN, stories: list[Story], start: int, stop: int) -> Tensor:
    """Frames of the stories' source videos: (B, 3, n, H, W) in [-1, 1]."""
    sources = [SourceVideo(story, system.config.size).read(start, stop) for story in stories]
    return torch.stack(sources).to(system.device)


def check_clip(system: ClipGAN, story: Story) -> SourceVideo:
    """The story's source video, which must hold a clip.

    Raises:
        UserError: it does not.
    """
    source = SourceVideo(story, system.config.size)
    if source.frames < CLIP:
        raise UserError(
            f"{source.path} has {source.frames} frames and {system.name} encodes {CLIP} at a time", code=2
        )
    return source


def check_source(system: ClipGAN, story: Story, stride: int) -> None:
    """The source video must hold what the story wants of it, in whole clips.

    Raises:
        UserError: it is too short.
    """
    source = check_clip(system, story)
    check_length(story, source, (source.frames - CLIP) // stride * stride + CLIP, system.name)


class ClipMaker:
    """Decodes latent spaces into clips, one after another; the discriminator chooses among candidates (VDrej).

    The first clip is judged by itself, later ones together with the end of what comes before (Algorithm 8, with 20
    candidates as in the text; "max" there means the clip, not its score).
    """

    def __init__(self, system: R2 | AR2, rng: Rng, before: Tensor | None = None):
        """`before`: the frames (B, 3, t, H, W) that the first clip follows, if any."""
        self.system, self.rng, self.before = system, rng, before
        self.candidates = 1 if system.settings.latent == "mean" else system.settings.candidates

    def noise(self, number: int) -> Tensor:
        """Clip `number` of each video (B, 3, 16, H, W), from noise."""
        return self.choose(self.system.decode(normal_codes(self.system, self.rng, number, self.candidates)))

    def make(self, space: LatentSpace, number: int, begins: tuple[bool, ...] | None = None) -> Tensor:
        """Clip `number` of each video (B, 3, 16, H, W)."""
        return self.choose(self.decode(space, number), begins)

    def decode(self, space: LatentSpace, number: int) -> Tensor:
        """All candidates (B n, 3, 16, H, W) of clip `number`."""
        return self.system.decode(self.codes(space, number))

    def codes(self, space: LatentSpace, number: int) -> Codes:
        """Their codes."""
        if self.system.settings.latent == "mean":
            return space.mean()
        return space.at(normal_codes(self.system, self.rng, number, self.candidates))

    def choose(self, candidates: Tensor, begins: tuple[bool, ...] | None = None) -> Tensor:
        """The best of each video's candidates (B n, ...) -> (B, ...); the next ones are to follow it. Where another
        sequence `begins`, they are judged by themselves (section 5.5.5)."""
        stride = self.system.stride
        score = self.system.networks["video_discriminator"]
        offered = candidates.unflatten(0, (-1, self.candidates))
        clip, _ = best_clips(offered, score, self.before)
        if begins is not None and any(begins):
            alone, _ = best_clips(offered, score)
            clip = torch.where(torch.tensor(begins, device=clip.device).view(-1, 1, 1, 1, 1), alone, clip)
        self.before = clip[:, :, stride - min(CLIP // 2, stride) : stride]
        return clip


def recall(system: R2, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Clip by clip along a source video; the beginning of each stays, of the source's last clip all (Algorithm 7).

    The algorithm's count of clips leaves one out of short videos, and its order of tests cuts a single clip in
    half; here every whole clip of the source counts.
    """
    size, stride = system.config.size, system.stride
    sources = [SourceVideo(story, size) for story in stories]
    lasts = [(source.frames - CLIP) // stride for source in sources]
    maker, made = ClipMaker(system, rng), None
    for number in range(max(lasts) + 1):
        starts = [min(number, last) * stride for last in lasts]
        clip = torch.stack([s.read(start, start + CLIP) for s, start in zip(sources, starts, strict=True)])
        fresh = maker.make(system.encode(clip.to(system.device)), number)
        if (
            made is not None
        ):  # a shorter source has ended: what its last clip has left, then nothing anyone asks for
            ended = torch.tensor([number > last for last in lasts], device=fresh.device).view(-1, 1, 1, 1, 1)
            fresh = torch.where(ended, made.roll(-stride, 2), fresh)
        made = fresh
        yield made[:, :, :stride]
    if made is not None:
        yield made[:, :, stride:]


def chain(system: LEncGAN, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Clips that share a frame, each encoded from the states of the one before (Algorithm 5); shared frames are
    shown as the earlier clip has them."""
    sources = [SourceVideo(story, system.config.size) for story in stories]
    state, stride = None, CLIP - 1
    for number in range((min(source.frames for source in sources) - CLIP) // stride + 1):
        clip = torch.stack([s.read(number * stride, number * stride + CLIP) for s in sources])
        space, state = system.encode_after(clip.to(system.device), state)
        codes = space.mean() if system.settings.latent == "mean" else space.at(normal_codes(system, rng, number))
        yield system.decode(codes)[:, :, min(number, 1) :]


def count_given(system: GoesOn, stories: list[Story]) -> int:
    """How many given frames a video shows: all but the last half clip, which is re-created (Algorithm 11).

    Raises:
        UserError: fewer than a clip of them, or more than the video is to have.
    """
    count = count_first_frames(stories)
    if count and count < CLIP:
        text = f"{stories[0].first_frames} gives {count} frames and {system.name} goes on from a clip of {CLIP}"
        raise UserError(f"{text}; give {CLIP} or more", code=2)
    return max(0, count - system.stride)


def predict(system: AR2, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Every clip from the one before, the first from noise or given (Algorithm 10).

    The algorithm never moves on with `prev_clip`, and leaves the last clip out; both are mended.
    """
    given, stride = first_frames(stories, system.config.size), system.stride
    if given is None:
        maker = ClipMaker(system, rng)
        clip = maker.noise(0)
        yield clip[:, :, :stride]
    else:
        given = given.to(system.device)
        clip = given[:, :, -CLIP:]
        maker = ClipMaker(system, rng, clip[:, :, :stride])
        yield given[:, :, :-stride]
    number = 0
    while True:  # until no more is asked for
        number += 1
        clip = maker.make(system.encode(clip), number)
        yield clip[:, :, :stride]


def planned(system: R3, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Given frames, then clips of planned latent spaces (Algorithm 11, or planned first: section 5.5.5)."""
    given, stride = first_frames(stories, system.config.size), system.stride
    assert given is not None  # R3 requires them
    given = given.to(system.device)
    tokens = encode_sequence(system, given[:, :, (given.shape[2] - CLIP) % stride :])
    maker = ClipMaker(system, rng, given[:, :, -CLIP:-stride])
    mixed = system.config.planner.format == "mixed"
    plan = _Plans(system, stories, tokens, rng) if mixed else Plan(system.planner, tokens)
    yield given[:, :, :-stride]
    if system.settings.rollout == "robust":
        yield from _robust(system, plan, maker)
    else:
        yield from _faster(system, plan, maker, (stories[0].frames or 0) - given.shape[2] + stride)


def encode_sequence(system: R3, frames: Tensor) -> Tensor:
    """Frames (B, 3, 8 (n + 1), H, W) -> tokens (B, n, D) of the clips that begin every 8 frames."""
    starts = range(0, frames.shape[2] - CLIP + 1, system.stride)
    return torch.stack([system.encode(frames[:, :, i : i + CLIP]).token() for i in starts], 1)


class _Plans:
    """Plans of single videos, as one, each clip under the class that is in force where it begins."""

    def __init__(self, system: R3, stories: list[Story], tokens: Tensor, rng: Rng):
        self.stories, self.stride = stories, system.stride
        self.frame = count_given(system, stories)
        counts, classes = system.info.class_counts, len(system.info.classes)
        self.drawn = draw_labels(rng, counts, classes) if classes else torch.full((len(stories),), -1)
        told = zip(tokens.split(1), self._labels(), rng.seeds, strict=True)
        self.plans = [MixedPlan(system.planner, own, label, seed) for own, label, seed in told]
        self.begins: tuple[bool, ...] | None = None

    def _labels(self) -> list[int]:
        return labels_at(self.stories, self.drawn, self.frame).tolist()

    def next(self) -> Tensor:
        for plan, label in zip(self.plans, self._labels(), strict=True):
            plan.label = label
        self.frame += self.stride
        tokens = torch.cat([plan.next() for plan in self.plans])
        self.begins = tuple(plan.begins for plan in self.plans)
        return tokens

    def append(self, token: Tensor) -> None:
        for plan, one in zip(self.plans, token.split(1), strict=True):
            plan.append(one)


def _robust(system: R3, plan: Plan | _Plans, maker: ClipMaker) -> Iterator[Tensor]:
    """Plan a clip, decode, choose, and go on from the latent space of what was chosen."""
    number = 0
    while True:
        number += 1
        space = system.space_of(plan.next())
        clip = maker.make(space, number, plan.begins)
        yield clip[:, :, : system.stride]
        plan.append(system.encode(clip).token())


def _faster(system: R3, plan: Plan | _Plans, maker: ClipMaker, frames: int) -> Iterator[Tensor]:
    """Plan on from plans alone and decode clips together, until there are `frames`. A few clips at a time, so that
    memory stays bounded: what is planned does not depend on what is decoded."""
    together = max(1, DECODED // maker.candidates)
    number, clips = 0, max(1, -(-frames // system.stride))
    while number < clips:
        codes, begins = [], []
        for _ in range(min(together, clips - number)):
            number += 1
            token = plan.next()
            plan.append(token)
            codes.append(maker.codes(system.space_of(token), number))
            begins.append(plan.begins)
        made = system.decode(Codes.cat(codes)).split(len(codes[0].content))
        chosen = [maker.choose(*one)[:, :, : system.stride] for one in zip(made, begins, strict=True)]
        yield torch.cat(chosen, 2)
