"""Two processes that hold a part of the weights each learn what two learn that hold all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from longtake.systems import folder as model_folder
from longtake.systems.loong.config import SIZES
from longtake.train import checkpoint
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

WORKER = """
import json, os, signal, sys
from pathlib import Path
from longtake.errors import UserError
from longtake.train import sharding
from longtake.train.engine import FabricEngine
from longtake.train.loop import Trainer
from longtake.train.recipe import read_recipe

begin = FabricEngine.begin
held = []
def looked_at(self, step):
    own = list(self.networks["lm"].parameters())
    held.append([sum(sharding.local(p).numel() for p in own), sum(p.numel() for p in own)])
    if self.stage.name == "lm_5" and step == 2 and "stopped" in sys.argv[-1] and not os.environ.get("AGAIN"):
        os.kill(os.getpid(), signal.SIGTERM)
    begin(self, step)

FabricEngine.begin = looked_at
for recipe in sys.argv[1:]:
    made = Trainer(read_recipe(recipe), "cpu")
    try:
        made.run()
    except UserError as error:
        assert "stopped at step 3" in str(error), error
    Path(made.recipe.output, f"held-{made.fabric.global_rank}.json").write_text(json.dumps(held))
    held.clear()
"""


def launch(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def runs(library, tmp_path_factory) -> dict[str, Recipe]:
    """The same recipe whole, sharded, and sharded but stopped and taken up again."""
    folder, tiny = tmp_path_factory.mktemp("sharding"), SIZES["tiny"]
    config = replace(
        tiny,
        lengths=(1, 5, 9),
        tokenizer_stage=replace(tiny.tokenizer_stage, steps=(0, 0, 0)),  # a random one serves
        lm=replace(tiny.lm, condition="label", recompute=True),
        lm_stage=replace(tiny.lm_stage, steps=(2, 5, 2), batch=(2, 2, 2), ema=0.9, clip=1.0, lr=1e-3),
    )
    loop = LoopSettings(log_every=1, validate_every=2, validate_batches=1, preview_every=1, checkpoint_every=2)
    whole = Recipe("loong", "tiny", config, str(library), str(folder / "whole"), seed=1, loop=loop)
    cut = replace(loop, shard=True)
    made = {
        "whole": whole,
        "sharded": replace(whole, output=str(folder / "sharded"), loop=cut),
        "stopped": replace(whole, output=str(folder / "stopped"), loop=cut),
    }
    (folder / "worker.py").write_text(WORKER)
    for name, recipe in made.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    files = {name: str(folder / f"{name}.yaml") for name in made}
    launch(str(folder / "worker.py"), files["whole"], files["sharded"])
    launch(str(folder / "worker.py"), files["stopped"])
    launch(str(folder / "worker.py"), files["stopped"], AGAIN="1")
    return made


def log(recipe: Recipe) -> list[dict]:
    return [json.loads(line) for line in (Path(recipe.output) / "log.jsonl").read_text().splitlines()]


def test_each_process_holds_half(runs):
    for rank in range(2):
        held = json.loads((Path(runs["sharded"].output) / f"held-{rank}.json").read_text())
        assert len(held) == 9
        for own, everything in held:
            assert 0.4 < own / everything < 0.6


def test_the_figures_are_those_of_whole_weights(runs):
    for whole, sharded in zip(log(runs["whole"]), log(runs["sharded"]), strict=True):
        assert whole.keys() == sharded.keys()
        for key in whole.keys() - {"stage", "updates_per_second"}:
            assert sharded[key] == pytest.approx(whole[key], rel=1e-3, abs=1e-5), (whole["step"], key)


def test_the_models_are_whole_and_alike(runs):
    whole, sharded = (model_folder.read_state(Path(runs[name].output)) for name in ("whole", "sharded"))
    assert whole.keys() == sharded.keys()
    for key, value in whole.items():
        torch.testing.assert_close(sharded[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_a_sharded_run_that_was_stopped_ends_alike(runs):
    one, two = (Path(runs[name].output) / "model.safetensors" for name in ("sharded", "stopped"))
    assert one.read_bytes() == two.read_bytes()


def test_one_process_goes_on_from_a_sharded_checkpoint(runs, tmp_path):
    source = Path(runs["sharded"].output) / "checkpoints"
    names = [p.name for p in source.iterdir() if p.is_dir()]
    assert all((source / n / "state.json").is_file() for n in names)
    state = checkpoint.read(source / max(names))
    assert {type(t) for t in state["networks"]["lm"].values()} == {torch.Tensor}
    alone = replace(runs["sharded"], output=runs["stopped"].output)
    assert Trainer(alone, "cpu").run() == Path(alone.output)


def test_what_excludes_sharding_is_refused():
    evaluation = replace(LoopSettings().evaluation, every=100)
    with pytest.raises(ValueError, match="exclude each other"):
        LoopSettings(shard=True, evaluation=evaluation)
