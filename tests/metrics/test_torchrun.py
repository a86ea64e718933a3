"""Two processes started by torchrun measure what one does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_library

from longtake.metrics.result import Result
from longtake.systems import folder as model_folder
from longtake.systems.base import ModelInfo
from longtake.systems.classifier.config import SIZES as CLASSIFIERS
from longtake.systems.classifier.system import Classifier
from longtake.systems.tats.config import SIZES
from longtake.systems.tats.system import TATS


def evaluated(command: list[str], model: Path, classifier: Path, library: Path, output: Path) -> Result:
    options = ["--data", str(library), "-o", str(output), "--extractor", str(classifier), "--device", "cpu"]
    options += ["--videos", "20", "--frames", "16", "--batch", "4", "--keep", "1"]
    called = [*command, "-m", "longtake", "evaluate", str(model), *options]
    done = subprocess.run(called, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Result.read(output / "result.json")


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    torch.manual_seed(0)
    library = write_library(tmp_path / "library", videos=48, frames=16)
    info = ModelInfo(15, (16, 16), ("left", "right"), (1, 1))
    config = replace(SIZES["tiny"], frames=16, size=(16, 16))
    model = model_folder.save(TATS(config, info), tmp_path / "model")
    classifier = model_folder.save(Classifier(CLASSIFIERS["tiny"], info), tmp_path / "r3d")
    one = evaluated([sys.executable], model, classifier, library, tmp_path / "one")
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = evaluated(two, model, classifier, library, tmp_path / "two")
    assert one.figures.keys() == both.figures.keys()
    for name, figure in one.figures.items():
        assert both.figures[name].value == pytest.approx(figure.value, rel=1e-4, abs=1e-7), name
    assert len(list((tmp_path / "two" / "records").glob("*.npz"))) == 20
