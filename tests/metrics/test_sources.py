"""What is measured: joins after given frames, texts with gaps, files under the same name, frames that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_square, write_library
from fakes import TinyConfig, TinyContinuous

from longtake.data import video
from longtake.data.library import Library, LibraryWriter, Row
from longtake.errors import UserError
from longtake.metrics.evaluate import OwnWeights, evaluate
from longtake.metrics.protocol import PROTOCOLS
from longtake.metrics.sources import FolderSource, ModelSource, as_bytes
from longtake.rollout.given import first_frames
from longtake.systems.base import ModelInfo

PROTOCOL = PROTOCOLS["longtake-1"]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return Library(write_library(tmp_path_factory.mktemp("sources") / "squares"))


class Steps(TinyContinuous):
    """Grey that moves a little at every frame and jumps where a piece of eight frames begins."""

    accepts = frozenset({"first_frames"})
    seam_period = 8

    def given_frames(self, stories):
        return first_frames(stories, (16, 16)).shape[2]

    def rollout(self, stories, rng):
        number = torch.arange(stories[0].frames or 0)
        level = 0.4 * (number // 8 % 2) + 0.02 * (number % 2) - 0.5
        yield level.view(1, 1, -1, 1, 1).expand(len(stories), 3, -1, 16, 16)


class Jumps:
    """A cut is where the next frame is much brighter or darker."""

    name, hash = "jumps", "0"

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        change = np.abs(np.diff(frames.astype(float).mean((1, 2, 3)), append=frames[-1].mean()))
        return (change > 20).astype(float)


@pytest.mark.parametrize(("given", "first"), [(0, None), (3, 5), (8, 8), (13, 3)])
def test_joins_are_where_they_are_also_after_given_frames(library, tmp_path, given, first):
    model = Steps(TinyConfig(), ModelInfo.of(library, (16, 16))).eval()
    made = ModelSource(model, library, 2, 24, 0, "round", given=given)
    assert (made.given, made.seam_period, made.seam_first) == (given, 8, first)
    result = evaluate(made, library, tmp_path, PROTOCOL, [], own=OwnWeights(cuts=Jumps()))
    assert result.figures["seam"].value > 5
    assert result.figures["cut-at-joins[jumps]"].value == 1
    assert result.figures["cut-at-joins[jumps]"].note == "elsewhere 0"
    assert result.protocol["seam_first"] == first


class Told(TinyContinuous):
    accepts = frozenset({"prompt"})


class Careful:
    """Refuses to score a frame against nothing."""

    name, hash = "clip-careful", "0"

    def similarities(self, frames: np.ndarray, texts: list[str | None]) -> np.ndarray:
        assert "" not in texts
        return np.array([np.nan if text is None else float(text) for text in texts])


def test_frames_between_captions_have_no_text(tmp_path):
    path = tmp_path / "captioned"
    with LibraryWriter(path, (16, 16), 15.0) as writer:
        for i in range(3):
            file = writer.media("video", f"v{i}")
            video.write_video(file, [moving_square(i, 60)], 15.0, crf=10, pixel_format="yuv444p")
            spans = ((1.0, 2.0, "0.25"), (3.0, 4.0, "0.75"))
            writer.add(Row(f"v{i}", writer.relative(file), 60, 4.0, "test", captions=spans))
    captioned = Library(path)
    made = ModelSource(Told(TinyConfig(), ModelInfo.of(captioned, (16, 16))), captioned, 2, 60, 0, "round")
    assert [made.text(0, frame) for frame in (0, 15, 29, 30, 45, 59)] == [
        None,
        "0.25",
        "0.25",
        None,
        "0.75",
        "0.75",
    ]
    result = evaluate(made, captioned, tmp_path / "e", PROTOCOL, [], own=OwnWeights(clip=Careful()))
    assert result.figures["CLIPSIM[clip-careful]"].value == pytest.approx(0.5, abs=0.01)
    silent = ModelSource(Told(TinyConfig(), ModelInfo.of(captioned, (16, 16))), captioned, 2, 12, 0, "round")
    with pytest.raises(UserError, match="video 0 has no text"):  # the first caption is later
        evaluate(silent, captioned, tmp_path / "no", PROTOCOL, [], own=OwnWeights(clip=Careful()))


def folder_of(path: Path, *seeds: int) -> Path:
    path.mkdir()
    for i, seed in enumerate(seeds):
        video.write_video(path / f"{i}.mp4", [moving_square(seed)], 15.0, crf=10, pixel_format="yuv444p")
    return path


def test_other_videos_under_the_same_names_are_other_videos(library, tmp_path):
    folder = folder_of(tmp_path / "videos", 0, 1, 2)
    before = FolderSource(folder, None, None, 32)
    evaluate(before, library, tmp_path / "e", PROTOCOL, [])
    shutil.copytree(folder, tmp_path / "copy" / "videos")
    assert FolderSource(tmp_path / "copy" / "videos", None, None, 32).identity() == before.identity()
    shutil.copy(folder / "0.mp4", folder / "2.mp4")
    after = FolderSource(folder, None, None, 32)
    assert after.identity() != before.identity()
    with pytest.raises(UserError, match="holds another evaluation"):
        evaluate(after, library, tmp_path / "e", PROTOCOL, [])
    (folder / "captions.csv").write_text("file,text\n0.mp4,a\n")
    assert FolderSource(folder, None, None, 32).identity() != after.identity()


def test_another_reference_of_the_same_name_is_another(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    made = folder_of(tmp_path / "made", 5, 6)
    real = [folder_of(tmp_path / "a" / "real", 0, 1), folder_of(tmp_path / "b" / "real", 0, 2)]
    stated = [FolderSource(made, None, None, 32, real=one).conditions()["reference"] for one in real]
    assert stated[0]["folder"] == stated[1]["folder"] == "real"
    assert stated[0] != stated[1]


def test_real_videos_and_clips_are_counted_in_the_result(library, tmp_path):
    made = FolderSource(folder_of(tmp_path / "videos", 0, 1), None, None, 40)
    stated = evaluate(made, library, tmp_path / "e", PROTOCOL, []).protocol
    assert stated["real_counts"] == {"16": {"videos": 2, "clips": 4}}


@pytest.mark.parametrize("how", ["round", "truncate"])
def test_frames_that_are_not_numbers_are_no_black_ones(how):
    frames = torch.zeros(3, 4, 2, 2)
    frames[1, 2, 0, 1] = float("nan")
    with pytest.raises(UserError, match="not numbers"):
        as_bytes(frames, how)
