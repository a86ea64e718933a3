"""The Atari games of the sample library: how each is cropped, played, located and put into words.

Addresses in the console's 128 bytes of RAM were found by comparing every byte with the sprites in the
rendered pictures; `tests/data/test_atari.py` repeats the comparison. Positions are in native pixels of the
210 x 160 picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Move = tuple[int, int, int]
"""Right (-1, 0, 1), up (-1, 0, 1), fire (0, 1)."""


@dataclass(frozen=True)
class View:
    """What a policy may look at before it moves."""

    ram: np.ndarray
    """int (128,)."""
    screen: np.ndarray
    """uint8 (210, 160, 3)."""
    whim: np.ndarray
    """float (3,) uniform in [0, 1); redrawn every second or so, so that play has intentions and variety."""
    luck: float
    """Uniform in [0, 1), new at every frame."""


@dataclass(frozen=True)
class Second:
    """What happened during one caption's time."""

    ram: np.ndarray
    """int (frames, 128)."""
    moves: np.ndarray
    """int (frames, 3), see `Move`."""
    reward: np.ndarray
    """float (frames,)."""
    died: bool
    x: float
    """Mean place of the player in the picture, in [0, 1]."""
    y: float

    def fell(self, byte: int) -> int:
        return int(self.ram[0, byte] - self.ram[-1, byte])


@dataclass(frozen=True)
class Game:
    """One game of the library.

    `describe` returns what the player does and where it does it; the caption is the two together.
    """

    crop: tuple[int, int, int, int]
    """(top, bottom, left, right): the playing field, without black borders and scores."""
    position: Callable[[np.ndarray], tuple[float, float]]
    """RAM -> centre (x, y) of the player's sprite."""
    policy: Callable[[View], Move]
    describe: Callable[[Second], tuple[str, str]]
    hold: dict[int, int] = field(default_factory=dict)
    """RAM bytes that never fall below a value: the count of lives, so that a shot does not end with them."""
    late: int = 0
    """Frames between the end of a player and the count of the life lost."""
    warm_up: int = 30
    """A shot starts after up to this many frames of play, drawn at random."""


def _third(value: float, low: str, middle: str, high: str) -> str:
    return low if value < 0.4 else middle if value < 0.6 else high


def _towards(x: float, target: float, slack: float) -> int:
    return 0 if abs(target - x) <= slack else (1 if target > x else -1)


# Enduro. Byte 46 (signed) is how far the road has moved aside of the car: the car moves the other way by 9/16
# of it. Byte 52 is its height in the picture, which falls with speed, 49 counts down through the day, 22 is the
# speed.


def _enduro_position(ram: np.ndarray) -> tuple[float, float]:
    aside = int(ram[46]) - 256 * (ram[46] > 127)
    return 85.2 - 0.5625 * aside, float(ram[52]) + 94.5


def _enduro_policy(view: View) -> Move:
    x = _enduro_position(view.ram)[0]
    ground = view.screen[130, 10]
    drawn = (view.screen[100:142, 8:] != ground).any(-1)
    edges = np.flatnonzero(drawn[-1]) + 8
    left, right = (edges[0], edges[-1]) if len(edges) and edges[-1] - edges[0] > 40 else (45, 125)
    target = left + (right - left) * (0.35 + 0.3 * view.whim[0])
    # A car close ahead is whatever is drawn between the lines at the sides of the road.
    columns = np.arange(max(int(x) - 13, 10), min(int(x) + 14, 158))
    inside = columns[(columns > left + 12) & (columns < right - 12)]
    ahead = np.flatnonzero(drawn[12:, inside - 8].any(0))
    if len(ahead):
        target = x - 20 if inside[ahead].mean() > x else x + 20
        target = float(np.clip(target, left + 18, right - 18))
    brake = view.whim[1] < 0.08
    return _towards(x, target, 3), -1 if brake else 0, 0 if brake else 1


def _enduro_words(second: Second) -> tuple[str, str]:
    speed = second.ram[:, 22]
    clock = int(second.ram[-1, 49])
    times = ((243, "in the sun"), (235, "in the snow"), (215, "in the evening"), (207, "at night"))
    when = next((words for after, words in times if clock > after), None)
    when = when or ("in the fog" if clock > 199 else "at night" if clock > 195 else "at dawn")
    if np.diff(speed).min(initial=0) < -15:
        what = "the racing car crashes"
    elif second.reward.sum() > 0:
        what = "the racing car overtakes another"
    else:
        what = "the racing car drives fast" if speed.mean() > 30 else "the racing car drives slowly"
    place = "on the left" if second.x < 0.48 else "in the middle" if second.x < 0.53 else "on the right"
    return f"{what} {when}", f"{place} of the road"


# Freeway. Byte 14 is the chicken's height above the lower kerb.


def _freeway_position(ram: np.ndarray) -> tuple[float, float]:
    return 46.5, 196.5 - float(ram[14])


def _freeway_policy(view: View) -> Move:
    return 0, -1 if view.whim[0] < 0.12 else 0 if view.whim[0] < 0.22 else 1, 0


def _freeway_words(second: Second) -> tuple[str, str]:
    height, upwards = second.ram[:, 14], second.moves[:, 1] >= 0
    if second.reward.sum() > 0:
        what = "the chicken reaches the other side"
    elif ((np.diff(height) < 0) & upwards[1:] & upwards[:-1]).any():
        what = "the chicken is hit by a car"
    elif height[-1] > height[0] + 2:
        what = "the chicken crosses the road"
    else:
        what = "the chicken walks back" if height[-1] < height[0] - 2 else "the chicken waits"
    lane = (
        "at the lower kerb",
        "in the lower lanes",
        "at the middle line",
        "in the upper lanes",
        "at the upper kerb",
    )
    return what, lane[int(np.digitize(1 - second.y, (0.13, 0.42, 0.58, 0.87)))]


# River Raid. Byte 51 is the plane's x, 55 the fuel, 64 the lives (eight a life).

_PASSABLE = ((45, 50, 184), (232, 232, 74), (214, 214, 214), (214, 92, 92))
"""Water, the plane's own missile, and a fuel depot's two colours."""


def _riverraid_position(ram: np.ndarray) -> tuple[float, float]:
    return float(ram[51]) + 4, 151.0


def _riverraid_policy(view: View) -> Move:
    x = _riverraid_position(view.ram)[0]
    ahead = view.screen[66:160, 8:]
    blocked = np.ones(ahead.shape[:2], bool)
    for colour in _PASSABLE:
        blocked &= (ahead != colour).any(-1)
    # How far each column, and the width of a plane around it, is free.
    far = np.where(blocked.any(0), blocked[::-1].argmax(0), len(blocked))
    far = np.lib.stride_tricks.sliding_window_view(np.pad(far, 7), 15).min(1)
    places, here = np.arange(8, 160), int(x) - 8
    merit = np.minimum(far, 70) - 0.3 * np.abs(places - x) - 0.1 * np.abs(places - 160 * view.whim[0])
    # Not through what is beside the plane.
    beside = np.flatnonzero(far < 22)
    low, high = beside[beside < here].max(initial=-1), beside[beside > here].min(initial=len(far))
    merit[: low + 1], merit[high:] = -np.inf, -np.inf
    clear = far[here]
    up = -1 if clear < 60 else 1 if view.whim[1] > 0.6 and clear > 80 else 0
    # One missile flies at a time: a shot into the blue leaves the plane unarmed.
    aimed = blocked[:-20, max(here - 3, 0) : here + 4].any()
    return _towards(x, float(places[merit.argmax()]), 1), up, int(view.luck < (0.9 if aimed else 0.05))


def _riverraid_words(second: Second) -> tuple[str, str]:
    fuel = second.ram[:, 55]
    if second.died:
        what = "the plane crashes"
    elif second.reward.max() >= 500:
        what = "the plane blows up a bridge"
    elif second.reward.max() > 0:
        what = "the plane shoots something down"
    elif np.diff(fuel).max(initial=0) > 0:
        what = "the plane takes on fuel"
    else:
        what = "the plane flies low on fuel" if fuel[-1] < 64 else "the plane flies on"
    return what, _third(second.x, "over the left", "over the middle", "over the right") + " of the river"


# Skiing. Byte 25 is the skier's x, 15 the heading (0 left ... 7, 8 downhill ... 15 right; above 15 fallen), 107
# the gates left.


def _skiing_position(ram: np.ndarray) -> tuple[float, float]:
    return float(ram[25]) + 4.5, 48.5


def _skiing_policy(view: View) -> Move:
    x, heading = _skiing_position(view.ram)[0], int(view.ram[15])
    lean = 3 + int(3 * view.whim[1])
    side = 1 if x < 20 + 110 * view.whim[0] else -1
    wanted = (8 if side > 0 else 7) + side * lean
    return _towards(heading, wanted, 0), 0, 0


def _skiing_words(second: Second) -> tuple[str, str]:
    heading = second.ram[:, 15]
    if heading.max() > 15:
        what = "the skier falls"
    elif second.ram[0, 107] != second.ram[-1, 107]:
        what = "the skier passes a gate"
    else:
        lean = float(heading.mean()) - 7.5
        what = "the skier glides " + ("down" if abs(lean) < 2.5 else "to the right" if lean > 0 else "to the left")
    return what, _third(second.x, "on the left", "in the middle", "on the right") + " of the slope"


# Boxing. Bytes 32, 34 are the white boxer's x and y, 33, 35 the black one's.


def _boxing_position(ram: np.ndarray) -> tuple[float, float]:
    return float(ram[32]) + 11, float(ram[34]) + 61


def _boxing_policy(view: View) -> Move:
    me, other = view.ram[[32, 34]].astype(int), view.ram[[33, 35]].astype(int)
    away = view.whim[0] < 0.25
    across = _towards(me[0], other[0] + (-28 if view.whim[1] < 0.5 else 28), 4)
    down = _towards(me[1], other[1] + 30 * (view.whim[2] - 0.5), 3)
    if away:
        across, down = _towards(me[0], 30 + 79 * view.whim[1], 4), _towards(me[1], 3 + 84 * view.whim[2], 4)
    return across, -down, int(not away and view.luck < 0.4)


def _boxing_words(second: Second) -> tuple[str, str]:
    gap = np.abs(second.ram[:, 32] - second.ram[:, 33]) + np.abs(second.ram[:, 34] - second.ram[:, 35])
    hits, blows = (second.reward > 0).any(), (second.reward < 0).any()
    if hits or blows:
        what = "the white boxer " + ("trades punches" if hits and blows else "lands a punch" if hits else "is hit")
    elif abs(gap[-1] - gap[0]) < 12:
        what = "the white boxer circles"
    else:
        what = "the white boxer closes in" if gap[-1] < gap[0] else "the white boxer backs off"
    row, column = _third(second.y, "upper", "", "lower"), _third(second.x, "left", "", "right")
    corner = " ".join(filter(None, (row, column)))
    return what, f"in the {corner + (' corner' if row and column else ' half') if corner else 'middle'} of the ring"


# Seaquest. Bytes 70, 97 are the submarine's x and y, 102 the oxygen, 59 the spare submarines, 62 the divers.


def _seaquest_position(ram: np.ndarray) -> tuple[float, float]:
    return float(ram[70]) + 7.5, float(ram[97]) + 37


def _seaquest_policy(view: View) -> Move:
    x, depth = int(view.ram[70]), int(view.ram[97])
    short_of_air = view.ram[102] < 14 or (depth < 20 and view.ram[102] < 58)
    across = _towards(x, 25 + 105 * view.whim[0], 4) or (1 if view.luck < 0.5 else -1)
    down = -1 if short_of_air else _towards(depth, 28 + 70 * view.whim[1], 4)
    return across, -down, int(view.whim[2] < 0.7)


def _seaquest_words(second: Second) -> tuple[str, str]:
    air, deep = second.ram[:, 102], second.ram[:, 97]
    if second.died:
        what = "the submarine sinks"
    elif deep.min() < 18:
        what = "the submarine surfaces for air"
    elif second.fell(62) < 0:
        what = "the submarine picks up a diver"
    elif second.reward.sum() > 0:
        what = "the submarine hits a target"
    elif air[-1] < 14:
        what = "the submarine is low on air"
    else:
        turn = int(deep[-1] - deep[0])
        what = "the submarine " + ("cruises" if abs(turn) < 8 else "dives" if turn > 0 else "rises")
    depth = _third(second.y, "near the surface", "in mid-water", "near the sea floor")
    return what, depth + _third(second.x, " on the left", " in the middle", " on the right")


GAMES: dict[str, Game] = {
    "boxing": Game((22, 188, 22, 138), _boxing_position, _boxing_policy, _boxing_words),
    "enduro": Game((20, 156, 8, 160), _enduro_position, _enduro_policy, _enduro_words, warm_up=1200),
    "freeway": Game((14, 196, 8, 160), _freeway_position, _freeway_policy, _freeway_words),
    "riverraid": Game(
        (2, 162, 8, 160), _riverraid_position, _riverraid_policy, _riverraid_words, {64: 24, 55: 40}, late=42
    ),
    "seaquest": Game((32, 186, 8, 160), _seaquest_position, _seaquest_policy, _seaquest_words, {59: 3}, late=20),
    "skiing": Game((28, 184, 8, 152), _skiing_position, _skiing_policy, _skiing_words),
}
