"""A run stops well, goes on where it stopped, and keeps what is best."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch
import yaml
from conftest import write_library
from fakes import TinyConfig
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from rich.console import Console

from longtake.data.library import Library
from longtake.errors import UserError
from longtake.systems import folder as model_folder
from longtake.systems.tats.config import SIZES
from longtake.train import checkpoint
from longtake.train.engine import FabricEngine
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe
from longtake.train.stage import StageRun

LOOP = LoopSettings(log_every=1, validate_every=2, validate_batches=1, preview_every=100, checkpoint_every=2)


def recipe(library: Path, output: Path, system: str = "tiny-continuous", config=None, **loop) -> Recipe:
    return Recipe(
        system, "tiny", config or TinyConfig(), str(library), str(output), seed=3, loop=replace(LOOP, **loop)
    )


def run(made: Recipe) -> str:
    """Train; returns what was printed."""
    told = io.StringIO()
    Trainer(made, console=Console(file=told, width=300)).run()
    return told.getvalue()


def log(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def checkpoints(output: Path) -> list[str]:
    return sorted(p.name for p in (output / "checkpoints").iterdir() if p.is_dir())


def equal(one: Path, two: Path) -> bool:
    a, b = model_folder.read_state(one), model_folder.read_state(two)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def spoiled(monkeypatch, at_step: int, value: float = float("nan")):
    """From this step on, the loss of tiny-continuous is not a number."""
    step = fakes.SparseStage.step

    def spoiling(self, batches, engine):
        logs = step(self, batches, engine)
        return {**logs, "generator/loss": value} if engine.step >= at_step else logs

    monkeypatch.setattr(fakes.SparseStage, "step", spoiling)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("log_every", [1, 100])
def test_nan_stops_the_run_and_the_good_checkpoint_stays(library, tmp_path, monkeypatch, value, log_every):
    made = recipe(library, tmp_path / "run", log_every=log_every)
    with monkeypatch.context() as patch:
        spoiled(patch, 5, value)
        with pytest.raises(UserError, match=r"generator/loss became .* at step 6 of stage generator") as caught:
            run(made)
    assert "0-00000004-generator" in str(caught.value)
    assert checkpoints(tmp_path / "run")[-1] == "0-00000004-generator"
    assert all(e["step"] < 6 for e in log(tmp_path / "run"))
    assert "going on from 0-00000004-generator" in run(made)
    run(recipe(library, tmp_path / "whole", log_every=log_every))
    assert equal(tmp_path / "run", tmp_path / "whole")


def test_nan_before_the_first_checkpoint(library, tmp_path, monkeypatch):
    spoiled(monkeypatch, 0)
    with pytest.raises(UserError, match=r"at step 1 .* the last good checkpoint is none yet"):
        run(recipe(library, tmp_path / "run"))


def test_nan_in_a_validation_stops_too(library, tmp_path, monkeypatch):
    monkeypatch.setattr(fakes.SparseStage, "validate", lambda self, batches: {"val/error": float("nan")})
    with pytest.raises(UserError, match="val/error became nan at step 2"):
        run(recipe(library, tmp_path / "run"))


def test_data_that_is_not_video_stops_before_the_first_update(tmp_path):
    grey = write_library(tmp_path / "grey", videos=3)
    pixels = next((Library(grey).path / "videos").iterdir())
    from longtake.data import video

    for file in pixels.parent.iterdir():
        video.write_video(file, [torch.full((40, 16, 16, 3), 90, dtype=torch.uint8).numpy()], 15.0)
    with pytest.raises(UserError, match="the first clips of clips are all of one colour"):
        run(recipe(grey, tmp_path / "run"))


def test_the_lowest_validation_figure_wins(library, tmp_path, monkeypatch):
    figures, seen = iter([3.0, 1.0, 2.0]), []

    def validate(self, batches):
        seen.append({k: v.clone() for k, v in self.system.predictor.state_dict().items()})
        return {"val/error": next(figures)}

    monkeypatch.setattr(fakes.VideoStage, "validate", validate)
    run(recipe(library, tmp_path / "run", "tiny-image-video"))
    state = model_folder.read_state(tmp_path / "run")
    assert len(seen) == 3
    for key in ("weight", "bias"):
        assert torch.equal(state[f"predictor.{key}"], seen[1][key])
        assert not torch.equal(state[f"predictor.{key}"], seen[2][key])


def test_without_a_figure_the_averaged_weights_of_the_end_win(library, tmp_path, monkeypatch):
    averages = {}
    finish = StageRun._finish

    def watching(self):
        averages.update({k: v.clone() for k, v in self.engine.ema.state_dict()["generator"].items()})
        finish(self)

    monkeypatch.setattr(StageRun, "_finish", watching)
    run(recipe(library, tmp_path / "run"))
    state = model_folder.read_state(tmp_path / "run")
    assert all(torch.equal(state[f"generator.{k}"], v) for k, v in averages.items())


def test_the_log_has_every_step_of_every_stage_once(library, tmp_path):
    run(recipe(library, tmp_path / "run", "tiny-image-video"))
    entries = [e for e in log(tmp_path / "run") if "updates_per_second" in e]
    assert [(e["stage"], e["step"], e["total"]) for e in entries] == [
        (stage, step, total + step) for stage, total in (("coder", 0), ("predictor", 6)) for step in range(1, 7)
    ]
    held_out = [(e["stage"], e["step"]) for e in log(tmp_path / "run") if "val/error" in e]
    assert held_out == [(stage, step) for stage in ("coder", "predictor") for step in (2, 4, 6)]


class Killed(BaseException):
    """Stands for a kill -9."""


def dying_at(monkeypatch, stage: str, step: int) -> None:
    begin = FabricEngine.begin

    def dying(self, now):
        if (self.stage.name, now) == (stage, step):
            raise Killed
        begin(self, now)

    monkeypatch.setattr(FabricEngine, "begin", dying)


@pytest.mark.parametrize(("stage", "step", "expected"), [("coder", 5, 4), ("predictor", 0, 0), ("predictor", 5, 4)])
def test_a_killed_run_goes_on_from_its_newest_checkpoint(library, tmp_path, monkeypatch, stage, step, expected):
    made, begun = recipe(library, tmp_path / "run", "tiny-image-video"), []
    with monkeypatch.context() as patch:
        dying_at(patch, stage, step)
        with pytest.raises(Killed):
            run(made)
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"stage": "coder", "st')  # a line that the kill cut short
    begin = FabricEngine.begin
    monkeypatch.setattr(FabricEngine, "begin", lambda s, now: (begun.append((s.stage.name, now)), begin(s, now)))
    run(made)
    assert begun[0] == (stage, expected)
    entries = [(e["stage"], e["step"]) for e in log(tmp_path / "run") if "updates_per_second" in e]
    assert entries == [(name, s) for name in ("coder", "predictor") for s in range(1, 7)]
    run(recipe(library, tmp_path / "whole", "tiny-image-video"))
    assert equal(tmp_path / "run", tmp_path / "whole")


def test_half_precision_keeps_its_gradient_scale_over_a_kill(library, tmp_path, monkeypatch):
    def half(precision: str, *args) -> Fabric:  # Fabric has it on GPUs only, unless it is put in by hand
        scaler = torch.amp.GradScaler("cpu", growth_interval=3)
        return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))

    monkeypatch.setattr("longtake.train.loop.make_fabric", half)
    made = recipe(library, tmp_path / "run")
    with monkeypatch.context() as patch:
        dying_at(patch, "generator", 5)
        with pytest.raises(Killed):
            run(made)
    saved = checkpoint.read(checkpoint.latest(tmp_path / "run" / "checkpoints"))
    run(made)
    run(recipe(library, tmp_path / "whole"))
    assert saved["scaler"]["_growth_tracker"] > 0 or saved["scaler"]["scale"] != 2.0**16
    assert equal(tmp_path / "run", tmp_path / "whole")


def test_half_precision_on_a_cpu_is_refused(library, tmp_path):
    with pytest.raises(UserError, match="needs a GPU"):
        run(recipe(library, tmp_path / "run", precision="16"))


def test_without_bfloat16_arithmetic_training_runs_in_32_bits_and_says_so(library, tmp_path, monkeypatch):
    monkeypatch.setattr("longtake.train.engine.fast_bfloat16", lambda: False)
    told = run(recipe(library, tmp_path / "asked", precision="bf16"))
    assert "no bfloat16 arithmetic" in told
    assert "no bfloat16" not in run(recipe(library, tmp_path / "whole"))
    assert equal(tmp_path / "asked", tmp_path / "whole")


@pytest.mark.parametrize("moment", ["write", "export"])
def test_killed_while_finishing(library, tmp_path, monkeypatch, moment):
    made = recipe(library, tmp_path / "run")
    owner = checkpoint if moment == "write" else Trainer
    real = getattr(owner, moment)

    def dying(*args):
        finishing = "start" in args[1] if moment == "write" else (Path(made.output) / "config.json").exists()
        if finishing and len(log(Path(made.output))) >= 9:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, dying)
        with pytest.raises(Killed):
            run(made)
    run(made)
    run(recipe(library, tmp_path / "whole"))
    assert equal(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_has_nothing_left_to_do(library, tmp_path):
    made = recipe(library, tmp_path / "run")
    run(made)
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    told = run(made)
    assert "done: the model is in" in told
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before


def test_with_nothing_to_train_the_model_is_that_of_init(library, tmp_path):
    run(recipe(library, tmp_path / "trained"))
    networks = model_folder.load_trainable(tmp_path / "trained").networks
    idle = recipe(library, tmp_path / "taken", config=TinyConfig(steps=0))
    run(replace(idle, init=dict.fromkeys(networks, str(tmp_path / "trained"))))
    assert equal(tmp_path / "trained", tmp_path / "taken")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_are_kept(library, tmp_path, keep):
    run(recipe(library, tmp_path / "run", keep=keep))
    made = ["0-00000002-generator", "0-00000004-generator", "1-00000000-start"]
    assert checkpoints(tmp_path / "run") == made[-keep:]


def test_sigterm_saves_and_says_how_to_go_on(library, tmp_path, monkeypatch):
    made = recipe(library, tmp_path / "run", checkpoint_every=100)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        terminated(patch, 2)
        match = "stopped at step 3 of generator; the same command goes on from here"
        with pytest.raises(UserError, match=match) as stopped:
            run(made)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpoints(tmp_path / "run") == ["0-00000003-generator"]
    assert model_folder.load(tmp_path / "run").name == "tiny-continuous"
    run(made)
    run(recipe(library, tmp_path / "whole", checkpoint_every=100))
    assert equal(tmp_path / "run", tmp_path / "whole")


def test_sigterm_at_the_end_of_a_stage_loses_nothing(library, tmp_path, monkeypatch):
    made = recipe(library, tmp_path / "run", "tiny-image-video", checkpoint_every=100)
    with monkeypatch.context() as patch:
        terminated(patch, 5)
        with pytest.raises(UserError, match="stopped at the end of coder; the same command goes on from here"):
            run(made)
    assert checkpoints(tmp_path / "run") == ["1-00000000-start"]
    assert "going on from 1-00000000-start" in run(made)


def terminated(monkeypatch, at_step: int) -> None:
    begin = FabricEngine.begin

    def ending(self, step):
        if step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, step)

    monkeypatch.setattr(FabricEngine, "begin", ending)


def test_a_run_older_than_an_option_goes_on(library, tmp_path):
    made = recipe(library, tmp_path / "run")
    run(made)
    written = tmp_path / "run" / "recipe.yaml"
    old = yaml.safe_load(written.read_text())
    del old["config"]["size"], old["loop"]["log_every"]
    written.write_text(yaml.safe_dump(old))
    assert "going on from" in run(made)


def test_a_run_on_another_library_or_recipe_is_refused(library, tmp_path):
    made = recipe(library, tmp_path / "run")
    run(made)
    with pytest.raises(UserError, match=r"holds a run of another recipe .*seed was 3 and is now 4"):
        run(replace(made, seed=4))
    other = write_library(tmp_path / "other", frames=30)
    with pytest.raises(UserError, match="was trained on another library than"):
        run(replace(made, data=str(other)))


def test_a_library_without_test_videos_trains_too(tmp_path):
    alone = write_library(tmp_path / "alone", videos=2)
    run(recipe(alone, tmp_path / "run"))
    assert not any("val/error" in e for e in log(tmp_path / "run"))


def test_previews_are_videos(library, tmp_path):
    tats = replace(
        SIZES["tiny"],
        vqgan_stage=replace(SIZES["tiny"].vqgan_stage, steps=2),
        prior_stage=replace(SIZES["tiny"].prior_stage, steps=2),
    )
    run(recipe(library, tmp_path / "run", "tats", tats, preview_every=2))
    names = sorted(p.name for p in (tmp_path / "run" / "previews").iterdir())
    assert names == [f"{stage}-0000002.{kind}" for stage in ("prior", "vqgan") for kind in ("mp4", "png")]


# --- really killed -------------------------------------------------------------------------------------------


def command(library: Path, output: Path) -> list[str]:
    recipe = library.parent / "recipe.yaml"
    recipe.write_text("system: tats\nsize: tiny\n")
    settings = ["loop.log_every=1", "loop.checkpoint_every=4", "loop.validate_every=50", "loop.preview_every=1000"]
    steps = [f"config.{stage}.steps=100" for stage in ("vqgan_stage", "prior_stage")]
    train = ["-m", "longtake", "train", str(recipe), *settings, *steps, "loop.threads=1"]
    return [sys.executable, *train, "--data", str(library), "-o", str(output), "--device", "cpu"]


def wait_until(process: subprocess.Popen, met) -> bool:
    """Poll until `met()`; False if the process ended first."""
    while process.poll() is None:
        if met():
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
def test_kill_9_at_ten_moments_changes_nothing(tmp_path):
    library, output = write_library(tmp_path / "library"), tmp_path / "run"
    whole = subprocess.run(command(library, tmp_path / "whole"), capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    store, moments = output / "checkpoints", random.Random(0)

    def size() -> int:
        return (output / "log.jsonl").stat().st_size if (output / "log.jsonl").exists() else 0

    def saving() -> bool:
        return any(store.glob(f"{checkpoint.PARTIAL}*"))

    kills, between = 0, False
    while kills < 10:
        before = size()
        process = subprocess.Popen(command(library, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if not between and any(store.glob("0-*")):
                between = wait_until(process, lambda: any(store.glob("1-*")))
            elif kills % 2:
                assert wait_until(process, saving)
            else:
                assert wait_until(process, lambda before=before: size() != before)
                time.sleep(moments.uniform(0, 0.4))
                assert process.poll() is None
        finally:
            process.kill()
            process.wait()
        kills += 1
    assert between
    last = subprocess.run(command(library, output), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert (output / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    updates = [(e["stage"], e["step"]) for e in log(output) if "updates_per_second" in e]
    assert updates == [(stage, step) for stage in ("vqgan", "prior") for step in range(1, 101)]
    assert not [p for p in output.rglob("*") if p.name.startswith((".saving-", checkpoint.PARTIAL))]
