"""From a 16-frame model to a video of any length: the sliding window of TATS (paper section 2.1).

Shapes: B videos; t h w token grid of a training clip; s = h*w tokens a latent slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.rollout.engine import Decoder, generate_tokens
from longtake.rollout.rng import Rng
from longtake.rollout.sampling import SamplingSettings
from longtake.story import Story
from longtake.systems.tats.vqgan import WindowedDecoder

if TYPE_CHECKING:
    from longtake.systems.tats.system import TATS


def sliding_window(system: TATS, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Frames (B, 3, n, H, W) as their latent slices become decodable."""
    decoder = WindowedDecoder(system.vqgan, system.decode_window)
    for slices in latent_slices(system, stories, rng):
        yield decoder.push(slices)
    yield decoder.flush()


def latent_slices(system: TATS, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Tokens (B, n, h, w), window by window, enough for the stories' frames.

    The first window holds keep + new slices; each further one starts with the last `keep` slices, at the
    positions 0..keep-1 of the transformer, and adds `new`. Slice j of a video takes the uniform numbers of its
    tokens' absolute positions, so a window's noise does not depend on how the windows fall.
    """
    settings = system.settings
    t, h, w = system.config.grid
    keep = t - 1 if settings.keep is None else settings.keep
    if not 1 <= keep < t or not 1 <= settings.new <= t - keep:
        raise UserError(
            f"keep={keep} and new={settings.new} must be at least 1 and fit the {t} slices of a window", code=2
        )
    total = -(-(stories[0].frames or 0) // system.config.vqgan.compression[0])
    sampling = SamplingSettings(settings.temperature, settings.top_k, settings.top_p)
    prior = Decoder(system.prior, len(stories), settings.precision, settings.compile)
    ids = range(system.offset, system.offset + system.config.vqgan.codes)
    device = system.device
    labels = _prior_labels(system, rng)
    context = torch.zeros(len(stories), 0, dtype=torch.long, device=device)
    done = 0
    while done < total:
        count = settings.new if done else keep + settings.new
        condition = system.condition_tokens(_labels_at(system, stories, labels, done)).to(device)
        uniforms = rng.uniform("token", range(done * h * w, (done + count) * h * w)).to(device)
        prefix = torch.cat([condition, context], 1)
        tokens = generate_tokens(prior, prefix, count * h * w, uniforms, sampling, ids)
        context = torch.cat([context, tokens], 1)[:, -keep * h * w :]
        yield (tokens - system.offset).view(len(stories), count, h, w)
        done += count


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
