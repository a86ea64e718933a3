"""Projection, animation, swapped motion, editing by text."""

import json
from dataclasses import replace

import pytest
import torch

from longtake import api
from longtake.errors import UserError
from longtake.story import Story
from longtake.systems.base import ModelInfo
from longtake.systems.stylegan_v import edit
from longtake.systems.stylegan_v.config import SIZES
from longtake.systems.stylegan_v.system import StyleGANV


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return StyleGANV(SIZES["tiny"], ModelInfo(15.0, (16, 16))).eval()


def video(system, frames=6, seed=0):
    with torch.inference_mode():
        return torch.cat(list(system.generate([Story(frames=frames, seed=seed)])), 2)[0]


def test_an_image_of_the_model_is_found_again_and_animated(system, tmp_path, monkeypatch):
    monkeypatch.setattr(edit, "SAMPLES", 500)
    image = video(system, seed=3)[:, 0].clone()
    seen = []
    ws = edit.project(system, image, seed=7, steps=120, seen=lambda step, value: seen.append(value))
    assert len(seen) == 120
    assert seen[-1] < 0.1 * seen[0]
    assert all(p.requires_grad for p in system.generator.parameters())
    edit.save_latent(ws, tmp_path / "latent.safetensors")
    api.configure(system, {"latent": str(tmp_path / "latent.safetensors")})
    try:
        animated = video(system, seed=7)
        assert float(edit.pyramid_distance(animated[None, :, 0], image[None])) < 0.1 * seen[0]
        assert (animated[:, 1:] - animated[:, :-1]).abs().max() > 1e-3
        assert (video(system, seed=8) - animated).abs().max() > 1e-3  # another motion of the same styles
    finally:
        api.configure(system, {"latent": None})


def test_swapped_motions_are_those_of_their_seeds_whatever_is_animated(system, tmp_path):
    plain = edit.swap_motions(system, [1, 2], [3, 4], 2)
    assert plain.shape == (2, 2, 3, 2, 16, 16)
    assert not torch.equal(plain[0], plain[1])
    assert not torch.equal(plain[:, 0], plain[:, 1])
    own = edit.styles_of(system, 5)
    edit.save_latent(edit.styles_of(system, 9), tmp_path / "latent.safetensors")
    api.configure(system, {"latent": str(tmp_path / "latent.safetensors")})
    try:
        assert torch.equal(edit.swap_motions(system, [1, 2], [3, 4], 2), plain)
        assert torch.equal(edit.styles_of(system, 5), own)
    finally:
        api.configure(system, {"latent": None})


def test_what_makes_no_sense_is_refused(system, tmp_path):
    with pytest.raises(UserError, match="there is no class 7"):
        edit.styles_of(system, 0, 7)
    with pytest.raises(UserError, match="a frame at least"):
        edit.swap_motions(system, [1], [1], 0)
    with pytest.raises(UserError, match="no numbers"):
        edit.project(system, torch.full((3, 16, 16), torch.nan), steps=1)
    edit.save_latent(edit.styles_of(system, 0) * torch.nan, tmp_path / "nan.safetensors")
    api.configure(system, {"latent": str(tmp_path / "nan.safetensors")})
    try:
        with pytest.raises(UserError, match="no numbers"):
            video(system)
    finally:
        api.configure(system, {"latent": None})


def test_styles_keep_their_class(tmp_path):
    torch.manual_seed(0)
    info = ModelInfo(15.0, (16, 16), ("a", "b"), (1, 0))  # where none is told, the first is drawn
    made = StyleGANV(replace(SIZES["tiny"], condition="label"), info).eval()
    path = tmp_path / "b.safetensors"
    edit.save_latent(edit.styles_of(made, 0, 1), path, label=1)
    still = edit.Still(made, 5, label=1)
    api.configure(made, {"latent": str(path), "motion_seed": 5})
    with torch.inference_mode():
        torch.testing.assert_close(
            video(made)[:, 0], still(still.own * 0 + edit.styles_of(made, 0, 1))[0].clamp(-1, 1)
        )
    assert torch.equal(edit.Still(made, 5, label=1).code, still.code), "whatever motion the settings say"
    edit.save_latent(edit.styles_of(made, 0, 1), path, label=2)
    with pytest.raises(UserError, match="styles of class 2, but this model has 2 classes"):
        video(made)


def test_projection_refuses_other_sizes(system):
    with pytest.raises(UserError, match="resize it"):
        edit.project(system, torch.zeros(3, 8, 8), steps=1)


def test_a_latent_of_another_model_is_refused(system, tmp_path):
    edit.save_latent(torch.zeros(1, 3, 5), tmp_path / "other.safetensors")
    api.configure(system, {"latent": str(tmp_path / "other.safetensors")})
    try:
        with pytest.raises(UserError, match=r"shape \(1, 3, 5\)"):
            video(system)
    finally:
        api.configure(system, {"latent": None})


def test_every_content_under_every_motion(system):
    grid = edit.swap_motions(system, [1, 2], [1, 5, 2], frames=6)
    assert grid.shape == (2, 3, 3, 6, 16, 16)
    torch.testing.assert_close(grid[0, 0], video(system, seed=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(grid[1, 2], video(system, seed=2), rtol=0, atol=1e-5)
    assert (grid[0, 0] - grid[0, 1]).abs().max() > 1e-2
    assert system.settings.motion_seed is None


@pytest.fixture(scope="module")
def clip():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 12}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def test_editing_by_text_brings_the_frame_closer_to_it(system, clip):
    tokens = {"input_ids": torch.tensor([[1, 7, 9, 49]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    start = edit.styles_of(system, seed=2)
    values = []
    edited = edit.edit_with_clip(
        system, start, clip, tokens, seed=2, keep=1e-4, steps=30, seen=lambda step, value: values.append(value)
    )
    assert values[-1] < values[0] - 0.01
    still = edit.Still(system, seed=2)
    with torch.no_grad():
        text = edit.embedding(clip, "text", **tokens)
        fits = [
            float(edit.embedding(clip, "image", pixel_values=edit.clip_pixels(still(ws), 16)) @ text.T)
            for ws in (start, edited)
        ]
    assert fits[1] > fits[0] + 0.01
    held = edit.edit_with_clip(system, start, clip, tokens, seed=2, keep=1e3, steps=30)
    assert (held - start).norm() < 0.2 * (edited - start).norm()
    same = edit.edit_with_clip(system, start, clip, tokens, seed=2, steps=5, identity=edit.pyramid_distance)
    assert same.shape == start.shape


class Moved(torch.nn.Module):
    """A distance that says where it was asked to go."""

    def __init__(self):
        super().__init__()
        self.devices = []

    def to(self, device):
        self.devices.append(device)
        return self

    def forward(self, a, b):
        return edit.pyramid_distance(a, b)


def test_networks_that_are_brought_go_to_the_models_device(system, clip, monkeypatch):
    monkeypatch.setattr(edit, "SAMPLES", 50)
    distance, moved = Moved(), []
    edit.project(system, torch.zeros(3, 16, 16), steps=1, distance=distance)
    monkeypatch.setattr(clip, "to", lambda device: moved.append(device) or clip, raising=False)
    tokens = {"input_ids": torch.tensor([[1, 7, 9, 49]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    edit.edit_with_clip(system, edit.styles_of(system, 2), clip, tokens, steps=1, identity=distance)
    assert distance.devices == [system.device] * 2
    assert moved == [system.device]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_editing_on_a_gpu_takes_what_lies_on_the_cpu(clip, monkeypatch):
    monkeypatch.setattr(edit, "SAMPLES", 50)
    system = StyleGANV(SIZES["tiny"], ModelInfo(15.0, (16, 16))).to("cuda")
    distance = torch.nn.Module()
    distance.register_buffer("weight", torch.ones(1))
    distance.forward = lambda a, b: distance.weight * edit.pyramid_distance(a, b)
    ws = edit.project(system, torch.zeros(3, 16, 16), steps=1, distance=distance)
    tokens = {"input_ids": torch.tensor([[1, 7, 9, 49]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    edited = edit.edit_with_clip(system, ws.cpu(), clip.cpu(), tokens, steps=1, identity=distance.cpu())
    clip.cpu()
    assert edited.device.type == "cuda"


def test_code_beside_a_clip_is_not_run(clip, tmp_path, monkeypatch):
    clip.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "resnet"  # for which transformers has no tokenizer, so that it would ask for the code
    (tmp_path / "config.json").write_text(json.dumps(config))
    flag = tmp_path / "was-here"
    (tmp_path / "evil.py").write_text(f"open({str(flag)!r}, 'w')\nclass Evil: pass\n")
    mapped = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(mapped))
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")  # the answer of whoever does not read
    with pytest.raises(UserError, match="holds no CLIP"):
        edit.load_clip(tmp_path, "abc")
    assert not flag.exists()


def test_clip_is_loaded_with_a_text(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    letters = [chr(c) for c in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    files = (str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    transformers.CLIPTokenizer(*files).save_pretrained(tmp_path)
    clip.save_pretrained(tmp_path)
    model, tokens = edit.load_clip(tmp_path, "abc")
    assert tokens["input_ids"].tolist() == [[0, 2, 3, 30, 1]]
    assert torch.equal(model.visual_projection.weight, clip.visual_projection.weight)


def test_a_folder_without_clip_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="holds no CLIP"):
        edit.load_clip(tmp_path, "a text")


def test_labels_reach_the_frame():
    torch.manual_seed(0)
    config = replace(SIZES["tiny"], condition="label")
    system = StyleGANV(config, ModelInfo(15.0, (16, 16), ("a", "b"), (1, 1))).eval()
    one, other = edit.styles_of(system, 0, 0), edit.styles_of(system, 0, 1)
    assert (one - other).abs().max() > 1e-2
