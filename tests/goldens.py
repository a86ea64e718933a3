"""Reads the golden files: numbers of the official code on small models (`tests/golden`).

`state.*` holds weights under their official names, `in.*` inputs, `out.*` and `out64.*` outputs in float32 and in
float64; the metadata says the configuration and, for each output, the tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from longtake.nn.transformer import Transformer, TransformerConfig

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


def transformer(file: Golden) -> Transformer:
    """Our transformer with the official weights: renamed, and query, key and value stacked."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in file.state.items()}
    ours = {
        "tokens.weight": state["tok_emb.weight"],
        "positions": state["pos_emb"][0],
        "norm.weight": state["ln_f.weight"],
        "norm.bias": state["ln_f.bias"],
        "head.weight": state["head.weight"],
    }
    names = {"norm1": "ln1", "norm2": "ln2", "attention.out": "attn.proj", "mlp.up": "mlp.0", "mlp.down": "mlp.2"}
    layers = sum(name.startswith("blocks.") and name.endswith("ln1.weight") for name in state)
    for block in (f"blocks.{i}" for i in range(layers)):
        for kind in ("weight", "bias"):
            for name, official in names.items():
                ours[f"{block}.{name}.{kind}"] = state[f"{block}.{official}.{kind}"]
            parts = [state[f"{block}.attn.{part}.{kind}"] for part in ("query", "key", "value")]
            ours[f"{block}.attention.qkv.{kind}"] = torch.cat(parts)
    vocabulary, width = ours["tokens.weight"].shape
    heads = file.config.get("transformer", file.config)["n_head"]
    model = Transformer(TransformerConfig(vocabulary, len(ours["positions"]), layers, heads, width))
    model.load_state_dict(ours)
    return model.eval().requires_grad_(False)
