"""What the tests of CCVS share."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch
from goldens import Golden

from longtake.systems.ccvs.autoencoder import Autoencoder, AutoencoderConfig
from longtake.systems.ccvs.names import autoencoder_state

DEFAULTS = {
    "categories": None,
    "dataset": "youtube_faces",
    "imagenet_norm": False,
    "max_dim": 512,
    "q_inter_p": 0.5,
    "q_skip_context": [1],
    "q_skip_memory": 1,
    "q_use_ema": False,
    "q_use_unc_gen": False,
    "q_z_shape": [16, 16],
    "x_n_head": 16,
    "x_p2p": False,
    "x_state_front": False,
    "x_z_shape": [16, 16],
    "s_state_num": 0,
    "a_stft_num": None,
}
"""What every folder of the authors says of what it was not told: some of the options and their defaults."""


def part(golden: Golden, label: str) -> dict[str, torch.Tensor]:
    """The official state dict of one network of a file."""
    return {k.removeprefix(f"{label}."): v for k, v in golden.state.items() if k.startswith(f"{label}.")}


def autoencoder(golden: Golden) -> Autoencoder:
    opt = golden.config["opt"]
    config = AutoencoderConfig(opt["necf"], tuple(opt["necf_mult"]), opt["z_size"], codes=opt["z_num"])
    made = Autoencoder(config).eval()
    made.load_state_dict(autoencoder_state(*(part(golden, f"qvid_{x}") for x in "egq")))
    return made


def release(path: Path, networks: dict[str, dict], **options) -> Path:
    """A folder as the authors' trainers write it: file names without their end, and all options."""
    path.mkdir(exist_ok=True)
    for name, state in networks.items():
        torch.save(state, path / f"{name}.pth")
    with (path / "opt.pkl").open("wb") as file:
        pickle.dump(argparse.Namespace(**DEFAULTS | options), file)
    return path
