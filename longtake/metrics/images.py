"""Frame against frame: PSNR, SSIM, colour histograms.

Frames are uint8 (T, H, W, 3) or float in [0, 1]; results in float64, a number a frame.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def _unit(frames: np.ndarray) -> np.ndarray:
    return frames / 255.0 if frames.dtype == np.uint8 else np.asarray(frames, np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each frame, range 1: (T,). Equal frames give infinity."""
    error = ((_unit(a) - _unit(b)) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def ssim(a: np.ndarray, b: np.ndarray, window: str = "uniform7", data_range: float = 1.0) -> np.ndarray:
    """Structural similarity of each frame, mean over channels: (T,) (Wang et al., 2004; K1 0.01, K2 0.03).

    Args:
        a, b: (T, H, W, 3).
        window: "uniform7", 7x7 and sample covariance, which is scikit-image's default and what most code
            reports; or "gauss11", Gaussian of sigma 1.5 and population covariance, which is the paper's.
        data_range: 1 for frames in [0, 1]. The evaluation script of CCVS got 2 from an old scikit-image, which
            makes its SSIM too high: 2 gives that figure.
    """
    if window == "uniform7":
        taps = torch.full((7,), 1 / 7, dtype=torch.float64)
        correction = 49 / 48
    elif window == "gauss11":
        taps = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=torch.float64) / 1.5) ** 2)
        taps, correction = taps / taps.sum(), 1.0
    else:
        raise ValueError(f"window is {window!r} but must be uniform7 or gauss11")
    x, y = (torch.from_numpy(_unit(v)).permute(0, 3, 1, 2) for v in (a, b))

    def mean(image: torch.Tensor) -> torch.Tensor:
        n = len(taps)
        flat = image.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, taps.view(1, 1, n, 1)), taps.view(1, 1, 1, n)).unflatten(0, image.shape[:2])

    mx, my = mean(x), mean(y)
    vx, vy = correction * (mean(x * x) - mx * mx), correction * (mean(y * y) - my * my)
    vxy = correction * (mean(x * y) - mx * my)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.flatten(1).mean(1).numpy()


def histogram_correlation(a: np.ndarray, b: np.ndarray, bins: int = 64, joint: bool = False) -> np.ndarray:
    """Pearson correlation of the colour histograms of frames a[i] and b[i]: (T,).

    TATS (Tab. 2) does not give its bins; 64 a channel, averaged over the channels, is ours.

    Args:
        a, b: uint8 (T, H, W, 3).
        bins: a channel, over [0, 256).
        joint: one histogram of bins^3 cells instead of one a channel.
    """
    return np.array([_correlation(x, y, bins, joint) for x, y in zip(a, b, strict=True)])


def _correlation(a: np.ndarray, b: np.ndarray, bins: int, joint: bool) -> float:
    def histograms(frame: np.ndarray) -> list[np.ndarray]:
        cell = frame.reshape(-1, 3).astype(np.int64) * bins // 256
        if joint:
            cell = cell @ np.array([bins * bins, bins, 1])
            return [np.bincount(cell, minlength=bins**3)]
        return [np.bincount(cell[:, c], minlength=bins) for c in range(3)]

    values = [_pearson(x, y) for x, y in zip(histograms(a), histograms(b), strict=True)]
    return float(np.mean(values))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 1.0
