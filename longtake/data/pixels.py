"""Whole pictures: resizing them and laying them out; use it through `longtake.data.video`."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F


def contact_sheet(frames: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Lay uint8 (n, H, W, 3) frames out in rows on white: uint8 (H', W', 3)."""
    n, height, width, _ = frames.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = frame
    return sheet


def resize(
    frames: np.ndarray, size: tuple[int, int], mode: Literal["crop", "letterbox", "stretch"] = "crop"
) -> np.ndarray:
    """Resize with an antialiasing (triangle) filter.

    Args:
        frames: uint8 (n, H, W, 3).
        size: (height, width) of the result.
        mode: `crop` keeps the centre, `letterbox` keeps everything between black bars, `stretch` keeps
            everything and changes the proportions.
    """
    height, width = frames.shape[1:3]
    scale = (max if mode == "crop" else min)(size[0] / height, size[1] / width)
    inner = size
    if mode == "crop":
        h, w = min(height, max(1, round(size[0] / scale))), min(width, max(1, round(size[1] / scale)))
        top, left = (height - h) // 2, (width - w) // 2
        frames = frames[:, top : top + h, left : left + w]
    elif mode == "letterbox":
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    if frames.shape[1:3] != inner:
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        pixels = F.interpolate(pixels, inner, mode="bilinear", antialias=True, align_corners=False)
        frames = pixels.permute(0, 2, 3, 1).numpy()
    if inner != size:
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        below, right = size[0] - inner[0] - top, size[1] - inner[1] - left
        frames = np.pad(frames, ((0, 0), (top, below), (left, right), (0, 0)))
    return np.ascontiguousarray(frames)
