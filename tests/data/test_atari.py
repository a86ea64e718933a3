"""The Atari sample library: what it promises about its shots, states and captions."""

import json
import sys
from collections import Counter

import numpy as np
import pytest

from longtake.data import atari, video
from longtake.data.atari_games import GAMES
from longtake.data.samples import sample
from longtake.errors import UserError

ale_py = pytest.importorskip("ale_py", reason="the Atari games need the extra longtake[atari]")

SIZE = 64
# The player's colour, or colours, in each game, and the rows of the native picture to look in.
SPRITES = {
    "boxing": ((214, 214, 214), (22, 188)),
    "enduro": ((192, 192, 192), (136, 156)),
    "freeway": ((252, 252, 84), (14, 196)),
    "riverraid": ((232, 232, 74), (144, 160)),
    "seaquest": ((187, 187, 53), (40, 160)),
    "skiing": ((214, 92, 92), (28, 80)),
}
# Pixels of the whole sprite; other counts mean that it is hidden, explodes or touches something of its colour.
WHOLE = {
    "boxing": (370, 440),
    "enduro": (80, 120),
    "freeway": (20, 24),
    "riverraid": (34, 48),
    "seaquest": (44, 50),
    "skiing": (44, 64),
}
# And its width in native pixels, where a boxer's arm or the side of the road may join it.
WIDTH = {"boxing": 14, "enduro": 16}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The same two-game library made twice: by one process and by two."""
    folder = tmp_path_factory.mktemp("atari")
    made = {"minutes": 0.5, "size": 16, "seed": 3, "games": ["skiing", "boxing"]}
    return [sample("atari", folder / str(n), workers=n, **made) for n in (1, 2)]


@pytest.fixture(scope="module")
def words():
    """What every game's captions say over a minute."""
    return {name: atari.play(name, 900, 16, seed=(1, 2)).words for name in GAMES}


def test_same_seed_same_library_whatever_the_workers(libraries):
    one, two = libraries
    assert one.hash == two.hash
    assert one.rows == two.rows


def test_another_seed_or_shot_is_another_video():
    shots = [atari.play("freeway", 40, 16, seed) for seed in ((0, 0), (0, 1), (1, 0))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (shots[a].frames != shots[b].frames).any()
    again = atari.play("freeway", 40, 16, (0, 1))
    np.testing.assert_array_equal(again.frames, shots[1].frames)


def test_library_has_every_condition_and_both_splits_of_every_game(libraries):
    library = libraries[0]
    assert library.header.conditions == ("label", "caption", "audio", "states")
    assert library.classes == ("boxing", "skiing")
    assert {(row.label, row.split) for row in library.rows} == {
        (game, split) for game in library.classes for split in ("train", "test")
    }
    assert sum(row.frames for row in library.rows) >= 0.5 * 60 * 15
    for number, row in enumerate(library.rows):
        assert video.probe(library.path / row.file).frames == row.frames
        assert library.states(number).shape == (row.frames, len(library.header.state_names))
        wave = video.read_audio(library.path / row.audio, rate=2048 * 15)
        assert len(wave) == row.frames * library.header.samples_per_frame
        assert np.abs(wave).max() > 0.01


def test_spans_cover_every_shot_without_gaps_and_change(libraries):
    for row in libraries[0].rows:
        assert row.captions[0][0] == 0
        assert row.captions[-1][1] == pytest.approx(row.seconds)
        for (_, end, text), (start, _, following) in zip(row.captions, row.captions[1:], strict=False):
            assert start == end
            assert text != following
        assert len(row.captions) > 1


def test_withheld_captions_stand_in_test_shots_only(libraries):
    texts = {"train": set(), "test": set()}
    for row in libraries[0].rows:
        texts[row.split] |= {text for _, _, text in row.captions}
    held = {text for text in texts["test"] if atari.withheld(text)}
    assert held
    assert held.isdisjoint(texts["train"])


def test_captions_are_many_and_some_of_each_game_are_withheld(words):
    texts = {name: {f"{what} {where}" for what, where in said} for name, said in words.items()}
    assert len(set().union(*texts.values())) >= 50
    for name, said in texts.items():
        assert any(atari.withheld(text) for text in said), name
        assert any(not atari.withheld(text) for text in said), name


def test_no_caption_rules_a_game(words):
    for name, said in words.items():
        assert max(Counter(said).values()) <= 0.6 * len(said), name


def test_a_withheld_caption_keeps_its_first_half_in_training():
    text = next(f"a b{n}" for n in range(1000) if atari.withheld(f"a b{n}"))
    what, where = text.split()
    other = next(f"b{n}" for n in range(1000) if not atari.withheld(f"a b{n}"))
    said = [(what, where), (what, where), (what, other)]
    assert atari.captions(said, 40, "train") == ((0.0, 2.0, "a"), (2.0, 40 / 15, f"a {other}"))
    assert atari.captions(said, 40, "test") == ((0.0, 2.0, text), (2.0, 40 / 15, f"a {other}"))


def _native(monkeypatch, name: str, frames: int, seed) -> tuple[list[np.ndarray], np.ndarray]:
    """A shot's cropped native pictures and its states."""
    seen = []
    monkeypatch.setattr(atari.video, "resize", lambda pictures, *_: seen.extend(pictures) or pictures[:, :1, :1])
    shot = atari.play(name, frames, SIZE, seed)
    return seen, shot.states


def _sprite(picture: np.ndarray, name: str, near: tuple[float, float]) -> tuple[float, float] | None:
    """Centre (x, y) in [0, 1] of the pixels of the player's colour around a place; None if it is not whole."""
    (top, bottom, *_), (colour, rows) = GAMES[name].crop, SPRITES[name]
    mask = (picture == np.array(colour)).all(-1)
    mask[: max(rows[0] - top, 0)] = False
    mask[rows[1] - top :] = False
    if name == "enduro":  # the sides of the road have the car's colour, but are one pixel thin
        mask &= (mask.sum(0) >= 3)[None]
    if name == "freeway":  # so has the middle line
        mask &= ~mask.all(1)[:, None] & (np.arange(top, bottom) != 102)[:, None]
        mask[104 - top] = False
    height, width = mask.shape
    # Within 12 pixels of the picture: far more than the tolerance, so a wrong place cannot pass.
    y, x = np.ogrid[:height, :width]
    mask &= (abs((x + 0.5) / width - near[0]) < 12 / SIZE) & (abs((y + 0.5) / height - near[1]) < 12 / SIZE)
    if not WHOLE[name][0] <= mask.sum() <= WHOLE[name][1]:
        return None
    ys, xs = np.nonzero(mask)
    if np.ptp(xs) + 1 != WIDTH.get(name, np.ptp(xs) + 1):
        return None
    return (xs.min() + xs.max() + 1) / 2 / width, (ys.min() + ys.max() + 1) / 2 / height


@pytest.mark.parametrize("name", sorted(GAMES))
def test_states_are_within_two_pixels_of_the_sprite(name, monkeypatch):
    pictures, states = _native(monkeypatch, name, 400, (4, 1))
    found = [(i, _sprite(picture, name, states[i, :2])) for i, picture in enumerate(pictures)]
    pairs = [(states[i, :2], place) for i, place in found if place is not None]
    assert len(pairs) > 60
    errors = np.abs(np.array([a for a, _ in pairs]) - np.array([b for _, b in pairs])) * SIZE
    assert errors.max() <= 2
    assert 0 <= states.min() <= states.max() <= 1


def test_frames_are_the_maximum_of_the_last_two_of_the_emulator(monkeypatch):
    pictures, _ = _native(monkeypatch, "freeway", 20, 5)
    screens = []

    class Watched(ale_py.ALEInterface):
        def act(self, action):
            reward = super().act(action)
            screens.append(self.getScreenRGB())
            return reward

    monkeypatch.setattr(ale_py, "ALEInterface", Watched)
    _native(monkeypatch, "freeway", 20, 5)
    top, bottom, left, right = GAMES["freeway"].crop
    last = screens[-4 * len(pictures) :]
    for i, picture in enumerate(pictures):
        expected = np.maximum(last[4 * i + 2], last[4 * i + 3])[top:bottom, left:right]
        np.testing.assert_array_equal(picture, expected)


def test_header_names_the_sound_and_the_states(libraries):
    header = json.loads((libraries[0].path / "library.json").read_text())
    assert header["samples_per_frame"] * header["fps"] == 30720
    assert header["state_names"] == ["x", "y", "right", "up", "fire"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "chess"}, "atari"),
        ({"games": ["tetris"]}, "tetris"),
        ({"games": []}, "choose from"),
        ({"minutes": 0}, "minutes"),
        ({"size": 2}, "size"),
        ({"test": 1.0}, "test"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, told):
    arguments = {"name": "atari", "minutes": 0.1, **arguments}
    with pytest.raises(UserError, match=told):
        sample(output=tmp_path / "library", **arguments)
    assert not (tmp_path / "library").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UserError, match="pip install ale-py"):
        sample("atari", tmp_path / "library", minutes=0.1)
