"""From the authors' files to a model folder that generates and can be fine-tuned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, lightning
from goldens import Golden
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


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    """A VQGAN, a sparse and an interpolation transformer as the authors' trainers write them. (The weights of both
    transformers are those of the interpolation file.)"""
    golden = Golden("tats_transformer_interp")
    own = {k.removeprefix("first_stage_model."): v for k, v in golden.state.items() if "first_stage" in k}
    told = {"n_head": 2, "unconditional": True, "resolution": 12}
    causal = {k: v for k, v in golden.state.items() if not k.endswith("attn.mask")}
    return [
        lightning(tmp_path / "vqgan.ckpt", own, downsample=[4, 4, 4], sequence_length=16, resolution=12),
        lightning(
            tmp_path / "sparse.ckpt",
            causal,
            **told,
            n_unmasked=0,
            sequence_length=64,
            sample_every_n_latent_frames=4,
        ),
        lightning(tmp_path / "between.ckpt", golden.state, **told, n_unmasked=9, sequence_length=20),
    ]


def test_a_hierarchical_pair_gives_the_official_logits_and_generates(pair):
    system = convert(pair, fps=10.0)
    assert system.inference == ("vqgan", "sparse_prior", "interpolator")
    assert (system.config.frames, system.config.every, system.config.grid) == (16, 4, (4, 3, 3))
    golden = Golden("tats_transformer_interp")
    system.eval()
    with torch.no_grad():
        tokens = system.vqgan.tokenize(golden.inputs["video"] * 2) + system.offset
        golden.check("z_indices", tokens.flatten(1))
        condition = system.condition_tokens(torch.zeros(len(tokens), dtype=torch.long))
        logits, targets = system.predict_between(condition, tokens)
    assert torch.equal(targets, golden.out["targets"][:, 9:36])
    assert (logits - golden.out["logits"][:, 9:36]).abs().max() < 1e-4
    for quirk in (False, True):
        system.settings = replace(system.settings, official_quirk=quirk)
        video = torch.cat(list(system.generate([Story(frames=50)])), 2)
        assert video.shape == (1, 3, 50, 12, 12)


def test_half_a_pair_and_other_transformers_are_refused(pair, tmp_path):
    vqgan, sparse, between = pair
    with pytest.raises(UserError, match=r"half a hierarchical pair; give the interpolation transformer's"):
        convert([vqgan, sparse], fps=10.0)
    with pytest.raises(UserError, match=r"half a hierarchical pair; give the sparse transformer's"):
        convert([vqgan, between], fps=10.0)
    with pytest.raises(UserError, match="are two transformers of one kind"):
        convert([vqgan, sparse, sparse], fps=10.0)
    files = torch.load(PAIR[1], weights_only=False)
    files["hyper_parameters"]["args"].cond_stage_key = "text"
    torch.save(files, tmp_path / "text.ckpt")
    with pytest.raises(UserError, match="holds a text transformer"):
        convert([tmp_path / "text.ckpt", PAIR[0]], fps=10.0, size=(12, 16))
