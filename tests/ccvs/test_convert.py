"""From the authors' folders to a model that gives their numbers, generates and can be fine-tuned."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from ccvs_parts import DEFAULTS, part, release
from conftest import GOLDEN
from goldens import Golden

from longtake.errors import UserError
from longtake.story import Entry, Story
from longtake.systems import folder
from longtake.systems.ccvs.convert import convert, read_official
from longtake.systems.ccvs.system import CCVS
from longtake.systems.ccvs.tokenizers import SoundTokenizer

TRANSFORMER = GOLDEN / "ccvs_transformer_tiny"
CODER = {"max_dim": 32, "q_inter_p": 0.75, "q_skip_memory": 4, "q_skip_context": [1, 2, 3, 4]}
"""What the scripts of the autoencoder say."""


@pytest.fixture
def coder(tmp_path) -> Path:
    """Weights of the autoencoder file, averaged ones beside others that must not be taken."""
    golden = Golden("ccvs_autoencoder_k4")
    networks = {}
    for x in "egq":
        own = part(golden, f"qvid_{x}")
        networks[f"qvid_{x}_ema_latest_net_90000"] = {k: torch.zeros_like(v) for k, v in own.items()}
        networks[f"qvid_{x}_ema_latest_net_100000"] = own
        networks[f"qvid_{x}_latest_net_100000"] = {k: torch.ones_like(v) for k, v in own.items()}
    return release(tmp_path / "coder", networks, **CODER)


@torch.no_grad()
def test_an_autoencoder_gives_the_official_frames(coder, tmp_path):
    system = cast(CCVS, folder.load(folder.save(convert([coder], 10.0), tmp_path / "model")))
    golden = Golden("ccvs_autoencoder_k4")
    z, _ = system.autoencoder.encode(golden.inputs["frames"][0])
    golden.check("latents", z[None])
    golden.check("indices", system.autoencoder.tokens(z).view(1, -1))
    assert (system.config.size, system.config.autoencoder.context) == ((32, 32), 15)
    with pytest.raises(UserError, match="no transformer; train one with --init autoencoder=MODEL"):
        system.generate([Story(frames=4)])


def transformer_of(tmp_path: Path, golden: Golden, codes: int, grid: tuple[int, int], **options) -> Path:
    """The file's transformer on as many codes and places as the autoencoder file has."""
    state = dict(part(golden, "transformer_t"))
    generator = torch.Generator().manual_seed(3)
    width = state["tok_emb.weight"].shape[1]
    state["tok_emb.weight"] = torch.randn(codes, width, generator=generator)
    state["head.weight"] = torch.randn(codes, width, generator=generator)
    state["s_emb"] = torch.randn(1, grid[0] * grid[1], width, generator=generator)
    networks = {"transformer_t_latest_net_1": state}
    return release(tmp_path / "transformer", networks, x_z_shape=list(grid), max_dim=64, **options)


def test_a_pair_generates(coder, tmp_path):
    prior = transformer_of(tmp_path, Golden("ccvs_transformer_class"), 24, (4, 4), x_n_head=2, categories="a,b,c")
    system = convert([coder, prior], 10.0)
    assert (system.info.classes, system.config.frames, system.requires) == (
        ("a", "b", "c"),
        4,
        {"first_frames"},  # the autoencoder was not trained to begin with nothing
    )
    from longtake.data import video

    video.write_png(tmp_path / "a.png", torch.zeros(32, 32, 3, dtype=torch.uint8).numpy())
    story = Story(frames=7, first_frames=str(tmp_path / "a.png"), timeline=(Entry(label="b"),))
    made = torch.cat(list(system.generate([story])), 2)
    assert made.shape == (1, 3, 7, 32, 32)
    assert torch.isfinite(made).all()


def test_the_released_layout_of_a_transformer_is_read():
    """A folder written by the authors' own code."""
    found, options = read_official([TRANSFORMER])
    golden = Golden("ccvs_transformer_frames")
    own = part(golden, "transformer_t")
    assert options["transformer_t"]["n_head"] == 2
    assert all(torch.equal(found["transformer_t"][key], value) for key, value in own.items())
    with pytest.raises(UserError, match=r"holds no qvid_e\*_net_\*\.pth; give the folder of the frame autoencoder"):
        convert([TRANSFORMER], 10.0)


@torch.no_grad()
def test_states_and_their_estimator_come_along(coder, tmp_path):
    golden, other = Golden("ccvs_state_stft"), Golden("ccvs_transformer_state")
    states = part(golden, "state_q")["embedding.weight"]
    prior = dict(part(other, "transformer_t"))
    prior["state_tok_emb.weight"] = torch.randn(len(states), 24)
    estimator = part(golden, "state_s")
    estimator = {k: v for k, v in estimator.items() if not k.startswith("convs.2.")}  # of a grid of 4x4
    path = transformer_of(tmp_path, other, 24, (4, 4), x_n_head=2)
    state = torch.load(path / "transformer_t_latest_net_1.pth", weights_only=True)
    state["state_tok_emb.weight"] = prior["state_tok_emb.weight"]
    state["head.weight"] = torch.randn(max(24, len(states)), 24)
    torch.save(state, path / "transformer_t_latest_net_1.pth")
    with pytest.raises(
        UserError, match="a transformer on states but no state_s; give the state estimator's folder"
    ):
        convert([coder, path], 10.0)
    found = {"state_s_best_net_3": estimator, "state_q_best_net_3": part(golden, "state_q")}
    system = convert([coder, path, release(tmp_path / "states", found)], 10.0)
    assert system.state_names == ("x", "y")
    assert torch.equal(system.states.codebook.embeddings, states)
    assert "states" in system.accepts


def test_sound_comes_along(coder, tmp_path):
    golden = Golden("ccvs_transformer_state")
    width = part(golden, "transformer_t")["tok_emb.weight"].shape[1]
    path = transformer_of(tmp_path, golden, 24, (4, 4), x_n_head=2)
    state = torch.load(path / "transformer_t_latest_net_1.pth", weights_only=True)
    codes = part(Golden("ccvs_state_stft"), "stft_q")["embedding.weight"].shape[0]
    state["state_tok_emb.weight"] = torch.randn(codes, width)
    state["state_s_emb"] = torch.randn(1, SoundTokenizer.token_count(), width)
    state["head.weight"] = torch.randn(max(24, codes), width)
    torch.save(state, path / "transformer_t_latest_net_1.pth")
    with pytest.raises(UserError, match="a transformer on sound but no stft_e; give the stft autoencoder's folder"):
        convert([coder, path], 10.0)
    networks = {f"stft_{x}_best_net_2": part(Golden("ccvs_state_stft"), f"stft_{x}") for x in "edq"}
    system = convert([coder, path, release(tmp_path / "sound", networks)], 10.0)
    assert system.config.prior.annotation == "audio"
    assert "audio" in system.accepts


def test_an_end_frame_transformer_is_told_by_its_options(coder, tmp_path):
    path = transformer_of(tmp_path, Golden("ccvs_transformer_frames"), 24, (4, 4), x_n_head=2, x_p2p=True)
    system = convert([coder, path], 10.0)
    assert system.requires == {"first_frames", "last_frame"}
    story = Story(frames=9, first_frames="a.png", last_frame="b.png")
    with pytest.raises(UserError, match="only trained towards end frames: it makes at most 4 frames"):
        system.check(story)
    short = Story(frames=3, first_frames="a.png", last_frame="b.png")
    with pytest.raises(UserError, match="end frames 3 frames away or more: with one it makes at least 4 frames"):
        system.check(short)
    assert system.check(replace(short, frames=4)).frames == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x_n_head": None}, "does not say its number of attention heads"),
        ({"x_n_head": 2, "x_state_front": True}, "all states in front"),
        ({"x_n_head": 2, "x_z_shape": [3, 3]}, "does not tell the grid of a frame's codes"),
    ],
)
def test_what_is_missing_is_named(coder, tmp_path, options, message):
    path = transformer_of(tmp_path, Golden("ccvs_transformer_frames"), 24, (4, 4))
    release(path, {}, **{"x_z_shape": [4, 4], **options})
    with pytest.raises(UserError, match=message):
        convert([coder, path], 10.0)


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="holds no network of CCVS"):
        convert([tmp_path], 10.0)
    torch.save([1, 2], tmp_path / "qvid_e_latest_net_1.pth")
    with pytest.raises(UserError, match="holds no weights"):
        convert([tmp_path], 10.0)


def test_kinetics_is_seen_with_the_mean_and_spread_of_imagenet(coder):
    release(coder, {}, **CODER, imagenet_norm=True, dataset="kinetics600")
    made = convert([coder], 10.0).config.autoencoder
    assert (made.mean, made.context) == ((0.485, 0.456, 0.406), 8)


def test_a_network_is_read_with_the_options_of_its_own_folder(coder, tmp_path):
    """Every folder holds all options: those of other families are defaults, and the order of folders is nothing."""
    end = transformer_of(tmp_path, Golden("ccvs_transformer_frames"), 24, (4, 4), x_n_head=2, x_p2p=True)
    other = release(tmp_path / "sound", {"stft_q_best_net_2": part(Golden("ccvs_state_stft"), "stft_q")})
    configs = [convert(list(paths), 10.0).config for paths in itertools.permutations([coder, end, other])]
    assert all(config == configs[0] for config in configs)
    made = configs[0]
    assert (made.autoencoder.context, made.autoencoder.shared, made.size) == (15, 0.75, (32, 32))
    assert (made.prior.heads, made.prior.end_share) == (2, 1.0)
    assert DEFAULTS["x_n_head"] != 2  # else this test could not fail


def test_a_transformer_with_a_start_token_comes_with_the_plain_weights(coder, tmp_path):
    """So does the released script for videos that begin with nothing."""
    path = transformer_of(tmp_path, Golden("ccvs_transformer_frames"), 24, (4, 4), x_n_head=2)
    file = path / "transformer_t_latest_net_1.pth"
    torch.save(torch.load(file, weights_only=True) | {"start_tok_emb": torch.zeros(1, 24)}, file)
    assert all((v == 1).all() for v in convert([coder, path], 10.0).autoencoder.parameters())
