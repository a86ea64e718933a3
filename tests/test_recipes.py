"""Every recipe that we ship can be read and built."""

from pathlib import Path

import pytest
import torch

from longtake import systems
from longtake.data.text import train_tokenizer
from longtake.systems.base import ModelInfo
from longtake.systems.folder import find
from longtake.train.recipe import read_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("**/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_builds_its_stages(path):
    recipe = read_recipe(path, data="a library")
    tokenizer = train_tokenizer(["a car drives", "a boat sails"], 300)
    info = ModelInfo(15.0, recipe.config.size, ("a", "b"), (1, 1), ("x", "y"), 2048, tokenizer=tokenizer)
    with torch.device("meta"):
        made = systems.system_class(recipe.system)(recipe.config, info)
        stages = made.stages()
    assert stages
    assert all(find(model).is_dir() for model in recipe.init.values())
    assert path.name in path.read_text(), "the comment says how to run it"
