"""What a video shows and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.errors import UserError
from longtake.story import Entry, Story, read_story

CLASSES = ("left", "right", "up")


def test_seconds_become_frames():
    assert Story(seconds=2.5).resolve(10.0, ()).frames == 25
    told = Story(seconds=2, fps=30.0).resolve(10.0, ())
    assert (told.frames, told.seconds, told.fps) == (60, None, 30.0)
    assert told.resolve(10.0, ()) == told


def test_the_condition_in_force():
    entries = (Entry(0.0, label="left"), Entry(1.0, prompt="fog"), Entry(2.0, label="up"))
    told = Story(frames=40, timeline=entries).resolve(10.0, CLASSES)
    assert told.at("label", 0) == ("left", 0)
    assert told.at("label", 19) == ("left", 0)
    assert told.at("label", 20) == ("up", 20)
    assert told.at("prompt", 9) is None
    assert told.at("prompt", 39) == ("fog", 10)
    assert told.at("audio", 39) is None
    assert told.window(18, 4)["label"].tolist() == [[0, 0, 2, 2]]
    assert told.window(18, 4)["times"].tolist() == [[18, 19, 20, 21]]


def test_no_label_is_minus_one():
    told = Story(frames=9, timeline=(Entry(0.4, label="right"),)).resolve(10.0, CLASSES)
    assert told.window(0, 6)["label"].tolist() == [[-1, -1, -1, -1, 1, 1]]


entries = st.lists(
    st.tuples(st.floats(0, 5), st.sampled_from([None, *CLASSES])).map(lambda e: Entry(e[0], label=e[1])), max_size=5
).map(lambda es: tuple(sorted(es, key=lambda e: e.start)))


@given(entries, st.floats(1, 60), st.integers(0, 60), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_a_window_is_a_slice_of_the_whole(timeline, fps, start, n):
    told = Story(frames=100, timeline=timeline).resolve(fps, CLASSES)
    whole, window = told.window(0, 100), told.window(start, n)
    for key in ("times", "label"):
        assert window[key].shape == (1, n)
        assert torch.equal(window[key], whole[key][:, start : start + n])


@given(entries, st.floats(1, 60), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_the_last_entry_that_has_begun_counts(timeline, fps, frame):
    told = Story(frames=100, timeline=timeline).resolve(fps, CLASSES)
    begun = [e for e in timeline if e.label is not None and round(e.start * fps) <= frame]
    found = told.at("label", frame)
    assert (found[0] if found else None) == (begun[-1].label if begun else None)


@pytest.mark.parametrize(
    ("story", "message"),
    [
        (Story(), "needs a length: give either frames or seconds"),
        (Story(frames=5, seconds=1.0), "needs a length: give either frames or seconds"),
        (Story(frames=0), "a story of 0 frames shows nothing"),
        (Story(seconds=0.001), "a story of 0 frames shows nothing"),
        (Story(seconds=float("inf")), "finite"),
        (Story(seconds=float("nan")), "finite"),
        (Story(frames=5, fps=0.0), "fps must be above 0"),
        (Story(frames=5, timeline=(Entry(1.0), Entry(0.5))), r"in order, got \[1\.0, 0\.5\]"),
        (Story(frames=5, timeline=(Entry(-1.0),)), "start at 0 or later"),
        (Story(frames=5, timeline=(Entry(label="down"),)), "'down' is not a class of this model; it knows: left"),
    ],
)
def test_stories_that_cannot_be_told(story, message):
    with pytest.raises(UserError, match=message) as caught:
        story.resolve(10.0, CLASSES)
    assert caught.value.code == 2


def test_a_model_without_classes_says_so():
    with pytest.raises(UserError, match="this model has no classes"):
        Story(frames=5, timeline=(Entry(label="down"),)).resolve(10.0, ())


def test_what_is_told_replaces_what_the_story_says():
    story = Story(seconds=4, seed=1, timeline=(Entry(0, label="a", prompt="x"), Entry(2, label="b", cut=True)))
    assert story.told(label=None, seed=None, frames=None) == story
    told = story.told(frames=9, seed=2, label="c", first_frames=Path("a.png"), fps=30.0)
    assert (told.frames, told.seconds, told.seed, told.fps, told.first_frames) == (9, None, 2, 30.0, "a.png")
    assert [entry.label for entry in told.timeline] == ["c", None, None]
    assert [entry.prompt for entry in told.timeline] == [None, "x", None]
    assert [entry.cut for entry in told.timeline] == [False, False, True]
    both = story.told(frames=9, seconds=1.0)
    with pytest.raises(UserError, match="either frames or seconds"):
        both.resolve(15, ("a", "b"))


def test_conditions():
    told = Story(frames=1, timeline=(Entry(label="a"), Entry(1.0, audio="b.wav")), last_frame="c.png")
    assert told.conditions() == {"label", "audio", "last_frame"}
    assert Story(frames=1).conditions() == set()
    assert replace(told, source_video="d.mp4").conditions() == {"label", "audio", "last_frame", "source_video"}


def test_yaml(tmp_path):
    path = tmp_path / "story.yaml"
    path.write_text("seconds: 4\nseed: 3\ntimeline:\n- label: left\n- start: 2\n  label: up\n")
    assert read_story(path) == Story(seconds=4.0, seed=3, timeline=(Entry(label="left"), Entry(2.0, label="up")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frmes: 4", r"has no setting 'frmes'; did you mean 'frames'\?"),
        ("timeline:\n- labl: a", r"timeline entry 1 has no setting 'labl'; did you mean 'label'\?"),
        ("timeline:\n- label: a\n- 3", "timeline entry 2 must hold named settings, got 3"),
        ("timeline: 3", "timeline must be a list of entries"),
        ("frames: soon", r"frames must be int \| None, got 'soon'"),
        ("- 1", "is not a story"),
        ("", "is not a story"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "story.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_story(path)


def test_unreadable_story(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the story .*none.yaml: No such file"):
        read_story(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot read the story"):
        read_story(tmp_path / "binary.yaml")
