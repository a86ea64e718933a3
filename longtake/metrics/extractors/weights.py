"""Weights in the authors' layouts, put into networks of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.systems.foreign import read_foreign


def read_weights(path: str | Path) -> dict[str, Any]:
    """The state dict in a file, at its top or under `state_dict`; empty if there is none."""
    state = read_foreign(path)
    return state.get("state_dict", state) if isinstance(state, dict) else {}


def fill(network: nn.Module, state: dict[str, Any], path: str | Path, what: str) -> None:
    """Load every entry that `network` has from `state`; more may be there, batch counters may be missing.

    Raises:
        UserError: `path` does not hold `what`; the first entry that is missing or wrong is named.
    """
    expected = network.state_dict()
    for key, value in expected.items():
        given = state.get(key)
        if key.endswith("num_batches_tracked"):
            continue
        if not isinstance(given, Tensor) or given.shape != value.shape:
            raise UserError(f"{path} does not hold {what}: {key} is missing or wrong")
    network.load_state_dict({k: state.get(k, v) for k, v in expected.items()})


def open_transformers(path: str | Path, config: str, model: str, what: str) -> tuple[Any, Any]:
    """Configuration and model (in evaluation mode) of a folder as transformers keeps it; nothing is downloaded.

    Args:
        path: with config.json and model.safetensors.
        config, model: names of transformers' classes.
        what: it should be, for messages.

    Raises:
        UserError: transformers is missing, or the folder holds something else.
    """
    try:
        import transformers
    except ImportError:
        message = f"{what} needs transformers; install it with: pip install 'longtake[text]'"
        raise UserError(message, code=2) from None
    if not (Path(path) / "model.safetensors").is_file():
        raise UserError(f"{path} must be a folder with config.json and model.safetensors of a {what}", code=2)
    try:
        told, _ = transformers.PretrainedConfig.get_config_dict(str(path), local_files_only=True)
        kind = getattr(transformers, config)
        if told.get("model_type") != kind.model_type:
            raise ValueError(f"config.json says {told.get('model_type')}")
        settings = kind.from_pretrained(str(path), local_files_only=True)
        network, report = getattr(transformers, model).from_pretrained(
            str(path), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"{sorted(report['missing_keys'])[0]} is missing")
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} holds no {what} ({str(error).splitlines()[0]})", code=2) from None
    return settings, network.eval()
