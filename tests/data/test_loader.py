"""Batches are the same cached or not, from the start or resumed, however threads race."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
import torch
from conftest import moving_square
from torch import Tensor

from longtake.data import cache, video
from longtake.data.batch import Batch, split, to_float, to_uint8
from longtake.data.cache import DerivedCache, FrameCache
from longtake.data.clips import Chain, ClipSpec, Draw, Step, Still
from longtake.data.library import Library, LibraryWriter, Row
from longtake.data.loader import Loader

SIZE = (16, 16)
DRAWS = {
    "clips": Draw(ClipSpec(4, SIZE, Step(1, 2), conditions=("label",)), 2),
    "stills": Draw(ClipSpec(1, SIZE, Still()), 3, every=2),
    "chains": Draw(ClipSpec(4, SIZE, Chain(3, 1)), 1),
}
LOTS = 1 << 30


@pytest.fixture
def own(library, tmp_path) -> Library:
    """A library without a cache yet."""
    shutil.copytree(library, tmp_path / "own", ignore=shutil.ignore_patterns("cache"))
    return Library(tmp_path / "own")


def equal(one: dict, two: dict) -> bool:
    if one.keys() != two.keys():
        return False
    return all(torch.equal(v, two[k]) if isinstance(v, Tensor) else equal(v, two[k]) for k, v in one.items())


def test_cached_equals_uncached(own):
    plain, cached = Loader(own, DRAWS, cache_bytes=0), Loader(own, DRAWS, cache_bytes=LOTS)
    assert plain.frames[SIZE].memory is None
    assert cached.frames[SIZE].memory is not None
    assert [p.name.startswith("frames-16x16-") for p in (own.path / "cache").iterdir()] == [True]
    for step in range(4):
        assert equal(plain.batches(step), cached.batches(step))


def test_the_cache_is_made_once(own, monkeypatch):
    told = []
    FrameCache(own, SIZE, LOTS, lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 6) for i in range(6)]
    monkeypatch.setattr(FrameCache, "_read", lambda *a: pytest.fail("decoded again"))
    assert FrameCache(own, SIZE, LOTS).frames(0, np.arange(3)).shape == (3, 16, 16, 3)


def test_an_interrupted_cache_leaves_nothing(own, monkeypatch):
    read = FrameCache._read

    def failing(self, row, indices):
        if row == 3:
            raise OSError("no space left")
        return read(self, row, indices)

    monkeypatch.setattr(FrameCache, "_read", failing)
    with pytest.raises(OSError, match="no space left"):
        FrameCache(own, SIZE, LOTS)
    assert list((own.path / "cache").iterdir()) == []


def test_smaller_frames_are_resized_the_same_cached_or_not(own):
    draws = {"clips": Draw(ClipSpec(4, (8, 8)), 2)}
    plain, cached = Loader(own, draws, cache_bytes=0), Loader(own, draws, cache_bytes=LOTS)
    batch = cached.batches(0)["clips"]
    assert batch["frames"].shape == (2, 3, 4, 8, 8)
    assert equal(plain.batches(0), cached.batches(0))
    expected = video.resize(own.frames(int(batch["video"][0]), batch["times"][0].tolist()), (8, 8), "stretch")
    assert torch.equal(batch["frames"][0], to_float(expected))


def test_what_a_batch_holds(own):
    batches = Loader(own, DRAWS, cache_bytes=LOTS).batches(0)
    clips = batches["clips"]
    assert clips["frames"].shape == (2, 3, 4, 16, 16)
    assert -1 <= float(clips["frames"].min()) < float(clips["frames"].max()) <= 1
    for i in range(2):
        row = int(clips["video"][i])
        assert torch.equal(clips["frames"][i], to_float(own.frames(row, clips["times"][i].tolist())))
        assert int(clips["label"][i]) == own.label(row)
        assert int(clips["start"][i]) == int(clips["times"][i, 0])
    assert clips["id"].tolist() == [0, 1]
    assert batches["stills"]["frames"].shape == (3, 3, 1, 16, 16)
    assert batches["chains"]["first"].tolist() == [True]


def test_resuming_equals_going_on(own):
    loader = Loader(own, DRAWS, cache_bytes=LOTS)
    whole = list(loader.stream(0, 7))
    assert len(whole) == 7
    assert all(equal(a, b) for a, b in zip(whole[3:], Loader(own, DRAWS).stream(3, 7), strict=True))
    assert all(equal(a, loader.batches(step)) for step, a in enumerate(whole))


def test_stages_see_clips_of_their_own(own):
    ids = [
        [b["start"].tolist() for s in range(4) for b in Loader(own, DRAWS, scope=scope).batches(s).values()]
        for scope in ("", "one", "two", "two")
    ]
    assert ids[2] == ids[3]
    assert len({str(one) for one in ids}) == 3


def test_reading_ahead_never_changes_the_order(own, monkeypatch):
    loader = Loader(own, DRAWS, cache_bytes=LOTS, workers=4)
    whole = [loader.batches(step) for step in range(8)]
    read = Loader._read

    def unsteady(self, step):
        time.sleep(0.02 * ((step * 7) % 4))
        return read(self, step)

    monkeypatch.setattr(Loader, "_read", unsteady)
    assert all(equal(a, b) for a, b in zip(whole, loader.stream(0, 8), strict=True))


def test_processes_share_the_batch(own):
    one = Loader(own, {"clips": Draw(ClipSpec(4, SIZE), 4)}).batches(5)["clips"]
    halves = [
        Loader(own, {"clips": Draw(ClipSpec(4, SIZE), 2)}, rank=r, world=2).batches(5)["clips"] for r in range(2)
    ]
    assert torch.equal(one["frames"], torch.cat([h["frames"] for h in halves]))
    assert torch.equal(one["id"], torch.cat([h["id"] for h in halves]))


def counting(calls: list[int]):
    def derive(batch: Batch) -> dict[str, Tensor]:
        calls.append(len(batch["frames"]))
        frames = batch["frames"]
        return {"mean": frames.mean((1, 2, 3, 4)), "first": frames[:, :, 0, 0].mul(100).to(torch.int32)}

    return derive


def derived(own: Library, calls: list[int], mode=None, **options) -> Loader:
    draws = {"clips": Draw(ClipSpec(4, SIZE, mode or Step()), 3)}
    return Loader(own, draws, derive=(counting(calls), {"weights": "w"}), **options)


def test_derived_tensors_are_the_ones_derived_and_are_made_once(own):
    calls: list[int] = []
    first = list(derived(own, calls).stream(0, 6))
    assert sum(calls) <= 18
    plain = Loader(own, {"clips": Draw(ClipSpec(4, SIZE), 3)})
    for step, batches in enumerate(first):
        assert "frames" not in batches["clips"]
        expected = counting([])(plain.batches(step)["clips"])
        for key, value in expected.items():
            assert torch.equal(batches["clips"][key], value)
            assert batches["clips"][key].dtype == value.dtype
    again: list[int] = []
    assert all(equal(a, b) for a, b in zip(first, derived(own, again).stream(0, 6), strict=True))
    assert again == []


def test_hits_and_misses_in_one_batch_keep_their_places(own):
    calls: list[int] = []
    whole = list(derived(own, []).stream(0, 3))
    shutil.rmtree(own.path / "cache")
    loader = derived(own, calls)
    loader.batches(1)
    known = loader.derived["clips"].known
    assert known is not None
    numbers = [loader.pickers["clips"].pick(i).number for i in loader.pickers["clips"].ids(1, 3)]
    known[numbers[2]] = 0  # the last clip alone must be made again
    calls.clear()
    assert equal(loader.batches(1), whole[1])
    assert calls == [1]


@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {"cache_bytes": LOTS, "mode": Step(1, 2)}])
def test_over_budget_or_uncountable_is_derived_on_the_fly(own, options):
    calls: list[int] = []
    loader = derived(own, calls, **options)
    one, two = loader.batches(0), loader.batches(0)
    assert equal(one, two)
    assert calls == [3, 3]
    assert not list(own.path.glob("cache/derived-*"))


def test_another_key_is_another_cache(own):
    calls: list[int] = []
    derived(own, calls).batches(0)
    draws = {"clips": Draw(ClipSpec(4, SIZE), 3)}
    Loader(own, draws, derive=(counting(calls), {"weights": "other"})).batches(0)
    Loader(own, draws, "test", derive=(counting(calls), {"weights": "w"})).batches(0)
    assert calls == [3, 3, 3]


class Killed(BaseException):
    """Stands for a kill -9."""


def test_a_kill_between_data_and_flag_loses_work_but_not_truth(own, monkeypatch):
    """Also between the files of a new cache: nothing that is flagged may be untrue."""
    expected = derived(own, []).batches(0)
    shutil.rmtree(own.path / "cache")
    made = cache._map

    for stop in range(1, 4):  # two data files, then the flags
        count = 0

        def dying(*args, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise Killed
            return made(*args)

        monkeypatch.setattr(cache, "_map", dying)
        with pytest.raises(Killed):
            derived(own, []).batches(0)
    monkeypatch.setattr(cache, "_map", made)
    loader = derived(own, [])
    kept = loader.derived["clips"]
    tensors = {k: torch.full_like(v, 7) for k, v in expected["clips"].items() if k in ("mean", "first")}
    assert kept._open(tensors)
    for file in kept.files.values():  # data written, flags not
        file[:] = 7
    calls: list[int] = []
    assert equal(derived(own, calls).batches(0), expected)
    assert calls == [3]


def test_two_processes_that_open_a_cache_do_not_wipe_each_other(tmp_path):
    one, two = (DerivedCache(tmp_path, {"a": 1}, 4, LOTS) for _ in range(2))
    row = {"x": torch.ones(1, 2)}
    assert one._open(row)
    assert two._open(row)
    one.put([0], row)
    two.put([1], {"x": torch.full((1, 2), 2.0)})
    assert one.missing([0, 1, 2]) == two.missing([0, 1, 2]) == [2]
    assert one.get([1, 0])["x"].tolist() == [[2.0, 2.0], [1.0, 1.0]]


def test_split_cuts_every_key():
    batch = Batch(id=torch.arange(4), frames=torch.rand(4, 3, 2, 1, 1), caption=[["a"], ["b"], ["c"], ["d"]])
    halves = split(batch, 2)
    assert [h["id"].tolist() for h in halves] == [[0, 1], [2, 3]]
    assert halves[1]["caption"] == [["c"], ["d"]]
    with pytest.raises(ValueError, match="a batch of 4 cannot be split into 3 equal parts"):
        split(batch, 3)


def test_pixels_survive_the_way_there_and_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    assert np.array_equal(to_uint8(to_float(pixels)), pixels)


def test_cached_sound_equals_decoded_sound(tmp_path, monkeypatch):
    """To the last bit, also at full scale; and it is decoded once."""
    path, frames, samples, fps = tmp_path / "heard", 12, 800, 10.0
    with LibraryWriter(path, (16, 16), fps, samples_per_frame=samples) as writer:
        for i in range(3):
            files = {kind: writer.media(kind, f"v{i}") for kind in ("video", "audio")}
            video.write_video(files["video"], [moving_square(i, frames)], fps)
            wave = np.random.default_rng(i).uniform(-1.2, 1.2, frames * samples).astype(np.float32)
            video.write_audio(files["audio"], wave, int(fps * samples))
            names = {kind: writer.relative(file) for kind, file in files.items()}
            split = "test" if i == 2 else "train"
            writer.add(Row(f"v{i}", names["video"], frames, frames / fps, split, audio=names["audio"]))
    own, draws = Library(path), {"clips": Draw(ClipSpec(4, SIZE, conditions=("audio",)), 2)}
    plain, cached = Loader(own, draws, cache_bytes=0), Loader(own, draws, cache_bytes=LOTS)
    for step in range(3):
        assert equal(plain.batches(step), cached.batches(step))
    assert any(p.name.startswith("sound-") for p in (path / "cache").iterdir())
    monkeypatch.setattr(Library, "audio", lambda *a: pytest.fail("decoded again"))
    assert Loader(own, draws, cache_bytes=LOTS).batches(0)["clips"]["audio"].shape == (2, 4, samples)
