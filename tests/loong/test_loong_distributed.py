"""Two processes learn together: one codebook, one language model, and the losses of the doubled batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from longtake.systems.loong.config import SIZES
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

WORKER = """
import json, sys
from pathlib import Path
from longtake.systems.folder import weights_hash
from longtake.train.loop import Trainer
from longtake.train.recipe import read_recipe
from longtake.train.stage import StageRun

finish = StageRun._finish
def recording(self):
    for name in self.stage.trains:
        state = {f"{name}.{k}": v for k, v in self.system.networks[name].state_dict().items()}
        path = Path(self.run.folder) / f"{self.stage.name}-{name}-{self.fabric.global_rank}.json"
        path.write_text(json.dumps([self.fabric.world_size, weights_hash(state)]))
    finish(self)

StageRun._finish = recording
Trainer(read_recipe(sys.argv[1]), "cpu").run()
"""


def recipe(library: Path, output: Path, batch: int) -> Recipe:
    tiny = SIZES["tiny"]
    tokenizer = replace(tiny.tokenizer_stage, steps=(2, 3, 0), batch=(batch,) * 3, discriminator_start=2)
    lm = replace(tiny.lm_stage, steps=(2, 0, 3), batch=(batch,) * 3)
    config = replace(tiny, tokenizer_stage=tokenizer, lm_stage=lm, lm=replace(tiny.lm, recompute=True))
    loop = LoopSettings(log_every=1, validate_every=100, validate_batches=1, preview_every=100)
    return Recipe("loong", "tiny", config, str(library), str(output), seed=1, loop=loop)


@pytest.fixture(scope="module")
def runs(library, tmp_path_factory) -> tuple[Path, Path]:
    """One process with the doubled batch, two processes."""
    folder = tmp_path_factory.mktemp("loong")
    one, two = recipe(library, folder / "one", 4), recipe(library, folder / "two", 2)
    Trainer(one, "cpu").run()
    (folder / "worker.py").write_text(WORKER)
    (folder / "two.yaml").write_text(yaml.safe_dump(two.to_dict()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(folder / "worker.py"), str(folder / "two.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder / "one", folder / "two"


@pytest.mark.parametrize(
    ("stage", "network"),
    [("tokenizer_1", "tokenizer"), ("tokenizer_5", "tokenizer"), ("lm_1", "lm"), ("lm_9", "lm")],
)
def test_both_processes_hold_the_same_weights(runs, stage, network):
    """The codes drawn towards vectors of the batch are the same ones everywhere, too."""
    ranks = [json.loads((runs[1] / f"{stage}-{network}-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0][0] == 2


def test_the_first_update_is_that_of_the_doubled_batch(runs):
    first = [json.loads((run / "log.jsonl").read_text().splitlines()[0]) for run in runs]
    for key in ("l1", "commitment", "generator/loss", "codebook/used"):
        assert first[1][key] == pytest.approx(first[0][key], rel=1e-5), key
