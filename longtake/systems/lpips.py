"""LPIPS from weight files that the user has."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from longtake.errors import UserError
from longtake.nn.perceptual import PerceptualDistance, lpips
from longtake.systems.foreign import read_foreign

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")


def load_lpips(path: Path | str) -> PerceptualDistance:
    """LPIPS on VGG-16 from a file that holds all its weights, or a folder of files that do together.

    A released VQGAN of TATS holds them all; else put torchvision's `vgg16-397923af.pth` and the heads (`vgg.pth` of
    LPIPS or taming-transformers) into one folder. Nothing is downloaded, no code in the files is run.

    Raises:
        UserError: nothing there, a damaged file, or missing weights (named).
    """
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
    state: dict[str, Tensor] = {}
    for file in files:
        content = read_foreign(file, skip=("optimizer_states", "callbacks"))
        content = content.get("state_dict", content) if isinstance(content, dict) else {}
        entries = content.items() if isinstance(content, dict) else ()
        state |= {k: v for k, v in entries if isinstance(k, str) and isinstance(v, Tensor)}
    try:
        return lpips(state)
    except ValueError as error:
        raise UserError(
            f"{path} does not hold LPIPS on VGG-16 ({error}); "
            "give a folder with torchvision's vgg16 weights and the LPIPS heads, or a VQGAN of TATS"
        ) from error
