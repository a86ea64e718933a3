"""What the stages of CCVS minimise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from longtake.data.batch import Batch
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.systems.base import ModelInfo
from longtake.systems.ccvs.autoencoder import Autoencoder, AutoencoderConfig, Decoded
from longtake.systems.ccvs.config import SIZES, CCVSConfig, DiscriminatorConfig, PriorConfig, StatesConfig
from longtake.systems.ccvs.discriminators import Discriminator
from longtake.systems.ccvs.losses import VGG19Distance, flow_loss, is_vgg19, mask_loss, slope_penalty
from longtake.systems.ccvs.prior_stages import PriorStage
from longtake.systems.ccvs.stages import AutoencoderStage
from longtake.systems.ccvs.system import CCVS
from longtake.systems.ccvs.tokenizers import SoundTokenizer, StateTokenizer
from longtake.systems.ccvs.transformer import AnnotatedTransformer, Layout

TINY = SIZES["tiny"]
INFO = ModelInfo(15.0, (16, 16), ("a", "b"), (1, 1), ("x", "y", "fire"), 1600)


def system(config: CCVSConfig = TINY, **stage) -> CCVS:
    torch.manual_seed(0)
    made = CCVS(replace(config, autoencoder_stage=replace(config.autoencoder_stage, **stage)), INFO)
    with torch.no_grad():  # as trained ones: flows and masks begin at nothing
        for name, parameter in made.autoencoder.named_parameters():
            if ".flow." in name or ".mask." in name:
                parameter.normal_(0, 0.5)
    return made


def images(n: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(frames=torch.rand(n, 3, 2, 16, 16, generator=generator) * 2 - 1, id=torch.arange(10, 10 + n))


def clips(n: int = 2, frames: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(6)
    return Batch(
        frames=torch.rand(n, 3, frames, 16, 16, generator=generator) * 2 - 1,
        id=torch.arange(20, 20 + n),
        label=torch.arange(n) % 2,
        states=torch.rand(n, frames, 3, generator=generator),
    )


class Recorder:
    """An engine that computes losses and changes nothing."""

    def __init__(self, step: int = 0):
        self.step, self.device, self.rng = step, torch.device("cpu"), Rng(["0/autoencoder"])
        self.losses: list[tuple[str, dict[str, Any]]] = []

    def update(self, optimiser, loss_fn, batch, clip=None):
        self.losses.append((optimiser, loss_fn(batch)))
        return {f"{optimiser}/loss": float(self.losses[-1][1]["loss"].detach())}

    @property
    def order(self) -> list[str]:
        return [name for name, _ in self.losses]


def recorded(made: CCVS, step: int, video: bool = True) -> Recorder:
    engine = Recorder(step)
    AutoencoderStage(made).step({"images": images(), **({"clips": clips()} if video else {})}, engine)
    return engine


PUBLISHED = {
    "bair": ((256, 256), 128, (1, 1, 2, 2, 4, 4), 64, (9_179_008, 16_099_223, 5_117_121, 13_919_937)),
    "kinetics": ((64, 64), 256, (1, 1, 2, 2), 128, (8_392_448, 13_901_019, 4_920_449, 13_379_201)),
    "drums": ((128, 128), 128, (1, 1, 2, 2, 4), 64, (4_197_248, 9_934_705, 3_871_425, 10_314_945)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_sizes(name):
    size, width, multipliers, critic, expected = PUBLISHED[name]
    with torch.device("meta"):
        coder = Autoencoder(AutoencoderConfig(width, multipliers))
        nets = [coder.encoder, coder.decoder]
        nets += [Discriminator(size, critic, multipliers, frames) for frames in (None, 4)]
    assert tuple(sum(p.numel() for p in net.parameters()) for net in nets) == expected


def test_the_other_networks_have_the_published_sizes():
    paper = SIZES["paper"]
    assert paper.autoencoder == AutoencoderConfig()
    assert (paper.discriminator, paper.grid) == (DiscriminatorConfig(), (8, 8))

    def count(*nets: torch.nn.Module) -> int:
        return sum(p.numel() for net in nets for p in net.parameters())

    with torch.device("meta"):
        prior = AnnotatedTransformer(Layout(16, (8, 8), 1024), 24, 16, 1024)
        with_states = AnnotatedTransformer(Layout(16, (8, 8), 1024, 2, 128), 1, 16, 1024)
        with_start = AnnotatedTransformer(Layout(16, (8, 8), 1024, start=True), 1, 16, 1024)
        states, sound = StateTokenizer(2, 128, 512, (8, 8)), SoundTokenizer()
    assert count(prior) == pytest.approx(304.49e6, rel=1e-5)
    assert (count(with_states), count(with_start)) == (14_910_464, 14_778_368)
    assert (count(states.layers, states.head), count(states.codebook)) == (885_378, 128)
    assert (count(sound.encoder), count(sound.decoder)) == (9_440_256, 9_439_745)


def test_the_paper_size_has_the_official_weights():
    """The released training scripts."""
    stage = SIZES["paper"].autoencoder_stage
    weights = (
        stage.l1_weight,
        stage.perceptual_weight,
        stage.quantiser_weight,
        stage.gan_weight,
        stage.flow_weight,
    )
    assert weights == (1.0, 10.0, 1.0, 1.0, 1.0)
    assert (stage.lr, stage.betas, stage.ema, stage.r1, stage.r1_every) == (0.002, (0.0, 0.99), 0.999, 10.0, 16)
    assert (3 * stage.image_batch, stage.video_batch, stage.frames, stage.span) == (96, 16, 4, 30)
    assert (SIZES["paper"].prior_stage.lr, SIZES["paper"].prior_stage.weight_decay) == (1e-5, 0.01)
    adam = AutoencoderStage(system(r1_every=16)).optimisers()
    assert adam["generator"].defaults["betas"] == (0.0, 0.99)
    assert adam["video_critic"].defaults["lr"] == pytest.approx(0.002 * 16 / 17)
    assert adam["image_critic"].defaults["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))


def test_the_order_of_an_update():
    made = system(unconditional=False, r1_every=4)
    one, both = ["generator", "image_critic"], ["generator", "video_critic"]
    assert recorded(made, 1).order == one + both
    assert recorded(made, 1, video=False).order == one
    assert recorded(made, 4).order == ["generator", "image_critic", "image_critic", *both, "video_critic"]
    assert recorded(system(gan_start=5), 4).order == ["generator", "generator"]
    free = recorded(system(unconditional=True), 1).order
    assert free == [*one, *both, "image_critic"]  # frames made without context are judged too


def test_penalties_of_clips_are_as_frequent_as_clips():
    made = system(unconditional=False, r1_every=4, video_every=2)
    assert recorded(made, 4).order.count("video_critic") == 1
    assert recorded(made, 8).order.count("video_critic") == 2


def test_the_image_loss_is_the_weighted_sum(monkeypatch):
    distance = torch.nn.MSELoss()
    monkeypatch.setattr(CCVS, "perceptual", lambda self: distance)
    weights: dict[str, Any] = {
        "l1_weight": 3.0,
        "perceptual_weight": 5.0,
        "quantiser_weight": 7.0,
        "gan_weight": 0.5,
    }
    made = system(flow_weight=2.0, **weights)
    stage, engine = AutoencoderStage(made), Recorder(1)
    stage.step({"images": images()}, engine)
    losses = engine.losses[0][1]
    view, other = stage.views(images(), engine)
    model, real = made.autoencoder, torch.cat([view.target, other])
    z, features = model.encode(torch.cat([view.context, real]))
    quantised = model.quantise(z)
    context = [torch.cat([level[:3], level[:3]]) for level in features]
    decoded = model.decode(quantised.values[3:], [context])
    own = Decoded(decoded.frames, [f[:3] for f in decoded.flows], [m[:3] for m in decoded.masks])
    expected = 3 * F.l1_loss(decoded.frames, real) + 5 * distance(decoded.frames, real)
    expected = expected + 7 * quantised.commitment_loss
    expected = expected + 0.5 * F.softplus(-made.networks["image_discriminator"](decoded.frames)).mean()
    expected = expected + 2 * (flow_loss(own, view.flow, view.occluded) + mask_loss(own, view.occluded))
    assert float(losses["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_codebook_is_drawn_when_its_time_comes():
    coder = replace(TINY.autoencoder, quantiser="average")
    made = system(replace(TINY, autoencoder=coder), quantise_start=5)
    for step, begun in ((4, False), (5, True), (4, True)):
        engine = recorded(made, step)
        assert bool(made.autoencoder.codebook.initialised) == begun
        terms = [float(losses["quantiser"].detach()) for name, losses in engine.losses if name == "generator"]
        assert [term > 0 for term in terms] == [begun] * 2
        made.autoencoder.eval()
        with torch.no_grad():
            figures = AutoencoderStage(made).validate({"clips": clips()})
        made.autoencoder.train()
        assert (figures["val/codebook_used"] > 0) == begun


def test_frames_are_decoded_alone_before_there_is_context():
    made = system(context_start=5, gan_start=4, l2_weight=3.0, r1_every=3)
    before = recorded(made, 4)
    assert before.order == ["generator", "image_critic"]
    ((_, losses),) = [found for found in before.losses if found[0] == "generator"]
    frames = torch.cat([b["frames"].transpose(1, 2).flatten(0, 1) for b in (images(), clips())])
    z, _ = made.autoencoder.encode(frames)
    alone = made.autoencoder.decode(made.autoencoder.quantise(z).values, []).frames
    torch.testing.assert_close(losses["l2"], 3 * (alone - frames).square().mean())
    grads = torch.autograd.grad(
        losses["loss"], list(made.autoencoder.decoder.fusions.parameters()), allow_unused=True
    )
    assert all(grad is None for grad in grads)
    assert recorded(made, 5).order == recorded(system(gan_start=4, r1_every=3), 5).order


@pytest.mark.parametrize("late", ["context_start", "quantise_start"])
def test_what_begins_after_the_end_is_refused(late):
    with pytest.raises(ValueError, match="must be below steps, 10; lower them"):
        replace(TINY.autoencoder_stage, steps=10, **{late: 10})
    replace(TINY.autoencoder_stage, steps=0, **{late: 10})  # another model's autoencoder is taken over


def test_the_rate_falls_from_the_context_on():
    late = AutoencoderStage(system(steps=100, warmup=10, decay=True, context_start=60))
    rates = [late.schedule(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] < 1
    assert set(rates[10:61]) == {1.0}
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert 0.1 < rates[-1] < 0.11
    always = AutoencoderStage(system(steps=100, warmup=10, decay=True))
    assert always.schedule(9) < 1 > always.schedule(60) > always.schedule(99)


def test_flow_is_learned_where_the_context_is_seen():
    """Two levels; a flow of 4 pixels at full size is 2 of the coarsest level."""
    flow = torch.full((1, 2, 4, 4), 4.0)
    hidden = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    hidden[..., :2] = True
    flows = [torch.full((1, 2, 2, 2), 2.0), torch.full((1, 2, 4, 4), 1.0)]
    made = Decoded(torch.zeros(1), flows, [torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4)])
    assert float(flow_loss(made, flow, hidden)) == pytest.approx(1.0)
    flows[1][..., :2] = 100.0
    assert float(flow_loss(made, flow, hidden)) == pytest.approx(1.0)
    made.masks[-1][..., 2:] = 20.0
    assert float(mask_loss(made, hidden)) == pytest.approx(0.25 / 2 + 1 / 2, abs=1e-3)
    assert float(mask_loss(made, hidden, official=True)) == pytest.approx(0.25, abs=1e-3)


def test_clips_are_decoded_one_frame_after_another():
    """Each from its latents, with all frames before it, newest first, as made; gradients through the newest."""
    made = system(unconditional=False)
    stage, model, clip = AutoencoderStage(made), made.autoencoder, clips()["frames"]
    z, features = model.encode(clip.transpose(1, 2).flatten(0, 1))
    values = model.quantise(z).values
    fake = stage.roll(clip, values, features, False)
    assert torch.equal(fake[:, :, 0], clip[:, :, 0])
    latents = values.unflatten(0, (2, 4))
    held = [model.encode(clip[:, :, 0])[1]]
    for t in range(1, 4):
        frame = model.decode(latents[:, t], held[::-1]).frames
        assert torch.allclose(fake[:, :, t], frame, atol=1e-5)
        held.append(model.encode(frame)[1])
    towards = stage.roll(clip, values, features, True)
    assert torch.equal(towards[:, :, 3], clip[:, :, 3])
    frame = model.decode(latents[:, 1], [held[0], model.encode(clip[:, :, 3])[1]]).frames
    assert torch.allclose(towards[:, :, 1], frame, atol=1e-5)


def test_the_slope_penalty_by_its_definition():
    critic = torch.nn.Linear(4, 1)
    found = slope_penalty(critic, torch.rand(3, 4))
    assert float(found.detach()) == pytest.approx(float(critic.weight.square().sum().detach()), rel=1e-5)


def test_critics_teach_nothing_into_the_autoencoder():
    made = system()
    engine = recorded(made, 1)
    for name, losses in engine.losses:
        if name.endswith("critic"):
            losses["loss"].backward()
    assert all(p.grad is None for p in made.autoencoder.parameters())


def test_every_parameter_has_its_optimiser():
    config = replace(
        TINY,
        states=replace(TINY.states, estimated=True),
        prior=replace(TINY.prior, annotation="states", label=True, end_share=0.5),
    )
    made = system(config)
    assert [s.name for s in made.stages()] == ["autoencoder", "states", "prior"]
    for stage in made.stages():
        own = {id(p) for name in stage.trains for p in made.networks[name].parameters()}
        held = [id(p) for o in stage.optimisers().values() for g in o.param_groups for p in g["params"]]
        assert len(held) == len(set(held))
        assert set(held) == own


def annotated(**prior) -> CCVS:
    made = system(replace(TINY, states=replace(TINY.states, names=("y", "x")), prior=replace(TINY.prior, **prior)))
    for network in made.networks.values():
        network.eval()
    with torch.no_grad():
        for parameter in made.prior.parameters():
            parameter.normal_(0, 0.3)
    return made


@torch.no_grad()
@pytest.mark.parametrize("annotation", ["none", "states"])
@pytest.mark.parametrize("begin", [{"start": True}, {"start": False, "label": True}, {"start": False}])
def test_the_prior_loss_is_the_cross_entropy_of_codes_and_of_states(annotation, begin):
    made = annotated(annotation=annotation, **begin)
    stage, batch, layout = PriorStage(made), clips(2, 6), made.layout
    assert stage.derive is not None
    batch |= stage.derive(batch)
    losses = stage._losses(batch, None)
    labels = batch["label"] if begin.get("label") else None
    states = made.states.tokens(batch["states"][..., [1, 0]]) if annotation == "states" else None
    tokens = layout.join(states, batch["codes"].long())
    ids = torch.cat([layout.prefix(labels, 2), tokens], 1)
    first = ids.shape[1] - tokens.shape[1]
    places = torch.cat([torch.zeros(first, dtype=torch.long), layout.frame_places(0, 6)])
    codes, own = [], []
    for i in range(tokens.shape[1]):
        if first + i == 0:
            continue
        logits = made.prior.predict(ids[:, : first + i], places[: first + i])[:, -1]
        is_state = i % layout.stride < layout.states
        known = layout.state_codes if is_state else layout.codes
        target = tokens[:, i] - layout.codes * is_state
        (own if is_state else codes).append(F.cross_entropy(logits[:, :known], target))
    assert float(losses["frame_loss"].detach()) == pytest.approx(float(torch.stack(codes).mean()), rel=1e-4)
    if own:
        assert float(losses["state_loss"].detach()) == pytest.approx(float(torch.stack(own).mean()), rel=1e-4)
        both = float(losses["frame_loss"] + losses["state_loss"])
        assert float(losses["loss"].detach()) == pytest.approx(both)
        light = CCVS(
            replace(made.config, prior_stage=replace(made.config.prior_stage, annotation_weight=0.25)), made.info
        )
        for name, network in made.networks.items():
            light.networks[name].load_state_dict(network.state_dict())
        weighed = float(losses["frame_loss"] + 0.25 * losses["state_loss"])
        assert float(PriorStage(light)._losses(batch, None)["loss"].detach()) == pytest.approx(weighed)


@torch.no_grad()
def test_clips_towards_an_end_frame():
    """The end frame is any but the first, its codes stand first at its place; the last frame is left out."""
    made = annotated(end_share=1.0)
    stage, batch, layout = PriorStage(made), clips(2, 6), made.layout
    assert stage.derive is not None
    batch |= stage.derive(batch)
    distance = torch.tensor([3, 5])
    losses = stage._losses(batch, distance)
    codes = batch["codes"].long()
    goal = torch.stack([codes[0, 3], codes[1, 5]])
    ids = torch.cat([layout.prefix(None, 2), goal, codes[:, :5].flatten(1)], 1)
    rows = [
        torch.cat([torch.zeros(1, dtype=torch.long), layout.end_places(d), layout.frame_places(0, 5)])
        for d in (3, 5)
    ]
    logits = made.prior.predict(ids, torch.stack(rows))[:, layout.size : -1]
    expected = F.cross_entropy(logits.flatten(0, 1), codes[:, :5].flatten())
    assert float(losses["loss"]) == pytest.approx(float(expected), rel=1e-4)
    seen = []
    made.predict = lambda *args: seen.append(args[4]) or {"loss": torch.zeros((), requires_grad=True)}  # type: ignore
    for least in (1, 4):
        made.config = replace(made.config, prior=replace(made.config.prior, end_distance=least))
        seen.clear()
        for step in range(40):
            engine = Recorder(step)
            stage.step({"clips": Batch(**{**batch, "id": torch.tensor([step, 99 - step])})}, engine)
        assert {int(d) for distances in seen for d in distances} == set(range(least, 6))


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_validation_measures_every_mode_that_is_trained(share):
    made = annotated(end_share=share)
    stage, batch = PriorStage(made), clips(2, 6)
    assert stage.derive is not None
    batch |= stage.derive(batch)
    free, end = (float(stage._losses(batch, d)["loss"]) for d in (None, torch.tensor([5, 5])))
    found = stage.validate({"clips": batch})
    assert found["val/loss"] == pytest.approx({0.0: free, 0.5: (free + end) / 2, 1.0: end}[share])
    both = {k: v for k, v in found.items() if k in ("val/free_loss", "val/end_loss")}
    assert both == (pytest.approx({"val/free_loss": free, "val/end_loss": end}) if share == 0.5 else {})


@torch.no_grad()
def test_regressed_latents():
    """Table 5, last row: no codebook, mean squared error of vectors."""
    made = annotated()
    config = replace(made.config, autoencoder=replace(made.config.autoencoder, quantiser="none"))
    torch.manual_seed(0)
    made = CCVS(config, INFO).eval()
    stage, batch = PriorStage(made), clips(2, 6)
    assert stage.derive is None
    vectors = made.tokenize(batch["frames"]).flatten(1, 2)
    places = torch.cat([torch.zeros(1, dtype=torch.long), made.layout.frame_places(0, 6)])
    found = made.prior.predict(made.layout.prefix(None, 2), places[:-1], vectors[:, :-1])
    assert float(stage._losses(batch, None)["loss"]) == pytest.approx(float(F.mse_loss(found, vectors)), rel=1e-5)
    seen = []
    made.tokenize = lambda video: seen.append(CCVS.tokenize(made, video)) or seen[-1]  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        stage._losses(batch, None)
    assert torch.equal(seen[0].flatten(1, 2), vectors)  # not in autocast's precision


def test_vgg19_weights_are_told_by_their_names():
    shapes = {}
    channels, i = 3, 0
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            shapes[f"features.{i}"] = (width, channels)
            channels, i = width, i + 2
        i += 1
    state = {f"{k}.weight": torch.zeros(*v, 3, 3) for k, v in shapes.items()}
    state |= {f"{k}.bias": torch.full((v[0],), 0.5) for k, v in shapes.items()}
    assert is_vgg19(state)
    assert not is_vgg19({k: v for k, v in state.items() if not k.startswith("features.34")})
    distance = VGG19Distance(state)
    assert distance.ends == [1, 6, 11, 20, 29]
    a = torch.rand(1, 3, 32, 32)
    assert float(distance(a, a)) == 0.0
    with torch.no_grad():
        distance.features[0].weight.normal_()  # type: ignore[union-attr]
        distance.features[0].weight[1:] = 0  # type: ignore[union-attr]
        first = distance.features[:2]
        assert float(distance(a, 1 - a)) == pytest.approx(float(F.l1_loss(first(a), first(1 - a)) / 32), rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (16, 18)}, "frames of 16x18 do not divide by 4"),
        ({"frames": 1}, "a window of 1 frames"),
        (
            {
                "autoencoder": replace(TINY.autoencoder, quantiser="none"),
                "prior": replace(TINY.prior, annotation="states"),
            },
            "takes no annotation",
        ),
        ({"prior": replace(TINY.prior, end_distance=6)}, "end_distance is 6 but must lie between 1 and 5"),
    ],
)
def test_configurations_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **fields)


def test_an_end_frame_needs_a_frame_before_it():
    with pytest.raises(ValueError, match="clips of 2 frames have none between first and last; end_share needs 3"):
        replace(TINY.autoencoder_stage, frames=2, end_share=0.5)
    made = system(frames=3, end_share=1.0)
    engine = Recorder(1)
    AutoencoderStage(made).step({"images": images(), "clips": clips(2, 3)}, engine)
    assert all(torch.isfinite(losses["loss"]) for _, losses in engine.losses)


@pytest.mark.parametrize(
    ("prior", "states", "info", "message"),
    [
        ({"label": True}, {}, {"classes": ()}, "needs a library with classes"),
        ({"annotation": "audio"}, {}, {"samples_per_frame": None}, "whose videos all have it"),
        ({"annotation": "states"}, {}, {"state_names": ()}, "states need a library that has them"),
        ({"annotation": "states"}, {"names": ("z",)}, {}, "has 'z', which the library has not"),
    ],
)
def test_libraries_that_lack_what_annotates(prior, states, info, message):
    config = replace(TINY, prior=replace(PriorConfig(2, 2, 32), **prior), states=replace(StatesConfig(), **states))
    with pytest.raises(UserError, match=message):
        CCVS(config, replace(INFO, **info))
