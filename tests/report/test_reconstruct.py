"""`longtake reconstruct`: every frame, side by side, at the source's rate."""

import numpy as np
import pytest
import torch
from conftest import moving_square

from longtake.data import video
from longtake.errors import UserError
from longtake.report.reconstruct import read_clips, reconstruct
from longtake.systems.base import ModelInfo
from longtake.systems.tats.config import SIZES
from longtake.systems.tats.system import TATS


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.mp4"
    video.write_video(path, [moving_square(1, 21, 32)], 12.0, crf=4, pixel_format="yuv444p")
    return path


@pytest.fixture
def system():
    torch.manual_seed(0)
    return TATS(SIZES["tiny"], ModelInfo(fps=15.0, size=(16, 16)))


def test_the_last_clip_is_filled_with_its_last_frame(source):
    clips = list(read_clips(source, 8, (16, 16)))
    assert [real for _, real in clips] == [8, 8, 5]
    last = clips[-1][0]
    assert torch.equal(last[:, :, 5], last[:, :, 4])


def test_original_beside_reconstruction(source, system, tmp_path):
    output = tmp_path / "both.mp4"
    figures = reconstruct(system, source, output, lambda done, total: None)
    info = video.probe(output)
    assert (info.frames, info.fps, info.height, info.width) == (21, 12.0, 16, 32)
    assert figures["frames"] == 21
    assert 1 <= figures["codes"] <= figures["codebook"] == 32
    both = video.read_frames(output, list(range(21))).astype(float)
    original = video.resize(video.read_frames(source, list(range(21))), (16, 16), "crop")
    assert np.abs(both[:, :, :16] - original).mean() < 12
    error = ((both[:, :, 16:] - original) ** 2).mean() / 255**2
    assert figures["psnr"] == pytest.approx(-10 * np.log10(error), abs=1.0)


def test_bad_places_to_write(source, system, tmp_path):
    for bad in (tmp_path / "no" / "both.mp4", tmp_path / "both.gif"):
        with pytest.raises(UserError, match="cannot write"):
            reconstruct(system, source, bad, lambda done, total: None)
