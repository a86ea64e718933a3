"""The upscaler: what it learns, and how it enlarges streams."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import pytest
import torch

from longtake import api
from longtake.data import video
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.nn.video import psnr
from longtake.rollout.upscale import BLOCK, upscale
from longtake.story import Story
from longtake.systems import system_class
from longtake.systems.base import ModelInfo
from longtake.systems.upscaler.config import SIZES, UpscalerConfig, UpscalerStageConfig
from longtake.systems.upscaler.network import UpscalerNetwork, resize
from longtake.systems.upscaler.stages import flicker
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

TINY = replace(SIZES["tiny"], width=16, stage=UpscalerStageConfig(300, 4, lr=3e-3, warmup=5, ema=0.95))


def network(blocks: int = 1) -> UpscalerNetwork:
    torch.manual_seed(0)
    made = UpscalerNetwork(replace(TINY, blocks=blocks)).eval()
    torch.nn.init.normal_(made.head.weight, std=0.1)
    return made


def clip(frames: int) -> torch.Tensor:
    return torch.rand(2, 3, frames, 6, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_untrained_it_is_bicubic():
    made = UpscalerNetwork(TINY)
    assert torch.equal(made(clip(3)), resize(clip(3), (12, 16)))


def test_its_reach():
    """A frame depends on that many before and after it, no more and no fewer."""
    made = network(blocks=1)
    whole = clip(21).requires_grad_()
    (gradient,) = torch.autograd.grad(made(whole)[:, :, 10].sum(), whole)
    seen = gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (10 - made.reach, 10 + made.reach)


@pytest.mark.parametrize("frames", [1, BLOCK, 3 * BLOCK + 5])
@torch.inference_mode()
def test_a_stream_equals_the_whole(frames):
    made, whole = network(), clip(frames)
    expected = made(whole).clamp(-1, 1)
    streams = [torch.cat(list(upscale(whole.split(size, 2), made)), 2) for size in (1, 5, 100)]
    torch.testing.assert_close(streams[0], expected, rtol=0, atol=1e-5)
    assert torch.equal(streams[0], streams[1])
    assert torch.equal(streams[0], streams[2])
    assert list(upscale([], made)) == []


def test_memory_is_bounded():
    made, most = network(), 0

    def chunks():
        for i in range(100):
            yield torch.zeros(1, 3, 3, 4, 4)
            taken.append(3 * (i + 1))

    taken: list[int] = []
    given = 0
    for block in upscale(chunks(), made):
        given += block.shape[2]
        most = max(most, (taken[-1] if taken else 0) - given)
    assert given == 300
    assert most <= max(BLOCK, 2 * made.reach) + made.reach + 3


def test_it_beats_bicubic_without_more_flicker(library, tmp_path):
    loop = LoopSettings(validate_every=1000, preview_every=1000, log_every=50, checkpoint_every=60)
    run = Trainer(Recipe("upscaler", "tiny", TINY, str(library), str(tmp_path / "run"), loop=loop)).run()
    figures = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        figures |= {k: v for k, v in json.loads(line).items() if k.startswith("val/")}
    assert figures["val/psnr"] > figures["val/bicubic_psnr"] + 0.5
    assert figures["val/flicker"] < figures["val/bicubic_flicker"]
    made = api.load_upscaler(run)
    with torch.no_grad():
        assert made(torch.zeros(1, 3, 2, 8, 8)).shape == (1, 3, 2, 16, 16)
    assert (run / "previews").is_dir()

    system = system_class("tiny-continuous")
    told = system(system.config_class(), ModelInfo.of(Library(library), (16, 16)))  # type: ignore[call-arg]
    large = api.Video(told, [Story(frames=11)], chunk=4, upscaler=made)  # type: ignore[arg-type]
    assert large.size == (32, 32)
    assert [c.shape for c in large.chunks()] == [(1, 3, n, 32, 32) for n in (4, 4, 3)]
    small = torch.cat(list(api.Video(told, [Story(frames=11)]).chunks()), 2)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(large.tensor(), made(small).clamp(-1, 1), rtol=0, atol=1e-5)
    (path,) = large.save(tmp_path / "out.mp4")
    assert video.probe(path).frames == 11


def test_the_figures():
    real, made = torch.zeros(1, 3, 3, 2, 2), torch.zeros(1, 3, 3, 2, 2)
    made[:, :, 1] = 0.2
    assert float(flicker(made, real)) == pytest.approx(0.2)
    assert float(psnr(real, made)) == pytest.approx(10 * float(torch.log10(torch.tensor(4 / (0.04 / 3)))), rel=1e-5)


def test_what_is_no_upscaler_is_refused():
    with pytest.raises(UserError, match="r3d-atari is a classifier, not an upscaler"):
        api.load_upscaler("r3d-atari")
    with pytest.raises(ValueError, match="cannot be made 3 times smaller"):
        UpscalerConfig(factor=3, size=(16, 16))


class Doubled(torch.nn.Module):
    """What spandrel gives, as far as it is used: pictures (1, 3, H, W) in [0, 1]."""

    scale, input_channels, output_channels = 2, 3, 3

    def __init__(self, weights: dict):
        super().__init__()
        if set(weights) != {"gain"}:
            raise ValueError("unknown architecture")
        self.gain = torch.nn.Parameter(weights["gain"])

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        assert picture.shape[:2] == (1, 3)
        assert float(picture.min()) >= 0
        assert float(picture.max()) <= 1
        return self.gain * picture.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.fixture
def spandrel(monkeypatch):
    """A stand-in for the package, which needs torchvision."""

    class ModelLoader:
        def __init__(self, device: str):
            self.device = device

        def load_from_state_dict(self, weights: dict) -> Doubled:
            return Doubled(weights)

    module = types.ModuleType("spandrel")
    module.ModelLoader = ModelLoader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spandrel", module)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_picture_model_enlarges_every_frame(spandrel, tmp_path, wrapped):
    weights = {"gain": torch.tensor(0.5)}
    torch.save({"params_ema": weights} if wrapped else weights, tmp_path / "x2.pth")
    made = api.load_upscaler(tmp_path / "x2.pth")
    clip = torch.rand(2, 3, 5, 4, 6) * 2 - 1
    with torch.no_grad():
        large = torch.cat(list(upscale(clip.split(2, 2), made)), 2)
    expected = (clip / 2 + 0.5) * 0.5 * 2 - 1
    torch.testing.assert_close(large, expected.repeat_interleave(2, 3).repeat_interleave(2, 4))


def test_what_spandrel_does_not_know_is_refused(spandrel, tmp_path, monkeypatch):
    torch.save({"other": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"spandrel knows no model with the weights of .*x\.pth \(unknown arch"):
        api.load_upscaler(tmp_path / "x.pth")
    torch.save({"gain": torch.tensor(1.0)}, tmp_path / "x1.pth")
    monkeypatch.setattr(Doubled, "scale", 1)
    with pytest.raises(UserError, match=r"x1\.pth does not enlarge colour pictures"):
        api.load_upscaler(tmp_path / "x1.pth")
    with pytest.raises(UserError, match=r"cannot read .*none\.pth"):
        api.load_upscaler(tmp_path / "none.pth")


def test_without_spandrel_a_file_of_weights_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    torch.save({"gain": torch.tensor(1.0)}, tmp_path / "x2.pth")
    with pytest.raises(UserError, match="needs the package spandrel"):
        api.load_upscaler(tmp_path / "x2.pth")
