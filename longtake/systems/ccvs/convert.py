"""The released checkpoints of CCVS as our models.

A release is a folder a network family (autoencoder, transformer, state estimator, sound autoencoder), each with
`opt.pkl` or `opt.txt` and one state dict a network: `{label}[_ema]_{latest|best}_net_{iteration}.pth`. The averaged
weights (`_ema`) are taken where there are any, but with a transformer that begins with a start token the others: so
do the released scripts for inference. Every folder holds the options of all families, most of them defaults, so a
network is read with those of its own folder alone.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from longtake.errors import UserError
from longtake.systems.base import ModelInfo
from longtake.systems.ccvs.autoencoder import AutoencoderConfig
from longtake.systems.ccvs.config import (
    AutoencoderStageConfig,
    CCVSConfig,
    DiscriminatorConfig,
    PriorConfig,
    SoundConfig,
    StatesConfig,
)
from longtake.systems.ccvs.names import (
    State,
    autoencoder_state,
    codebook_state,
    image_discriminator_state,
    layers_state,
    transformer_state,
    video_discriminator_state,
)
from longtake.systems.folder import load_network
from longtake.systems.foreign import read_foreign

if TYPE_CHECKING:
    from longtake.systems.ccvs.system import CCVS

LABELS = [f"qvid_{x}" for x in ("e", "g", "q", "di", "dv")] + [f"stft_{x}" for x in "edq"]
LABELS += ["transformer_t", "state_s", "state_q"]
FILE = re.compile(rf"({'|'.join(LABELS)})(_ema)?(?:_(latest|best))?_net_(\d+)\.pth")
CRITICS = ("image_discriminator", "video_discriminator")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def convert(paths: list[Path], fps: float, size: tuple[int, int] | None = None) -> CCVS:
    """A system from the authors' folders (or single files), ready to generate and to be fine-tuned.

    Saved, it also holds the discriminators that the folders hold, to begin from with `init`.

    Args:
        paths: of the autoencoder, and of the transformer, state estimator and sound autoencoder where wanted.
            An autoencoder alone makes a model that reconstructs.
        fps: frame rate of the footage, which the files do not tell.
        size: (height, width) of a frame, where the options tell it wrongly or not at all.

    Raises:
        UserError: a network is missing or damaged, or an option is that no shape tells.
    """
    from longtake.systems.ccvs.system import CCVS

    found, options = read_official(paths)
    names = ", ".join(map(str, paths))
    coded = "tok_emb.weight" in found.get("transformer_t", {})
    for label in ("qvid_e", "qvid_g", *(["qvid_q"] if coded else [])):
        if label not in found:
            raise UserError(f"{names} holds no {label}*_net_*.pth; give the folder of the frame autoencoder too")
    told = _of_family(options["qvid_g"], "q_")
    coder = autoencoder_config(found, told)
    prior, grid, frames, classes = _prior(found, _of_family(options.get("transformer_t", {}), "x_"), names)
    factor = coder.compression
    side = told.get("max_dim")
    if size is None and grid is not None:
        size = grid[0] * factor, grid[1] * factor
    elif size is None and isinstance(side, int):
        size = side, side
    elif size is None:
        raise UserError(f"{names} does not tell the frame size; give it with --size HxW", code=2)
    unconditional = prior.start or bool(told.get("use_unc_gen"))
    own = _networks(found)
    config = CCVSConfig(
        frames=frames,
        size=size,
        autoencoder=coder,
        discriminator=_critics(own),
        autoencoder_stage=AutoencoderStageConfig(unconditional=unconditional, end_share=prior.end_share),
        prior=prior,
        states=_states(found, names) if prior.annotation == "states" else StatesConfig(),
        sound=_sound(found, names) if prior.annotation == "audio" else SoundConfig(),
    )
    # Sound is heard at 16 kHz or the nearest rate with whole samples a frame.
    samples = round(16_000 / fps) if prior.annotation == "audio" else None
    info = ModelInfo(fps=fps, size=size, classes=classes, samples_per_frame=samples)
    system = CCVS(config, info)
    system.kept = tuple(name for name in CRITICS if name in own)
    for name in system.inference:
        load_network(system, name, {f"{name}.{key}": value for key, value in own[name].items()}, names)
    return system


def read_official(paths: list[Path]) -> tuple[dict[str, State], dict[str, dict[str, Any]]]:
    """State dicts by their labels, and the options of each one's folder; runs none of the code they name.

    Raises:
        UserError: a file is damaged or hostile, or no folder holds a network of CCVS.
    """
    files: dict[str, list[tuple[bool, bool, int, Path]]] = {}
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if m := FILE.fullmatch(file.name):
                files.setdefault(m[1], []).append((bool(m[2]), m[3] == "best", int(m[4]), file))
    if not files:
        told = ", ".join(map(str, paths))
        raise UserError(f"{told} holds no network of CCVS (files such as qvid_e_ema_latest_net_100000.pth)", code=2)
    found, options, averaged = {}, {}, True
    for label in sorted(files, key=lambda label: label != "transformer_t"):  # it says which of the others are taken
        file = max(files[label], key=lambda f: (f[0] == averaged, *f[1:3]))[3]
        content = read_foreign(file)
        if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
            raise UserError(f"{file} holds no weights; give the files as the authors published them")
        found[label], options[label] = content, _options(file.parent)
        averaged = averaged and "start_tok_emb" not in content
    return found, options


def _options(folder: Path) -> dict[str, Any]:
    """What a folder's options say, under their full names."""
    raw: dict[str, Any] = {}
    if (folder / "opt.txt").is_file():
        for line in (folder / "opt.txt").read_text().splitlines():
            if m := re.match(r"\s*(\w+):\s*(.*?)(?:\s+\[default: .*\])?\s*$", line):
                raw[m[1]] = _value(m[2])
    if (folder / "opt.pkl").is_file():
        content = read_foreign(folder / "opt.pkl")
        raw |= {k: v for k, v in content.items() if isinstance(k, str)} if isinstance(content, dict) else {}
    return {key: value for key, value in raw.items() if value is not None}


def _of_family(options: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The options of one family, without their prefix, before those that have none."""
    own = {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}
    return {**options, **own}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def autoencoder_config(found: Mapping[str, State], options: Mapping[str, Any]) -> AutoencoderConfig:
    """The configuration of an official autoencoder, all but the pixels' mean from shapes.

    Frames of context are those of the released scripts that generate (15, Kinetics 8); the options only tell the 4
    of training.
    """
    encoder, decoder = found["qvid_e"], found["qvid_g"]
    last = max(int(m[1]) for key in encoder if (m := re.match(r"blocks\.(\d+)\.0\.weight", key)))
    levels = [encoder["blocks.0.0.weight"].shape[0]]
    levels += [encoder[f"blocks.{i}.conv2.1.weight"].shape[0] for i in range(1, last)]
    width = math.gcd(*levels)
    latent = encoder[f"blocks.{last}.0.weight"].shape[0]
    convs = "inter_blocks.0.subpixel.convs."
    shared, context, flow = 0.75, 0, (128, 64, 32)
    if f"{convs}0.0.weight" in decoder:
        channels = (decoder[f"{convs}0.0.weight"].shape[1] - 3) // 2
        shared = channels / levels[-1]
        flow = cast(tuple[int, int, int], tuple(decoder[f"{convs}{i}.0.weight"].shape[0] for i in range(3)))
        context = 8 if str(options.get("dataset", "")).startswith("kinetics") else 15
    made = AutoencoderConfig(
        width=width,
        multipliers=tuple(level // width for level in levels),
        latent=latent,
        quantiser="gradient" if "qvid_q" in found else "none",
        codes=found["qvid_q"]["embedding.weight"].shape[0] if "qvid_q" in found else 2,
        official_beta=True,
        context=context,
        shared=shared,
        flow_widths=flow,
    )
    return replace(made, **IMAGENET) if options.get("imagenet_norm") else made


def _critics(own: Mapping[str, State]) -> DiscriminatorConfig:
    """Channels of the discriminators, from the shapes of one that is there."""
    for name in CRITICS:
        if name in own:
            blocks = (own[name].get(f"blocks.{i}.conv2.conv.weight") for i in itertools.count())
            weights = [own[name]["stem.conv.weight"], *itertools.takewhile(lambda w: w is not None, blocks)]
            levels = [len(cast(Tensor, weight)) for weight in weights]
            width = math.gcd(*levels)
            return DiscriminatorConfig(width, tuple(level // width for level in levels))
    return DiscriminatorConfig()


def _prior(
    found: Mapping[str, State], options: Mapping[str, Any], names: str
) -> tuple[PriorConfig, tuple[int, int] | None, int, tuple[str, ...]]:
    """The transformer, the grid of a frame's codes, frames of its window, and class names."""
    if "transformer_t" not in found:
        return PriorConfig(layers=0), None, 16, ()
    state = found["transformer_t"]
    if "tok_emb.weight" not in state:
        raise UserError(f"{names} holds a transformer that regresses vectors, which cannot be converted")
    if options.get("state_front"):
        raise UserError(f"{names} holds a transformer with all states in front, which this version cannot run")
    width = state["tok_emb.weight"].shape[1]
    heads = options.get("n_head")
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"{names} does not say its number of attention heads (n_head in opt.txt)")
    if "h_emb" in state:
        kind, grid = "spatio-temporal", (state["h_emb"].shape[1], state["w_emb"].shape[1])
    else:
        kind = "temporal" if "s_emb" in state else "none"
        grid = options.get("z_shape")
        places = state["s_emb"].shape[1] if "s_emb" in state else None
        side = math.isqrt(places or 0)
        grid = (int(grid[0]), int(grid[1])) if grid else (side, side)
        if not all(grid) or (places and grid[0] * grid[1] != places):
            raise UserError(f"{names} does not tell the grid of a frame's codes (z_shape in opt.txt)")
    if kind == "none" and "state_pos_emb" in state:
        raise UserError(f"{names} holds states without decomposed positions, which this version cannot run")
    frames = state["t_emb"].shape[1] if "t_emb" in state else state["pos_emb"].shape[1] // (grid[0] * grid[1])
    labels = state["lbl_emb.weight"].shape[0] if "lbl_emb.weight" in state else 0
    told = options.get("categories")
    told = told.split(",") if isinstance(told, str) else told
    fits = isinstance(told, list | tuple) and len(told) == labels
    classes = tuple(str(name).strip() for name in told) if fits and told else tuple(map(str, range(labels)))
    annotation = "none"
    if "state_tok_emb.weight" in state:
        annotation = "audio" if "stft_q" in found or state["state_s_emb"].shape[1] == 16 else "states"
    config = PriorConfig(
        layers=len({m[1] for key in state if (m := re.match(r"blocks\.(\d+)\.", key))}),
        heads=heads,
        width=width,
        positions=kind,  # type: ignore[arg-type]
        label=labels > 0,
        start="start_tok_emb" in state,
        end_share=1.0 if options.get("p2p") else 0.0,
        end_distance=frames - 1 if options.get("p2p") else 1,  # p2p_len is vid_len in the released scripts
        annotation=annotation,  # type: ignore[arg-type]
    )
    return config, grid, frames, classes


def _states(found: Mapping[str, State], names: str) -> StatesConfig:
    for label in ("state_s", "state_q"):
        if label not in found:
            raise UserError(
                f"{names} holds a transformer on states but no {label}; give the state estimator's folder"
            )
    count = found["transformer_t"]["state_s_emb"].shape[1]
    return StatesConfig(
        codes=found["state_q"]["embedding.weight"].shape[0],
        names=("x", "y") if count == 2 else tuple(f"state{i}" for i in range(count)),
        estimated=True,
        hidden=found["state_s"]["convs.0.1.weight"].shape[0],
    )


def _sound(found: Mapping[str, State], names: str) -> SoundConfig:
    for label in ("stft_e", "stft_d", "stft_q"):
        if label not in found:
            raise UserError(
                f"{names} holds a transformer on sound but no {label}; give the stft autoencoder's folder"
            )
    codes, latent = found["stft_q"]["embedding.weight"].shape
    return SoundConfig(codes, latent, found["stft_e"]["convs.0.0.weight"].shape[0])


def _networks(found: Mapping[str, State]) -> dict[str, State]:
    """Our state dicts of the networks that are there."""
    own = {"autoencoder": autoencoder_state(found["qvid_e"], found["qvid_g"], found.get("qvid_q"))}
    if "qvid_di" in found:
        own["image_discriminator"] = image_discriminator_state(found["qvid_di"])
    if "qvid_dv" in found:
        own["video_discriminator"] = video_discriminator_state(found["qvid_dv"])
    if "transformer_t" in found:
        own["prior"] = transformer_state(found["transformer_t"])
    if "state_s" in found and "state_q" in found:
        own["states"] = layers_state(found["state_s"]) | codebook_state(found["state_q"])
    if {"stft_e", "stft_d", "stft_q"} <= found.keys():
        layers = layers_state(found["stft_e"], "encoder") | layers_state(found["stft_d"], "decoder")
        own["sound"] = layers | codebook_state(found["stft_q"])
    return own
