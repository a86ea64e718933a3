"""From a 16-frame model to a video of any length: the sliding window of TATS (paper section 2.1).

Shapes: B videos; t h w token grid of a training clip; s = h*w tokens a latent slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.rollout.cuts import common_cuts
from longtake.rollout.engine import Decoder, fill_between, generate_tokens
from longtake.rollout.given import count_first_frames, first_frames
from longtake.rollout.labels import draw_labels, labels_at
from longtake.rollout.rng import Rng
from longtake.rollout.sampling import SamplingSettings
from longtake.rollout.sound import sound_of
from longtake.story import Story
from longtake.systems.tats.vqgan import WindowedDecoder

if TYPE_CHECKING:
    from longtake.systems.tats.system import TATS


def sliding_window(system: TATS, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Frames (B, 3, n, H, W) as their latent slices become decodable; given frames come back as they were given."""
    decoder = WindowedDecoder(system.vqgan, system.decode_window)
    frames = read_given(system, stories)
    known = None if frames is None else _slices_of(system, frames)
    slices = latent_slices(system, stories, rng, known)
    if system.config.every > 1:
        slices = with_between(system, stories, rng, slices, known)
    held = 0 if known is None else known.shape[1]
    every = system.config.every
    cuts = [cut * every for cut in _cuts(stories, system.config.vqgan.compression[0] * every)]
    done = 0
    for chunk in _decoded(decoder, slices, [cut for cut in cuts if cut >= held]):
        if frames is not None and done < frames.shape[2]:
            count = min(chunk.shape[2], frames.shape[2] - done)
            chunk = torch.cat([frames[:, :, done : done + count].to(chunk), chunk[:, :, count:]], 2)
        done += chunk.shape[2]
        yield chunk


def _decoded(decoder: WindowedDecoder, slices: Iterator[Tensor], cuts: list[int]) -> Iterator[Tensor]:
    """Frames; at the slices `cuts` the decoder begins anew, so that it sees nothing across them."""
    done = 0
    for part in slices:
        inside = [cut - done for cut in cuts if done < cut < done + part.shape[1]]
        for scene in part.tensor_split(inside, 1):
            if done in cuts:
                yield decoder.flush()
            yield decoder.push(scene)
            done += scene.shape[1]
    yield decoder.flush()


def count_given(system: TATS, stories: list[Story]) -> int:
    """How many frames a video goes on from; 0 if none are given."""
    return _usable(system, count_first_frames(stories))


def read_given(system: TATS, stories: list[Story]) -> Tensor | None:
    """The given first frames (B, 3, n, H, W) that a video goes on from, None if there are none."""
    frames = first_frames(stories, system.config.size)
    if frames is None:
        return None
    count = _usable(system, frames.shape[2])
    missing = max(0, count - frames.shape[2])
    return torch.cat([frames[:, :, :count], frames[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)


def _usable(system: TATS, given: int) -> int:
    """Frames of whole latent slices after which a prior can go on.

    Those left over after the last one are dropped, a picture or less than a slice is shown for a slice. A sparse
    prior goes on from every `every`-th slice only.
    """
    factor, every = system.config.vqgan.compression[0], system.config.every
    return factor * (1 + (max(given, factor) // factor - 1) // every * every) if given else 0


def _slices_of(system: TATS, frames: Tensor) -> Tensor:
    """Tokens (B, m, h, w) of given frames; copies stand in where real frames are wanted as padding."""
    before, after = system.vqgan.extra_frames()
    padded = torch.cat([frames[:, :, :1]] * before + [frames] + [frames[:, :, -1:]] * after, 2)
    return system.vqgan.tokenize(padded.to(system.device))


def latent_slices(system: TATS, stories: list[Story], rng: Rng, known: Tensor | None = None) -> Iterator[Tensor]:
    """Tokens (B, n, h, w) of the prior, window by window, enough for the stories' frames.

    They start with those of `known` (B, m, h, w), the slices of given frames, that the prior deals with.

    The first window holds keep + new slices; each further one starts with the last `keep` slices, at the
    positions 0..keep-1 of the transformer, and adds `new`. Slice j of a video takes the uniform numbers of its
    tokens' absolute positions, so a window's noise does not depend on how the windows fall. Where a story cuts, a
    first window begins.
    """
    settings, config = system.settings, system.config
    t, h, w = config.grid
    keep = t - 1 if settings.keep is None else settings.keep
    if not 1 <= keep < t or not 1 <= settings.new <= t - keep:
        raise UserError(
            f"keep={keep} and new={settings.new} must be at least 1 and fit the {t} slices of a window", code=2
        )
    total = -(-(stories[0].frames or 0) // config.vqgan.compression[0])
    total = -(-(total - 1) // config.every) + 1
    cuts = _cuts(stories, config.vqgan.compression[0] * config.every)
    prior = Decoder(system.prior, len(stories), settings.precision, settings.compile)
    labels = _prior_labels(system, rng)
    heard = _sounds(system, stories)
    context = torch.zeros(len(stories), 0, h, w, dtype=torch.long, device=system.device)
    done = 0
    if known is not None:
        start = known[:, :: config.every]
        context, done = start + system.offset, start.shape[1]
        yield start
    first = known is None
    while done < total:
        if done in cuts:
            context, first = context[:, :0], True
        context = context[:, -keep:]
        held = context.shape[1]
        count = min([keep + settings.new - held, total - done, *(cut - done for cut in cuts if cut > done)])
        if heard is None:
            condition = _condition(system, stories, labels, done * config.every)
        else:
            condition = _heard(system, heard, done - held)
        uniforms = rng.uniform("token", range(done * h * w, (done + count) * h * w)).to(system.device)
        uniforms = uniforms.view(len(stories), count, h, w)
        tokens = _new_slices(system, prior, condition, context, uniforms, settings.sampling(first))
        context = torch.cat([context, tokens], 1)
        yield tokens - system.offset
        done, first = done + count, False


def _cuts(stories: list[Story], frames: int) -> list[int]:
    """Numbers of the slices, `frames` apart, with which new scenes begin: no earlier than the story says."""
    return [-(-cut // frames) for cut in common_cuts(stories)]


def _new_slices(
    system: TATS, prior: Decoder, condition: Tensor, context: Tensor, uniforms: Tensor, sampling: SamplingSettings
) -> Tensor:
    """The slices (B, n, h, w) after those of `context` (B, m, h, w), in ids of the joint vocabulary.

    A prior that sees crops goes over a slice from left to right and from top to bottom, half a crop at a time: each
    crop keeps the tokens that an earlier one made. (The released script moves the crop for every token.)
    """
    h, w = system.crop
    tokens = torch.full_like(uniforms, -1, dtype=torch.long)
    for row in _starts(system.config.grid[1], h):
        for column in _starts(system.config.grid[2], w):
            crop = (..., slice(row, row + h), slice(column, column + w))
            if system.config.prior.crop:
                prior.move(system.prior.crop_positions((row, column), system.crop, system.condition_length))
            prefix = torch.cat([condition, context[crop].flatten(1)], 1)
            noise, known = uniforms[crop].flatten(1), tokens[crop].flatten(1)
            known = known if (known >= 0).any() else None
            made = generate_tokens(prior, prefix, noise.shape[1], noise, sampling, _codes(system), known)
            tokens[crop] = made.view_as(tokens[crop])
    return tokens


def _starts(whole: int, part: int) -> list[int]:
    """Where parts of a length begin that cover the whole and overlap by half."""
    return [*range(0, whole - part, max(1, part // 2)), whole - part]


def with_between(
    system: TATS, stories: list[Story], rng: Rng, sparse: Iterator[Tensor], known: Tensor | None = None
) -> Iterator[Tensor]:
    """Tokens (B, n, h, w) of all slices, from those that are `every` apart (paper section 2.3).

    Both ends of a segment are taken in once, then its tokens follow one another. Segments within `known`, the
    slices of given frames, stay as they are. Before a cut the old scene goes on, between its last slice and itself.
    """
    settings, every = system.settings, system.config.every
    interpolator = Decoder(system.interpolator, len(stories), settings.precision, settings.compile)
    labels, sampling = _prior_labels(system, rng), settings.sampling(first=False)
    cuts = _cuts(stories, system.config.vqgan.compression[0] * every)
    before: Tensor | None = None
    segment = 0
    for slices in sparse:
        for after in slices.unbind(1):  # (B, h, w)
            inside = slice(segment * every + 1, (segment + 1) * every + 1)
            if before is None:
                yield after[:, None]
            elif known is not None and inside.stop <= known.shape[1]:
                yield known[:, inside]
                segment += 1
            else:
                count = (every - 1) * after[0].numel()
                cut = segment + 1 in cuts
                condition = _condition(system, stories, labels, segment * every + (not cut))
                aim = before if cut else after
                ends = [x.flatten(1) + system.offset for x in (before, aim)]
                tokens = fill_between(
                    interpolator,
                    torch.cat([condition, ends[0]], 1),
                    ends[1],
                    count,
                    rng.uniform("between", range(segment * count, (segment + 1) * count)).to(system.device),
                    sampling,
                    _codes(system),
                    settings.official_quirk,
                )
                middle = (tokens - system.offset).view(len(stories), every - 1, *after.shape[1:])
                yield torch.cat([middle, after[:, None]], 1)
                segment += 1
            before = after


def _sounds(system: TATS, stories: list[Story]) -> Tensor | None:
    """What is heard in each story (B, T, S), None if the prior does not listen."""
    samples = system.info.samples_per_frame
    if system.sound is None or samples is None:
        return None
    return torch.stack([torch.from_numpy(sound_of(story, samples)) for story in stories])


def _heard(system: TATS, sounds: Tensor, first_slice: int) -> Tensor:
    """Tokens of what is heard during a window (section 2.3: both windows slide together); silence after the end."""
    start = first_slice * system.config.vqgan.compression[0]
    part = sounds[:, start : start + system.config.frames]
    padded = torch.nn.functional.pad(part, (0, 0, 0, system.config.frames - part.shape[1]))
    return system.sound_tokens(padded.to(system.device))


def _codes(system: TATS) -> range:
    """The video's ids of the joint vocabulary."""
    return range(system.offset, system.offset + system.config.vqgan.codes)


def _condition(system: TATS, stories: list[Story], labels: Tensor, first_slice: int) -> Tensor:
    """What stands before the tokens of a window whose first new latent slice is given."""
    frame = first_slice * system.config.vqgan.compression[0]
    prompts = [found[0] if (found := story.at("prompt", frame)) else "" for story in stories]
    return system.condition_tokens(labels_at(stories, labels, frame), prompts).to(system.device)


def _prior_labels(system: TATS, rng: Rng) -> Tensor:
    """One class (B,) a video from the training library's class frequencies (paper section 3.2)."""
    if system.config.prior.condition != "label":
        return torch.zeros(len(rng.seeds), dtype=torch.long)
    return draw_labels(rng, system.info.class_counts, len(system.info.classes))
