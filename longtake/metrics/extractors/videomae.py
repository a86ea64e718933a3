"""VideoMAE (Tong et al., NeurIPS 2022) through transformers: features that weigh motion more than I3D's do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from longtake.metrics.extractors.base import Features, as_video, file_hash, resize_frames
from longtake.metrics.extractors.weights import open_transformers

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
        config, network = open_transformers(path, "VideoMAEConfig", "VideoMAEModel", "VideoMAE")
        self.network = network.to(device)
        self.device, self.hash, self.dim = device, file_hash(Path(path) / "model.safetensors"), config.hidden_size
        self.name = f"videomae-{Path(path).name}"
        side = int(config.image_size)
        self.size = (side, side)
        self.preprocessing = f"antialiased bilinear to {self.size[0]}x{self.size[1]}, ImageNet's mean and deviation"
        self.least = self.most = config.num_frames
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1, 1) for v in (MEAN, STD))

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Features:
        video = resize_frames(as_video(clips, self.device).div_(255), self.size, antialias=True)
        states = self.network((video - self.mean).div_(self.std).transpose(1, 2)).last_hidden_state
        return Features(states.mean(1).float().cpu().numpy(), None)
