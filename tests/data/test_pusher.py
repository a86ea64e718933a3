"""The pusher library: places that are seen where its states say, the same from the same seed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from longtake.data.samples import sample
from longtake.errors import UserError


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if find_spec("mujoco") is None:  # not imported: it would choose its OpenGL at once
        pytest.skip("the pusher needs the extra longtake[pusher]")
    try:
        return sample("pusher", tmp_path_factory.mktemp("pusher") / "one", minutes=0.2, size=64, seed=1, test=0.5)
    except UserError as error:
        if "cannot draw" not in str(error):
            raise
        pytest.skip(f"no OpenGL without a screen: {error}")


def test_the_puck_is_seen_where_the_states_say(library):
    assert library.header.state_names == ("x", "y", "puck_x", "puck_y")
    seen = 0
    for row in range(len(library.rows)):
        frames, states = library.frames(row, range(library.rows[row].frames)), library.states(row)
        assert ((states >= 0) & (states <= 1)).all()
        for frame, (_, _, x, y) in zip(frames.astype(int), states, strict=True):
            red = (frame[..., 0] > frame[..., 2] + 80) & (frame[..., 0] > frame[..., 1] + 60)
            if red.sum() < 8:  # the arm is above it
                continue
            rows, columns = np.nonzero(red)
            assert abs(columns.mean() + 0.5 - 64 * x) < 2.5
            assert abs(rows.mean() + 0.5 - 64 * y) < 2.5
            seen += 1
    assert seen > 40


def test_shots_move_and_are_split(library):
    assert {row.split for row in library.rows} == {"train", "test"}
    states = [library.states(row) for row in range(len(library.rows))]
    assert min(float(np.abs(np.diff(s[:, :2], axis=0)).mean()) for s in states) > 1e-3
    assert not np.allclose(states[0][0], states[1][0])


def test_the_same_seed_gives_the_same_library(library, tmp_path):
    again = sample("pusher", tmp_path / "two", minutes=0.2, size=64, seed=1, test=0.5)
    assert again.hash == library.hash
    other = sample("pusher", tmp_path / "other", minutes=0.2, size=64, seed=2, test=0.5)
    assert other.hash != library.hash


def test_what_cannot_be_recorded(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="the pusher has no games"):
        sample("pusher", tmp_path / "a", games=["boxing"])
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"install it with: pip install 'gymnasium\[mujoco\]'"):
        sample("pusher", tmp_path / "a")
    assert not (tmp_path / "a").exists()
