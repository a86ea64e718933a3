"""From the authors' files to a model folder that generates and can be fine-tuned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from longtake.errors import UserError
from longtake.story import Entry, Story
from longtake.systems import folder
from longtake.systems.tats.config import SIZES
from longtake.systems.tats.convert import convert
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

PAIR = [GOLDEN / "tats_vqgan_for_transformer_tiny.ckpt", GOLDEN / "tats_transformer_class_tiny.ckpt"]
CASE = GOLDEN / "tats_transformer_class.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return folder.save(convert(PAIR, fps=10.0, size=(12, 16)), tmp_path_factory.mktemp("official") / "model")


def test_the_model_folder_gives_the_official_tokens_and_logits(model):
    system, case = folder.load(model), load_file(CASE)
    for network in system.networks.values():
        network.eval()
    tokens = system.vqgan.tokenize(case["in.video"].float() * 2)
    assert torch.equal(tokens.flatten(1), case["out.z_indices"].flatten(1))
    sequence = torch.cat([system.condition_tokens(case["in.label"]), tokens.flatten(1) + system.offset], 1)
    with torch.no_grad():
        logits = system.prior(sequence[:, :-1])
    assert (logits - case["out.logits"]).abs().max() < 1e-4


def test_it_generates(model):
    system = folder.load(model)
    assert system.info.fps == 10.0
    assert system.info.classes == ("0", "1", "2", "3", "4")
    system.settings = replace(system.settings, keep=1)
    made = torch.cat(list(system.generate([Story(frames=30, timeline=(Entry(label="3"),))])), 2)
    assert made.shape == (1, 3, 30, 12, 16)


def test_it_can_be_fine_tuned(model, library, tmp_path):
    config = replace(
        SIZES["tiny"],
        frames=16,
        vqgan=folder.load(model).config.vqgan,
        vqgan_stage=replace(SIZES["tiny"].vqgan_stage, steps=1, batch=1, lr=1e-9),
        prior_stage=replace(SIZES["tiny"].prior_stage, steps=1, batch=1),
    )
    loop = LoopSettings(validate_batches=1)
    output = str(tmp_path / "tuned")
    recipe = Recipe("tats", "tiny", config, str(library), output, init={"vqgan": str(model)}, loop=loop)
    tuned, start = folder.read_state(Trainer(recipe).run()), folder.read_state(model)
    codebook = "vqgan.codebook.embeddings"
    assert (tuned["vqgan.encoder.stem.weight"] - start["vqgan.encoder.stem.weight"]).abs().max() < 1e-6
    assert (tuned[codebook] - start[codebook]).abs().max() < (start[codebook].abs().max() / 2)  # not drawn anew
    assert not torch.equal(tuned[codebook], start[codebook])  # but moved on


def test_a_frame_size_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="48 tokens, but 16 frames of 32x32 are 256"):
        convert(PAIR, fps=10.0)


def test_transformers_of_other_kinds_are_refused(tmp_path):
    files = torch.load(PAIR[1], weights_only=False)
    files["hyper_parameters"]["args"].sample_every_n_latent_frames = 4
    torch.save(files, tmp_path / "sparse.ckpt")
    with pytest.raises(UserError, match="hierarchical transformer"):
        convert([tmp_path / "sparse.ckpt", PAIR[0]], fps=10.0, size=(12, 16))
