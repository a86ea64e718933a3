"""Model folders: config.json, model.safetensors and a card. Nothing in them is ever executed.

config.json         system, its full configuration, what it knows of its footage
model.safetensors   every network that inference needs, by name (sharded when large)
card.md             recipe, library, steps, compute, metrics
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longtake import __version__
from longtake.config import from_dict, to_dict
from longtake.errors import UserError
from longtake.nn.distributed import load_whole, whole
from longtake.systems import system_class
from longtake.systems.base import ModelInfo, System, Trainable

TOKENIZER = "tokenizer.json"
ASSETS = Path(__file__).parent.parent / "assets"
SHARD = "4GB"


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in ASSETS.glob("*/config.json"))


def find(name: str | Path) -> Path:
    """The folder of a model: a path, a bundled name, or a Hub id (downloaded, safetensors and JSON only).

    Raises:
        UserError: nothing of that name.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if str(name) in bundled():
        return ASSETS / str(name)
    if not path.exists() and str(name).count("/") == 1 and not str(name).startswith((".", "/")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

        try:
            return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "*.md", "*.mp4"]))
        except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
            pass
    names = ", ".join(bundled()) or "none"
    raise UserError(f"{name} is neither a model folder, a bundled model ({names}), nor a reachable Hub id", code=2)


def is_model(name: str | Path) -> bool:
    """Whether this is a bundled name or a model folder here."""
    return str(name) in bundled() or (Path(name) / "config.json").is_file()


def read_config(folder: Path) -> dict:
    """The parsed config.json of a model folder.

    Raises:
        UserError: it is not one of ours.
    """
    try:
        raw = json.loads((folder / "config.json").read_text())
        if not all(isinstance(raw[k], kind) for k, kind in (("system", str), ("config", dict), ("info", dict))):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'config.json'} is not the configuration of a longtake model") from None
    return raw


def read_tokenizer(name: str | Path) -> str:
    """The tokenizer of a model folder, bundled name or Hub id; empty where it has none, or is no model yet."""
    try:
        file = (Path(name) if Path(name).is_dir() else find(name)) / TOKENIZER
    except UserError:
        return ""
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, whole or sharded, on the CPU.

    Raises:
        UserError: a file is missing or damaged.
    """
    files = [folder / "model.safetensors"]
    if not files[0].exists():
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            raise UserError(f"{folder} has no model.safetensors; has its training finished a first checkpoint?")
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index} is damaged; copy or train the model again") from None
    state: dict[str, Tensor] = {}
    for file in files:
        if file.parent != folder:
            raise UserError(f"{folder} names a weight file outside its folder; the model is not to be trusted")
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or missing ({error}); copy or train the model again") from None
    return state


def load(name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> System:
    """Load a model for generation.

    Args:
        name: a folder, a bundled name or a Hub id.
        device: where the networks go.
        dtype: of the floating-point weights.

    Raises:
        UserError: nothing of that name, a damaged model, or one that makes no videos.
    """
    model = load_trainable(name, device, dtype)
    if not isinstance(model, System):
        raise UserError(f"{name} is a {model.name}: it makes no videos", code=2)
    return model


def load_trainable(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Trainable:
    """Load any model, also one that makes no videos (a classifier); arguments as in `load`."""
    folder = find(name)
    raw = read_config(folder)
    cls = system_class(raw["system"])
    where = str(folder / "config.json")
    config = from_dict(cls.config_class, raw["config"], where)
    info = from_dict(ModelInfo, raw["info"], where)
    model = cls(config, replace(info, tokenizer=read_tokenizer(folder)))
    state = read_state(folder)
    for net in model.inference:
        load_network(model, net, state, folder)
    return model.eval().to(torch.device(device), dtype)


def fitting(system: Trainable, name: str, state: dict[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """The tensors `<name>.*` by the names within the network; shapes alone are compared, so it may be on "meta".

    Raises:
        UserError: they do not fit it.
    """
    own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
    expected = system.networks[name].state_dict()
    missing, foreign = sorted(expected.keys() - own.keys()), sorted(own.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & own.keys() if expected[k].shape != own[k].shape)
    if missing or foreign or wrong:
        first = (missing or foreign or wrong)[0]
        kind = "lacks" if missing else "has an unknown" if foreign else "has another shape of"
        raise UserError(f"{where} does not fit the network {name}: it {kind} {first}; check size and settings")
    return own


def load_network(system: Trainable, name: str, state: dict[str, Tensor], where: str | Path) -> None:
    """Put the tensors `<name>.*` into one network of a system.

    Raises:
        UserError: they do not fit.
    """
    network, own = system.networks[name], fitting(system, name, state, where)
    expected = network.state_dict()
    load_whole(network, {k: v.to(expected[k].dtype) for k, v in own.items()})


def inference_state(system: Trainable) -> dict[str, Tensor]:
    """Tensors of all networks that inference needs, as `<network>.<parameter>`."""
    nets = ((n, system.networks[n]) for n in system.inference)
    return {
        f"{n}.{k}": whole(v.detach()).cpu().contiguous() for n, net in nets for k, v in net.state_dict().items()
    }


def save(
    system: Trainable,
    folder: str | Path,
    card: str | None = None,
    dtype: torch.dtype | None = None,
    state: dict[str, Tensor] | None = None,
) -> Path:
    """Write a model folder; files appear complete or not at all, config.json last.

    Args:
        system: what to save.
        folder: where to; made if needed.
        card: text of card.md.
        dtype: of the stored floating-point tensors (None: as they are).
        state: other tensors than the networks' own (averaged weights).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = state if state is not None else inference_state(system)
    if dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    raw = {
        "format": 1,
        "longtake": __version__,
        "system": system.name,
        "config": to_dict(system.config),
        "info": to_dict(replace(system.info, tokenizer="")),  # it has a file of its own
    }
    for left in folder.glob(".saving-*"):  # by a save that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch:
        pattern = "model{suffix}.safetensors"
        save_torch_state_dict(tensors, scratch, filename_pattern=pattern, max_shard_size=SHARD)
        if card is not None:
            (Path(scratch) / "card.md").write_text(card)
        if system.info.tokenizer:
            (Path(scratch) / TOKENIZER).write_text(system.info.tokenizer, encoding="utf-8")
        (Path(scratch) / "config.json").write_text(json.dumps(raw, indent=1) + "\n")
        written = sorted(Path(scratch).iterdir(), key=lambda p: p.name == "config.json")
        for file in written:
            file.chmod(0o644)  # safetensors writes for the owner alone
            os.replace(file, folder / file.name)
    for old in folder.glob("model*.safetensors*"):  # of a save with other shards
        if old.name not in {file.name for file in written}:
            old.unlink()
    return folder


def weights_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors."""
    digest = hashlib.sha256()
    for key in sorted(state):
        array = state[key].detach().cpu().contiguous()
        digest.update(f"{key}{tuple(array.shape)}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
