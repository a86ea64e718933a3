"""What the ablation stores, finds again and refuses."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "recall_ablation.py"


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("recall_ablation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def options(output: Path, **more) -> argparse.Namespace:
    return argparse.Namespace(
        **{
            "output": str(output),
            "steps": 9,
            "plan_steps": 5,
            "width": None,
            "lr": None,
            "videos": 4,
            "table_only": False,
            **more,
        }
    )


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
def test_records_made_with_other_options_are_refused(ablation, tmp_path, option):
    arm, args = ablation.Arm("R3", "r3"), options(tmp_path)
    record = {"made_with": ablation.made_with(arm, args)}
    (tmp_path / "record-r3-seed0.json").write_text(json.dumps(record))
    assert ablation.records_of(arm, args) == [record]
    with pytest.raises(SystemExit, match=r"was made with .* choose another --output"):
        ablation.records_of(arm, options(tmp_path, **{option: 77}))
    assert ablation.records_of(arm, options(tmp_path, **{option: 77}, table_only=True)) == [record]


def test_baselines_of_other_videos_are_refused(ablation, tmp_path):
    (tmp_path / "baselines.json").write_text(
        json.dumps({"figures": {"mean video": {}}, "made_with": {"videos": 4}})
    )
    assert ablation.baselines(options(tmp_path, steps=77)) == {"mean video": {}}
    with pytest.raises(SystemExit, match=r"was made with .* choose another --output"):
        ablation.baselines(options(tmp_path, videos=77))


def test_tables_say_what_cannot_be_compared(ablation):
    assert {arm.change["loss"] for arm in ablation.TABLES["4.2"]} == {"v1"}
    for name in ablation.TABLES:
        noted = ablation.GIVEN_NOTE in ablation.table(name, {}, {})
        assert noted == (name in ("5.11", "5.9", "repetition"))
