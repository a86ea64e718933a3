"""Pictures of CCVS on held-out clips: reconstruction, prediction, point to point, two trajectories from one frame.

With the models that `ccvs_ablation.py` trains (arms base, end and states; the same options), on the clip of each
game whose own trajectory is farthest from the next clip's. A game has up to seven rows, frames 1, 5, 9 ... from
left to right; the first frame is given:

1. the real clip; 2. predicted from its first frame;
3. the real clip of 16 frames, all of them; 4. made from its first frame towards its last;
5. told the real clip's trajectory, its places marked; 6. told to go over to another clip's, with the same noise;
7. that clip.

One more sheet has three rows a game: the real clip, and from its codes without context and with all of it.

    python experiments/ccvs_pictures.py --data data/atari32 --output runs/ccvs-ablation [--pictures docs/images]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from ccvs_ablation import decoded
from ccvs_models import SIZE, Clip, another, held_out, options, predict, towards, train

from longtake.data import video
from longtake.data.batch import to_float, to_uint8
from longtake.systems.ccvs.system import CCVS

FRAMES, POINT, SCALE = 32, 16, 3
SHOWN = slice(0, FRAMES, FRAMES // 8)
KINDS = {"reconstruction": "base", "prediction": "base", "end": "end", "states": "states"}
"""Kinds of rows, and the arm that makes each."""


def marked(frames: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Enlarged frames with a red ring around each place (x, y), both in [0, 1]; a NaN is not drawn."""
    large = enlarged(frames)
    y, x = np.indices(large.shape[1:3])
    for frame, (px, py) in zip(large, places * np.array(SIZE[::-1]) * SCALE, strict=True):
        away = np.hypot(x - px, y - py)
        frame[(away > 2 * SCALE) & (away < 2.5 * SCALE)] = (255, 0, 0)
    return large


def enlarged(frames: np.ndarray) -> np.ndarray:
    return frames.repeat(SCALE, 1).repeat(SCALE, 2)


def reconstructed(system: CCVS, clip: Clip) -> list[np.ndarray]:
    """The clip, decoded without context, and with all of it."""
    real = to_float(clip.frames)[None]
    made = [decoded(system, real, context) for context in (0, system.config.autoencoder.context)]
    return [enlarged(frames[SHOWN]) for frames in (clip.frames, *(to_uint8(one[0]) for one in made))]


def predicted(system: CCVS, clip: Clip, scratch: Path) -> list[np.ndarray]:
    made = predict(system, [clip], 1, FRAMES, scratch)[0]
    return [enlarged(clip.frames[SHOWN]), enlarged(made[SHOWN])]


def towards_the_end(system: CCVS, clip: Clip, scratch: Path) -> list[np.ndarray]:
    short = Clip(clip.frames[:POINT], clip.label, clip.states[:POINT], clip.sound[:POINT])
    made = predict(system, [short], 1, POINT, scratch, end=True)[0]
    ends = np.linspace(0, POINT - 1, 8).round().astype(int)  # the first and the last among them
    return [enlarged(short.frames[ends]), enlarged(made[ends])]


def steered(system: CCVS, clip: Clip, other: Clip, scratch: Path) -> list[np.ndarray]:
    turned = towards(clip.states, other.states)
    own, moved = (
        predict(system, [clip._replace(states=states)], 1, FRAMES, scratch, states=True)[0]
        for states in (clip.states, turned)
    )
    return [
        marked(own[SHOWN], clip.states[SHOWN]),
        marked(moved[SHOWN], turned[SHOWN]),
        marked(other.frames[SHOWN], other.states[SHOWN]),
    ]


def rows_of(systems: dict[str, CCVS], clip: Clip, other: Clip, scratch: Path) -> list[np.ndarray]:
    """The rows of one game, 8 frames each, of the systems by kind that there are."""
    made = (
        predicted(systems["prediction"], clip, scratch)
        if "prediction" in systems
        else [enlarged(clip.frames[SHOWN])]
    )
    made += towards_the_end(systems["end"], clip, scratch) if "end" in systems else []
    return made + (steered(systems["states"], clip, other, scratch) if "states" in systems else [])


def turned_most(clips: list[Clip], label: str | None) -> int:
    """The clip of a game that has the longest way to go to another clip's trajectory."""

    def way(i: int) -> float:
        own = clips[i].states
        return float(np.linalg.norm(towards(own, clips[another(clips, i)].states) - own, axis=1).mean())

    return max((i for i, clip in enumerate(clips) if clip.label == label), key=way)


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--pictures", help="where they are written (default: --output)")
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of rows (default: all)"
    )
    args = parser.parse_args()
    clips, folder = held_out(args, FRAMES, 6), Path(args.pictures or args.output)
    games = sorted(
        {clip.label: turned_most(clips, clip.label) for clip in clips}.items(), key=lambda pair: str(pair[0])
    )

    def write(name: str, rows: list[np.ndarray]) -> None:
        video.write_png(folder / f"ccvs-{name}.png", video.contact_sheet(np.concatenate(rows), columns=8))

    models = {arm: train(arm, args) for arm in {KINDS[kind] for kind in args.kinds}}
    systems = {kind: models[KINDS[kind]] for kind in args.kinds}
    if "reconstruction" in args.kinds:
        write(
            "reconstruction", [row for _, i in games for row in reconstructed(systems["reconstruction"], clips[i])]
        )
    if set(args.kinds) == {"reconstruction"}:
        return
    with tempfile.TemporaryDirectory() as scratch:
        for label, i in games:
            write(label or "clips", rows_of(systems, clips[i], clips[another(clips, i)], Path(scratch)))


if __name__ == "__main__":
    main()
