"""Every recipe that we ship can be read and built."""

from pathlib import Path

import pytest

from longtake import systems
from longtake.data.text import train_tokenizer
from longtake.systems.base import ModelInfo
from longtake.systems.folder import find
from longtake.train.recipe import read_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("**/*.yaml"))
TEXTS = "".join(path.read_text() for path in RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_builds_its_stages(path):
    recipe = read_recipe(path, data="a library")
    tokenizer = train_tokenizer(["a car drives", "a boat sails"], 300)
    info = ModelInfo(15.0, recipe.config.size, ("a", "b"), (1, 1), ("x", "y"), 2048, tokenizer=tokenizer)
    assert systems.system_class(recipe.system)(recipe.config, info).stages()
    for model in recipe.init.values():
        assert f"-o {model}\n" in TEXTS or find(model).is_dir(), "another recipe's model, or a bundled one"
    assert path.name in path.read_text(), "the comment says how to run it"
