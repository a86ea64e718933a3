"""Metrics during training: they pick the weights, and settings that cannot work are refused before any update."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_library
from fakes import TinyConfig

from longtake.errors import UserError
from longtake.metrics.result import Result
from longtake.systems import folder as model_folder
from longtake.systems.base import ModelInfo
from longtake.systems.classifier.config import SIZES
from longtake.systems.classifier.system import Classifier
from longtake.train import evaluation
from longtake.train.evaluation import EvaluationSettings
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe
from longtake.train.stage import StageRun


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> tuple[Path, Path]:
    """A library with enough videos to measure, and a classifier of it."""
    folder = tmp_path_factory.mktemp("evaluation")
    library = write_library(folder / "library", videos=27, frames=16)
    torch.manual_seed(0)
    info = ModelInfo(15, (16, 16), ("left", "right"), (1, 1))
    return library, model_folder.save(Classifier(SIZES["tiny"], info), folder / "r3d-tiny")


def recipe(footage: tuple[Path, Path], output: Path, **settings) -> Recipe:
    wanted = EvaluationSettings(every=2, extractor=str(footage[1]), videos=16)
    loop = LoopSettings(log_every=1, checkpoint_every=3, evaluation=replace(wanted, **settings))
    return Recipe("tiny-continuous", "tiny", TinyConfig(), str(footage[0]), str(output), seed=3, loop=loop)


def test_the_weights_with_the_lowest_figure_are_kept(footage, tmp_path, monkeypatch):
    seen: dict[str, dict] = {}
    measure = evaluation.evaluate

    def spying(source, library, folder, *args, **kwargs):
        result = measure(source, library, folder, *args, **kwargs)
        figure = result.figures["FVD16[r3d-tiny]"]
        worse = 100.0 * (folder.name != "generator-0000004")
        result.figures["FVD16[r3d-tiny]"] = replace(figure, value=figure.value + worse)
        network = source.system.networks["generator"]
        seen[folder.name] = {k: v.clone() for k, v in network.state_dict().items()}
        return result

    monkeypatch.setattr(evaluation, "evaluate", spying)
    run = Trainer(recipe(footage, tmp_path / "run")).run()
    assert list(seen) == ["generator-0000002", "generator-0000004", "generator-0000006"]
    kept = model_folder.read_state(run)
    for key, value in seen["generator-0000004"].items():
        assert torch.equal(kept[f"generator.{key}"], value)
    assert any(not torch.equal(kept[f"generator.{k}"], v) for k, v in seen["generator-0000006"].items())
    folder = run / "evaluations" / "generator-0000002"
    assert not (folder / "records").exists()
    assert (folder / "video-000.mp4").is_file()
    result = Result.read(folder / "result.json")
    assert result.protocol["name"] == "stylegan-v"
    assert result.protocol["real_split"] == "train"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = {e["step"]: e for e in lines if "FVD16[r3d-tiny]" in e}
    assert sorted(logged) == [2, 4, 6]
    assert logged[2]["motion_ratio"] == result.figures["motion_ratio"].value


def test_a_run_that_is_killed_and_evaluates_equals_an_uninterrupted_one(footage, tmp_path, monkeypatch):
    made = recipe(footage, tmp_path / "whole", every=1)
    whole = model_folder.read_state(Trainer(made).run())
    broken = replace(made, output=str(tmp_path / "broken"))
    with monkeypatch.context() as patch:
        measure = evaluation.evaluate

        def failing(source, library, folder, *args, **kwargs):
            result = measure(source, library, folder, *args, **kwargs)
            if folder.name.endswith("5"):
                raise KeyboardInterrupt  # after its records were written, before the next checkpoint
            return result

        patch.setattr(evaluation, "evaluate", failing)
        with pytest.raises(KeyboardInterrupt):
            Trainer(broken).run()
    resumed = model_folder.read_state(Trainer(broken).run())
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extractor": "nowhere"}, "nowhere"),
        ({"protocol": "none"}, "there is no protocol 'none'"),
        ({"videos": 3}, "3 videos are too few"),
        ({"best_by": "FVD128"}, "best_by is FVD128, but r3d-tiny on 16 frames gives FVD16, KVD16"),
        ({"best_by": "FID"}, "best_by is FID, but"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(footage, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        Trainer(recipe(footage, tmp_path / "run", **settings)).run()
    assert not (tmp_path / "run").exists()


def test_a_classifier_makes_no_videos(footage, tmp_path):
    made = replace(recipe(footage, tmp_path / "run"), system="classifier", config=SIZES["tiny"])
    with pytest.raises(UserError, match="a classifier makes no videos"):
        Trainer(made).run()


def test_settings_that_mean_nothing_are_refused():
    for name in ("every", "videos", "frames", "batch"):
        with pytest.raises(ValueError, match=f"{name} is 0 but must be at least 1"):
            EvaluationSettings(**{name: 0})


def test_another_figure_starts_its_own_record(footage, tmp_path):
    """Weights that were best by one figure are not compared with figures of another kind."""
    made = recipe(footage, tmp_path / "run", every=3)
    before = replace(made, loop=replace(made.loop, evaluation=EvaluationSettings()))
    finish = StageRun._finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "_measured", lambda self, *rest: setattr(self, "best", -1.0))

        def killed(self):
            raise KeyboardInterrupt

        patch.setattr(StageRun, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            Trainer(replace(before, loop=replace(before.loop, validate_every=2))).run()
    assert StageRun._finish is finish
    Trainer(made).run()  # goes on from step 3; its one evaluation is the best of its kind
    assert (tmp_path / "run" / "checkpoints" / "best-generator.safetensors").is_file()


def test_conditions_come_from_training_videos(footage, tmp_path):
    run = Trainer(recipe(footage, tmp_path / "run", every=6)).run()
    result = Result.read(run / "evaluations" / "generator-0000006" / "result.json")
    assert result.protocol["conditions_from"] == "train split, evenly spread"
