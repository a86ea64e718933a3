"""Original beside reconstruction, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake.data import video
from longtake.data.batch import to_float, to_uint8
from longtake.errors import UserError
from longtake.systems.base import System


def read_clips(path: str | Path, frames: int, size: tuple[int, int]) -> Iterator[tuple[Tensor, int]]:
    """Successive clips (1, 3, frames, H, W) of any video and how many of their frames are real.

    The last clip is filled up with copies of the last frame.
    """
    held: list[np.ndarray] = []
    for frame in video.iterate(path):
        held.append(frame)
        if len(held) == frames:
            yield to_float(video.resize(np.stack(held), size, "crop"))[None], frames
            held = []
    if held:
        filled = np.stack(held + [held[-1]] * (frames - len(held)))
        yield to_float(video.resize(filled, size, "crop"))[None], len(held)


def reconstruct(
    system: System, source: str | Path, output: str | Path, progress: Callable[[int, int], None]
) -> dict[str, float]:
    """Write the original and its reconstruction side by side; the frame rate is the source's.

    Returns:
        psnr (dB, over all frames), frames, codes (different ones used), codebook (codes there are).

    Raises:
        UserError: an unreadable video, or a system without a tokenizer.
    """
    next(system.reconstruct(iter(())), None)  # refuses before anything is read
    info = video.probe(source)
    if Path(output).suffix.lower() != ".mp4" or not Path(output).parent.is_dir():
        raise UserError(f"cannot write {output}: choose a name that ends in .mp4 in a folder that exists", code=2)
    error, frames, codes = 0.0, 0, set()
    with torch.inference_mode(), video.VideoWriter(output, info.fps) as writer:
        clips = read_clips(source, system.config.frames, system.info.size)
        for original, made, tokens, real in system.reconstruct(clips):
            original, made = original[0, :, :real].cpu(), made[0, :, :real].float().cpu().clamp(-1, 1)
            writer.write(np.concatenate([to_uint8(original), to_uint8(made)], 2))
            error += float((original - made).pow(2).mean((0, 2, 3)).sum())
            frames += real
            codes |= set(tokens.unique().tolist())
            progress(frames, max(frames, info.frames))
    psnr = 10 * np.log10(4 / max(error / frames, 1e-10))
    return {"psnr": float(psnr), "frames": frames, "codes": len(codes), "codebook": system.codebook_size}
