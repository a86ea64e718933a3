"""What the arms of the ablation differ in, and what its table dares to say."""

from __future__ import annotations

import pytest
import torch

from longtake.config import to_dict
from longtake.systems.base import ModelInfo
from longtake.systems.stylegan_v.config import SIZES
from longtake.systems.stylegan_v.system import MoCoGANSG2, StyleGANV


@pytest.fixture(scope="module")
def ablation(experiment):
    return experiment("stylegan_v_ablation")


def flat(value, path: str = "") -> dict:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for name, inner in value.items() for k, v in flat(inner, f"{path}.{name}".lstrip(".")).items()}


DIFFERENCES = {
    "default": set(),
    "lstm-1": {"motion.codes", "motion.spacing"},
    "lstm-16": {"motion.codes"},
    "no-time": {"discriminator.time"},
    "ours-without-G": {"motion.codes", "motion.into", "motion.spacing"},
    "k2": {"frames", "stage.batch"},
    "k8": {"frames", "stage.batch"},
}


@pytest.mark.parametrize("released", [False, True])
def test_arms_differ_from_the_reference_in_one_thing(ablation, released):
    reference = ablation.reference((32, 32), 100, released)
    before = flat(to_dict(reference))
    for arm, named in DIFFERENCES.items():
        after = flat(to_dict(ablation.ARMS[arm](reference)))
        assert {k for k in before if before[k] != after[k]} == named, arm
    for arm, change in ablation.ARMS.items():
        made = change(reference)
        seen = made.frames * made.stage.batch
        assert abs(seen - 48) <= 1 or arm in ("k1", "mocogan"), arm
    assert (reference.stage.gamma is None) == released


def test_every_arm_can_be_built(ablation):
    info = ModelInfo(15.0, (32, 32), ("a", "b"), (1, 1))
    for arm, change in ablation.ARMS.items():
        cls = MoCoGANSG2 if arm == "mocogan" else StyleGANV
        assert cls(change(ablation.reference((32, 32), 100)), info).stages()


def test_seams_are_seen(ablation):
    """Codes whose slope jumps at tokens are rougher there; an LSTM's, linear between distant tokens, only there."""
    found = []
    for codes in ("acyclic", "lstm"):
        torch.manual_seed(0)
        tiny = SIZES["tiny"]
        motion = ablation.replace(tiny.motion, codes=codes)
        system = StyleGANV(ablation.replace(tiny, motion=motion), ModelInfo(15.0, tiny.size)).eval()
        found.append(ablation.roughness(system, videos=2, tokens=3))
    assert found[1] > found[0] > 1


@pytest.mark.parametrize(("distance", "told"), [(380.0, "The reference arm beats"), (390.0, "Not trained enough")])
def test_the_table_says_when_nothing_can_be_told(ablation, distance, told):
    key = "FVD16[r3d-atari]"
    records = [
        {"arm": "default", "seed": 0, "figures": {key: distance}},
        {"arm": "baselines", "seed": 0, "figures": {"frozen": {key: 387.0}, "mean": {key: 608.0}}},
    ]
    shown = ablation.table(records)
    assert told in shown
    assert "| k8 | 0 | not run" in shown
