"""A small Loong with texts and random weights, for its tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from longtake.data.text import train_tokenizer
from longtake.systems.base import ModelInfo
from longtake.systems.loong.config import SIZES, LoongConfig, LoongSettings, TextConfig
from longtake.systems.loong.system import Loong

TEXTS = ["a square goes left", "a circle", "a small square goes right very slowly"]
TINY = replace(
    SIZES["tiny"],
    tokenizer=replace(SIZES["tiny"].tokenizer, codes=64),
    lm=replace(SIZES["tiny"].lm, condition="text", text=TextConfig(length=12, vocabulary=300)),
)
INFO = ModelInfo(15.0, (16, 16), ("left", "right"), (3, 1), tokenizer=train_tokenizer(TEXTS, 300))


def loong(config: LoongConfig = TINY, **settings) -> Loong:
    """With weights large enough that texts and past tokens matter."""
    torch.manual_seed(0)
    made = Loong(config, INFO)
    with torch.no_grad():
        for parameter in made.lm.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
        made.tokenizer.codebook.embeddings.normal_()
    made.settings = replace(LoongSettings(guidance_scale=2.0, top_k=0), **settings)
    return made.eval()
