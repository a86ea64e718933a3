"""What an evaluation costs: its time, the I3D pass against the hardware, memory against the number of videos.

    python benchmarks/evaluation.py --data LIBRARY --extractor r3d-atari --output docs/results/evaluation.json

1. Time per 1,000 clips of 16 frames, split into decoding, resizing to the network's input, the network and the
   statistics, for a small classifier and for I3D (random weights: the time is the same).
2. I3D's rate of arithmetic against that of a large matrix product on the same threads in the same run.
3. Peak resident set of `longtake evaluate` for more and more videos, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from longtake.data import video
from longtake.data.library import Library
from longtake.metrics.extractors.base import as_video, resize_frames
from longtake.metrics.extractors.i3d import I3D, INPUT
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.frechet import frechet_distance
from longtake.metrics.mmd import subset_mmd

FRAMES = 16
CHILD = (
    "import resource, sys; from longtake.cli import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def decode(library: Library, clips: int) -> np.ndarray:
    """Clips from places all over the library."""
    rng, found = np.random.default_rng(0), []
    for _ in range(clips):
        row = int(rng.integers(len(library.rows)))
        start = int(rng.integers(library.rows[row].frames - FRAMES + 1))
        found.append(library.frames(row, range(start, start + FRAMES)))
    return np.stack(found)


def statistics(dim: int) -> float:
    """Seconds of the Frechet and kernel distances of 1,000 against 1,000 clips, intervals left out."""
    a, b = np.random.default_rng(0).normal(size=(2, 1000, dim))
    return timed(lambda: (frechet_distance(a, b), subset_mmd(a, b, 100, 1000)))[0]


def split(library: Library, extractor: str) -> dict[str, dict[str, float]]:
    """Seconds per 1,000 clips of each part."""
    decoding, clips = timed(lambda: decode(library, 128))
    cpu = torch.device("cpu")
    made = make_extractor(extractor)
    own, _ = timed(lambda: [made(clips[i : i + 16]) for i in range(0, 128, 16)])
    network = I3D().eval()
    resizing, resized = timed(lambda: resize_frames(as_video(clips[:8], cpu), INPUT, antialias=False))
    with torch.inference_mode():
        network(resized[:2])
        i3d, _ = timed(lambda: network(resized))
    per_thousand = {"decode": decoding / 0.128}
    return {
        made.name: {**per_thousand, "resize and network": own / 0.128, "statistics": statistics(made.dim or 1)},
        "i3d": {
            **per_thousand,
            "resize": resizing / 0.008,
            "network": i3d / 0.008,
            "statistics": statistics(400),
        },
    }


def i3d_against_floor() -> dict[str, float]:
    """Arithmetic a second of I3D and of a matrix product of 2,048."""
    network, clip = I3D().eval(), torch.rand(4, 3, FRAMES, *INPUT)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(clip)
    matrix = torch.rand(2048, 2048)
    best = min(timed(lambda: matrix @ matrix)[0] for _ in range(8))
    with torch.inference_mode():
        seconds = min(timed(lambda: network(clip))[0] for _ in range(3))
    floor = counter.get_total_flops() / (2 * 2048**3 / best)
    return {
        "gflop_a_clip": counter.get_total_flops() / 4e9,
        "seconds_a_clip": seconds / 4,
        "matrix_product_gflop_s": 2 * 2048**3 / best / 1e9,
        "share_of_floor": floor / seconds,
    }


def peak(data: str, extractor: str, videos: int, frames: int) -> float:
    """Peak resident set in MiB of evaluating so many videos of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        library = Library(data)
        height, width = library.header.size
        noise = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        made = Path(folder) / "videos"
        made.mkdir()
        for i in range(videos):
            if i < 4:
                video.write_video(made / f"{i:04d}.mp4", [np.roll(noise, i, 0)], library.fps)
            else:
                (made / f"{i:04d}.mp4").hardlink_to(made / f"{i % 4:04d}.mp4")
        options = ["--data", data, "--extractor", extractor, "-o", str(Path(folder) / "out"), "--keep", "0"]
        command = [sys.executable, "-c", CHILD, "evaluate", str(made), *options, "--frames", str(frames)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1]) / (1024 if sys.platform != "darwin" else 1024**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--extractor", default="r3d-atari")
    parser.add_argument("--videos", type=int, nargs="*", default=[32, 128, 512])
    parser.add_argument("--frames", type=int, default=128, help="of each video in the memory runs")
    parser.add_argument("--output")
    args = parser.parse_args()
    record: dict = {"threads": torch.get_num_threads(), "memory": [], "seconds_per_1000_clips": {}}
    for videos in args.videos:  # first: a child's peak is at least what its parent's was when it was started
        mib = peak(args.data, args.extractor, videos, args.frames)
        record["memory"].append({"videos": videos, "frames": args.frames, "peak_rss_mib": round(mib, 1)})
        print(f"{videos} videos: peak {mib:.0f} MiB", flush=True)
    for name, parts in split(Library(args.data), args.extractor).items():
        total = sum(parts.values())
        record["seconds_per_1000_clips"][name] = {k: round(v, 2) for k, v in parts.items()}
        print(f"{name}: " + ", ".join(f"{k} {v:.1f} s ({v / total:.0%})" for k, v in parts.items()), flush=True)
    record["i3d"] = {k: round(v, 3) for k, v in i3d_against_floor().items()}
    print(f"i3d: {record['i3d']}", flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
