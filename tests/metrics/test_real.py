"""The real side: which videos and clips, and of which rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import moving_square, write_library

from longtake.data import video
from longtake.data.library import Library, LibraryWriter, Row
from longtake.errors import UserError
from longtake.metrics import real
from longtake.metrics.evaluate import NEIGHBOURS, evaluate
from longtake.metrics.extractors.base import Features
from longtake.metrics.protocol import PROTOCOLS, ClipKind
from longtake.metrics.real import check_rate, real_clips, real_features, real_motion, real_rows
from longtake.metrics.sources import FolderSource

SHORT, LONG = ClipKind("16", 16), ClipKind("24", 24)
PROTOCOL = replace(PROTOCOLS["tats"], clips=(SHORT, LONG), real_split="all")


class Mean:
    """The mean of all pixels, and 1."""

    hash, preprocessing, dim, classes = "0", "none", 2, ()

    def __init__(self, least: int = 1, most: int | None = None):
        self.least, self.most = least, most
        self.name = f"mean-{most}"

    def __call__(self, clips: np.ndarray) -> Features:
        level = clips.reshape(len(clips), -1).mean(1)
        return Features(np.stack([level, np.ones_like(level)], 1).astype(np.float32), None)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    """Three classes by name, four videos each, row r of grey level 20 r; those of the first class are short."""
    path = tmp_path_factory.mktemp("real") / "classes"
    with LibraryWriter(path, (16, 16), 15.0) as writer:
        for i in range(12):
            label, frames = "abc"[i // 4], 18 if i < 4 else 30
            file = writer.media("video", f"{label}{i:02d}")
            clip = np.full((frames, 16, 16, 3), 20 * i, np.uint8)
            video.write_video(file, [clip], 15.0, crf=0, pixel_format="yuv444p")
            writer.add(Row(f"{label}{i:02d}", writer.relative(file), frames, frames / 15, "train", label))
    return Library(path)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_fewer_videos_than_there_are_come_from_every_class(library, name):
    few = replace(PROTOCOLS[name], real_videos=6, real_split="train")
    expected = [0, 1, 2, 3, 4, 5] if name == "stylegan-v" else [0, 2, 4, 6, 8, 10]
    assert real_rows(library, few, 16) == expected
    assert real_rows(library, replace(few, real_videos=12), 16) == list(range(12))
    assert real_rows(library, replace(few, **{**NEIGHBOURS, "real_videos": 3}), 16) == [0, 4, 8]


@pytest.mark.parametrize(
    ("choice", "short", "long"), [("spread", [0, 4, 8], [4, 6, 9]), ("first", [0, 1, 2], [4, 5, 6])]
)
def test_videos_are_counted_among_those_that_are_long_enough_for_the_clip(library, choice, short, long):
    few = replace(PROTOCOL, real_videos=3, real_choice=choice)
    found = real_features(library, few, Mean(), (16, 16), 24)
    for kind, rows in ((SHORT, short), (LONG, long)):
        assert found[f"of/{kind.name}"].tolist() == rows
        assert real_clips(library, few, kind) == 3
        np.testing.assert_allclose(found[f"clip/{kind.name}"][:, 0], [20 * row for row in rows], atol=3)
    frames = real_features(library, few, Mean(most=1), (16, 16), 24)
    assert frames["of/frames"].tolist() == np.repeat(short, 16).tolist()


def test_without_a_cap_nothing_is_chosen(library):
    whole = real_features(library, PROTOCOL, Mean(), (16, 16), 24)
    assert whole["of/16"].tolist() == list(range(12))
    assert whole["of/24"].tolist() == list(range(4, 12))
    assert "clip/24" not in real_features(library, PROTOCOL, Mean(), (16, 16), 20)


def test_motion_is_of_videos_of_every_class(library, monkeypatch):
    seen, clip_of = [], real.clip_of
    monkeypatch.setattr(real, "MOVING", 3)
    monkeypatch.setattr(real, "clip_of", lambda lib, row, *rest: (seen.append(row), clip_of(lib, row, *rest))[1])
    assert len(real_motion(library, library.split("train"), (16, 16), 8)) == 3
    assert seen == [0, 4, 8]


def folder_of(path: Path, count: int, *rates: float) -> Path:
    path.mkdir()
    for i in range(count):
        clip = moving_square(i, 32)
        video.write_video(path / f"{i}.mp4", [clip], rates[i % len(rates)], crf=10, pixel_format="yuv444p")
    return path


def test_videos_of_another_rate_are_refused(tmp_path):
    squares = Library(write_library(tmp_path / "squares", videos=3))
    fast = FolderSource(folder_of(tmp_path / "fast", 2, 30.0), None, None, 32)
    with pytest.raises(
        UserError, match=r"have 30 frames a second and \S+ has 15, .* --fps 30, or .* --fps 15"
    ) as e:
        evaluate(fast, squares, tmp_path / "no", PROTOCOLS["longtake-1"], [])
    assert e.value.code == 2
    assert not (tmp_path / "no").exists()
    near = FolderSource(folder_of(tmp_path / "near", 2, 15.1), None, None, 32)
    result = evaluate(near, squares, tmp_path / "yes", PROTOCOLS["longtake-1"], [])
    assert (result.protocol["fps"], result.protocol["library_fps"]) == (pytest.approx(15.1, abs=0.01), 15)
    check_rate(squares, 15 * 1000 / 1001)
    for rate in (14.8, 15.2):
        with pytest.raises(UserError, match="frames a second"):
            check_rate(squares, rate)


def test_a_folder_of_several_rates_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"different frame rates: 0\.mp4 15 and 1\.mp4 30 a second"):
        FolderSource(folder_of(tmp_path / "mixed", 2, 15.0, 30.0), None, None, 32)
    slow, fast = folder_of(tmp_path / "slow", 2, 15.0), folder_of(tmp_path / "fast", 2, 30.0)
    with pytest.raises(UserError, match=r"0\.mp4 has 30 frames a second and the videos have 15"):
        FolderSource(slow, None, None, 32, real=fast)
