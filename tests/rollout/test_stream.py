"""Regrouping neither loses, repeats nor changes a frame."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.rollout.stream import regroup

cuts = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda c: sum(c) > 0)


def video(frames: int) -> torch.Tensor:
    return torch.arange(2 * 3 * frames, dtype=torch.float32).view(2, 3, frames, 1, 1)


@given(cuts, st.data())
@settings(max_examples=100, deadline=None)
def test_any_chunking_gives_the_same_frames(chunks, data):
    have = sum(chunks)
    frames = data.draw(st.integers(1, have))
    size = data.draw(st.one_of(st.none(), st.integers(1, have + 3)))
    whole = video(have)
    made = list(regroup(whole.split(chunks, 2), frames, size))
    assert torch.equal(torch.cat(made, 2), whole[:, :, :frames])
    assert all(c.shape[2] > 0 for c in made)
    if size is not None:
        assert [c.shape[2] for c in made[:-1]] == [size] * (len(made) - 1)
        assert made[-1].shape[2] <= size


@given(cuts, st.integers(1, 5), st.one_of(st.none(), st.integers(1, 20)))
@settings(max_examples=50, deadline=None)
def test_too_short_a_stream_raises(chunks, lacking, size):
    frames = sum(chunks) + lacking
    with pytest.raises(RuntimeError, match=f"{lacking} frames short of {frames}"):
        list(regroup(video(sum(chunks)).split(chunks, 2), frames, size))


def test_the_system_is_not_asked_for_more_than_needed():
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 4
            yield video(4)

    assert sum(c.shape[2] for c in regroup(endless(), 10, 3)) == 10
    assert asked == 12


def test_frames_are_given_out_as_soon_as_they_are_whole():
    source = iter([video(1), video(1), video(2), video(2)])
    stream = regroup(source, 6, 2)
    assert next(stream).shape[2] == 2
    assert len(list(source)) == 2


def test_half_precision_becomes_float32():
    (chunk,) = regroup([video(2).bfloat16()], 2, None)
    assert chunk.dtype == torch.float32
