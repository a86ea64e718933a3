"""Each layout people have, on a tiny replica."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from longtake.data import video
from longtake.data.layouts import find
from longtake.errors import UserError

PICTURE = np.full((8, 8, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def png(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("png") / "x.png"
    video.write_png(path, PICTURE)
    return path.read_bytes()


def lay(root: Path, names, content=b"x") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def seen(found, *fields):
    return {item.name: tuple(getattr(item, f) for f in fields) for item in found.items}


def lengths(found):
    return {item.name: item.media.survey().frames for item in found.items}


def test_nested_videos_have_no_class(tmp_path):
    found = find(lay(tmp_path, ["a.mp4", "x/b.mkv", "x/y/c.avi", "notes.pdf", ".hidden.mp4"]))
    assert seen(found, "label", "split") == dict.fromkeys(("a.mp4", "x/b.mkv", "x/y/c.avi"), (None, None))
    assert found.ignored == 1


def test_class_folders(tmp_path):
    found = find(lay(tmp_path, ["cats/1.mp4", "cats/2.mp4", "dogs/1.mp4"]))
    assert seen(found, "label", "group") == {
        "cats/1.mp4": ("cats", "1"),
        "cats/2.mp4": ("cats", None),
        "dogs/1.mp4": ("dogs", "1"),
    }
    assert all(item.label is None for item in find(tmp_path, layout="videos").items)


def test_a_class_called_train_is_no_split(tmp_path):
    found = find(lay(tmp_path, ["train/1.mp4", "bus/2.mp4"]))
    assert seen(found, "label", "split") == {"bus/2.mp4": ("bus", None), "train/1.mp4": ("train", None)}


def test_ucf101_with_its_lists(tmp_path):
    lay(tmp_path, [f"UCF-101/{c}/v_{c}_g{g:02}_c01.avi" for c in ("Archery", "Bowling") for g in (1, 8, 9)])
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\nBowling/v_Bowling_g08_c01.avi 2\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\nBowling/v_Bowling_g01_c01.avi\n")
    (lists / "trainlist02.txt").write_text("Archery/v_Archery_g01_c01.avi 1\n")
    found = find(tmp_path)
    assert seen(found, "label", "split", "group") == {
        f"UCF-101/{c}/v_{c}_g{g:02}_c01.avi": (c, side, f"{c}_g{g:02}")
        for c in ("Archery", "Bowling")
        for g, side in ((1, "test"), (8, "train"))
    }
    assert "2 videos are in no split list" in found.notes[0]
    given = find(tmp_path / "UCF-101", split_lists=[lists / "trainlist02.txt"])
    assert [item.name for item in given.items] == ["Archery/v_Archery_g01_c01.avi"]
    with pytest.raises(UserError, match="in a train and in a test"):
        find(tmp_path, split_lists=[lists / "trainlist02.txt", lists / "testlist01.txt"])


def test_sky_timelapse(tmp_path):
    names = [
        f"sky_{s}/{v}/{v}_{k}/{v}_frames_{f:08}.jpg"
        for s, v in (("train", "a0"), ("test", "b"))
        for k in (1, 2)
        for f in range(12)
    ]
    found = find(lay(tmp_path, names))
    assert seen(found, "split", "group", "label") == {
        f"sky_{s}/{v}/{v}_{k}": (s, v, None) for s, v in (("train", "a0"), ("test", "b")) for k in (1, 2)
    }
    frames = found.items[0].media.pictures
    assert [entry.path.name[-6:-4] for entry in frames] == [f"{f:02}" for f in range(12)]


def test_frames_are_ordered_by_number(tmp_path):
    found = find(lay(tmp_path, [f"v/frame_{n}.png" for n in range(8, 12)]))
    assert [entry.path.stem for entry in found.items[0].media.pictures] == [f"frame_{n}" for n in range(8, 12)]


@pytest.mark.parametrize("frames", [False, True])
def test_taichi(tmp_path, frames):
    videos = [f"{side}/id{n}#000{n}.mp4" for side in ("train", "test") for n in range(2)]
    names = [f"{v}/{k:07}.png" for v in videos for k in range(4)] if frames else videos
    assert seen(find(lay(tmp_path, names)), "split", "label") == {v: (v.split("/")[0], None) for v in videos}


def test_bair(tmp_path):
    root = "softmotion/original_frames_256"
    names = [f"{root}/{s}/{k:05}/{f:02}.png" for s in ("train", "test") for k in range(3) for f in range(5)]
    found = find(lay(tmp_path, names))
    assert seen(found, "split", "label", "group") == {
        f"{root}/{s}/{k:05}": (s, None, None) for s in ("train", "test") for k in range(3)
    }
    assert set(lengths(found).values()) == {5}


@pytest.mark.parametrize("folder", ["mp4", "video"])
def test_audioset_drums(tmp_path, folder):
    names = [f"AudioSet_Dataset/{s}/{folder}/{n}.mp4" for s in ("train", "test") for n in range(2)]
    pickles = [f"AudioSet_Dataset/{s}/stft_pickle/{n}.pickle" for s in ("train", "test") for n in range(2)]
    found = find(lay(tmp_path, names + pickles))
    assert seen(found, "split", "label") == {n: (n.split("/")[1], None) for n in names}
    assert found.ignored == 4


@pytest.mark.parametrize("root", ["", "ffs/"])
def test_zip_of_frames_with_dataset_json(tmp_path, png, root):
    with zipfile.ZipFile(tmp_path / "ffs.zip", "w") as archive:
        labels = [[f"video{v}/frame{f}.png", 10 * v] for v in range(2) for f in range(3)]
        archive.writestr(f"{root}dataset.json", json.dumps({"labels": labels}))
        for name, _ in labels:
            archive.writestr(root + name, png)
    found = find(tmp_path / "ffs.zip")
    assert seen(found, "label") == {f"{root}video0": ("00",), f"{root}video1": ("10",)}
    pixels = [frame for _, frame in found.items[0].media.frames()]
    assert len(pixels) == 3
    assert (pixels[0] == PICTURE).all()


def test_dataset_json_without_labels(tmp_path):
    lay(tmp_path, [f"v{v}/{f}.png" for v in range(2) for f in range(3)])
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert seen(find(tmp_path), "label") == {"v0": (None,), "v1": (None,)}


def test_stills(tmp_path):
    found = find(lay(tmp_path, ["a.jpg", "sea view.png", "b.webp"]))
    assert seen(found, "still") == {"a.jpg": (True,), "b.webp": (True,), "sea view.png": (True,)}
    numbered = lay(tmp_path / "n", ["IMG_1.jpg", "IMG_2.jpg"])
    assert [item.name for item in find(numbered).items] == ["."]  # reads as one video ...
    assert len(find(numbered, layout="stills").items) == 2  # ... unless it is said not to be


def test_stills_beside_videos(tmp_path):
    source = lay(tmp_path / "s", ["clips/a.mp4", "clips/b.mp4", "photos/1.jpg", "photos/2.jpg", "notes.doc"])
    found = find(source, layout="mixed")
    assert [(item.name, item.still) for item in found.items] == [
        ("clips/a.mp4", False),
        ("clips/b.mp4", False),
        ("photos/1.jpg", True),
        ("photos/2.jpg", True),
    ]
    assert found.ignored == 1
    assert [item.still for item in find(source).items] == [False, False]


def test_class_folders_of_stills_and_of_frames(tmp_path):
    stills = find(lay(tmp_path / "s", ["cat/x.jpg", "cat/tom.jpg", "dog/rex.jpg"]))
    assert sorted(item.label for item in stills.items) == ["cat", "cat", "dog"]
    frames = find(
        lay(tmp_path / "f", [f"{c}/v{v}/{n}.png" for c in ("run", "walk") for v in (1, 2) for n in range(3)])
    )
    assert seen(frames, "label")["run/v1"] == ("run",)
    assert len(frames.items) == 4


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_webdataset_shards(tmp_path):
    video.write_video(tmp_path / "v.mp4", np.zeros((20, 16, 16, 3), np.uint8), 10)
    clip = (tmp_path / "v.mp4").read_bytes()
    folder = tmp_path / "shards"
    folder.mkdir()
    tar(
        folder / "train-0000.tar",
        {
            "000.mp4": clip,
            "000.txt": b"a sea\n",
            "000.cls": b"3",
            "001.mp4": clip,
            "001.json": b'{"caption": "a sky", "label": 12}',
        },
    )
    tar(folder / "test-0000.tar", {"002.mp4": clip, "002.json": b"{broken"})
    found = find(folder)
    assert seen(found, "split", "label", "captions") == {
        "train-0000/000.mp4": ("train", "03", ((None, None, "a sea"),)),
        "train-0000/001.mp4": ("train", "12", ((None, None, "a sky"),)),
        "test-0000/002.mp4": ("test", None, ()),
    }
    assert "not valid JSON" in found.notes[0]
    assert set(lengths(found).values()) == {20}
    single = find(folder / "train-0000.tar")
    assert [item.captions[0][2] for item in single.items] == ["a sea", "a sky"]


def test_a_shard_beside_its_own_contents_is_left_out(tmp_path):
    lay(tmp_path, ["a/0.mp4", "a/1.mp4"])
    tar(tmp_path / "a.tar", {"1.mp4": b"x", "2.mp4": b"x"})
    tar(tmp_path / "b.tar", {"/1.mp4": b"x"})
    tar(tmp_path / "c.tar", {"/1.mp4": b"x"})
    found = find(tmp_path)
    assert [item.name for item in found.items] == ["a/0.mp4", "a/1.mp4", "b/1.mp4", "c/1.mp4"]
    assert [name for name, _ in found.rejected] == ["a.tar"]
    assert "holds a/1.mp4, which is there a second time" in found.rejected[0][1]


def test_archive_names_point_nowhere(tmp_path, png):
    inside = tmp_path / "inside"
    inside.mkdir()
    tar(inside / "evil.tar", {"../../evil.png": png, "/abs.png": png})
    with zipfile.ZipFile(inside / "evil.zip", "w") as archive:
        archive.writestr("../evil.png", png)
        archive.writestr("ok.png", png)
    for source in (inside / "evil.tar", inside / "evil.zip"):
        for item in find(source).items:
            assert ".." not in item.name
            list(item.media.frames())
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


def test_caption_files_beside_videos(tmp_path):
    lay(tmp_path, ["a.mp4", "b.mp4"])
    (tmp_path / "a.txt").write_text("a walk")
    assert seen(find(tmp_path), "captions") == {"a.mp4": (((None, None, "a walk"),),), "b.mp4": ((),)}


@pytest.mark.parametrize(
    ("label", "expected"), [("7", "7"), ("²", "²"), ("9" * 5000, "9" * 5000), ("\ud800", "\\ud800")]
)
def test_strange_classes_are_text(tmp_path, label, expected):
    lay(tmp_path, ["a.mp4"])
    (tmp_path / "a.json").write_text(json.dumps({"label": label, "caption": label}))
    captions = ((None, None, expected),)
    assert seen(find(tmp_path), "label", "captions") == {"a.mp4": (expected, captions)}


@pytest.mark.parametrize("end_marker", [False, True])
def test_tats_hdf5_keeps_the_last_video(tmp_path, end_marker):
    h5py = pytest.importorskip("h5py")
    data = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    with h5py.File(tmp_path / "sky.h5", "w") as file:
        file["train_data"], file["train_idx"] = data, np.array([0, 12, 20] + [30] * end_marker)
        file["test_data"], file["test_idx"] = data[:9], np.array([0])
    found = find(tmp_path / "sky.h5")
    assert lengths(found) == {"train/000000": 12, "train/000001": 8, "train/000002": 10, "test/000000": 9}
    assert [int(f[0, 0, 0]) for _, f in found.items[1].media.frames()] == list(range(12, 20))
    assert {item.split for item in found.items} == {"train", "test"}


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find(tmp_path / "gone")
    with pytest.raises(UserError, match="layout 'ufc'"):
        find(tmp_path, layout="ufc")
    (tmp_path / "trainlist.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"trainlist.txt is no UTF-8 text"):
        find(tmp_path, split_lists=[tmp_path / "trainlist.txt"])
    for name, reason in [
        ("x.zip", "not a readable zip"),
        ("x.h5", "HDF5"),
        ("x.tar", "tar"),
        ("x.tar.gz", "unpack"),
    ]:
        (tmp_path / name).write_bytes(b"rubbish" * 200)
        with pytest.raises(UserError, match=reason):
            find(tmp_path / name)
