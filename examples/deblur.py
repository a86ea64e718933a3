"""Deblur a video by CCVS: its codes, decoded with one sharp frame as context (introduction of the paper).

    python examples/deblur.py runs/ccvs-prediction blurred.mp4 sharp.png -o deblurred.mp4

The sharp frame should show what the video begins with. Videos and pictures are resized to the model's frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from longtake.data import video
from longtake.data.batch import to_float, to_uint8
from longtake.errors import UserError
from longtake.systems.ccvs.rollout import ImageSpace
from longtake.systems.ccvs.system import CCVS
from longtake.systems.folder import load


@torch.inference_mode()
def deblur(model: CCVS, blurred: Path, sharp: Path) -> Iterator[np.ndarray]:
    """Frames uint8 (1, H, W, 3) as they are made; memory does not grow with the video."""
    size = model.config.size
    space = ImageSpace(model.autoencoder, model.config.grid, model.config.autoencoder.context)
    space.show(to_float(video.resize(video.read_image(sharp)[None], size))[None])
    for frame in video.iterate(blurred):
        (codes,) = model.tokenize(to_float(video.resize(frame[None], size))[None]).unbind(1)
        yield to_uint8(space.decode(codes)[0, :, None])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a CCVS model")
    parser.add_argument("blurred", type=Path, help="a video")
    parser.add_argument("sharp", type=Path, help="a picture")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    model = load(args.model)
    if not isinstance(model, CCVS):
        raise UserError(f"{args.model} is a {model.name}; only ccvs decodes frames with others as context")
    if not model.config.autoencoder.context:
        raise UserError(
            f"{args.model} decodes frames from their codes alone; train one with config.autoencoder.context"
        )
    video.write_video(args.output, deblur(model, args.blurred, args.sharp), video.probe(args.blurred).fps)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
