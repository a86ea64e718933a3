"""What the tests of CCVS share."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch
from goldens import Golden

from longtake.systems.ccvs.autoencoder import Autoencoder, AutoencoderConfig
from longtake.systems.ccvs.names import autoencoder_state


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
    """A folder as the authors' trainers write it: file names without their end, and options."""
    path.mkdir(exist_ok=True)
    for name, state in networks.items():
        torch.save(state, path / f"{name}.pth")
    with (path / "opt.pkl").open("wb") as file:
        pickle.dump(argparse.Namespace(**options), file)
    return path
