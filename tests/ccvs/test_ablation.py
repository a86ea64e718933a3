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
from longtake.systems.ccvs.config import SIZES
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
        autoencoder_steps=10,
        prior_steps=10,
    )


def test_the_plain_arm_decodes_without_context_once(script, tmp_path):
    """Where there is never any context, unconditional decoding is what is trained already."""
    found = script.arms(arguments(tmp_path))
    assert not found["plain"].autoencoder_stage.unconditional
    assert found["base"].autoencoder_stage.unconditional


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

    for name, value in {
        "train": untrained,
        "held_out": held_out,
        "fvd": lambda made, real: float(np.abs(made.astype(float) - real).mean()),
        "Library": lambda path: argparse.Namespace(hash="h"),
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
