"""CLIP scores on a tiny random CLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from longtake.errors import UserError
from longtake.metrics.text import ClipScorer, spread_frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("clip") / "tiny"
    letters = [chr(c) for c in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt")).save_pretrained(path)
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0}
    vision = {"image_size": 32, "patch_size": 16, "hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(path)
    return path


def frames(t: int = 4, height: int = 40, width: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (t, height, width, 3), dtype=np.uint8)


def test_similarity_is_a_cosine_a_frame(folder):
    scorer = ClipScorer(folder)
    found = scorer.similarity(frames(), "a red car")
    assert found.shape == (4,)
    assert (np.abs(found) <= 1).all()
    expected = (scorer.images(frames())[2] * scorer.texts(["a red car"])[0]).sum()
    assert found[2] == pytest.approx(float(expected), abs=1e-6)
    assert not np.allclose(found, scorer.similarity(frames(), "boats"))
    assert scorer.name == "clip-tiny"


def test_every_frame_meets_its_own_text(folder):
    scorer = ClipScorer(folder)
    found = scorer.similarities(frames(3), ["boats", None, "a red car"])
    assert np.isnan(found[1])
    assert found[0] == pytest.approx(scorer.similarity(frames(3), "boats")[0], abs=1e-6)
    assert found[2] == pytest.approx(scorer.similarity(frames(3), "a red car")[2], abs=1e-6)


def test_it_equals_transformers_own_forward(folder):
    scorer = ClipScorer(folder)
    square = frames(2, 32, 32)
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    pixels = (torch.from_numpy(square).permute(0, 3, 1, 2) / 255 - mean) / std
    tokens = scorer.tokenizer(["abc"], return_tensors="pt")
    with torch.no_grad():
        output = scorer.model(input_ids=tokens["input_ids"], pixel_values=pixels)
    logits = output.logits_per_image[:, 0] / scorer.model.logit_scale.exp()
    np.testing.assert_allclose(scorer.similarity(square, "abc"), logits.detach().numpy(), atol=1e-5)


def test_long_texts_are_cut(folder):
    assert np.isfinite(ClipScorer(folder).similarity(frames(1), "word " * 50)).all()


def test_wrong_folders(tmp_path):
    with pytest.raises(UserError, match=r"config\.json and model\.safetensors of a CLIP"):
        ClipScorer(tmp_path)
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(UserError, match="holds no CLIP"):
        ClipScorer(tmp_path)


def test_frames_are_spread_from_first_to_last():
    assert spread_frames(100, 4) == [0, 33, 66, 99]
    assert spread_frames(3, 16) == [0, 1, 2]
    assert spread_frames(1) == [0]
