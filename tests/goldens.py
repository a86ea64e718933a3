"""Reads the golden files: numbers of the official code on small models (`tests/golden`).

`state.*` holds weights under their official names, `in.*` inputs, `out.*` and `out64.*` outputs in float32 and in
float64; the metadata says the configuration and, for each output, the tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden"
EXACT = 1e-9  # relative, for float64


class Golden:
    def __init__(self, name: str):
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            self.meta = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        widened = {
            k: v.float() if v.dtype.itemsize == 1 and v.is_floating_point() else v for k, v in tensors.items()
        }
        self.state, self.inputs, self.out, self.out64 = (
            {k.removeprefix(p): v for k, v in widened.items() if k.startswith(p)}
            for p in ("state.", "in.", "out.", "out64.")
        )
        self.config = json.loads(self.meta["config"])
        self.outputs = json.loads(self.meta["outputs"])

    def check(self, name: str, ours: torch.Tensor) -> None:
        """Fails unless `ours` equals output `name` within the tolerance that goes with its type."""
        if ours.dtype == torch.float64:
            theirs = self.out64.get(name)
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT * float(theirs.abs().max()))
            return
        theirs = self.out[name]
        if not theirs.is_floating_point():
            assert torch.equal(ours, theirs), name
            return
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=float(self.outputs[name]["atol"]), msg=lambda m: f"{name}: {m}"
        )
