"""The LLaMA-style transformer: mathematics, cache, positions, memory saving."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from longtake.nn.llama import Llama, LlamaConfig, RMSNorm, SwiGLU, rotary, rotate

TINY = LlamaConfig(vocabulary=30, layers=2, heads=2, width=16, multiple=8)


def llama(**changes) -> Llama:
    torch.manual_seed(0)
    made = Llama(replace(TINY, **changes)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def ids(rows: int, n: int) -> torch.Tensor:
    return torch.randint(30, (rows, n), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_cached_equals_uncached():
    made, tokens = llama(), ids(3, 12)
    whole = made(tokens)
    for split in (1, 5):  # a prefill, then pieces and single tokens
        cache = made.new_cache(3, 12)
        parts = [made(tokens[:, :split], cache), made(tokens[:, split:8], cache)]
        parts += [made(tokens[:, i : i + 1], cache) for i in range(8, 12)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    cache.reset()
    last = made(tokens, cache, last_only=True, ids=range(4, 9))
    torch.testing.assert_close(last, whole[:, -1:, 4:9], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="cannot take token 13"):
        made(tokens[:, :1], cache)


@torch.no_grad()
def test_only_distances_between_positions_count():
    made, tokens = llama(), ids(2, 6)
    moved = made(tokens, positions=torch.arange(6) + 1000)
    torch.testing.assert_close(moved, made(tokens), rtol=0, atol=1e-4)  # angles are float32
    assert (made(tokens, positions=torch.arange(6) * 2) - made(tokens)).abs().max() > 1e-2
    rows = torch.stack([torch.arange(6), torch.arange(6) + 7])
    torch.testing.assert_close(made(tokens, positions=rows), made(tokens), rtol=0, atol=1e-5)


def test_rotation_by_the_formula():
    x = torch.randn(1, 1, 1, 4, dtype=torch.float64)
    turned = rotate(x, *rotary(torch.tensor([3]), 4))
    for pair, rate in ((0, 1.0), (1, 0.01)):
        a, b, angle = x[..., pair], x[..., pair + 2], 3 * rate
        torch.testing.assert_close(turned[..., pair], a * math.cos(angle) - b * math.sin(angle), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            turned[..., pair + 2], b * math.cos(angle) + a * math.sin(angle), rtol=0, atol=1e-6
        )


def test_norm_and_mlp_by_the_formula():
    x = torch.randn(2, 16)
    norm = RMSNorm(16)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    mlp = SwiGLU(16, 24)
    gate, up = (x @ mlp.up.weight.t()).split(24, -1)
    torch.testing.assert_close(mlp(x), (gate * gate.sigmoid() * up) @ mlp.down.weight.t())


def test_recomputing_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        made = llama(recompute=recompute, dropout=0.2).train()
        torch.manual_seed(3)
        made(ids(2, 7)).square().mean().backward()
        gradients.append([p.grad.clone() for p in made.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(made.parameters()))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "heads", "width", "hidden", "millions"),
    [(20, 12, 1536, 4096, 690), (26, 24, 3072, 8192, 3192), (32, 32, 4096, 11008, 6806)],
    ids=["700M", "3B", "7B"],
)
def test_the_sizes_of_loong(layers, heads, width, hidden, millions):
    """700M, 3B and 7B (Loong, section 4.1) over its 40,202 ids; the 7B is LLaMA's own."""
    with torch.device("meta"):
        config = LlamaConfig(40_202, layers, heads, width)
        made = Llama(config)
    assert config.mlp_width == hidden
    assert round(sum(p.numel() for p in made.parameters()) / 1e6) == millions


def test_heads_of_odd_width_are_refused():
    with pytest.raises(ValueError, match="heads of even width"):
        LlamaConfig(10, 1, 2, 6)
