"""A streaming last step: enlarge a video while it is being made, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 8
"""Frames enlarged at once, at fixed places of the video; more where the network reaches further."""


class Enlarges(Protocol):
    """A network over clips."""

    factor: int
    reach: int
    """Frames before and after a frame that its enlargement depends on."""

    def __call__(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, 3, T, factor * H, factor * W)."""
        ...


def upscale(chunks: Iterable[Tensor], network: Enlarges, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Enlarge a stream of frames (B, 3, t, H, W) on `device`: the same frames, larger, in [-1, 1], on the CPU.

    Every block is seen with the `reach` real frames on both sides, so it equals enlarging the whole at once within
    rounding; and blocks lie at fixed places, so chunks change no bit.
    """
    block = max(BLOCK, 2 * network.reach)  # what is seen beside it costs as much
    held: Tensor | None = None
    begin = done = 0  # the numbers of the first frame held, and of the first that is not enlarged yet
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk], 2)
        while begin + held.shape[2] >= done + block + network.reach:
            yield _block(held, begin, done, block, network, device)
            done += block
            drop = max(0, done - network.reach - begin)
            held, begin = held[:, :, drop:], begin + drop
    while held is not None and done < begin + held.shape[2]:
        yield _block(held, begin, done, block, network, device)
        done += block


@torch.inference_mode()
def _block(
    held: Tensor, begin: int, done: int, block: int, network: Enlarges, device: torch.device | str
) -> Tensor:
    """The enlarged frames done .. done + block - 1, as far as there are any."""
    first = max(0, done - network.reach)
    seen = held[:, :, first - begin : done + block + network.reach - begin]
    large = network(seen.to(device))[:, :, done - first : done - first + block]
    return large.float().clamp(-1, 1).cpu()
