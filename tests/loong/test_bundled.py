"""The bundled model does what its card says."""

from __future__ import annotations

import json

import pytest
import torch

from longtake import api
from longtake.errors import UserError
from longtake.story import Entry, Story
from longtake.systems.folder import ASSETS


@pytest.fixture(scope="module")
def system():
    return api.configure(api.load("loong-atari"), {"guidance_scale": 3.0})


def first_window(system, *prompts: str) -> torch.Tensor:
    stories = [Story(frames=17, seed=5, timeline=(Entry(prompt=p),)) for p in prompts]
    return torch.cat(list(system.generate(stories)), 2)


def test_a_prompt_chooses_what_is_seen(system):
    river, snow = first_window(
        system, "the plane flies on over the middle of the river", "the skier glides down on the left of the slope"
    )
    assert river.shape == (3, 17, 48, 48)
    assert float(river[2].mean() - river[0].mean()) > 0.1  # more blue than red
    assert float(river.mean()) < 0
    assert float(snow.mean()) > 0.5  # white


def test_it_asks_for_a_prompt(system):
    with pytest.raises(UserError, match="give a --prompt"):
        system.check(Story(frames=17))


def test_it_knows_the_words_of_the_library(system):
    told = json.loads((ASSETS / "loong-atari" / "tokenizer.json").read_text())
    assert {"river", "slope", "ring"} <= {w.strip("Ġ▁ ") for w in told["model"]["vocab"]}
