"""A library is written whole or not at all, and read back as it was."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import moving_square, write_library
from hypothesis import given
from hypothesis import strategies as st

import longtake
from longtake.data import video
from longtake.data.library import Library, LibraryWriter, Row
from longtake.data.text import clipped
from longtake.errors import UserError

texts = st.text(st.characters(codec="utf-8"), max_size=12)
spans = st.tuples(st.floats(0, 9), st.floats(0, 9), texts)
optional = st.one_of(st.none(), texts)


@given(texts, optional, st.lists(spans, max_size=3).map(tuple), st.integers(1, 10**6), optional)
def test_rows_survive_the_round_trip_on_one_line(id, label, captions, frames, source):
    row = Row(id, f"videos/{id}.mp4", frames, frames / 15, "test", label, captions, source=source)
    text = row.to_json()
    assert text.splitlines() == [text]
    assert Row.from_json(text) == row


def test_what_was_written_is_read_back(library):
    read = Library(library)
    assert (read.header.size, read.fps, read.classes) == ((16, 16), 15.0, ("left", "right"))
    assert read.header.conditions == ("label",)
    assert read.header.counts == {"videos": 6, "frames": 240, "train": 4, "test": 2}
    assert read.split("test") == [2, 5]
    assert [read.label(i) for i in range(3)] == [1, 0, 1]
    frames = read.frames(1, [0, 7, 39])
    assert frames.shape == (3, 16, 16, 3)
    expected = moving_square(1)[[0, 7, 39]].astype(int)
    assert np.abs(frames.astype(int) - expected).mean() < 6


def test_the_hash_is_of_the_content(library, tmp_path):
    same = write_library(tmp_path / "same")
    assert Library(same).hash == Library(library).hash
    assert Library(write_library(tmp_path / "other", frames=39)).hash != Library(library).hash


def test_sound_and_states(tmp_path):
    clip = moving_square(0, 10)
    wave = np.sin(np.arange(10 * 400) / 9).astype(np.float32) / 2
    path = np.linspace(0, 1, 20, dtype=np.float32).reshape(10, 2)
    with LibraryWriter(tmp_path / "lib", (16, 16), 10.0, samples_per_frame=400, state_names=("x", "y")) as writer:
        file = writer.media("video", "a")
        video.write_video(file, [clip], 10.0)
        video.write_audio(writer.media("audio", "a"), wave, 4000)
        np.save(writer.media("states", "a"), path)
        relative = {k: writer.relative(writer.media(k, "a")) for k in ("audio", "states")}
        writer.add(Row("a", writer.relative(file), 10, 1.0, captions=((0.0, 1.0, "a square"),), **relative))
    read = Library(tmp_path / "lib")
    assert read.header.conditions == ("caption", "audio", "states")
    assert read.audio(0).shape == (10, 400)
    assert np.abs(read.audio(0).ravel() - wave).max() < 1e-3
    assert np.array_equal(read.states(0), path)


def test_a_failed_block_leaves_nothing(tmp_path):
    def write():
        with LibraryWriter(tmp_path / "lib", (16, 16), 15.0) as writer:
            writer.media("video", "a").write_bytes(b"x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_library_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to write to"), LibraryWriter(tmp_path / "lib", (16, 16), 15.0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(library, tmp_path):
    with pytest.raises(UserError, match="exists already and is not empty"):
        LibraryWriter(library, (16, 16), 15.0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already and is not empty"):
        LibraryWriter(tmp_path / "file", (16, 16), 15.0)
    (tmp_path / "empty").mkdir()
    write_library(tmp_path / "empty", videos=1, frames=2)
    assert len(Library(tmp_path / "empty").rows) == 1


@pytest.mark.parametrize("place", ["file/lib", "file/deep/lib", "x" * 250])
def test_a_place_that_cannot_be_written_is_named_at_once(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"the library .* cannot be written"):
        LibraryWriter(tmp_path / place, (16, 16), 15.0)
    LibraryWriter(tmp_path / "deep" / "lib", (16, 16), 15.0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("target", ["there", "to/be/made"])
def test_a_link_is_followed(tmp_path, target):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(target)
    write_library(tmp_path / "link", videos=1, frames=2)
    assert (tmp_path / "link").is_symlink()
    assert len(Library(tmp_path / target).rows) == 1


def test_the_folder_one_is_in_can_become_a_library(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with LibraryWriter(".", (16, 16), 15.0) as writer:
        writer.add(Row("a", "videos/a.mp4", 2, 0.2))
        writer.media("video", "a").write_bytes(b"x")
    assert len(Library(tmp_path / "here").rows) == 1


@pytest.mark.parametrize("place", ["data", "rollout", "files.py"])
def test_text_files_are_utf8_whatever_the_locale(place):
    top = Path(longtake.__file__).parent / place
    for path in [top] if top.is_file() else sorted(top.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in ("read_text", "write_text"):
                named = {keyword.arg for keyword in node.keywords}
                assert "encoding" in named, f"{path}, line {node.lineno}"


def test_what_is_not_a_library_is_named(tmp_path, library):
    with pytest.raises(UserError, match=r"is not a prepared library .*longtake data prepare"):
        Library(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(library, copy, ignore=shutil.ignore_patterns("cache", "videos"))
    header = json.loads((copy / "library.json").read_text())
    for text in ("", "[1]", "{"):
        (copy / "library.json").write_text(text)
        with pytest.raises(UserError, match="is a damaged library"):
            Library(copy)
    (copy / "library.json").write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(UserError, match="has library format 99, this version reads up to 1; update longtake"):
        Library(copy)
    (copy / "library.json").write_text(json.dumps(header))
    for text in ("{", '{"id": "a"}', '{"id": "a", "colour": 1}'):
        (copy / "index.jsonl").write_text(text)
        with pytest.raises(UserError, match="is a damaged library"):
            Library(copy)
    (copy / "index.jsonl").unlink()
    with pytest.raises(UserError, match="is a damaged library"):
        Library(copy)


def test_captions_of_a_stretch_are_clipped_to_it():
    spans = ((0.0, 3.0, "x"), (2.0, 5.0, "y"), (7.0, 9.0, "z"))
    assert clipped(spans, 2.5, 4.0) == [(2.5, 3.0, "x"), (2.5, 4.0, "y")]
    assert clipped(spans, 5.0, 7.0) == []
