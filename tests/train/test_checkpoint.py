"""Checkpoints are whole or absent, and hold exactly what was put in."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.train import checkpoint

dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool])
tensors = st.builds(
    lambda shape, dtype, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    dtypes,
    st.integers(0, 99),
)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
keys = st.one_of(st.integers(0, 20), st.text("ab/#01", max_size=4))
nested = st.recursive(
    st.one_of(plain, tensors),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


def same(one, two) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(two, list) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


@given(nested)
@settings(max_examples=150, deadline=None)
def test_pack_and_unpack_are_inverse(state):
    held: dict[str, Tensor] = {}
    packed = json.loads(json.dumps(checkpoint.pack(state, held)))
    assert same(state, checkpoint.unpack(packed, held))


def test_the_disk_keeps_it(tmp_path):
    weight = torch.randn(3, 4)
    state = {
        "networks": {"a": {"w": weight, "view": weight.t(), "same": weight, "none": torch.zeros(0)}},
        "optimisers": {"o": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.95)}]}},
        "best": None,
        "figure": math.inf,
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    path = checkpoint.write(tmp_path, "0-00000001-x", state, 2)
    assert same(state, checkpoint.read(path))
    assert sorted(p.name for p in path.iterdir()) == ["state.json", "tensors.safetensors"]


def test_packed_tensors_are_copies():
    weight, held = torch.zeros(2), {}
    packed = checkpoint.pack({"w": weight}, held)
    weight.add_(1)
    assert checkpoint.unpack(packed, held)["w"].tolist() == [0, 0]


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_last_k_are_kept_in_the_order_they_were_made(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    assert checkpoint.latest(tmp_path) is None
    made = ["0-00000002-zebra", "0-00000010-zebra", "1-00000000-start", "1-00000005-apple"]
    for i, name in enumerate(made):
        checkpoint.write(tmp_path, name, {"i": i}, 2)
        assert names(tmp_path) == made[max(0, i - 1) : i + 1]
        newest = checkpoint.latest(tmp_path)
        assert newest is not None
        assert checkpoint.read(newest) == {"i": i}


class Killed(BaseException):
    """Stands for a kill -9."""


STEPS = {
    "tensors": (checkpoint, "save_file", 1),
    "state": (json, "dumps", 1),
    "first fsync": (os, "fsync", 1),
    "second fsync": (os, "fsync", 2),
    "rename": (os, "replace", 1),
}


@pytest.mark.parametrize("moment", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupted_write_leaves_the_one_before(tmp_path, monkeypatch, moment, after):
    module, name, nth = STEPS[moment]
    state = {"w": torch.ones(2), "step": 1}
    checkpoint.write(tmp_path, "0-00000001-x", state, 1)
    real, count = getattr(module, name), 0

    def dying(*args, **options):
        nonlocal count
        count += 1
        if count == nth and not after:
            raise Killed
        result = real(*args, **options)
        if count == nth:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying)
        with pytest.raises(Killed):
            checkpoint.write(tmp_path, "0-00000002-x", {"w": torch.zeros(2), "step": 2}, 1)
    renamed = moment == "rename" and after
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.read(newest)["step"] == (2 if renamed else 1)
    assert not [n for n in names(tmp_path) if n.startswith(".")]
    checkpoint.write(tmp_path, "0-00000003-x", state, 1)
    assert names(tmp_path) == ["0-00000003-x"]


def test_what_is_not_a_whole_checkpoint_is_passed_over(tmp_path):
    checkpoint.write(tmp_path, "0-00000001-x", {"step": 1}, 2)
    (tmp_path / "0-00000009-x").mkdir()
    (tmp_path / "0-00000009-x" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / f"{checkpoint.PARTIAL}0-00000010-x").mkdir()
    (tmp_path / "best-x.safetensors").write_bytes(b"")
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.name == "0-00000001-x"
    assert f"{checkpoint.PARTIAL}0-00000010-x" not in names(tmp_path)


def test_single_files_are_whole_or_as_before(tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    checkpoint.write_tensors(path, {"a": torch.ones(2).expand(3, 2)})
    before = path.read_bytes()

    def dying(tensors, file):
        file.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(checkpoint, "save_file", dying)
    with pytest.raises(Killed):
        checkpoint.write_tensors(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before


def test_nothing_is_pickled(tmp_path):
    path = checkpoint.write(tmp_path, "0-00000001-x", {"w": torch.ones(2)}, 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.write(tmp_path, "0-00000002-x", {"w": object()}, 1)
    assert checkpoint.latest(tmp_path) == path
