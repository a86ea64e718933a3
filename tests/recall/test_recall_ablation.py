"""What the ablation stores, finds again and refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ablation(experiment):
    return experiment("recall_ablation")


def options(output: Path, **more) -> argparse.Namespace:
    return argparse.Namespace(
        **{
            "output": str(output),
            "steps": 9,
            "plan_steps": 5,
            "width": None,
            "lr": None,
            "videos": 4,
            "data": str(output.parent / "library"),
            **more,
        }
    )


@pytest.fixture(autouse=True)
def no_library(ablation, monkeypatch):
    monkeypatch.setattr(ablation, "Library", lambda path: argparse.Namespace(hash="h"))


def test_records_of_every_arm_are_found_again(ablation, tmp_path):
    """Also of arms whose names have brackets; a record belongs to one slug alone."""
    args = options(tmp_path)
    arms = {ablation._slug(arm, 0): arm for table in ablation.TABLES.values() for arm in table}
    for slug, arm in arms.items():
        for seed in (0, 1):
            record = {"slug": slug, "made_with": ablation.made_with(arm, args)}
            (tmp_path / f"record-{ablation._slug(arm, seed)}.json").write_text(json.dumps(record))
    for slug, arm in arms.items():
        assert [r["slug"] for r in ablation.records_of(arm, args)] == [slug, slug]


@pytest.mark.parametrize("option", ["steps", "plan_steps", "width", "lr", "videos"])
def test_seeds_made_with_other_options_are_not_averaged(ablation, tmp_path, option):
    arm = ablation.Arm("R3", "r3")
    for seed, args in enumerate((options(tmp_path), options(tmp_path, **{option: 77}))):
        record = {"made_with": ablation.made_with(arm, args)}
        (tmp_path / f"record-r3-seed{seed}.json").write_text(json.dumps(record))
        if not seed:
            assert ablation.records_of(arm, args) == [record]
    with pytest.raises(SystemExit, match=r"made with .*77.*; keep them in folders of their own"):
        ablation.records_of(arm, args)


def test_tables_say_what_cannot_be_compared(ablation):
    assert {arm.change["loss"] for arm in ablation.TABLES["4.2"]} == {"v1"}
    for name in ablation.TABLES:
        noted = ablation.GIVEN_NOTE in ablation.table(name, {}, {})
        assert noted == (name in ("5.11", "5.9", "repetition"))
