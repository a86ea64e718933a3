"""A classifier trained by `longtake train`: features of the footage at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from longtake.errors import UserError
from longtake.metrics.extractors.base import Features, as_video, resize_frames
from longtake.systems.folder import inference_state, load_trainable, weights_hash


class ClassifierExtractor:
    """The pooled features and class probabilities of a classifier's model folder or bundled name.

    Raises:
        UserError: the model is not a classifier.
    """

    def __init__(self, model: str | Path, device: torch.device):
        made = load_trainable(model, device)
        if made.name != "classifier":
            raise UserError(f"{model} is a {made.name}, not a classifier; it cannot be an extractor", code=2)
        self.device, self.network = device, made.networks["classifier"]
        self.name = Path(str(model)).name
        self.hash = weights_hash(inference_state(made))
        self.size: tuple[int, int] = made.config.size
        self.preprocessing = f"antialiased bilinear to {self.size[0]}x{self.size[1]}, [-1, 1]"
        self.dim: int | None = self.network.backbone.features  # type: ignore[assignment,union-attr]
        self.least, self.most = 2, None
        self.classes = made.info.classes if made.config.classes else ()

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Features:
        video = resize_frames(as_video(clips, self.device), self.size, antialias=True)
        output: Any = self.network(video.div_(127.5).sub_(1))
        classes = None if output.classes is None else output.classes.float().softmax(-1).cpu().numpy()
        return Features(output.features.float().cpu().numpy(), classes)
