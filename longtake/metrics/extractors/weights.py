"""Weights in the authors' layouts, put into networks of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
