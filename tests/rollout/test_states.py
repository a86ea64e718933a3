"""Trajectory files that hold no trajectory."""

from __future__ import annotations

import io

import numpy as np
import pytest

from longtake.errors import UserError
from longtake.rollout.states import read_states


def saved(*arrays: np.ndarray) -> bytes:
    """A .npy file of one array, an .npz file of several."""
    file = io.BytesIO()
    if len(arrays) == 1:
        np.save(file, arrays[0])
    else:
        np.savez(file, *arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"", "cannot read the trajectory"),
        ("a.npy", saved(np.zeros((3, 2)))[:-8], "cannot read the trajectory"),
        ("a.npy", b"PK\x03\x04 cut short", "cannot read the trajectory"),
        ("a.npy", saved(np.zeros((3, 2)), np.zeros(1)), "holds no array of numbers"),
        ("a.npy", saved(np.zeros((3, 2), complex)), "holds no array of numbers"),
        ("a.npy", saved(np.zeros((3, 2), [("x", "f4")])), "holds no array of numbers"),
        ("a.csv", b"", "the columns x, y are wanted"),
        ("a.csv", b"x,y\n", "the columns x, y are wanted"),
        ("a.csv", b"\xff\xfe\x01", "cannot read the trajectory"),
    ],
)
def test_what_is_no_trajectory_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*{message}|{message}.*{name}"):
        read_states(tmp_path / name, ("x", "y"))
