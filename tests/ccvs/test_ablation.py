"""The script of the ablations: what it trains, measures and dares to say."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import moving_square

from longtake.systems.base import ModelInfo
from longtake.systems.ccvs.config import SIZES, CCVSSettings
from longtake.systems.ccvs.system import CCVS

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def script(experiment) -> ModuleType:
    return experiment("ccvs_ablation")


def arguments(output: Path, *arms: str) -> argparse.Namespace:
    return argparse.Namespace(
        autoencoder_batch=[4, 2],
        prior_batch=4,
        precision="32",
        data="",
        output=str(output),
        arms=list(arms),
        seed=0,
        clips=2,
        held_out=None,
        top_k=10,
        autoencoder_steps=10,
        prior_steps=10,
        annotation_weight=0.5,
    )


def test_the_plain_arm_decodes_without_context_once(script, tmp_path, monkeypatch):
    """Where there is never any context, unconditional decoding is what is trained already."""
    monkeypatch.setattr("ccvs_models.Library", lambda path: argparse.Namespace(hash="h", classes=("a",)))
    found = script.arms(arguments(tmp_path))
    assert not found["plain"].autoencoder_stage.unconditional
    assert found["base"].autoencoder_stage.unconditional
    assert found["base"].autoencoder_stage.perceptual == "r3d-atari"
    monkeypatch.setattr("ccvs_models.Library", lambda path: argparse.Namespace(hash="h", classes=()))
    pusher = script.arms(arguments(tmp_path))["states"]  # no game to be told, and none that the judge knows
    assert (pusher.prior.label, pusher.prior.start, pusher.autoencoder_stage.perceptual) == (False, True, None)


def test_arms_that_are_asked_for_are_measured(script, tmp_path, monkeypatch):
    """In the tables that they belong to; and rows that are there are not made again."""
    trained = []

    def untrained(arm, args):
        trained.append(arm)
        codes = "none" if arm == "no codebook" else "gradient"
        coder = replace(TINY.autoencoder, quantiser=codes, context=0 if arm == "plain" else 3)
        torch.manual_seed(0)
        return CCVS(replace(TINY, autoencoder=coder), ModelInfo(10.0, (16, 16), ("a",), (1,))).eval()

    def held_out(args, frames, stream):
        silence = np.zeros((frames, 1600), np.float32)
        states = np.zeros((frames, 2), np.float32)
        return [script.Clip(moving_square(i, frames), None, states, silence) for i in range(2)]

    monkeypatch.setattr("ccvs_models.Library", lambda path: argparse.Namespace(hash="h", classes=("a",)))
    for name, value in {
        "train": untrained,
        "held_out": held_out,
        "fvd": lambda made, real: float(np.abs(made.astype(float) - real).mean()),
        "Library": lambda path: argparse.Namespace(hash="h", classes=("a",)),
        "PREDICTED": 4,
        "CONTEXTS": (0, 3),
        "TOP_K": (1, 100),
        "SAMPLES": 2,
    }.items():
        monkeypatch.setattr(script, name, value)
    args = arguments(tmp_path, "no codebook", "1 layer, 2 heads")
    for name in ("reconstruction", "sampling"):
        script.run(name, args)
    coded, sampled = (
        json.loads((tmp_path / f"{name}-seed0.json").read_text())["rows"] for name in ("reconstruction", "sampling")
    )
    baselines = {"last given frame frozen", "mean video"}
    own = {"plain, context 0", "base, context 0", "base, context 3", "no codebook, context 3"}
    assert set(coded) == own | baselines  # an arm with another's autoencoder has no row here
    assert set(sampled) == {"top-k 1", "top-k 100", "no codebook", "1 layer, 2 heads"} | baselines
    assert all(row["frames_a_second"] > 0 for name, row in sampled.items() if name not in baselines)
    assert sampled["no codebook"]["div"] == 0  # nothing is drawn
    assert sampled["top-k 100"]["div"] > 0
    trained.clear()
    script.run("sampling", arguments(tmp_path, "codes-64"))
    assert trained == ["codes-64"]
    assert "codes-64" in json.loads((tmp_path / "sampling-seed0.json").read_text())["rows"]


@pytest.mark.parametrize(("psnr", "told"), [(21.0, True), (19.0, False)])
def test_a_table_says_when_nothing_can_be_told(script, tmp_path, psnr, told):
    rows = {
        "base, context 15": {"psnr": psnr, "fvd": 1.0},
        "mean video": {"psnr": 18.0, "fvd": 2.0},
        "last given frame frozen": {"psnr": 20.0, "fvd": 2.0},
    }
    (tmp_path / "reconstruction-seed0.json").write_text(json.dumps({"rows": rows}))
    shown = script.table(tmp_path)
    assert ("Not trained enough to tell: base, context 15" in shown) != told
    assert "**sampling**: not run" in shown


def painted(places: np.ndarray) -> np.ndarray:
    """Frames (T, 32, 32, 3) whose colours say a place (T, 2) in [0, 1]."""
    frames = np.zeros((len(places), 32, 32, 3), np.uint8)
    frames[..., :2] = (places * 255).round()[:, None, None]
    return frames


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("reads", [True, False])
def test_steering_is_following_another_trajectory(script, tmp_path, monkeypatch, follows, reads):
    """A model that goes on as the clip does, whatever it is told, does not pass; nor does a blind estimator."""
    rng = np.random.default_rng(0)
    tracks = [np.linspace(*rng.random((2, 2)), 32) for _ in range(6)]
    clips = [script.Clip(painted(track), "a", track, np.zeros((32, 1))) for track in tracks]

    class Judge:
        def seen_latents(self, frames):
            return frames

        @property
        def states(self):
            def estimate(frames):
                found = (frames.mean((2, 3))[:, :2] + 1) / 2
                return found if reads else torch.full_like(found, 0.5)

            return argparse.Namespace(estimate=estimate)

    def predict(system, told, given, frames, scratch, **kinds):
        obeyed = follows and kinds.get("states")
        return np.stack([painted(t.states) if obeyed else c.frames for t, c in zip(told, clips, strict=True)])

    monkeypatch.setattr(script, "train", lambda arm, args: Judge())
    monkeypatch.setattr(script, "predict", predict)
    monkeypatch.setattr(script, "held_out", lambda *_: clips)
    rows: dict = {}
    args = arguments(tmp_path)
    args.clips = len(clips)
    script.steering(args, tmp_path, rows)
    assert ("asked for" in rows) == reads
    if reads:
        assert (rows["asked for"]["pixels"] < 0.2) == follows
        assert (rows["the clip's own"]["pixels"] < 0.2) != follows
        assert rows["clips"] == {"a": 6}
    assert script.trained_enough("steering", [{"rows": rows}]) == (follows and reads)


def test_a_trajectory_goes_over_to_another_from_its_own_first_place(script):
    own, other = np.random.default_rng(0).random((2, 32, 2))
    made = script.towards(own, other)
    np.testing.assert_allclose(made[0], own[0])
    np.testing.assert_allclose(made[8:], other[8:])


def test_controls_sound_and_long_videos_are_measured(script, tmp_path, monkeypatch):
    """On an untrained model: every row is there, with figures of the frames that it names."""
    asked = []

    def predict(system, clips, given, frames, scratch, seed=0, **told):
        asked.append((given, frames, told))
        return np.stack([np.repeat(clip.frames[:1], frames, 0) for clip in clips])

    def held_out(args, frames, stream):
        return [
            script.Clip(moving_square(i, frames, 32), "a", np.zeros((frames, 2)), np.zeros((frames, 1)))
            for i in range(3)
        ]

    fake = argparse.Namespace(settings=CCVSSettings())
    for name, value in {
        "train": lambda arm, args: fake,
        "predict": predict,
        "held_out": held_out,
        "fvd": lambda made, real: 1.0,
    }.items():
        monkeypatch.setattr(script, name, value)
    rows: dict[str, dict] = {name: {} for name in ("controls", "sound", "long")}
    for name, found in rows.items():
        getattr(script, name)(arguments(tmp_path), tmp_path, found)
    held = "last given frame frozen"
    assert rows["controls"]["base"] == pytest.approx(rows["controls"][held])
    assert [told for _, _, told in asked[:3]] == [{}, {"end": True}, {"states": True}]
    assert set(rows["sound"]["sound on"]) == {f"{m}_{t}" for m in ("ssim", "psnr") for t in (16, 30, 45)}
    assert [(given, frames, told) for given, frames, told in asked[3:5]] == [
        (15, 45, {"sound": True}),
        (15, 45, {}),
    ]
    assert (fake.settings.state_top_k, fake.settings.keep_first) == (100, 8)
    assert len(rows["long"]["base, context 15"]["fvd"]) == 32
    assert rows["long"]["real"]["motion"] > rows["long"][held]["motion"] == 0


def test_curves_are_drawn_where_there_are_any(script, tmp_path):
    script.plot([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    rows = {"base, context 0": {"fvd": [1.0, 2.0], "motion": [0.1, 0.2]}, "real": {"fvd": 0.0, "motion": 0.1}}
    script.plot([rows, rows], tmp_path / "some.png")
    assert (tmp_path / "some.png").stat().st_size > 5000
