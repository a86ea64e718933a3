"""Perceptual distances: LPIPS from weight files that the user has, or the features of a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import Tensor, nn

from longtake.errors import UserError
from longtake.nn.perceptual import PerceptualDistance, lpips
from longtake.nn.resnet3d import ResNet3d
from longtake.systems.folder import bundled, load_trainable
from longtake.systems.foreign import WEIGHTS, read_foreign

STILL = 4
"""Frames for which a single frame is held still before a classifier of clips."""


class StillMaps(nn.Module):
    """Feature maps of single frames from a network over clips: (B, 3, H, W) in [-1, 1] -> (B, C, h, w) each."""

    def __init__(self, backbone: ResNet3d):
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> list[Tensor]:
        clip = image.unsqueeze(2).expand(-1, -1, STILL, -1, -1)
        return [maps.mean(2) for maps in self.backbone.maps(clip)]


def load_perceptual(path: Path | str, lpips_scale: float = 1.0) -> PerceptualDistance:
    """A perceptual distance from a classifier of ours (a model folder or a bundled name) or LPIPS weights.

    Args:
        path: where the weights are.
        lpips_scale: factor on images in [-1, 1] before LPIPS.

    Raises:
        UserError: neither of them.
    """
    if str(path) not in bundled() and not (Path(path) / "config.json").is_file():
        return load_lpips(path, lpips_scale)
    model = load_trainable(path)
    if model.name != "classifier":
        raise UserError(f"{path} is a {model.name}; perceptual features come from a classifier or LPIPS weights")
    return PerceptualDistance(StillMaps(cast(ResNet3d, model.networks["classifier"].backbone)))


def load_lpips(path: Path | str, scale: float = 1.0) -> PerceptualDistance:
    """LPIPS on VGG-16 from a file that holds all its weights, or a folder of files that do together.

    A released VQGAN of TATS holds them all; else put torchvision's `vgg16-397923af.pth` and the heads (`vgg.pth` of
    LPIPS or taming-transformers) into one folder. Nothing is downloaded, no code in the files is run.

    Raises:
        UserError: nothing there, a damaged file, or missing weights (named).
    """
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.suffix in WEIGHTS) if path.is_dir() else [path]
    state: dict[str, Tensor] = {}
    for file in files:
        content = read_foreign(file, skip=("optimizer_states", "callbacks"))
        content = content.get("state_dict", content) if isinstance(content, dict) else {}
        entries = content.items() if isinstance(content, dict) else ()
        state |= {k: v for k, v in entries if isinstance(k, str) and isinstance(v, Tensor)}
    try:
        return lpips(state, scale)
    except ValueError as error:
        raise UserError(
            f"{path} does not hold LPIPS on VGG-16 ({error}); "
            "give a folder with torchvision's vgg16 weights and the LPIPS heads, or a VQGAN of TATS"
        ) from error
