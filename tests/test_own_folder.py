"""Someone's own folder, good and bad files alike, all the way from `prepare` to `reconstruct`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REAL, moving_square

from longtake.data import video
from longtake.data.library import Library

OPEN_DOMAIN = REAL / "open-domain-captioned"
MADE = {"truncated.mp4", "text.mp4", "empty.mp4", "short.mp4", "dangling.mp4"}


def longtake(*words: object) -> str:
    done = subprocess.run([sys.executable, "-m", "longtake", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def spoil(folder: Path, good: Path) -> set[str]:
    """Put a bad file of every kind into the folder; returns their names."""
    whole = good.read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    (folder / "empty.mp4").touch()
    video.write_video(folder / "short.mp4", [moving_square(5, 3, 32)], 15.0)
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    if os.geteuid() == 0:
        return MADE
    (folder / "secret.mp4").write_bytes(whole)
    (folder / "secret.mp4").chmod(0)
    return MADE | {"secret.mp4"}


def fill(folder: Path, source: str) -> Path:
    """Good videos: real ones in mixed containers, or made ones. Returns one of them as mp4."""
    if source == "made":
        for i in range(5):
            video.write_video(folder / f"good-{i}.mp4", [moving_square(i, 40, 32)], (15.0, 30.0)[i % 2])
        return folder / "good-0.mp4"
    if not OPEN_DOMAIN.is_dir():
        pytest.skip("../shared/data/open-domain-captioned is not there")
    names = ("boat.mp4", "wolf.mp4", "flipping_a_pancake.mkv", "3qqEKTPxLNs_1_15.avi", "yoga.mp4", "cockatoo.mp4")
    for name in names:
        shutil.copy(OPEN_DOMAIN / name, folder / name)
    return folder / "boat.mp4"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["made", "real"])
def test_from_a_folder_to_a_model(tmp_path, source):
    folder, library, run = tmp_path / "videos", tmp_path / "library", tmp_path / "run"
    folder.mkdir()
    good = fill(folder, source)
    bad = spoil(folder, good)
    kept = sum(p.suffix in (".mp4", ".avi", ".mkv") for p in folder.iterdir()) - len(bad)
    refused = subprocess.run(
        [sys.executable, "-m", "longtake", "data", "prepare", folder, "-o", library, "--size", "16"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert "--fps" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not library.exists()
    told = longtake("data", "prepare", folder, "-o", library, "--size", "16", "--fps", "15", "--test", "0.3")
    assert f"{kept} videos" in told
    for name in bad:
        assert name in told
    rejected = [json.loads(line)["file"] for line in (library / "rejected.jsonl").read_text().splitlines()]
    assert sorted(rejected) == sorted(bad)
    assert Library(library).fps == 15
    assert f"{kept}" in longtake("data", "inspect", library, "--sheet", tmp_path / "sheet.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("system: tats\nsize: tiny\nloop: {log_every: 5, checkpoint_every: 5, validate_every: 20}\n")
    words = ["train", recipe, "--data", library, "-o", run, "config.vqgan_stage.steps=60"]
    for moment in range(3):  # killed while it trains, three times
        process = subprocess.Popen([sys.executable, "-m", "longtake", *map(str, words)], stderr=subprocess.DEVNULL)
        seen = sum(1 for _ in run.glob("checkpoints/*"))
        while process.poll() is None and sum(1 for _ in run.glob("checkpoints/*")) <= min(seen, 1):
            time.sleep(0.01)
        time.sleep(0.2 * moment)
        process.kill()
        process.wait()
    longtake(*words)
    longtake("generate", run, "-o", tmp_path / "out.mp4", "--frames", "40")
    assert video.probe(tmp_path / "out.mp4").frames == 40
    assert "PSNR" in longtake("reconstruct", run, good, "-o", tmp_path / "both.mp4")
