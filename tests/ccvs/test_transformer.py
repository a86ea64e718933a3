"""Transformer, annotations and sampling against tensors computed with the official CCVS code."""

from __future__ import annotations

import pytest
import torch
from ccvs_parts import autoencoder, part
from goldens import Golden

from longtake.systems.ccvs.autoencoder import Autoencoder
from longtake.systems.ccvs.config import SIZES, CCVSSettings
from longtake.systems.ccvs.names import codebook_state, layers_state, transformer_state
from longtake.systems.ccvs.rollout import ImageSpace
from longtake.systems.ccvs.sampling import FrameRegressor, FrameSampler, Opening
from longtake.systems.ccvs.system import CCVS
from longtake.systems.ccvs.tokenizers import SoundTokenizer, StateTokenizer
from longtake.systems.ccvs.transformer import AnnotatedTransformer, Layout, Positions

CASES = ("frames", "class", "start", "label_and_start", "p2p", "state")


def transformer(golden: Golden) -> AnnotatedTransformer:
    opt = golden.config["opt"]
    layout = Layout(
        opt["num_blocks"],
        tuple(opt["z_shape"]),
        opt["z_num"],
        opt["state_size"],
        opt["state_num"],
        opt.get("use_start_token", False),
        len(opt.get("categories") or ()),
    )
    made = AnnotatedTransformer(layout, opt["n_layer"], opt["n_head"], opt["n_embd"], positions=opt["emb_mode"])
    made.load_state_dict(transformer_state(part(golden, "transformer_t")))
    return made.eval().requires_grad_(False)


def sequence(golden: Golden, layout: Layout) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ids and places (B, m) of all that a file gives, and how many tokens of it are no frame's."""
    codes = golden.inputs["code"].unflatten(1, (-1, layout.size))
    states = golden.inputs.get("state_code")
    states = None if states is None else states.unflatten(1, (-1, layout.states))
    ids = [layout.prefix(golden.inputs.get("vid_lbl"), len(codes))]
    places = [torch.zeros_like(ids[0])]
    if "cond_code" in golden.inputs:
        ids.append(golden.inputs["cond_code"])
        places.append(layout.end_places(golden.inputs["delta_length_cond"].view(-1, 1)))
    first = sum(x.shape[1] for x in ids)
    ids.append(layout.join(states, codes))
    places.append(layout.frame_places(0, codes.shape[1]).expand(len(codes), -1))
    return torch.cat(ids, 1), torch.cat(places, 1), first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_official_ones(case, dtype):
    golden = Golden(f"ccvs_transformer_{case}")
    made = transformer(golden).to(dtype)
    ids, places, first = sequence(golden, made.layout)
    last = 2 if case == "label_and_start" else 1
    logits = made.predict(ids[:, :-last], places[:, :-last])
    skip = first if case == "p2p" else 0
    golden.check("logits", logits[:, skip:])


class Losses:
    """As much of the system as its losses need."""

    opening, device, config = CCVS.opening, torch.device("cpu"), SIZES["paper"]

    def __init__(self, prior: AnnotatedTransformer):
        self.prior, self.layout = prior, prior.layout


@pytest.mark.parametrize("case", [c for c in CASES if c != "label_and_start"])
def test_losses_are_the_official_ones(case):
    golden = Golden(f"ccvs_transformer_{case}")
    made = transformer(golden)
    codes = golden.inputs["code"].unflatten(1, (-1, made.layout.size))
    states = golden.inputs.get("state_code")
    states = None if states is None else states.unflatten(1, (-1, made.layout.states))
    goal, distance = golden.inputs.get("cond_code"), golden.inputs.get("delta_length_cond")
    labels = golden.inputs.get("vid_lbl")
    losses = CCVS.predict(Losses(made), labels, codes, states, goal, distance)  # type: ignore[arg-type]
    loss = losses["loss"]
    if case == "p2p":  # the released code does not predict the first token, which the end frame could tell
        first = made.predict(*_before_first(golden, made.layout))[:, -1:]
        count = codes.flatten(1).shape[1]
        own = torch.nn.functional.cross_entropy(first[:, 0], codes[:, 0, 0])
        loss = (loss * count - own) / (count - 1)
    golden.check("loss", loss)


def _before_first(golden: Golden, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    ids, places, first = sequence(golden, layout)
    return ids[:, :first], places[:, :first]


def greedy(golden: Golden, made: AnnotatedTransformer, row: int, states: torch.Tensor | None = None):
    """Codes and states of one row of the file's run, windows sliding by one frame."""
    layout, config = made.layout, golden.config
    inputs = {name: value[row : row + 1] for name, value in golden.inputs.items()}
    given, total = config["context_frames"], config["total_frames"]
    sampler = FrameSampler(made, 1, CCVSSettings(top_k=1, state_top_k=1))
    codes = inputs["code"].unflatten(1, (-1, layout.size))[:, :given]
    if states is None:
        states = torch.full((1, total, layout.states), -1)
        if layout.states:
            states[:, :given] = inputs["state_code"].unflatten(1, (-1, layout.states))[:, :given]
    distance = int(inputs["delta_length_cond"]) if "cond_code" in inputs else 0
    opening = Opening(layout.prefix(inputs.get("vid_lbl"), 1), inputs.get("cond_code"), distance)
    noise = torch.zeros(1, total, layout.size)
    while (done := codes.shape[1]) < total:
        keep = min(done, layout.frames - 1)
        count = min(layout.frames - keep, total - done)
        window = slice(done - keep, done + count)
        own, quiet = states[:, window], torch.zeros(1, keep + count, layout.states)
        new, states[:, window] = sampler.window(opening, codes[:, done - keep :], own, noise[:, :count], quiet)
        codes = torch.cat([codes, new], 1)
    return codes.flatten(1), states.flatten(1)


@pytest.mark.parametrize("case", ["frames", "class", "start", "p2p", "state"])
def test_sliding_windows_give_the_official_codes(case):
    golden = Golden(f"ccvs_transformer_{case}")
    made = transformer(golden)
    codes, states = (torch.cat(rows) for rows in zip(*(greedy(golden, made, row) for row in (0, 1)), strict=True))
    golden.check("greedy_code", codes)
    if case == "state":
        golden.check("greedy_state", states)
        given = golden.inputs["state_code"]
        total = golden.config["total_frames"] * made.layout.states
        told = torch.cat([given, given.flip(1)], 1)[:, :total].unflatten(1, (-1, made.layout.states))
        rows = [greedy(golden, made, row, told[row : row + 1].clone())[0] for row in (0, 1)]
        golden.check("greedy_code_given_states", torch.cat(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_states_and_sound_are_the_official_ones(dtype):
    golden = Golden("ccvs_state_stft")
    opt = golden.config["opt"]
    z = golden.inputs["z"].to(dtype)
    codes = part(golden, "state_q")["embedding.weight"].shape[0]
    states = StateTokenizer(opt["state_size"], codes, opt["z_size"], tuple(opt["z_shape"]), opt["state_hsize"])
    states.load_state_dict(layers_state(part(golden, "state_s")) | codebook_state(part(golden, "state_q")))
    states = states.to(dtype)
    states.codebook.official_beta = True
    found = states.estimate(z.flatten(0, 1))
    golden.check("state", found.view(2, 3, -1))
    golden.check("state_code", states.tokens(found).view(2, -1))
    golden.check("state_quant_loss", states.quantise(found).commitment_loss)
    codes = part(golden, "stft_q")["embedding.weight"].shape[0]
    sound = SoundTokenizer(codes, opt["stft_size"], opt["stft_hsize"])
    own = layers_state(part(golden, "stft_e"), "encoder") | layers_state(part(golden, "stft_d"), "decoder")
    sound.load_state_dict(own | codebook_state(part(golden, "stft_q")))
    sound = sound.to(dtype)
    sound.codebook.official_beta = True
    patches = golden.inputs["stft"].to(dtype)
    latents = sound.encoder(patches.flatten(0, 1))
    golden.check("stft_latents", latents.unflatten(0, (2, 3)))
    made, quantised = sound(patches.flatten(0, 1))
    golden.check("stft_code", quantised.indices.view(2, -1))
    golden.check("stft_quant_loss", quantised.commitment_loss)
    golden.check("stft_rec", made.unflatten(0, (2, 3)))


@torch.no_grad()
def test_image_space_autoregression_is_the_official_one():
    golden = Golden("ccvs_decode_sequence")
    model: Autoencoder = autoencoder(golden)
    opt = golden.config["opt"]
    frames, end = golden.inputs["frames"].transpose(1, 2), golden.inputs["end_frame"][:, 0]
    grid = tuple(opt["z_shape"])
    codes = golden.inputs["code"].unflatten(1, (-1, grid[0] * grid[1]))
    first = frames[:, :, :1]
    golden.check("ctx_code", model.tokens(model.encode(first[:, :, 0])[0]))
    for name, near, count in (("frames", None, 6), ("frames_p2p", model.encode(end)[1], 5)):
        space = ImageSpace(model, grid, opt["skip_memory"])
        space.show(first)
        made = [model.decode(model.latents(codes[:, 0], grid), space.held).frames]
        made += [space.decode(codes[:, t], near) for t in range(1, count)]
        golden.check(name, torch.stack(made, 1))


def untrained(layout: Layout) -> AnnotatedTransformer:
    """Weights large enough that logits differ; where the noise begins is the same every time."""
    torch.manual_seed(0)
    made = AnnotatedTransformer(layout, 2, 2, 16).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(0, 0.5)
    return made


def test_cached_sampling_equals_running_everything_again():
    """With states, class, start token and end frame at once, some states given and some drawn."""
    layout = Layout(5, (2, 3), 11, 2, 7, True, 3)
    made = untrained(layout)
    sampler = FrameSampler(made, 2, CCVSSettings(top_k=1, state_top_k=1))
    generator = torch.Generator().manual_seed(1)

    def random(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    codes, states, goal = random(11, 2, 1, 6), random(7, 2, 3, 2), random(11, 2, 6)
    states[0, 1] = states[:, 2] = -1
    opening = Opening(layout.prefix(torch.tensor([0, 2]), 2), goal, 4)
    found, resolved = sampler.window(opening, codes, states, torch.zeros(2, 2, 6), torch.zeros(2, 3, 2))
    all_codes = torch.cat([codes, found], 1)
    ids = torch.cat([opening.ids, goal, layout.join(resolved, all_codes)], 1)
    places = torch.cat([torch.zeros(2, dtype=torch.long), layout.end_places(4), layout.frame_places(0, 3)])
    logits = made.predict(ids, places)
    offset = 2 + 6
    for t in range(3):
        for i in range(8):
            told = logits[:, offset + t * 8 + i - 1]
            if i < 2:
                drawn = told[:, :7].argmax(1)
                expected = torch.where(states[:, t, i] < 0, drawn, states[:, t, i])
                assert torch.equal(resolved[:, t, i], expected)
            elif t:
                assert torch.equal(found[:, t - 1, i - 2], told[:, :11].argmax(1))


@torch.no_grad()
def test_regressed_vectors_equal_running_everything_again():
    torch.manual_seed(0)
    layout = Layout(4, (1, 2), 0, start=True)
    made = AnnotatedTransformer(layout, 2, 2, 16, vectors=5).eval()
    for parameter in made.parameters():
        parameter.normal_(0, 0.3)
    codes, goal = torch.randn(2, 1, 2, 5), torch.randn(2, 2, 5)
    opening = Opening(layout.prefix(None, 2), goal, 3)
    empty = torch.zeros(2, 3, 0)
    found, _ = FrameRegressor(made, 2).window(opening, codes, empty.long(), torch.zeros(2, 2, 2), empty)
    vectors = torch.cat([goal, torch.cat([codes, found], 1).flatten(1, 2)], 1)
    places = torch.cat([torch.zeros(1, dtype=torch.long), layout.end_places(3), layout.frame_places(0, 3)])
    again = made.predict(opening.ids, places, vectors)[:, -5:-1]
    assert torch.allclose(found.flatten(1, 2), again, atol=1e-5)


def test_places_by_their_kinds():
    layout = Layout(3, (2, 2), 4, 1, 2)
    kinds: tuple[tuple[Positions, set[str]], ...] = (
        ("temporal", {"time", "space", "states"}),
        ("spatio-temporal", {"time", "rows", "columns", "states"}),
        ("none", {"flat"}),
    )
    for kind, names in kinds:
        made = AnnotatedTransformer(layout, 1, 1, 4, positions=kind)
        assert {n for n, _ in made.places.named_parameters()} == names
        assert made.position_table().shape == (1 + 3 * 5, 4)
        assert (made.position_table()[0] == 0).all()


def test_codes_and_states_are_chosen_among_as_many_as_each_has_settings():
    """The likeliest codes after whatever states were drawn from all."""
    layout = Layout(2, (2, 2), 11, 1, 7, True, 0)
    made = untrained(layout)
    opening = Opening(layout.prefix(None, 8), None)
    nothing, unknown = torch.zeros(8, 0, 4, dtype=torch.long), torch.full((8, 2, 1), -1)
    noise = torch.rand(2, 8, 2, 5)
    found = []
    for i, (codes, states) in enumerate([(1, 0), (1, 0), (0, 1)]):
        sampler = FrameSampler(made, 8, CCVSSettings(top_k=codes, state_top_k=states))
        own = noise[min(i, 1)]
        found.append(sampler.window(opening, nothing, unknown.clone(), own[..., :4], own[..., 4:]))
    (codes, states), (_, other), (drawn, likeliest) = found
    assert not torch.equal(states, other)
    assert not torch.equal(codes, drawn)
    ids = torch.cat([opening.ids, layout.join(states, codes)], 1)
    places = torch.cat([torch.zeros(ids.shape[1] - 10, dtype=torch.long), layout.frame_places(0, 2)])
    logits = made.predict(ids, places)
    expected = logits[:, -6:-2].argmax(-1)  # of the last frame's codes, which stand after its state
    assert torch.equal(codes[:, 1], expected)
    assert (likeliest[:, 0] == likeliest[0, 0]).all()
