"""Shot cuts: every frame is judged in the middle of a window, however the frames come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import moving_square, scripted, write_library
from torch import Tensor, nn

from longtake.data import video
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.metrics.cuts import CutDetector, CutMeter
from longtake.metrics.evaluate import OwnWeights, evaluate
from longtake.metrics.protocol import PROTOCOLS
from longtake.metrics.sources import FolderSource
from longtake.metrics.summary import shot_cuts


class Jumps(nn.Module):
    """A cut is where the next frame is another picture: called and answering as TransNetV2."""

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = frames.float().mean((2, 3, 4))
        change = torch.cat([(x[:, 1:] - x[:, :-1]).abs(), torch.zeros_like(x[:, :1])], 1)
        return change[..., None] - 20, x


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> CutDetector:
    return CutDetector(scripted(Jumps(), tmp_path_factory.mktemp("cuts") / "transnetv2.pt"))


def shots(*lengths: int) -> np.ndarray:
    """Still pictures, each 60 grey levels brighter than the one before."""
    levels = np.repeat(60 * np.arange(len(lengths)), lengths).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 36, 48, 3)).copy()


@pytest.mark.parametrize("lengths", [(30, 20), (49, 51), (50, 50), (120, 1, 40), (1, 1)])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_cuts_are_found_where_they_are(detector, lengths, chunk):
    frames = shots(*lengths)
    meter = CutMeter(detector)
    for start in range(0, len(frames), chunk):
        meter.push(frames[start : start + chunk])
        assert len(meter.waiting) < 100
    found = meter.probabilities()
    assert found.shape == (len(frames),)
    assert np.flatnonzero(found > 0.5).tolist() == (np.cumsum(lengths)[:-1] - 1).tolist()


def test_each_frame_is_judged_with_25_frames_around_it():
    seen = []

    def detect(frames: np.ndarray) -> np.ndarray:
        assert frames.shape == (100, 27, 48, 3)
        seen.append(frames[:, 0, 0, 0].astype(int))
        return frames[:, 0, 0, 0] / 255

    meter = CutMeter(detect)  # type: ignore[arg-type]
    frames = np.broadcast_to(np.arange(130, dtype=np.uint8)[:, None, None, None], (130, 27, 48, 3))
    meter.push(np.ascontiguousarray(frames))
    np.testing.assert_allclose(meter.probabilities(), np.arange(130) / 255)
    assert [s[0] for s in seen] == [0, 25, 75]
    assert seen[0].tolist() == [0] * 25 + list(range(75))
    assert seen[2][-1] == 129


def test_cuts_in_an_evaluation(detector, tmp_path):
    library = Library(write_library(tmp_path / "library"))
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(2):
        clip = moving_square(i, 40) // 8
        clip[16:32] += 100
        video.write_video(folder / f"{i}.mp4", [clip], 15.0, crf=10, pixel_format="yuv444p")
    made = FolderSource(folder, None, None, 40, seam_period=16)
    result = evaluate(made, library, tmp_path / "e", PROTOCOLS["longtake-1"], [], own=OwnWeights(cuts=detector))
    assert result.figures["cuts[transnetv2]"].value == pytest.approx(1000 * 2 / 40)
    assert result.figures["cut-at-joins[transnetv2]"].value > 0.99
    assert result.protocol["cuts"] == {"name": "transnetv2", "hash": detector.hash}


def test_a_dissolve_is_one_cut():
    cuts = np.zeros(100)
    cuts[20:30], cuts[0], cuts[99] = 0.9, 0.9, 0.9
    figures, _ = shot_cuts("x", [{"cuts": cuts}], None)
    assert figures["cuts[x]"].value == pytest.approx(30)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.pt").write_text("no")
    with pytest.raises(UserError, match=r"x\.pt is not a TorchScript file"):
        CutDetector(tmp_path / "x.pt")
    scripted(nn.Flatten(), tmp_path / "flat.pt")
    with pytest.raises(UserError, match="must return one logit a frame"):
        CutDetector(tmp_path / "flat.pt")(np.zeros((100, 27, 48, 3), np.uint8))
