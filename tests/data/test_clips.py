"""Every mode draws what it says, uniformly, whatever the process or the moment."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.data.clips import (
    Chain,
    ClipPicker,
    ClipSpec,
    Draw,
    Held,
    Noise,
    Sparse,
    Step,
    Still,
    UniformBins,
    Window,
    present,
)
from longtake.data.library import Header, Library, Row
from longtake.errors import UserError
from longtake.rollout.rng import Rng

SIZE = (16, 16)


def shelf(*lengths: int, conditions: tuple[str, ...] = (), size=(16, 16), split: str = "train") -> SimpleNamespace:
    """As much of a library as a picker looks at."""
    rows = [Row(str(i), f"{i}.mp4", n, n / 15, split) for i, n in enumerate(lengths)]
    return SimpleNamespace(
        path=Path("lib"),
        header=Header(size=size, fps=15.0, conditions=conditions),
        rows=rows,
        split=lambda name: [i for i, row in enumerate(rows) if row.split == name],
    )


def picker(library, mode, frames: int, **spec) -> ClipPicker:
    return ClipPicker(library, ClipSpec(frames, SIZE, mode, **spec), "train", 0, "clips")


sparse = st.one_of(st.integers(7, 40), st.lists(st.integers(7, 40), min_size=1, max_size=4, unique=True).map(tuple))
modes = st.one_of(
    st.integers(1, 3).flatmap(lambda low: st.builds(Step, st.just(low), st.integers(low, 6))),
    st.just(UniformBins()),
    sparse.map(Sparse),
    st.integers(1, 20).map(Window),
    st.builds(Chain, st.integers(1, 4), st.just(0)),
)


@given(modes, st.integers(1, 8), st.lists(st.integers(1, 80), min_size=1, max_size=4), st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_clips_ascend_inside_their_video(mode, frames, lengths, id):
    library = shelf(*lengths)
    if max(lengths) < mode.span(frames):
        with pytest.raises(UserError, match=f"no train video of {mode.span(frames)} frames or more"):
            picker(library, mode, frames)
        return
    source = picker(library, mode, frames)
    clip = source.pick(id)
    assert clip.indices.shape == (frames,)
    assert clip.indices.dtype == np.int64
    assert (np.diff(clip.indices) > 0).all()
    assert clip.indices[0] >= 0
    assert clip.indices[-1] < lengths[clip.row]
    again = picker(library, mode, frames).pick(id)
    assert (again.row, again.indices.tolist()) == (clip.row, clip.indices.tolist())


def starts(mode, frames: int, *lengths: int, draws: int = 3000) -> Counter:
    source = picker(shelf(*lengths), mode, frames)
    clips = [source.pick(i) for i in range(draws)]
    return Counter((c.row, int(c.indices[0])) for c in clips)


def flat(counts: list[int], bins: int) -> bool:
    """Whether counts over all bins pass a chi-square test at about 1 in 1,000."""
    expected = sum(counts) / bins
    statistic = sum((c - expected) ** 2 / expected for c in counts) + (bins - len(counts)) * expected
    return statistic < bins + 3.3 * (2 * bins) ** 0.5 + 5


@pytest.mark.parametrize(
    ("mode", "frames", "places"),
    [
        (Step(), 4, [(0, s) for s in range(7)] + [(2, s) for s in range(3)]),
        (Step(2, 2), 3, [(0, s) for s in range(6)] + [(2, s) for s in range(2)]),
        (Chain(2, overlap=1), 3, [(0, s) for s in range(6)] + [(2, s) for s in range(2)]),
        (Still(), 1, [(0, s) for s in range(10)] + [(1, s) for s in range(3)] + [(2, s) for s in range(6)]),
    ],
)
def test_every_start_is_reached_equally_often(mode, frames, places):
    source = picker(shelf(10, 3, 6), mode, frames)
    group = mode.clips if isinstance(mode, Chain) else 1
    counts = Counter((c.row, int(c.indices[0])) for c in (source.pick(group * i) for i in range(3000)))
    assert set(counts) == set(places)
    assert flat(list(counts.values()), len(places))


def test_windows_start_anywhere_equally_often():
    counts = starts(Window(16), 24, 40)
    assert set(counts) == {(0, s) for s in range(17)}
    assert flat(list(counts.values()), 17)


def test_windows_weigh_videos_by_their_windows():
    source = picker(shelf(24, 24 + 3 * 16), Window(16), 24)
    rows = Counter(source.pick(i).row for i in range(2000))
    assert abs(rows[1] / 2000 - 4 / 5) < 4 * (0.16 / 2000) ** 0.5


def test_steps_are_drawn_equally_often_and_starts_within_each():
    source = picker(shelf(11), Step(1, 4), 3)
    drawn = [source.pick(i).indices for i in range(4000)]
    by_step: dict[int, list[int]] = {}
    for indices in drawn:
        (step,) = set(np.diff(indices).tolist())
        by_step.setdefault(step, []).append(int(indices[0]))
    assert flat([len(v) for v in by_step.values()], 4)
    for step, firsts in by_step.items():
        assert flat(list(Counter(firsts).values()), 11 - 2 * step)


def test_bins_give_one_frame_each_equally_often():
    source = picker(shelf(12), UniformBins(), 4)
    drawn = np.stack([source.pick(i).indices for i in range(2000)])
    assert (drawn // 3 == np.arange(4)).all()
    for column in drawn.T:
        assert flat(list(Counter(column.tolist()).values()), 3)


@pytest.mark.parametrize(("distance", "distances"), [(6, [2, 3, 4, 5, 6]), ((2, 4, 8), [2, 4, 8])])
def test_sparse_distances_and_inner_frames_are_uniform(distance, distances):
    source = picker(shelf(9), Sparse(distance), 3)
    drawn = np.stack([source.pick(i).indices for i in range(3000)])
    spans = drawn[:, 2] - drawn[:, 0]
    assert set(spans.tolist()) == set(distances)
    assert flat(list(Counter(spans.tolist()).values()), len(distances))
    for d in distances:
        chosen = drawn[spans == d]
        assert flat(list(Counter((chosen[:, 1] - chosen[:, 0]).tolist()).values()), d - 1)
        assert flat(list(Counter(chosen[:, 0].tolist()).values()), 9 - d)


def test_sparse_leaves_out_distances_that_a_video_is_too_short_for():
    source = picker(shelf(6), Sparse((4, 8)), 3)
    assert {int(np.ptp(source.pick(i).indices)) for i in range(50)} == {4}


@given(st.integers(1, 5), st.integers(2, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_chains_follow_each_other(clips, frames, data):
    overlap = data.draw(st.integers(0, frames - 1))
    batch, chain = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 50))
    source = picker(shelf(60, 45), Chain(clips, overlap), frames)
    steps = [[source.pick(i) for i in source.ids(s, batch)] for s in range(chain * clips, (chain + 1) * clips)]
    for b in range(batch):
        own = [step[b] for step in steps]
        assert len({c.row for c in own}) == 1
        assert [c.first for c in own] == [True] + [False] * (clips - 1)
        for one, two in pairwise(own):
            assert two.indices[0] == one.indices[-1] + 1 - overlap
        assert own[-1].indices[-1] < source.library.rows[own[0].row].frames


@given(st.one_of(st.just(Step()), st.builds(Chain, st.integers(1, 4))), st.integers(0, 200), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_two_processes_see_what_one_with_the_doubled_batch_sees(mode, step, batch):
    source = picker(shelf(40), mode, 3)
    both = source.ids(step, batch, 0, 2) + source.ids(step, batch, 1, 2)
    assert both == source.ids(step, 2 * batch)


@given(st.one_of(st.just(Step()), st.builds(Chain, st.integers(1, 4))), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_no_sample_number_comes_twice(mode, batch, world):
    source = picker(shelf(40), mode, 3)
    ids = [i for step in range(20) for rank in range(world) for i in source.ids(step, batch, rank, world)]
    assert len(set(ids)) == len(ids)


def test_countable_clips_have_numbers_that_find_them_again():
    for mode, frames in ((Step(), 4), (Step(2, 2), 3), (Still(), 1)):
        source = picker(shelf(10, 3, 6), mode, frames)
        assert source.countable
        for i in range(20):
            clip = source.pick(i)
            again = source.at(clip.number)
            assert (again.row, again.indices.tolist()) == (clip.row, clip.indices.tolist())
    assert not picker(shelf(40), Step(1, 2), 3).countable
    assert picker(shelf(40), Step(1, 2), 3).pick(0).number is None


def test_draws_of_other_names_and_seeds_are_independent():
    library, spec = shelf(500), ClipSpec(4, SIZE)
    base = ClipPicker(library, spec, "train", 0, "clips")
    for other in (ClipPicker(library, spec, "train", 1, "clips"), ClipPicker(library, spec, "train", 0, "stills")):
        same = sum(base.pick(i).indices[0] == other.pick(i).indices[0] for i in range(100))
        assert same < 10


@pytest.mark.parametrize(
    ("library", "spec", "message"),
    [
        (
            shelf(9, conditions=("label",)),
            {"conditions": ("audio",)},
            r"lib has no audio on every video .*: label\)",
        ),
        (shelf(9), {"conditions": ("label",)}, r"lib has no label on every video \(it has: none\)"),
        (
            shelf(9, size=(8, 8)),
            {},
            "lib holds 8x8 frames and this model wants 16x16; prepare it again with --size 16",
        ),
        (shelf(9, size=(16, 24)), {}, "lib holds 16x24 frames and this model wants 16x16"),
        (shelf(3, 5), {}, r"no train video of 6 frames or more for clips \(2 videos, the longest has 5\)"),
        (
            shelf(9, split="test"),
            {},
            r"no train video of 6 frames or more for clips \(0 videos, the longest has 0\)",
        ),
    ],
)
def test_a_library_that_cannot_meet_the_spec_says_what_is_missing(library, spec, message):
    with pytest.raises(UserError, match=message):
        picker(library, Step(), 6, **spec)


@pytest.mark.parametrize(
    ("frames", "mode", "message"),
    [
        (2, Still(), "still images have 1 frame, not 2"),
        (5, Sparse(3), "holds 5 frames"),
        (5, Sparse((2, 3)), "holds 5 frames"),
        (4, Chain(2, overlap=4), "cannot share 4"),
    ],
)
def test_specs_that_make_no_sense(frames, mode, message):
    with pytest.raises(ValueError, match=message):
        ClipSpec(frames, SIZE, mode)


def test_shares_sum_to_one_and_come_as_often_as_they_say():
    spec = ClipSpec(1, SIZE, Still())
    draws = {"a": Draw(spec, 1, share=0.25), "b": Draw(spec, 1, share=0.75), "c": Draw(spec, 1, every=3)}
    seen = [present(draws, step, 0) for step in range(2000)]
    counts = Counter(name for names in seen for name in names)
    assert all(("a" in names) != ("b" in names) for names in seen)
    assert abs(counts["a"] / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    assert [step for step, names in enumerate(seen) if "c" in names] == list(range(0, 2000, 3))
    assert seen[100] == present(draws, 100, 0)
    assert [present(draws, s, 1) for s in range(50)] != seen[:50]
    shared = [name for name, draw in draws.items() if draw.share is not None]
    assert all(any(n in present(draws, s, 0, in_turn=True) for s in range(len(shared))) for n in shared)
    with pytest.raises(ValueError, match=r"the shares of a, b add up to 1\.5, not 1"):
        present({"a": Draw(spec, 1, share=0.75), "b": Draw(spec, 1, share=0.75)}, 0, 0)


def test_noise_of_a_sample_is_addressed():
    noise = Noise(Rng([0]), 7)
    assert noise.integer("x", 1000) == noise.integer("x", 1000)
    assert noise.uniform("u", (3,)).tolist() == noise.uniform("u", (3,)).tolist()
    assert noise.uniform("u", (3,)).tolist() != noise.uniform("v", (3,)).tolist()


def test_held_clips_of_short_videos_repeat_their_last_frame(library):
    """The library's videos have 40 frames."""
    long, short = (ClipPicker(Library(library), ClipSpec(n, (16, 16), Held(24)), "train", 0, "x") for n in (32, 56))
    assert long.countable
    assert long.total == short.total == 4
    assert long.at(1).indices.tolist() == list(range(32))
    assert short.at(1).indices.tolist() == [*range(40), *[39] * 16]
    strided = ClipPicker(Library(library), ClipSpec(32, (16, 16), Held(24, 4)), "train", 0, "x")
    assert strided.total == 4 * 3
    assert [int(strided.at(n).indices[0]) for n in range(4)] == [0, 4, 8, 0]
    with pytest.raises(UserError, match="no train video of 41 frames"):
        ClipPicker(Library(library), ClipSpec(56, (16, 16), Held(41)), "train", 0, "x")
