"""Two processes learn what one learns from the doubled batch."""

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
from longtake.systems.tats.config import SIZES
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

STEPS = 8
WORKER = """
import json, os, signal, sys
from pathlib import Path
from longtake.errors import UserError
from longtake.train.engine import FabricEngine
from longtake.systems.folder import weights_hash
from longtake.train.loop import Trainer
from longtake.train.recipe import read_recipe
from longtake.train.stage import StageRun

finish = StageRun._finish
def recording(self):
    system, stage, engine = self.system, self.stage, self.engine
    state = {f"{n}.{k}": v for n, net in system.networks.items() for k, v in net.state_dict().items()}
    averaged = {f"{n}.{k}": v for n, own in engine.ema.state_dict().items() for k, v in own.items()}
    path = Path(self.run.folder) / f"rank-{self.fabric.global_rank}-{stage.name}.json"
    path.write_text(json.dumps([self.fabric.world_size, weights_hash(state), weights_hash(averaged)]))
    finish(self)

StageRun._finish = recording
*whole, interrupted = sys.argv[1:]
for recipe in whole:
    Trainer(read_recipe(recipe), "cpu").run()

begin = FabricEngine.begin
def terminated(self, step):
    if step == 2 and self.fabric.global_rank == 1:  # a signal reaches the processes at different steps
        os.kill(os.getpid(), signal.SIGTERM)
    begin(self, step)

FabricEngine.begin = terminated
made = Trainer(read_recipe(interrupted), "cpu")
try:
    made.run()
except UserError as error:
    path = Path(made.recipe.output) / f"rank-{made.fabric.global_rank}-stopped.txt"
    path.write_text(str(error))
FabricEngine.begin = begin
Trainer(read_recipe(interrupted), "cpu").run()
"""


def recipes(library: Path, output: Path, batch: int, tokenizer: Path | None = None) -> tuple[Recipe, Recipe]:
    """The first stage, and the second on a given tokenizer, so that rounding in the first cannot matter."""
    tiny = replace(SIZES["tiny"], vqgan=replace(SIZES["tiny"].vqgan, norm="batch"))
    vqgan = replace(tiny.vqgan_stage, steps=STEPS, batch=batch, ema=0.9, discriminator_start=4, lr=3e-4)
    prior = replace(tiny.prior_stage, steps=STEPS, batch=batch, ema=0.9, clip=1.0)
    loop = LoopSettings(log_every=1, validate_every=4, validate_batches=1, preview_every=100, checkpoint_every=4)
    base = Recipe("tats", "tiny", tiny, str(library), "", seed=1, loop=loop)
    idle = replace(prior, steps=0)
    first = replace(base, config=replace(tiny, vqgan_stage=vqgan, prior_stage=idle), output=str(output / "vqgan"))
    second = replace(
        base,
        config=replace(tiny, vqgan_stage=replace(vqgan, steps=0), prior_stage=prior),
        init={"vqgan": str(tokenizer or output / "vqgan")},
        output=str(output / "prior"),
    )
    return first, second


def log(run: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(library, tmp_path_factory) -> tuple[tuple[Recipe, Recipe], tuple[Recipe, Recipe]]:
    """(one process with the doubled batch, two processes), each both stages."""
    folder = tmp_path_factory.mktemp("distributed")
    one = recipes(library, folder / "one", batch=4)
    for recipe in one:
        Trainer(recipe, "cpu").run()
    two = recipes(library, folder / "two", batch=2, tokenizer=folder / "one" / "vqgan")
    (folder / "worker.py").write_text(WORKER)
    stopped = replace(two[1], output=str(folder / "two" / "stopped"))
    files = [folder / f"{i}.yaml" for i in range(3)]
    for file, recipe in zip(files, (*two, stopped), strict=True):
        file.write_text(yaml.safe_dump(recipe.to_dict()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(folder / "worker.py"), *map(str, files)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:6000]
    return one, two


@pytest.mark.parametrize("number", [0, 1], ids=["vqgan", "prior"])
def test_the_losses_are_those_of_the_doubled_batch(runs, number):
    one, two = (log(group[number].output) for group in runs)
    assert len(one) == len(two) == STEPS + 2
    for single, double in zip(one, two, strict=True):
        assert single.keys() == double.keys()
        for key in single.keys() - {"stage", "updates_per_second", "val/codebook_used"}:  # used by a batch
            assert double[key] == pytest.approx(single[key], rel=2e-3, abs=2e-4), (single["step"], key)


@pytest.mark.parametrize("number", [0, 1], ids=["vqgan", "prior"])
def test_the_first_update_is_the_same_within_rounding(runs, number):
    one, two = (log(group[number].output)[0] for group in runs)
    for key in one.keys() - {"stage", "updates_per_second"}:
        assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("number", [0, 1], ids=["vqgan", "prior"])
def test_both_processes_hold_the_same_weights(runs, number):
    name = ("vqgan", "prior")[number]
    ranks = [json.loads((Path(runs[1][number].output) / f"rank-{r}-{name}.json").read_text()) for r in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0][0] == 2


@pytest.mark.parametrize("number", [0, 1], ids=["vqgan", "prior"])
def test_the_models_are_close(runs, number):
    one, two = (model_folder.read_state(Path(group[number].output)) for group in runs)
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), rtol=1e-2, atol=3e-3), key


def test_both_stop_at_the_same_step_and_go_on_together(runs):
    prior = Path(runs[1][1].output)
    stopped = prior.with_name("stopped")
    told = {(stopped / f"rank-{r}-stopped.txt").read_text() for r in range(2)}
    assert told == {"stopped at step 3 of prior; the same command goes on from here"}
    assert (stopped / "model.safetensors").read_bytes() == (prior / "model.safetensors").read_bytes()
