"""Pictures of CCVS on held-out clips: prediction, point to point, and two trajectories from the same frame.

With the models that `ccvs_ablation.py` trains (arms base, end and states; the same options). A game has seven rows,
frames 1, 5, 9 ... from left to right; the first frame is given:

1. the real clip; 2. predicted from its first frame;
3. the real clip of 16 frames, all of them; 4. made from its first frame towards its last;
5. told the real clip's trajectory, its places marked; 6. told to go over to another clip's, with the same noise;
7. that clip.

    python experiments/ccvs_pictures.py --data data/atari32 --output runs/ccvs-ablation [--pictures docs/images]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from ccvs_models import SIZE, Clip, another, held_out, options, predict, towards, train

from longtake.data import video

FRAMES, POINT, SCALE = 32, 16, 3


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


def rows_of(clip: Clip, other: Clip, args: argparse.Namespace, scratch: Path) -> list[np.ndarray]:
    """The rows of one game, 8 frames each."""
    shown = slice(0, FRAMES, FRAMES // 8)
    short = Clip(clip.frames[:POINT], clip.label, clip.states[:POINT], clip.sound[:POINT])
    free = predict(train("base", args), [clip], 1, FRAMES, scratch)[0]
    led = predict(train("end", args), [short], 1, POINT, scratch, end=True)[0]
    turned = towards(clip.states, other.states)
    steered = train("states", args)
    own, moved = (
        predict(steered, [clip._replace(states=states)], 1, FRAMES, scratch, states=True)[0]
        for states in (clip.states, turned)
    )
    ends = np.linspace(0, POINT - 1, 8).round().astype(int)  # the first and the last among them
    return [
        enlarged(clip.frames[shown]),
        enlarged(free[shown]),
        enlarged(short.frames[ends]),
        enlarged(led[ends]),
        marked(own[shown], clip.states[shown]),
        marked(moved[shown], turned[shown]),
        marked(other.frames[shown], other.states[shown]),
    ]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--pictures", help="where they are written (default: --output)")
    args = parser.parse_args()
    clips = held_out(args, FRAMES, 6)
    first = {clip.label: i for i, clip in reversed(list(enumerate(clips)))}
    with tempfile.TemporaryDirectory() as scratch:
        for label, i in sorted(first.items(), key=lambda pair: str(pair[0])):
            rows = rows_of(clips[i], clips[another(clips, i)], args, Path(scratch))
            sheet = video.contact_sheet(np.concatenate(rows), columns=8)
            video.write_png(Path(args.pictures or args.output) / f"ccvs-{label}.png", sheet)


if __name__ == "__main__":
    main()
