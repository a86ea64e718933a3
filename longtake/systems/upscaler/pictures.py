"""Upscalers of others: any picture model whose weights the package spandrel knows, frame by frame.

The file is read by `systems/foreign.py`, so no code in it runs; spandrel finds the architecture from the weights.
It is not among longtake's dependencies, because it needs torchvision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.systems.foreign import read_foreign

_WRAPPERS = ("params_ema", "params", "state_dict", "model", "model_state_dict")
"""Names under which trainers keep them."""


class PictureModel:
    """A picture model as an upscaler of videos (see `rollout.upscale.Enlarges`).

    Args:
        path: its weights.
        device: where it runs.

    Raises:
        UserError: no spandrel, an unreadable file, weights of no known model, or a model that does not enlarge.
    """

    reach = 0
    """Every frame is enlarged by itself."""

    def __init__(self, path: Path, device: torch.device | str = "cpu"):
        weights = read_foreign(path)  # a missing or hostile file is told before a missing package
        for name in _WRAPPERS:
            if isinstance(weights, dict) and isinstance(weights.get(name), dict):
                weights = weights[name]
                break
        try:
            import spandrel  # type: ignore[import-not-found]
        except ImportError:
            raise UserError(
                f"{path} is a file of weights: it needs the package spandrel, which brings torchvision; install it "
                "with: pip install spandrel, or give a trained upscaler's folder"
            ) from None
        try:
            model: Any = spandrel.ModelLoader(device="cpu").load_from_state_dict(weights)
        except Exception as error:  # of the architecture it takes it for: spandrel names no errors of its own
            raise UserError(f"spandrel knows no model with the weights of {path} ({error})") from None
        if model.scale < 2 or (model.input_channels, model.output_channels) != (3, 3):
            what = f"{model.input_channels} to {model.output_channels} channels, {model.scale} times as large"
            raise UserError(f"{path} does not enlarge colour pictures ({what}); choose another model")
        self.factor, self.model = model.scale, model.to(torch.device(device)).eval()

    def __call__(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> (B, 3, T, factor * H, factor * W)."""
        frames = video.transpose(1, 2)
        large = torch.cat([self.model(frame[None].float() / 2 + 0.5) for frame in frames.flatten(0, 1)])
        return (large * 2 - 1).unflatten(0, frames.shape[:2]).transpose(1, 2)
