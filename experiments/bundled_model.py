"""Is a long rollout of the bundled model still alive at its end?

Eight videos of 1,024 frames, seeds 0 to 7, labels drawn from the model's own prior. For each: motion in the last
128 frames against real footage of that game, the class that the bundled classifier r3d-atari sees in every 16-frame
window, the longest still and the longest repeated stretch; over all: reconstruction PSNR on the test split. Writes
docs/results/bundled_model.json, a table on stdout, and a contact sheet a video.

    python experiments/bundled_model.py MODEL --data data/atari --output runs/bundled-check
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from longtake import api
from longtake.data import video
from longtake.data.batch import to_uint8
from longtake.data.clips import ClipSpec, Draw
from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.metrics.extractors.base import Extractor
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.motion import MotionMeter, frame_differences, longest_repeat, longest_still
from longtake.nn.video import psnr
from longtake.systems.folder import inference_state, weights_hash

FRAMES, VIDEOS, WINDOW, TAIL = 1024, 8, 16, 128
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "bundled_model.json"


def real_motion(library: Library, size: tuple[int, int]) -> dict[str, float]:
    """Mean frame difference of each class over held-out clips."""
    draw = {"clips": Draw(ClipSpec(WINDOW, size), 16)}
    found: dict[str, list[float]] = {name: [] for name in library.classes}
    for batches in Loader(library, draw, "test", seed=9).stream(0, 30):
        batch = batches["clips"]
        for value, label in zip(frame_differences(batch["frames"]).mean(1), batch["label"], strict=True):
            found[library.classes[label]].append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items() if values}


@torch.no_grad()
def reconstruction(system, library: Library) -> dict[str, float]:
    """PSNR over 160 test clips, mean and standard error."""
    draw = {"clips": Draw(ClipSpec(system.config.frames, system.info.size), 8)}
    values = []
    for batches in Loader(library, draw, "test", seed=10).stream(0, 20):
        for clip in batches["clips"]["frames"]:
            values.append(float(psnr(clip[None], system.vqgan(clip[None]).video)))
    return {"psnr": float(np.mean(values)), "standard_error": float(np.std(values) / len(values) ** 0.5)}


def examine(clip: torch.Tensor, extractor: Extractor) -> dict:
    """Figures of one video (3, 1024, H, W)."""
    meter = MotionMeter()
    meter.push(clip[None])
    windows = np.stack(np.split(to_uint8(clip), FRAMES // WINDOW))
    found = extractor(windows).probabilities
    assert found is not None
    seen = [extractor.classes[i] for i in found.argmax(1)]
    differences = meter.differences[0]
    return {
        "first_window": seen[0],
        "agreement": float(np.mean([s == seen[0] for s in seen])),
        "last_window_agrees": seen[-1] == seen[0],
        "motion_last": float(differences[-TAIL:].mean()),
        "longest_still": longest_still(differences),
        "longest_repeat": longest_repeat(meter.signature[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--set", nargs="*", default=[], help="generation settings, name=value")
    parser.add_argument("--dry", action="store_true", help="do not rewrite docs/results")
    args = parser.parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    from longtake.commands import parse_settings

    library, system = Library(args.data), api.configure(api.load(args.model), parse_settings(args.set))
    extractor = make_extractor("r3d-atari")
    level = real_motion(library, system.info.size)
    made = api.generate(system, FRAMES, videos=VIDEOS).tensor().clamp(-1, 1)
    rows = []
    for i, clip in enumerate(made):
        row = {"seed": i, **examine(clip, extractor)}
        row["motion_ratio_last"] = row["motion_last"] / level[row["first_window"]]
        rows.append(row)
        frames = to_uint8(clip)
        sheet = video.contact_sheet(frames[:: FRAMES // 32], columns=16)
        video.write_png(folder / f"seed-{i}.png", sheet)
        last = "agrees" if row["last_window_agrees"] else "differs"
        print(
            f"seed {i}: {row['first_window']:10s} agrees {row['agreement']:.0%}, last window {last}, motion "
            f"{row['motion_ratio_last']:.2f} of real, longest still {row['longest_still']}, "
            f"longest repeat {row['longest_repeat']}"
        )
    record = {
        "weights": weights_hash(inference_state(system)),
        "library": library.hash,
        "settings": system.settings.__dict__,
        "classifier": extractor.hash,
        "real_motion": level,
        "reconstruction": reconstruction(system, library),
        "videos": rows,
    }
    print(f"PSNR {record['reconstruction']['psnr']:.2f} dB on test")
    if not args.dry:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
