"""How well frames fit a text: CLIPSIM and video-text matching, through transformers' CLIP, weights brought by you.

Both are cosines between CLIP's embeddings of frames and of the text, averaged over frames. CLIPSIM (Wu et al.,
GODIVA, 2021) is the plain mean; Loong's VTM is a hundred times it. Neither paper fixes the CLIP or the frames for
long videos: the folder's name and the number of frames go into the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from longtake.errors import UserError
from longtake.metrics.extractors.base import file_hash
from longtake.metrics.extractors.weights import open_transformers

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FRAMES = 16
"""Evenly spaced frames that are looked at."""


class ClipScorer:
    """A CLIP from a folder in the layout of transformers (config.json, model.safetensors, tokenizer files).

    Raises:
        UserError: transformers is missing, or the folder holds no CLIP.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        _, model = open_transformers(path, "CLIPConfig", "CLIPModel", "CLIP")
        try:
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} holds no tokenizer ({str(error).splitlines()[0]})", code=2) from None
        self.model: Any = model.to(torch.device(device))
        self.device = torch.device(device)
        self.name, self.hash = f"clip-{Path(path).name}", file_hash(Path(path) / "model.safetensors")
        self.side = int(self.model.config.vision_config.image_size)
        self.length = int(self.model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def images(self, frames: np.ndarray) -> torch.Tensor:
        """Unit embeddings (T, D) of uint8 frames (T, H, W, 3); shorter side to CLIP's, bicubic, centre crop."""
        x = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2) / 255
        height, width = x.shape[2:]
        scale = self.side / min(height, width)
        size = (max(self.side, round(height * scale)), max(self.side, round(width * scale)))
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        x = x[:, :, top : top + self.side, left : left + self.side]
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        pooled = self.model.vision_model(pixel_values=(x - mean) / std).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> torch.Tensor:
        """Unit embeddings (N, D)."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        kept = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
        pooled = self.model.text_model(**kept).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def similarities(self, frames: np.ndarray, texts: list[str | None]) -> np.ndarray:
        """Cosine of each frame (T, H, W, 3) and its own text: (T,); not a number where there is none."""
        told = sorted({text for text in texts if text is not None})
        embedded = dict(zip(told, self.texts(told), strict=True))
        pairs = zip(self.images(frames), texts, strict=True)
        return np.array([np.nan if text is None else float(image @ embedded[text]) for image, text in pairs])

    def similarity(self, frames: np.ndarray, text: str) -> np.ndarray:
        """Cosine of each frame (T, H, W, 3) and the text: (T,). Its mean is CLIPSIM; times 100, VTM."""
        return (self.images(frames) @ self.texts([text])[0]).cpu().numpy()


def spread_frames(frames: int, count: int = FRAMES) -> list[int]:
    """Numbers of `count` evenly spaced frames, or of all."""
    n = min(count, frames)
    return [round(i * (frames - 1) / max(1, n - 1)) for i in range(n)]
