"""From logits to tokens: temperature, top-k, top-p, one given uniform number a token.

The order is that of the TATS official code (`top_k_top_p_filtering`): logits / temperature, top-k, nucleus
(Holtzman et al., ICLR 2020), softmax, draw. Two differences, both deliberate: `top_p` works without `top_k`
(the official sampler skips its filter then), and the draw inverts the distribution at a number the caller
gives, so that a token's noise has an address (`longtake.rollout.rng`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingSettings:
    """How a token is drawn from logits.

    Attributes:
        temperature: divides the logits; above 0. Below 1 is more cautious.
        top_k: only the k most likely tokens can be drawn; 0 turns it off, 1 is greedy.
        top_p: of those, only the most likely ones up to and including the one with which their summed
            probability exceeds p; 1 turns it off.
    """

    temperature: float = 1.0
    top_k: int = 2048
    top_p: float = 0.92

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature} but must be above 0; use top_k=1 for greedy")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k} but must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p} but must be above 0 and at most 1 (off)")


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set the logits that must not be drawn to -inf; the reference that `sample` is tested against.

    Args:
        logits: (B, V).
        top_k: keep logits at least as large as the k-th, so ties with it stay; <= 0: off.
        top_p: then keep the most likely tokens up to and including the one that crosses p; >= 1: off.

    Returns:
        (B, V), a new tensor.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, ids = logits.sort(descending=True)
        cumulative = ordered.softmax(-1).cumsum(-1)
        before = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative[:, :-1]], -1)
        removed = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, before > top_p)
        logits = logits.masked_fill(removed, -torch.inf)
    return logits


def sample(logits: Tensor, uniform: Tensor, settings: SamplingSettings) -> Tensor:
    """Draw one token a row: the filtered distribution, most likely token first, inverted at `uniform`.

    Only the top-k values are touched, never a sorted vocabulary (unless top_k is off). Exactly k tokens stay
    where several are equal to the k-th; otherwise the distribution is that of `filter_logits`.

    Args:
        logits: (B, V), floating.
        uniform: (B,) in [0, 1), one number a token.
        settings: temperature, top-k and top-p.

    Returns:
        (B,) int64 in [0, V).
    """
    size = logits.shape[-1]
    k = min(settings.top_k or size, size)
    if k == 1:
        return logits.argmax(-1)
    ordered, ids = _most_likely(logits, k)
    cumulative = (ordered / settings.temperature).softmax(-1, torch.float32).cumsum(-1)
    if settings.top_p < 1:
        threshold = cumulative.new_full((len(logits), 1), settings.top_p)
        last = torch.searchsorted(cumulative, threshold, right=True).clamp_max_(k - 1)
    else:
        last = ids.new_full((len(logits), 1), k - 1)
    target = uniform.to(cumulative).unsqueeze(1) * cumulative.gather(1, last)
    choice = torch.searchsorted(cumulative, target, right=True).minimum(last)
    return ids.gather(1, choice).squeeze(1)


def _most_likely(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits (B, k), largest first, and their ids.

    numpy's vectorised partition and sort take a quarter of the time of `torch.topk` on a CPU.
    """
    if logits.device.type != "cpu":
        return logits.topk(k)
    values = logits.float().numpy()
    ids = np.argpartition(values, -k, axis=1)[:, -k:]
    order = np.take_along_axis(values, ids, 1).argsort(1)[:, ::-1]
    ids = torch.from_numpy(np.take_along_axis(ids, order, 1))
    return logits.gather(1, ids), ids
