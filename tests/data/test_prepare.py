"""From other people's files to a library, and what is said on the way."""

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.data import video
from longtake.data.inspect import inspect
from longtake.data.library import Library
from longtake.data.prepare import _ids, prepare, read_captions
from longtake.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data"


def clip(frames: int, size: int = 24, start: int = 0) -> np.ndarray:
    """Frame n is a flat grey of 4 n."""
    levels = (4 * (np.arange(frames) + start)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, size, size, 3)).copy()


def grey(library: Library, row: int) -> list[int]:
    """Which source frame each frame shows."""
    shown = library.frames(row, range(library.rows[row].frames))
    return [round(float(level) / 4) for level in shown.mean((1, 2, 3))]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(3):
        video.write_video(tmp_path / "in" / f"v{n}.mp4", clip(20 + n), 10, crf=8)
    return tmp_path / "in"


def test_a_folder(folder, tmp_path):
    heard = []
    report = prepare(folder, tmp_path / "lib", 16, progress=lambda *args: heard.append(args))
    library = Library(tmp_path / "lib")
    assert (report.accepted, report.rejected) == (3, [])
    assert [(r.id, r.frames, r.seconds, r.source) for r in library.rows] == [
        (f"v{n}", 20 + n, (20 + n) / 10, f"v{n}.mp4") for n in range(3)
    ]
    assert (library.header.size, library.fps, library.header.conditions) == ((16, 16), 10, ())
    assert grey(library, 2) == list(range(22))
    assert [args[:2] for args in heard] == [(n // 2, 3) for n in range(1, 7)]
    assert (
        {name for _, _, name in heard[:3]} == {name for _, _, name in heard[3:]} == {"v0.mp4", "v1.mp4", "v2.mp4"}
    )


def bad_files(folder: Path) -> set[str]:
    whole = (folder / "v0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "empty.mp4").touch()
    video.write_video(folder / "short.mp4", clip(3), 10)
    (folder / "link.mp4").symlink_to("nowhere")
    add_tar(folder / "shard.tar", [("x.mp4", whole), ("y.mp4", whole)])
    (folder / "shard.tar").write_bytes((folder / "shard.tar").read_bytes()[: len(whole) + 1600])
    (folder / "two\u2028lines.mp4").touch()
    names = {"cut.mp4", "text.mp4", "empty.mp4", "short.mp4", "link.mp4", "shard.tar", "two\u2028lines.mp4"}
    if os.name != "nt" and os.geteuid() != 0:
        (folder / "secret.mp4").write_bytes(whole)
        (folder / "secret.mp4").chmod(0)
        names.add("secret.mp4")
    return names


def add_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Append to a tar, as `tar -r` does."""
    with tarfile.open(path, "a") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_bad_files_are_skipped_and_named(folder, tmp_path):
    names, heard = bad_files(folder), []
    report = prepare(folder, tmp_path / "lib", 16, progress=lambda *args: heard.append(args[:2]))
    assert heard == sorted(heard)
    assert heard[-1] == (len(names) + 2, len(names) + 2)  # the shard is no video
    assert report.accepted == 3
    assert {name for name, _ in report.rejected} == names
    reasons = dict(report.rejected)
    for name, reason in [
        ("cut.mp4", "cut short"),
        ("empty.mp4", "is empty"),
        ("short.mp4", "3 frames"),
        ("link.mp4", "link"),
        ("shard.tar", "not a readable tar"),
    ]:
        assert reason in reasons[name]
        assert name in str(report)
    text = inspect(tmp_path / "lib")
    assert all(name in text for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_names_that_are_no_text(folder, tmp_path):
    (folder / "v0.mp4").rename(folder / os.fsdecode(b"caf\xe9.mp4"))
    (folder / os.fsdecode(b"th\xe9.mp4")).write_text("no")
    report = prepare(folder, tmp_path / "lib", 16)
    assert report.accepted == 3
    row = Library(tmp_path / "lib").rows[0]
    assert (row.source, row.file) == ("caf\\udce9.mp4", f"videos/{row.id}.mp4")
    for text in (str(report), (tmp_path / "lib" / "rejected.jsonl").read_text("utf-8"), inspect(tmp_path / "lib")):
        assert "th\\" in text
        text.encode()


def test_a_damaged_sidecar_in_a_zip(folder, tmp_path):
    source = tmp_path / "in.zip"
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(source, "w", method) as archive:
            archive.write(folder / "v0.mp4", "v0.mp4")
            archive.writestr("v0.txt", "a sea " * 500)
            start = archive.infolist()[1].header_offset + 30 + len("v0.txt")
        content = bytearray(source.read_bytes())
        content[start : start + 30] = b"\xff" * 30
        source.write_bytes(content)
        report = prepare(source, tmp_path / f"lib{method}", 16)
        assert report.accepted == 1
        assert any("v0.txt cannot be read" in note for note in report.notes)


@pytest.mark.parametrize("workers", [1, 2])
def test_of_members_of_one_name_the_last_counts(folder, tmp_path, workers):
    first, last = ((folder / f"v{n}.mp4").read_bytes() for n in (0, 2))
    add_tar(tmp_path / "in.tar", [("v.mp4", first)])
    add_tar(tmp_path / "in.tar", [("./v.mp4", last)])
    prepare(tmp_path / "in.tar", tmp_path / "lib", 16, workers=workers)
    assert [(row.id, row.frames) for row in Library(tmp_path / "lib").rows] == [("v", 22)]


def test_whatever_fails_leaves_no_video_without_a_row(folder, tmp_path, monkeypatch):
    for file in folder.iterdir():
        video.write_video(file, clip(20), 10, audio=np.zeros(9, np.float32), audio_rate=44100)
    write = video.write_audio

    def fails_once(path, *args):
        if path.stem == "v1":
            raise RuntimeError("a codec's own trouble")
        write(path, *args)

    monkeypatch.setattr(video, "write_audio", fails_once)
    report = prepare(folder, tmp_path / "lib", 16)
    assert [name for name, _ in report.rejected] == ["v1.mp4"]
    assert sorted(path.name for path in (tmp_path / "lib" / "videos").iterdir()) == ["v0.mp4", "v2.mp4"]


def test_nothing_left_says_why(folder, tmp_path):
    for file in folder.glob("v*.mp4"):
        file.write_text("no")
    with pytest.raises(UserError, match=r"0 clips found .* because all 3 were skipped \(v0.mp4"):
        prepare(folder, tmp_path / "lib", 16)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"0 clips found .* neither videos nor pictures"):
        prepare(tmp_path / "none", tmp_path / "lib", 16)
    assert not (tmp_path / "lib").exists()
    assert not list(tmp_path.glob(".lib*"))


def test_mixed_rates_are_refused_with_a_value_that_works(folder, tmp_path):
    video.write_video(folder / "fast.mp4", clip(60), 30)
    with pytest.raises(UserError, match=r"3 at 10, 1 at 30.*--fps 10"):
        prepare(folder, tmp_path / "lib", 16)
    prepare(folder, tmp_path / "lib", 16, fps=10)
    library = Library(tmp_path / "lib")
    assert [row.frames for row in library.rows] == [20, 20, 21, 22]
    assert grey(library, 0) == list(range(0, 60, 3))


def test_slow_video_repeats_frames(folder, tmp_path):
    prepare(folder, tmp_path / "lib", 16, fps=20)
    assert grey(Library(tmp_path / "lib"), 0) == [n // 2 for n in range(40)]


def test_sound_has_whole_samples_a_frame(tmp_path):
    (tmp_path / "in").mkdir()
    beat = np.zeros(2 * 44100, np.float32)
    beat[44100:] = np.sin(np.arange(44100) * 2 * np.pi * 440 / 44100) / 2
    for n in range(2):
        video.write_video(tmp_path / "in" / f"{n}.mp4", clip(30), 15, audio=beat, audio_rate=44100)
    prepare(tmp_path / "in", tmp_path / "lib", 16)
    library = Library(tmp_path / "lib")
    assert library.header.conditions == ("audio",)
    sound = library.audio(0)
    assert sound.shape == (30, round(16000 / 15))
    loud = np.abs(sound).max(1) > 0.2
    assert not loud[:14].any()
    assert loud[16:29].all()


def test_sound_only_when_every_video_has_it(tmp_path, folder):
    video.write_video(folder / "s.mp4", clip(30), 10, audio=np.zeros(1000, np.float32), audio_rate=44100)
    prepare(folder, tmp_path / "lib", 16)
    assert Library(tmp_path / "lib").header.conditions == ()


def test_workers_do_not_change_the_result(folder, tmp_path):
    for workers in (1, 4):
        prepare(folder, tmp_path / f"lib{workers}", 16, workers=workers)
    assert Library(tmp_path / "lib1").hash == Library(tmp_path / "lib4").hash


def test_adding_videos_moves_no_other(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for n in range(10):
        video.write_png(source / f"p{n * n}.png", clip(1)[0])
    prepare(source, tmp_path / "a", 8, test_fraction=0.4, layout="stills")
    before = {row.id: row.split for row in Library(tmp_path / "a").rows}
    for n in range(10, 20):
        video.write_png(source / f"p{n * n}.png", clip(1)[0])
    prepare(source, tmp_path / "b", 8, test_fraction=0.4, layout="stills")
    after = {row.id: row.split for row in Library(tmp_path / "b").rows}
    assert before.items() <= after.items()
    assert set(after.values()) == {"train", "test"}
    prepare(source, tmp_path / "c", 8, test_fraction=0.4, layout="stills", split_seed=1)
    assert {row.id: row.split for row in Library(tmp_path / "c").rows} != after


@pytest.mark.parametrize("seed", range(4))
def test_a_small_library_has_a_test_video_too(tmp_path, seed):
    source = tmp_path / "in"
    source.mkdir()
    for n in range(4):
        video.write_png(source / f"p{n * n}.png", clip(1)[0])
    prepare(source, tmp_path / "a", 8, test_fraction=0.01, layout="stills", split_seed=seed)
    assert len(Library(tmp_path / "a").split("test")) == 1
    report = prepare(source, tmp_path / "b", 8, test_fraction=0, layout="stills", split_seed=seed)
    assert Library(tmp_path / "b").split("test") == []
    assert not report.notes


def test_groups_stay_together(tmp_path):
    for action in ("bend", "jack", "wave"):
        for person in range(6):
            path = tmp_path / "in" / action / f"person_{person}.mp4"
            video.write_video(path, clip(16, 16), 10)
    prepare(tmp_path / "in", tmp_path / "lib", 16, test_fraction=0.5)
    library = Library(tmp_path / "lib")
    sides = {(row.group, row.split) for row in library.rows}
    assert len(sides) == 6
    assert {split for _, split in sides} == {"train", "test"}
    assert library.classes == ("bend", "jack", "wave")
    assert library.header.conditions == ("label",)


def test_official_folders_are_kept(tmp_path):
    for n, side in enumerate(("train", "train", "test")):
        for f in range(16):
            path = tmp_path / "in" / side / f"{n:05}" / f"{f:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            video.write_png(path, clip(1, start=f)[0])
    report = prepare(tmp_path / "in", tmp_path / "lib", 16, test_fraction=0.9)
    library = Library(tmp_path / "lib")
    assert [row.split for row in library.rows] == ["test", "train", "train"]
    assert grey(library, 0) == list(range(16))
    assert any("25 frames a second" in note for note in report.notes)


def test_stills_are_one_frame_rows(tmp_path):
    (tmp_path / "in").mkdir()
    video.write_png(tmp_path / "in" / "sea.png", np.full((30, 50, 3), 80, np.uint8))
    (tmp_path / "in" / "bad.jpg").write_text("no picture")
    report = prepare(tmp_path / "in", tmp_path / "lib", (16, 24))
    assert [row.frames for row in Library(tmp_path / "lib").rows] == [1]
    assert [name for name, _ in report.rejected] == ["bad.jpg"]


def test_captions(folder, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text('file,text,t0,t1\nv0.mp4,"a sea, calm",,1\nv0.mp4,a storm,1,99\nv1,the sky,,\nother.mp4,x,,\n')
    report = prepare(folder, tmp_path / "lib", 16, captions=table)
    rows = Library(tmp_path / "lib").rows
    assert rows[0].captions == ((0.0, 1.0, "a sea, calm"), (1.0, 2.0, "a storm"))
    assert rows[1].captions == ((0.0, 2.1, "the sky"),)
    assert rows[2].captions == ()
    assert any("other.mp4" in note for note in report.notes)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name,text\na,b\n", "columns file and text"),
        ("file,text\na.mp4,\n", "line 2 has no text"),
        ("file,text,t0\na.mp4,x,soon\n", "line 2 has t0 'soon'"),
        ("file,text,t0,t1\na.mp4,x,3,2\n", "line 2 ends at 2 s"),
    ],
)
def test_captions_mistakes(tmp_path, content, reason):
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(UserError, match=reason):
        read_captions(tmp_path / "c.csv")


def test_arguments_are_checked_first(folder, tmp_path):
    for wrong in ({"size": 0}, {"size": 16, "fps": -1.0}, {"size": 16, "test_fraction": 2.0}):
        with pytest.raises(UserError):
            prepare(folder, tmp_path / "lib", **wrong)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="not empty"):
        prepare(folder, tmp_path / "full", 16)
    with pytest.raises(UserError, match="cannot be written"):  # before it looks for the source
        prepare(tmp_path / "gone", folder / "v0.mp4" / "lib", 16)


@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1), unique=True)
)
def test_ids_are_unique_file_names(names):
    ids = _ids(names)
    assert len({id.lower() for id in ids.values()}) == len(names)
    assert all(id and "/" not in id and not id.startswith(".") and len(id.encode()) < 200 for id in ids.values())


def test_inspect(folder, tmp_path):
    prepare(folder, tmp_path / "lib", 16)
    text = inspect(tmp_path / "lib", tmp_path / "sheet.png")
    assert "videos      3" in text
    assert "16x16, 10 frames a second" in text
    assert "63  (a video: 20 to 22, median 21)" in text
    assert video.read_image(tmp_path / "sheet.png").shape == (3 * 18 + 2, 8 * 18 + 2, 3)


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real videos is not here")
def test_real_folder(tmp_path):
    report = prepare(REAL / "weizmann", tmp_path / "lib", 32, split_seed=1)
    library = Library(tmp_path / "lib")
    assert (report.accepted, report.rejected) == (36, [])
    assert library.classes == ("bend", "jack", "wave1", "wave2")
    assert len({row.group for row in library.rows}) == 9
