"""The packed decoder gives the logits of the LLaMA-style transformer."""

from __future__ import annotations

import pytest
import torch

from longtake.nn.llama import Llama, LlamaConfig
from longtake.rollout.llama import LlamaDecoder


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.04), ("int8", 0.06)])
@pytest.mark.parametrize("width", [32, 576])  # below and above the size from which weights are packed
@torch.inference_mode()
def test_logits_equal_those_of_the_transformer(precision, tolerance, width):
    if precision == "int8" and not torch.backends.mkldnn.is_available():
        pytest.skip("int8 needs oneDNN")
    torch.manual_seed(0)
    llama = Llama(LlamaConfig(50, 2, 4, width)).eval()
    tokens = torch.randint(50, (3, 12))
    places = torch.arange(12) + torch.tensor([[0], [3], [0]])
    whole = llama(tokens, positions=places, ids=range(5, 45))
    decoder = LlamaDecoder(llama, 3, 12, precision, range(5, 45))
    logits = [decoder.extend(tokens[:, :4], places[:, :4]), decoder.extend(tokens[:, 4:7], places[:, 4:7])]
    logits += [decoder.extend(tokens[:, i : i + 1], places[:, i : i + 1]) for i in range(7, 12)]
    scale = whole.abs().max()
    for made, expected in zip(logits, whole[:, [3, 6, 7, 8, 9, 10, 11]].unbind(1), strict=True):
        torch.testing.assert_close(made / scale, expected / scale, rtol=0, atol=tolerance)
    with pytest.raises(ValueError, match="cannot take token 13"):
        decoder.extend(tokens[:, :1], places[:, :1])


@torch.inference_mode()
def test_a_mask_hides_what_fills_up_a_row():
    torch.manual_seed(0)
    llama = Llama(LlamaConfig(50, 2, 4, 32)).eval()
    tokens = torch.randint(50, (1, 6))
    plain, padded = LlamaDecoder(llama, 1, 8), LlamaDecoder(llama, 1, 8)
    expected = [plain.extend(tokens[:, :5], torch.arange(5)), plain.extend(tokens[:, 5:], torch.tensor([5]))]
    seen = torch.tensor([False, False, *[True] * 6])
    mask = torch.ones(7, 7, dtype=torch.bool).tril() & seen[:7] | torch.eye(7, dtype=torch.bool)
    filled = torch.cat([torch.tensor([[7, 9]]), tokens], 1)
    made = [padded.extend(filled[:, :7], torch.arange(7) - 2, mask)]
    made.append(padded.extend(filled[:, 7:], torch.tensor([5]), seen[None, None, None]))
    for one, two in zip(made, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
