"""The classifier: what it is shown, that it learns, and that its features can be a perceptual loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake import api
from longtake.data import video
from longtake.data.library import LibraryWriter, Row
from longtake.errors import UserError
from longtake.systems.base import ModelInfo
from longtake.systems.classifier.config import SIZES
from longtake.systems.classifier.stages import PLAYED, play
from longtake.systems.classifier.system import Classifier
from longtake.systems.folder import load_trainable, save
from longtake.systems.perceptual import load_perceptual
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

INFO = ModelInfo(fps=15, size=(16, 16), classes=("a", "b"), class_counts=(1, 1))


def test_the_five_ways_of_playing_a_clip():
    count = 8
    numbers = torch.arange(2 * count).float().view(1, 1, -1, 1, 1).expand(1, 3, -1, 4, 4)
    frames = torch.cat([numbers, 100 + numbers])
    order = torch.rand(2, count, generator=torch.Generator().manual_seed(0))
    played = play(frames, order)
    assert played.shape == (2 * len(PLAYED), 3, count, 4, 4)
    assert (played == played[:, :1, :, :1, :1]).all()
    for clip, start in enumerate((0, 100)):
        rows = played[clip * len(PLAYED) : (clip + 1) * len(PLAYED), 0, :, 0, 0].int() - start
        shown = dict(zip(PLAYED, rows.tolist(), strict=True))
        shuffled = shown.pop("shuffled")
        assert shown == {
            "forward": list(range(8)),
            "double speed": list(range(0, 16, 2)),
            "reversed": list(range(7, -1, -1)),
            "frozen": [0] * 8,
        }
        assert sorted(shuffled) == list(range(8))
        assert shuffled != list(range(8))


def drifting(path: Path) -> Path:
    """A library of bars that drift steadily: the class is the colour, time has an arrow."""
    with LibraryWriter(path, (16, 16), 15.0) as writer:
        for i in range(9):
            frames = np.zeros((32, 16, 16, 3), np.uint8)
            for t in range(32):
                x = (t + 5 * i) % 16
                frames[t, :, x] = 120
                frames[t, :, (x + 1) % 16] = 250
                frames[t, ..., i % 2] //= 3
            file = writer.media("video", f"v{i}")
            video.write_video(file, [frames], 15.0, crf=10, pixel_format="yuv444p")
            split = "test" if i >= 6 else "train"
            writer.add(Row(f"v{i}", writer.relative(file), 32, 32 / 15, split, "ab"[i % 2]))
    return path


def test_it_learns_and_its_figures_are_of_held_out_clips(tmp_path):
    library = drifting(tmp_path / "library")
    stage = replace(SIZES["tiny"].stage, steps=150, batch=4, lr=5e-3)
    config = replace(SIZES["tiny"], stage=stage)
    loop = LoopSettings(log_every=20, validate_every=50, validate_batches=4, checkpoint_every=1000)
    told = []
    recipe = Recipe("classifier", "tiny", config, str(library), str(tmp_path / "run"), loop=loop)
    trainer = Trainer(recipe)
    trainer.tell = told.append
    trainer.run()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first, last = ([e for e in log if "val/loss" in e][i] for i in (0, -1))
    assert last["val/class_accuracy"] > 0.9
    assert last["val/motion_accuracy"] > 1.5 / len(PLAYED)
    assert last["val/loss"] < first["val/loss"]
    with pytest.raises(UserError, match="makes no videos"):
        api.load(tmp_path / "run")


def test_without_classes_it_tells_motion_alone():
    config = replace(SIZES["tiny"], classes=False)
    made = Classifier(config, replace(INFO, classes=()))
    assert made.network(torch.rand(2, 3, 8, 16, 16)).classes is None
    with pytest.raises(UserError, match="classes=false"):
        Classifier(SIZES["tiny"], replace(INFO, classes=("only",)))


def test_any_length_and_size_gives_features():
    network = Classifier(SIZES["tiny"], INFO).network.eval()
    for shape in ((2, 3, 8, 16, 16), (1, 3, 1, 16, 16), (1, 3, 40, 24, 32)):
        output = network(torch.rand(shape))
        assert output.features.shape == (shape[0], network.backbone.features)


def test_its_features_are_a_perceptual_distance(tmp_path):
    torch.manual_seed(0)
    folder = save(Classifier(SIZES["tiny"], INFO), tmp_path / "classifier")
    distance = load_perceptual(folder)
    a = torch.rand(2, 3, 16, 16, requires_grad=True)
    b = torch.rand(2, 3, 16, 16)
    found = distance(a, b)
    assert found.shape == (2,)
    assert (found > 0).all()
    assert torch.equal(distance(b, b), torch.zeros(2))
    found.sum().backward()
    assert a.grad is not None
    assert float(a.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in distance.parameters())
    assert load_trainable(folder).name == "classifier"
