"""The example that deblurs a video."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import moving_square

from longtake.data import video
from longtake.data.batch import to_float
from longtake.errors import UserError
from longtake.systems import folder
from longtake.systems.base import ModelInfo
from longtake.systems.ccvs.config import SIZES
from longtake.systems.ccvs.system import CCVS

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "deblur.py"))


@torch.no_grad()
def test_a_video_is_made_from_its_codes_and_one_sharp_frame(tmp_path):
    torch.manual_seed(0)
    config = replace(SIZES["tiny"], prior=replace(SIZES["tiny"].prior, layers=0))
    made = CCVS(config, ModelInfo(10.0, (16, 16))).eval()
    made.autoencoder.codebook.embeddings.normal_()  # type: ignore[union-attr, operator]
    folder.save(made, tmp_path / "model")
    blurred, sharp, output = tmp_path / "blurred.mp4", tmp_path / "sharp.png", tmp_path / "out.mp4"
    video.write_video(blurred, [moving_square(1, 5)], 10.0, crf=0, pixel_format="yuv444p")
    picture = moving_square(2, 1)[0]
    video.write_png(sharp, picture)
    EXAMPLE["main"]([str(tmp_path / "model"), str(blurred), str(sharp), "-o", str(output)])
    assert (video.probe(output).frames, video.probe(output).fps) == (5, 10.0)
    frames = to_float(video.read_frames(blurred, range(5)))
    held = [made.autoencoder.encode(to_float(picture[None])[None][:, :, 0])[1]]
    shown = list(EXAMPLE["deblur"](made, blurred, sharp))
    for t in range(5):
        tokens = made.autoencoder.tokens(made.autoencoder.encode(frames[None, :, t])[0])
        made_frame = made.autoencoder.decode(made.autoencoder.latents(tokens, (4, 4)), held[::-1][:3]).frames
        held.append(made.autoencoder.encode(made_frame)[1])
        torch.testing.assert_close(to_float(shown[t])[:, 0], made_frame[0].clamp(-1, 1), rtol=0, atol=1 / 127)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="tats-atari is a tats; only ccvs decodes frames with others as context"):
        EXAMPLE["main"](["tats-atari", "a.mp4", "b.png", "-o", str(tmp_path / "out.mp4")])
