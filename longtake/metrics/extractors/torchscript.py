"""Networks that come as TorchScript, with their own code inside.

A TorchScript file is a program: use only those whose source you trust. (PyTorch runs it in an interpreter of its
own that cannot import Python modules; longtake loads such files here and nowhere else.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longtake.errors import UserError
from longtake.metrics.extractors.base import Features, as_video, file_hash


@dataclass(frozen=True)
class Call:
    """How a family of files is called."""

    name: str
    """In results."""
    preprocessing: str
    """In words."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the call."""
    signed: bool = False
    """Takes [-1, 1] instead of 0..255."""
    images: bool = False
    """Takes (N, 3, H, W) instead of (N, 3, T, H, W)."""
    least: int = 1
    most: int | None = None
    probabilities: bool = False
    """What it returns are class probabilities."""


CALLS = {
    "i3d-torchscript": Call(
        "i3d-k400-torchscript",
        "0..255 given; the file rescales to [-1, 1] and resizes to 224x224",
        {"rescale": True, "resize": True, "return_features": True},
        least=9,
    ),
    "c3d": Call("c3d-ucf101", "0..255 given; the file does the rest", least=16, most=16, probabilities=True),
    "inception-torchscript": Call(
        "inception-2015-torchscript",
        "0..255 given; the file resizes to 299x299",
        {"return_features": True},
        images=True,
        most=1,
    ),
    "torchscript": Call("torchscript", "[-1, 1], size as it is", signed=True),
}
"""i3d-torchscript: the detector of StyleGAN-V (`i3d_torchscript.pt`). c3d: its `c3d_ucf101.pt`, the class
probabilities of TGANv2's network for the inception score. inception-torchscript: `inception-2015-12-05.pt` of
StyleGAN2-ADA. torchscript: a user's own, (N, 3, T, H, W) -> (N, D), or (features, class probabilities)."""


def load_script(path: str | Path, device: torch.device) -> Any:
    """A TorchScript network in evaluation mode.

    Raises:
        UserError: it is not a TorchScript file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is not a TorchScript file ({first})", code=2) from None


class TorchScriptExtractor:
    """A TorchScript file, called as its family wants.

    Raises:
        UserError: not a TorchScript file, or it fails on a clip.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, path: str | Path, device: torch.device, family: str):
        self.path, self.device, self.call = Path(path), device, CALLS[family]
        self.network = load_script(path, device)
        self.name = self.call.name if family != "torchscript" else self.path.stem
        self.hash, self.dim = file_hash(path), None
        self.preprocessing, self.least, self.most = self.call.preprocessing, self.call.least, self.call.most

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Features:
        video = as_video(clips, self.device)
        if self.call.signed:
            video = video.div_(127.5).sub_(1)
        if self.call.images:
            video = video[:, :, 0]
        try:
            output = self.network(video, **self.call.arguments)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise UserError(f"{self.path} fails on clips of shape {tuple(video.shape)}: {last}") from None
        features, probabilities = output if isinstance(output, tuple) else (output, None)
        if self.call.probabilities:
            probabilities = features
        if not isinstance(features, torch.Tensor) or features.shape[0] != len(clips) or features.dim() != 2:
            raise UserError(f"{self.path} must return (N, D) features for N clips, or a pair with probabilities")
        self.dim = features.shape[1]
        classes = None if probabilities is None else probabilities.float().cpu().numpy()
        return Features(features.float().cpu().numpy(), classes)
