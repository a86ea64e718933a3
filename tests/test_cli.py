"""The command line: help, exit codes, one sentence on stderr, files that are whole or absent."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from longtake import cli
from longtake.data import video
from longtake.systems import folder
from longtake.systems.base import ModelInfo
from longtake.systems.tats.config import SIZES
from longtake.systems.tats.rollout import WindowedDecoder
from longtake.systems.tats.system import TATS


def leaves(
    parser: argparse.ArgumentParser, name: tuple[str, ...] = ()
) -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """Every command, by its words."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                found |= leaves(inner, (*name, word))
    return found or {name: parser}


COMMANDS = leaves(cli.parser())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = replace(SIZES["tiny"], prior=replace(SIZES["tiny"].prior, condition="label"))
    system = TATS(config, ModelInfo(15.0, (16, 16), ("left", "right"), (1, 1)))
    return folder.save(system, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    stages = {name: {"steps": 2, "batch": 2} for name in ("vqgan_stage", "prior_stage")}
    path.write_text(yaml.safe_dump({"system": "tats", "size": "tiny", "config": stages, "loop": {"log_every": 1}}))
    return path


def run(*words) -> int:
    """Exit code, also when argparse exits itself."""
    try:
        return cli.main([str(w) for w in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def fails(capsys, code: int, message: str, *words) -> None:
    """The command fails with this code and says so in one line without a traceback."""
    assert run(*words) == code
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert len([line for line in told.splitlines() if line.startswith("longtake:")]) == 1


def test_every_command_is_there():
    words = {" ".join(name) for name in COMMANDS}
    data = {"data sample", "data prepare", "data inspect"}
    assert (
        words >= {"models", "systems", "generate", "reconstruct", "train", "evaluate", "compare", "convert"} | data
    )


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_help_ends_with_an_example_that_parses(name, capsys):
    assert run(*name, "--help") == 0
    text = capsys.readouterr().out
    _, _, example = text.partition("example:\n")
    words = example.split()
    assert words[: 1 + len(name)] == ["longtake", *name]
    assert callable(cli._parse(words[1:]).run)


def test_the_top_has_help_and_a_version(capsys):
    assert run("--help") == 0
    assert "longtake generate" in capsys.readouterr().out
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("longtake ")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["data"],
        ["generate"],
        ["generate", "m"],
        ["generate", "m", "-o", "x.mp4", "--frames", "0"],
        ["generate", "m", "-o", "x.mp4", "--frames", "many"],
        ["generate", "m", "-o", "x.mp4", "--frames", "4", "--wings", "2"],
        ["generate", "m", "-o", "x.mp4", "--frames", "4", "a=1"],
        ["train", "r.yaml", "stray"],
        ["train", "r.yaml", "a=1", "--wings"],
        ["data", "prepare", "x", "-o", "y", "--size", "x64"],
        ["convert", "dall-e", "x", "-o", "y"],
    ],
)
def test_bad_usage_exits_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words == ["train", "r.yaml", "stray"]:
        (tmp_path / "r.yaml").write_text("system: tats\n")
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert told
    assert "Traceback" not in told
    assert [p.name for p in tmp_path.iterdir()] in ([], ["r.yaml"])


def test_lists(capsys):
    assert run("systems") == 0
    assert "tats" in capsys.readouterr().out
    assert run("models") == 0


# --- generate ------------------------------------------------------------------------------------------------


def test_generate(model, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    words = ["generate", model, "-o", out, "--frames", 21, "--label", "left", "--sheet", tmp_path / "sheet.png"]
    assert run(*words, "--device", "cpu", "--set", "top_k=5", "top_p=0.8", "--set", "temperature=0.9") == 0
    told = capsys.readouterr()
    assert told.out.split() == [str(out), str(tmp_path / "sheet.png")]
    assert "21/21" in told.err
    assert video.probe(out).frames == 21
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "sheet.png"]


def test_several_videos_are_the_same_in_groups(model, tmp_path):
    for name, batch in (("all", 3), ("groups", 2)):
        (tmp_path / name).mkdir()
        words = ["generate", model, "-o", tmp_path / name / "v.mp4", "--seconds", "0.8", "--videos", 3, "--seed", 4]
        assert run(*words, "--batch", batch) == 0
    names = [f"v-{i:03d}.mp4" for i in range(3)]
    for folder_ in ("all", "groups"):
        assert sorted(p.name for p in (tmp_path / folder_).iterdir()) == names
    for name in names:
        one, two = (video.read_frames(tmp_path / f / name, range(12)) for f in ("all", "groups"))
        assert (
            abs(one.astype(int) - two.astype(int)).mean() < 1
        )  # other videos: tens; rounding goes through a codec
    assert run("generate", model, "-o", tmp_path / "alone.mp4", "--frames", 12, "--seed", 5) == 0
    alone = video.read_frames(tmp_path / "alone.mp4", range(12)).astype(int)
    assert abs(alone - video.read_frames(tmp_path / "all" / "v-001.mp4", range(12))).mean() < 1


def test_a_story_and_what_replaces_it(model, tmp_path):
    story = tmp_path / "story.yaml"
    story.write_text("frames: 9\nseed: 2\ntimeline:\n- label: left\n- start: 0.3\n  label: right\n")
    assert run("generate", model, "-o", tmp_path / "a.mp4", "--story", story) == 0
    assert video.probe(tmp_path / "a.mp4").frames == 9
    assert run("generate", model, "-o", tmp_path / "b.mp4", "--story", story, "--seconds", "0.4") == 0
    assert video.probe(tmp_path / "b.mp4").frames == 6


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (2, "how long? give --frames or --seconds", []),
        (2, "give either frames or seconds", ["--frames", 4, "--seconds", 1]),
        (2, "settings of tats has no setting 'topk'; did you mean 'top_k'?", ["--frames", 4, "--set", "topk=5"]),
        (2, "settings of tats: top_k must be int, got 'few'", ["--frames", 4, "--set", "top_k=few"]),
        (2, "write it as NAME=VALUE", ["--frames", 4, "--set", "top_k"]),
        (2, "'down' is not a class of this model; it knows: left, right", ["--frames", 4, "--label", "down"]),
        (
            2,
            "tats cannot be steered by prompt; conditions it accepts: --first-frames, --label",
            ["--frames", 4, "--prompt", "fog"],
        ),
        (2, "tats cannot be steered by last_frame", ["--frames", 4, "--last-frame", "x.png"]),
        (2, "generates at 15 fps only", ["--frames", 4, "--fps", 30]),
        (2, "fps must be above 0", ["--frames", 4, "--fps", 0]),
        (2, "there is no device 'abacus' here; try --device cpu", ["--frames", 4, "--device", "abacus"]),
        (2, "cannot read the story none.yaml", ["--frames", 4, "--story", "none.yaml"]),
        (2, "keep=9 and new=1 must", ["--frames", 4, "--set", "keep=9"]),
        (2, "temperature is 0", ["--frames", 4, "--set", "temperature=0"]),
    ],
)
def test_what_cannot_be_generated(model, tmp_path, capsys, monkeypatch, code, message, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, code, message, "generate", model, "-o", "out.mp4", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [("out.avi", "choose a name that ends in .mp4"), ("none/out.mp4", "there is no folder none")],
)
def test_where_it_cannot_be_written(model, tmp_path, capsys, monkeypatch, output, message):
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, message, "generate", model, "-o", output, "--frames", 4)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there(tmp_path, capsys):
    fails(capsys, 2, "is neither a model folder", "generate", tmp_path / "no", "-o", "x.mp4", "--frames", 4)


@pytest.mark.parametrize("videos", [1, 2])
def test_an_error_midway_leaves_nothing_under_the_final_name(model, tmp_path, capsys, monkeypatch, videos):
    push, pushed = WindowedDecoder.push, 0

    def failing(self, tokens):
        nonlocal pushed
        pushed += 1
        if pushed == 40:
            raise RuntimeError("out of memory")
        return push(self, tokens)

    monkeypatch.setattr(WindowedDecoder, "push", failing)
    words = ["generate", model, "-o", tmp_path / "out.mp4", "--frames", 400, "--videos", videos]
    fails(capsys, 1, "unexpected RuntimeError: out of memory; run it again with --debug", *words)
    assert pushed == 40
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_generating_fails(model, tmp_path, monkeypatch):
    (tmp_path / "out.mp4").write_bytes(b"mine")
    monkeypatch.setattr(WindowedDecoder, "flush", lambda self: 1 / 0)
    assert run("generate", model, "-o", tmp_path / "out.mp4", "--frames", 4) == 1
    assert (tmp_path / "out.mp4").read_bytes() == b"mine"
    assert run("--debug") == 2


def test_debug_shows_where(model, tmp_path, monkeypatch):
    monkeypatch.setattr(WindowedDecoder, "flush", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("generate", model, "-o", tmp_path / "out.mp4", "--frames", 4, "--debug")


def test_interruption(model, tmp_path, capsys, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(WindowedDecoder, "flush", interrupt)
    fails(capsys, 130, "longtake: interrupted", "generate", model, "-o", tmp_path / "out.mp4", "--frames", 4)
    assert list(tmp_path.iterdir()) == []


# --- the others ----------------------------------------------------------------------------------------------


def test_train_takes_overrides_before_and_after_options(recipe, library, tmp_path, capsys):
    words = ["config.prior.width=16", "--data", library, "loop.keep=1", "-o", tmp_path / "run", "seed=7"]
    assert run("train", recipe, *words, "--device", "cpu") == 0
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (written["config"]["prior"]["width"], written["loop"]["keep"], written["seed"]) == (16, 1, 7)
    told = capsys.readouterr().err
    assert "vqgan 2/2" in told
    assert "prior 2/2" in told
    raw = json.loads((tmp_path / "run" / "config.json").read_text())
    assert raw["config"]["prior"]["width"] == 16


def test_dry_run_trains_nothing(recipe, library, tmp_path, capsys):
    assert (
        run("train", recipe, "--data", library, "-o", tmp_path / "run", "--dry-run", "config.prior.width=64") == 0
    )
    told = capsys.readouterr().out
    for part in ("width: 64", "network vqgan: ", "stage prior: 2 updates", "GFLOP an update", "GiB"):
        assert part in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (2, "pass --data FOLDER", []),
        (1, "is not a prepared library", ["--data", "."]),
        (2, "write it as NETWORK=MODEL", ["--data", "LIBRARY", "--init", "vqgan"]),
        (2, "has no network 'codec'; it has vqgan, prior", ["--data", "LIBRARY", "--init", "codec=x"]),
        (2, "none is neither a model folder", ["--data", "LIBRARY", "--init", "vqgan=none"]),
        (2, "config: prior has no setting 'hats'", ["--data", "LIBRARY", "config.prior.hats=3"]),
        (2, "is not a group of settings", ["--data", "LIBRARY", "system.x=3"]),
        (1, "holds 16x16 frames and this model wants 32x32", ["--data", "LIBRARY", "config.size=[32, 32]"]),
        (1, "no train video of 80 frames or more", ["--data", "LIBRARY", "config.frames=80"]),
        (2, "do not divide by the compression", ["--data", "LIBRARY", "config.frames=7"]),
    ],
)
def test_what_cannot_be_trained(recipe, library, tmp_path, capsys, monkeypatch, code, message, words):
    monkeypatch.chdir(tmp_path)
    words = [library if w == "LIBRARY" else w for w in words]
    fails(capsys, code, message, "train", recipe, *words, "-o", "run", "--device", "cpu")
    assert not (tmp_path / "run").exists()


def test_prepare_inspect_reconstruct_evaluate(library, model, tmp_path, capsys):
    source = library / "videos"
    words = ["--size", 16, "--min-frames", 8, "--test", "0.3", "--workers", 1]
    assert run("data", "prepare", source, "-o", tmp_path / "lib", *words) == 0
    assert "6" in capsys.readouterr().out
    assert run("data", "inspect", tmp_path / "lib", "--sheet", tmp_path / "sheet.png") == 0
    assert re.search(r"videos\s+6\b", capsys.readouterr().out)
    assert (tmp_path / "sheet.png").stat().st_size > 100
    assert run("reconstruct", model, next(source.iterdir()), "-o", tmp_path / "both.mp4") == 0
    assert "PSNR" in capsys.readouterr().out
    info = video.probe(tmp_path / "both.mp4")
    assert (info.frames, info.width, info.height) == (40, 32, 16)
    words = ["--data", tmp_path / "lib", "-o", tmp_path / "eval", "--videos", 2, "--frames", 16]
    assert run("evaluate", model, *words, "--extractor", "none") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "eval" / "result.json")
    words = ["--data", tmp_path / "lib", "-o", tmp_path / "again", "--seam-period", 4, "--extractor", "none"]
    assert run("evaluate", tmp_path / "eval", *words) == 0
    assert re.search(r"^seam: ", capsys.readouterr().out, re.MULTILINE)


def test_other_commands_fail_in_one_sentence(model, library, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("not a video")
    fails(capsys, 1, "empty", "data", "prepare", "empty", "-o", "lib")
    fails(capsys, 1, "empty is not a prepared library", "data", "inspect", "empty")
    fails(capsys, 2, "--seam-period", "evaluate", "empty", "--data", library, "-o", "eval", "--seam-first", 5)
    fails(capsys, 1, "text.mp4", "reconstruct", model, "text.mp4", "-o", "both.mp4")
    fails(capsys, 1, "empty is not a prepared library", "evaluate", model, "--data", "empty", "-o", "eval")
    words = ["--data", library, "-o", "eval"]
    fails(
        capsys, 2, "no protocol 'mine'; choose one of longtake-1", "evaluate", model, *words, "--protocol", "mine"
    )
    fails(capsys, 2, "no extractor 'i4d'", "evaluate", model, *words, "--extractor", "i4d=x")
    fails(capsys, 2, "neither a model nor a folder of videos", "evaluate", "empty", *words, "--extractor", "none")
    fails(capsys, 2, "nothing is neither a model folder", "evaluate", "nothing", *words, "--extractor", "none")
    fails(capsys, 1, "text.mp4", "convert", "tats", "text.mp4", "-o", "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "text.mp4"]


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "longtake", "generate"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the following arguments are required: MODEL" in done.stderr
