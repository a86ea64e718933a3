"""The comparison of all systems: every system has a recipe, and budgets scale what is counted in updates alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.config import from_dict, read_yaml
from longtake.data.samples import sample
from longtake.systems import REGISTRY, system_class

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def comparison(experiment):
    return experiment("comparison")


def raw(name: str) -> dict:
    return read_yaml((ROOT / "recipes" / "compare" / f"{name}.yaml").read_text(), name)


def test_every_system_that_makes_videos_is_compared(comparison):
    files = {path.stem for path in (ROOT / "recipes" / "compare").glob("*.yaml")}
    assert files == set(comparison.SYSTEMS)
    assert {raw(name)["system"] for name in files} == {
        name
        for name in REGISTRY
        if not name.startswith("tiny-")  # the tests' own
    } - {"classifier", "upscaler"}


@settings(deadline=None)
@given(factor=st.floats(1e-4, 100))
def test_a_budget_changes_numbers_of_updates_only(comparison, factor):
    for name in comparison.SYSTEMS:
        config = raw(name)["config"]
        changed = comparison.scaled(config, factor)
        assert changed.keys() == config.keys()
        for (path, old), (_, new) in zip(leaves(config), leaves(changed), strict=True):
            if path[-1] not in comparison.COUNTED_IN_UPDATES:
                assert new == old
            else:
                for a, b in zip(*([v] if isinstance(v, int) else v for v in (old, new)), strict=True):
                    most = max(1, round(a * factor)) if a else 0
                    assert b <= most if path[-1].endswith("_start") else b == most
        cls = system_class(raw(name)["system"])
        from_dict(cls.config_class, changed, name, cls.sizes["small"])  # what starts, starts before the end
    assert comparison.scaled(config, 1) == config


def leaves(config: dict, path: tuple = ()):
    for name, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


@pytest.mark.slow
def test_the_queue_goes_on_where_it_stopped_and_mixes_nothing(tmp_path):
    """Two systems of a budget of seconds; then one of them anew, another budget, and the table alone."""
    data, out = tmp_path / "data", tmp_path / "runs"
    sample("atari", data, minutes=6, size=32, seed=1, games=["freeway", "seaquest"], test=0.4)
    few = ["--videos", "16", "--frames", "32", "--long", "96", "--systems", "stylegan_v", "encgan3"]

    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "experiments" / "comparison.py"), "--output", str(out), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    begun = run("--data", str(data), *few, "--pflop", "1e-6", "--parts", "train")
    assert begun.returncode == 0, begun.stderr
    whole = run("--data", str(data), *few, "--pflop", "1e-6")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("StyleGAN-V | game |") == 1
    records = json.loads((out / "comparison.json").read_text())
    assert set(records) == {"stylegan_v", "encgan3", "frozen", "mean"}
    assert {"seconds", "peak_mib"} <= set(records["stylegan_v"]["timed"])
    assert "seconds" not in records["encgan3"]["timed"]  # single clips
    spent = sum(records["encgan3"]["trained"]["pflop"].values())
    assert 0 < spent < 1e-4
    other = run("--data", str(data), *few, "--pflop", "2e-6")
    assert other.returncode == 1
    assert "was made with" in other.stdout
    (out / "measured-encgan3.json").unlink()
    assert "EncGAN3 | nothing |  | - |" in run("--table").stdout
    again = run("--data", str(data), *few, "--pflop", "1e-6")
    assert json.loads((out / "comparison.json").read_text()) == records, again.stderr
