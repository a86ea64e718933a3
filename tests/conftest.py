"""What the tests share: a tiny library made on the spot, and the fake systems."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FAKES

from longtake import systems
from longtake.data import video
from longtake.data.library import LibraryWriter, Row

torch.set_num_threads(1)

systems.REGISTRY.update({name: f"fakes:{cls.__name__}" for name, cls in FAKES.items()})

FRAMES = 40
GOLDEN = Path(__file__).parent / "golden"
REAL = Path(__file__).parents[2] / "shared" / "data"


def moving_square(seed: int, frames: int = FRAMES, size: int = 16) -> np.ndarray:
    """uint8 (frames, size, size, 3): a bright square that wanders over a coloured ground."""
    random = np.random.default_rng(seed)
    ground, colour = random.integers(0, 120, 3), random.integers(140, 255, 3)
    place, speed = random.uniform(0, size, 2), random.uniform(-1.5, 1.5, 2)
    clip = np.empty((frames, size, size, 3), np.uint8)
    for t in range(frames):
        clip[t] = ground
        y, x = (np.abs((place + speed * t) % (2 * (size - 4)) - (size - 4))).astype(int)
        clip[t, y : y + 4, x : x + 4] = colour
    return clip


def write_library(path: Path, videos: int = 6, frames: int = FRAMES, size: int = 16) -> Path:
    """A library of moving squares with two classes; every third video is for test."""
    with LibraryWriter(path, (size, size), 15.0) as writer:
        for i in range(videos):
            file = writer.media("video", f"v{i:03d}")
            video.write_video(file, [moving_square(i, frames, size)], 15.0, crf=10, pixel_format="yuv444p")
            split = "test" if i % 3 == 2 else "train"
            label = "left" if i % 2 else "right"
            writer.add(Row(f"v{i:03d}", writer.relative(file), frames, frames / 15, split, label))
    return path


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    return write_library(tmp_path_factory.mktemp("library") / "squares")


def scripted(module: torch.nn.Module, path: Path) -> Path:
    """Write a module as a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


def lightning(path, state, sizes=(), **args):
    """A checkpoint as the official trainer writes it."""
    hyper = {"args": argparse.Namespace(**args)} if args else {}
    torch.save({"state_dict": dict(state, **dict(sizes)), "hyper_parameters": hyper, "callbacks": {}}, path)
    return path


@pytest.fixture(scope="module")
def experiment():
    """A module of experiments/ by its name, loaded as a script loads it: beside its neighbours."""
    folder = str(Path(__file__).parents[1] / "experiments")
    before = set(sys.modules)
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]
