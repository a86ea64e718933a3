"""From a 16-frame model to a video of any length: the sliding window of TATS (paper section 2.1).

Shapes: B videos; t h w token grid of a training clip; s = h*w tokens a latent slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.rollout.engine import Decoder, fill_between, generate_tokens
from longtake.rollout.rng import Rng
from longtake.rollout.sampling import SamplingSettings
from longtake.story import Story
from longtake.systems.tats.config import TATSSettings
from longtake.systems.tats.vqgan import WindowedDecoder

if TYPE_CHECKING:
    from longtake.systems.tats.system import TATS


def sliding_window(system: TATS, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Frames (B, 3, n, H, W) as their latent slices become decodable."""
    decoder = WindowedDecoder(system.vqgan, system.decode_window)
    slices = latent_slices(system, stories, rng)
    for part in slices if system.config.every == 1 else with_between(system, stories, rng, slices):
        yield decoder.push(part)
    yield decoder.flush()


def latent_slices(system: TATS, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Tokens (B, n, h, w) of the prior, window by window, enough for the stories' frames.

    The first window holds keep + new slices; each further one starts with the last `keep` slices, at the
    positions 0..keep-1 of the transformer, and adds `new`. Slice j of a video takes the uniform numbers of its
    tokens' absolute positions, so a window's noise does not depend on how the windows fall.
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
    prior = Decoder(system.prior, len(stories), settings.precision, settings.compile)
    labels = _prior_labels(system, rng)
    context = torch.zeros(len(stories), 0, dtype=torch.long, device=system.device)
    done = 0
    while done < total:
        count = settings.new if done else keep + settings.new
        condition = _condition(system, stories, labels, done * config.every)
        uniforms = rng.uniform("token", range(done * h * w, (done + count) * h * w)).to(system.device)
        prefix = torch.cat([condition, context], 1)
        sampling = _sampling(settings, first=not done)
        tokens = generate_tokens(prior, prefix, count * h * w, uniforms, sampling, _codes(system))
        context = torch.cat([context, tokens], 1)[:, -keep * h * w :]
        yield (tokens - system.offset).view(len(stories), count, h, w)
        done += count


def with_between(system: TATS, stories: list[Story], rng: Rng, sparse: Iterator[Tensor]) -> Iterator[Tensor]:
    """Tokens (B, n, h, w) of all slices, from those that are `every` apart (paper section 2.3).

    Both ends of a segment are taken in once, then its tokens follow one another.
    """
    settings, every = system.settings, system.config.every
    interpolator = Decoder(system.interpolator, len(stories), settings.precision, settings.compile)
    labels, sampling = _prior_labels(system, rng), _sampling(settings, first=False)
    before: Tensor | None = None
    segment = 0
    for slices in sparse:
        for after in slices.unbind(1):  # (B, h, w)
            if before is None:
                yield after[:, None]
            else:
                count = (every - 1) * after[0].numel()
                condition = _condition(system, stories, labels, segment * every + 1)
                ends = [x.flatten(1) + system.offset for x in (before, after)]
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


def _sampling(settings: TATSSettings, first: bool) -> SamplingSettings:
    """How tokens are chosen, in the first window or later."""
    top_k = settings.first_top_k if first and settings.first_top_k is not None else settings.top_k
    top_p = settings.first_top_p if first and settings.first_top_p is not None else settings.top_p
    return SamplingSettings(settings.temperature, top_k, top_p)


def _codes(system: TATS) -> range:
    """The video's ids of the joint vocabulary."""
    return range(system.offset, system.offset + system.config.vqgan.codes)


def _condition(system: TATS, stories: list[Story], labels: Tensor, first_slice: int) -> Tensor:
    """What stands before the tokens of a window whose first new latent slice is given."""
    return system.condition_tokens(_labels_at(system, stories, labels, first_slice)).to(system.device)


def _labels_at(system: TATS, stories: list[Story], labels: Tensor, first_slice: int) -> Tensor:
    """Class (B,) in force at the first new frame of a window; drawn from the prior where the story has none."""
    frame = first_slice * system.config.vqgan.compression[0]
    told = torch.cat([story.window(frame, 1)["label"][:, 0] for story in stories])
    return torch.where(told < 0, labels, told)


def _prior_labels(system: TATS, rng: Rng) -> Tensor:
    """One class (B,) a video from the training library's class frequencies (paper section 3.2)."""
    if system.config.prior.condition != "label":
        return torch.zeros(len(rng.seeds), dtype=torch.long)
    counts = torch.tensor(system.info.class_counts or [1] * len(system.info.classes), dtype=torch.float64)
    edges = (counts / counts.sum()).cumsum(0)
    drawn = torch.searchsorted(edges, rng.uniform("label", 0).double(), right=True)
    return drawn.clamp_max(len(counts) - 1)
