"""The page: what stands in one table, what does not, and that it is whole by itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import moving_square

from longtake.data import video
from longtake.errors import UserError
from longtake.metrics.result import Curve, Figure, Result
from longtake.report.compare import compare

PROTOCOL = {
    "name": "longtake-1",
    "frames": 32,
    "fake_videos": 64,
    "seeds": [0, 63],
    "torch": "2.13",
    "size": [16, 16],
}


def write(folder: Path, value: float, media: bool = True, **protocol) -> Path:
    folder.mkdir()
    figures = {"FVD16[r3d]": Figure(value, (value - 1, value + 1), "", 64, "biased <upwards>")}
    curves = {"CCS[r3d]": Curve([0.0, 16.0], [1.0, 0.5], "share of videos", 64)}
    Result({"system": "tats", "weights": "abc"}, {**PROTOCOL, **protocol}, figures, curves).write(
        folder / "result.json"
    )
    if media:
        video.write_video(folder / "video-000.mp4", [moving_square(int(value), 16)], 15.0)
        video.write_png(folder / "sheet-000.png", np.zeros((8, 8, 3), np.uint8))
    return folder


class Reader(HTMLParser):
    """Counts tables and videos, and finds whatever would be loaded from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.videos, self.foreign, self.open = 0, 0, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tables += tag == "table"
        self.videos += tag == "video"
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith("data:"):
                self.foreign.append(value)


def test_results_of_one_protocol_share_a_table(tmp_path):
    folders = [write(tmp_path / name, v) for name, v in (("one", 3.0), ("two", 5.0))]
    groups = compare([folders[0], folders[1] / "result.json"], tmp_path / "report.html")
    assert groups == [["one", "two"]]
    text = (tmp_path / "report.html").read_text()
    page = Reader(text)
    assert page.tables == 1
    assert page.videos == 2 + 2  # and two of the blind comparison
    assert page.foreign == []
    assert "<td>3 [2, 4]" in text
    assert "biased &lt;upwards&gt;" in text
    assert text.count("<polyline") == 2
    assert 'id="blind"' in text


@pytest.mark.parametrize("change", [{"fake_videos": 65}, {"frames": 48}, {"name": "tats"}, {"size": [32, 32]}])
def test_other_protocols_never_share_a_table(tmp_path, change):
    folders = [write(tmp_path / "one", 3.0), write(tmp_path / "two", 5.0, **change), write(tmp_path / "three", 7.0)]
    assert compare(folders, tmp_path / "r.html") == [["one", "three"], ["two"]]
    text = (tmp_path / "r.html").read_text()
    assert Reader(text).tables == 2
    (name,) = change
    assert re.search(rf"<li>{name}: ", text)
    assert "cannot be compared" in text


@pytest.mark.parametrize("own", [{"seeds": [5, 68]}, {"torch": "2.11"}, {"labels": ["a"]}])
def test_what_belongs_to_a_model_does_not_divide(tmp_path, own):
    folders = [write(tmp_path / "one", 3.0), write(tmp_path / "two", 5.0, **own)]
    assert compare(folders, tmp_path / "r.html") == [["one", "two"]]


def test_what_a_model_was_given_is_marked(tmp_path):
    told = {
        "free": {"sees_test_video": False, "labels": [None], "settings": {}},
        "labelled": {"sees_test_video": False, "labels": ["a"], "settings": {"top_k": 8, "mode": "<b>"}},
        "recalling": {"sees_test_video": True, "labels": [None]},
        "files": {"sees_test_video": None, "conditions_from": "unknown: these are files"},
    }
    folders = [write(tmp_path / name, 3.0, media=False, **own) for name, own in told.items()]
    assert compare(folders, tmp_path / "r.html") == [list(told)]
    text = (tmp_path / "r.html").read_text()
    seen = "<strong>the test videos, which it re-creates</strong>"
    row = f"<tr><th>given</th><td>nothing</td><td>class</td><td>{seen}</td><td>not known</td></tr>"
    assert row in text
    settings = "<small>top_k 8, mode &quot;&lt;b&gt;&quot;</small>"
    assert f"<tr><th>settings</th><td>-</td><td>{settings}</td><td>-</td><td>-</td></tr>" in text


def test_texts_given_frames_and_another_split_are_marked(tmp_path):
    own = {"sees_test_video": False, "prompts": [["", "a boat"]], "given_frames": 16, "labels": ["<i>"]}
    train = own | {"conditions_from": "train split, evenly spread"}
    folders = [write(tmp_path / name, 3.0, media=False, **told) for name, told in (("one", own), ("two", train))]
    assert compare(folders, tmp_path / "r.html") == [["one", "two"]]
    text = (tmp_path / "r.html").read_text()
    assert "<td>class, text, first frames: 16</td>" in text
    assert "<td>class, text, first frames: 16, from the train split, evenly spread</td>" in text


def test_another_perceptual_network_divides_no_table(tmp_path):
    folders = [write(tmp_path / n, 3.0, media=False, lpips={"name": n, "hash": n}) for n in ("a", "b")]
    folders.append(write(tmp_path / "c", 3.0, media=False, lpips=None))
    assert compare(folders, tmp_path / "r.html") == [["a", "b", "c"]]


def test_measured_files_are_told_by_their_hash(tmp_path):
    folder = write(tmp_path / "files", 3.0, media=False)
    raw = json.loads((folder / "result.json").read_text())
    raw["model"] = {"system": "videos", "folder": "x", "files": "0123456789abcdef"}
    (folder / "result.json").write_text(json.dumps(raw))
    compare([folder], tmp_path / "r.html")
    assert "<small>videos 0123456789ab</small>" in (tmp_path / "r.html").read_text()


def test_names_cannot_inject_anything(tmp_path):
    folder = write(tmp_path / "<script>alert(1)", 3.0)
    other = write(tmp_path / "two", 3.0, name="<img src=x onerror=alert(2)>")
    compare([folder, other], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_without_videos_there_is_no_blind_comparison(tmp_path):
    compare([write(tmp_path / "one", 3.0, media=False)], tmp_path / "r.html")
    assert 'id="blind"' not in (tmp_path / "r.html").read_text()


def test_bad_input_leaves_nothing(tmp_path):
    good = write(tmp_path / "one", 3.0)
    (tmp_path / "x.json").write_text(json.dumps([1]))
    for paths, output, match in (
        ([good, tmp_path / "x.json"], "r.html", "x.json is not a result"),
        ([tmp_path / "none.json"], "r.html", "cannot read the result"),
        ([good], "r.txt", r"ends in \.html"),
        ([good], "none/r.html", "there is no folder"),
    ):
        with pytest.raises(UserError, match=match):
            compare(paths, tmp_path / output)
        assert not (tmp_path / output).exists()


def test_equal_folder_names_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    folders = [write(tmp_path / parent / "eval", 3.0, media=False) for parent in ("a", "b")]
    (group,) = compare(folders, tmp_path / "r.html")
    assert len(set(group)) == 2
    assert replace(Result.read(folders[0] / "result.json")) == Result.read(folders[1] / "result.json")
