"""VideoMAE (Tong et al., NeurIPS 2022) through transformers: features that weigh motion more than I3D's do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from longtake.errors import UserError
from longtake.metrics.extractors.base import Features, as_video, file_hash, resize_frames

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VideoMAEExtractor:
    """The last hidden states of a VideoMAE, averaged over tokens.

    Args:
        path: a folder in the layout of transformers, with config.json and model.safetensors.
        device: where it runs.

    Raises:
        UserError: transformers is missing, or the folder holds no VideoMAE.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, path: str | Path, device: torch.device):
        try:
            from transformers import VideoMAEConfig, VideoMAEModel
        except ImportError:
            raise UserError("VideoMAE needs transformers: pip install 'longtake[text]'", code=2) from None
        weights = Path(path) / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"{path} must be a folder with config.json and model.safetensors of a VideoMAE", code=2)
        try:
            config = VideoMAEConfig.from_pretrained(str(path), local_files_only=True)
            self.network = VideoMAEModel.from_pretrained(str(path), use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{path} holds no VideoMAE ({str(error).splitlines()[0]})", code=2) from None
        self.network.eval().to(device)  # type: ignore[arg-type]
        self.device, self.hash, self.dim = device, file_hash(weights), config.hidden_size
        self.name = f"videomae-{Path(path).name}"
        side = int(config.image_size)  # type: ignore[arg-type]
        self.size = (side, side)
        self.preprocessing = f"antialiased bilinear to {self.size[0]}x{self.size[1]}, ImageNet's mean and deviation"
        self.least = self.most = config.num_frames
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1, 1) for v in (MEAN, STD))

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Features:
        video = resize_frames(as_video(clips, self.device).div_(255), self.size, antialias=True)
        states = self.network((video - self.mean).div_(self.std).transpose(1, 2)).last_hidden_state
        return Features(states.mean(1).float().cpu().numpy(), None)
