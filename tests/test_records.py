"""Records of experiments are made once and never mixed."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def records(experiment):
    return experiment("records")


def test_a_record_is_made_once(records, tmp_path):
    calls = []

    def make() -> dict:
        calls.append(1)
        return {"figure": len(calls)}

    path = tmp_path / "new" / "a.json"
    made = [records.once(path, {"steps": 3, "sizes": (1, 2)}, make) for _ in range(2)]
    assert made == [{"figure": 1, "made_with": {"steps": 3, "sizes": [1, 2]}}] * 2
    with pytest.raises(SystemExit, match=r"was made with .* choose another --output"):
        records.once(path, {"steps": 4, "sizes": (1, 2)}, make)
    assert len(calls) == 1
    assert records.read(tmp_path / "new", "*.json") == made[:1]


def test_what_failed_is_no_record(records, tmp_path):
    def fail() -> dict:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        records.once(tmp_path / "a.json", {}, fail)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_published_over_something(records, tmp_path):
    path = tmp_path / "known.json"
    records.publish(path, [1])
    with pytest.raises(SystemExit, match=r"no records for known\.json"):
        records.publish(path, [])
    assert json.loads(path.read_text()) == [1]
