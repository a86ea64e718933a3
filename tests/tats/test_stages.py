"""What the two stages of TATS minimise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from longtake.data.batch import Batch
from longtake.data.clips import Draw
from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.errors import UserError
from longtake.nn.schedule import warmup_cosine
from longtake.nn.video import pick_frame
from longtake.rollout.rng import Rng
from longtake.systems.base import ModelInfo
from longtake.systems.tats.config import SIZES, TATSConfig
from longtake.systems.tats.stages import PriorStage, VQGANStage
from longtake.systems.tats.system import TATS

TINY = SIZES["tiny"]


def system(config: TATSConfig = TINY, **stage) -> TATS:
    torch.manual_seed(0)
    config = replace(config, vqgan_stage=replace(config.vqgan_stage, **stage))
    return TATS(config, ModelInfo(15.0, (16, 16), ("a", "b"), (1, 1)))


def clips(n: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(5)
    frames = torch.rand(n, 3, 8, 16, 16, generator=generator) * 2 - 1
    return Batch(frames=frames, id=torch.arange(10, 10 + n), label=torch.arange(n) % 2)


class Recorder:
    """An engine that computes losses and changes nothing."""

    def __init__(self, step: int = 0):
        self.step, self.device, self.rng = step, torch.device("cpu"), Rng(["0/vqgan"])
        self.losses: dict[str, Any] = {}
        self.clips: dict[str, float | None] = {}

    def update(self, optimiser, loss_fn, batch, clip=None):
        self.losses[optimiser], self.clips[optimiser] = loss_fn(batch), clip
        return {f"{optimiser}/loss": float(self.losses[optimiser]["loss"].detach())}


def recorded(made: TATS, step: int, batch: Batch | None = None) -> Recorder:
    engine = Recorder(step)
    VQGANStage(made).step({"clips": batch or clips()}, engine)
    return engine


class Distance(torch.nn.Module):
    """Stands for LPIPS: (B, 1, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, one, two):
        self.seen.append((one, two))
        return (one - two).square().mean((1, 2, 3), keepdim=True)


def test_the_paper_size_has_the_official_weights():
    """The released training command (facts of the official repository, README and train_vqgan.py)."""
    stage = SIZES["paper"].vqgan_stage
    assert (stage.l1_weight, stage.perceptual_weight, stage.feature_weight) == (4.0, 4.0, 4.0)
    assert (stage.gan_weight, stage.gan_loss, stage.discriminator_start) == ((1.0, 1.0), "hinge", 10_000)
    assert (stage.lr, stage.ema, stage.clip) == (9e-5, None, 1.0)
    assert (SIZES["paper"].prior_stage.lr, SIZES["paper"].prior_stage.weight_decay) == (1.08e-4, 0.01)
    made = system()
    adam = VQGANStage(made).optimisers()
    assert {o.defaults["betas"] for o in adam.values()} == {(0.5, 0.9)}
    assert PriorStage(made).optimisers()["prior"].defaults["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_generator_loss_is_the_weighted_sum(adversarial, monkeypatch):
    """Weights other than the defaults, so that each term shows."""
    distance = Distance()
    monkeypatch.setattr(TATS, "perceptual", lambda self: distance)
    weights = {
        "l1_weight": 3.0,
        "l2_weight": 9.0,
        "perceptual_weight": 5.0,
        "feature_weight": 7.0,
        "gan_weight": (0.5, 2.0),
    }
    made = system(discriminator_start=5, **weights)
    made.vqgan.eval()  # so that the codebook stays as it is and the loss can be computed twice
    batch = clips()
    losses = recorded(made, 5 if adversarial else 4, batch).losses["generator"]
    video = batch["frames"]
    result = made.vqgan(video)
    frame = Rng(["0/vqgan"]).integers("frame", [10, 11, 12], 8)[0]
    l1 = (video - result.video).abs().mean() / 2
    real, fake = pick_frame(video, frame) / 2, pick_frame(result.video, frame) / 2
    l2 = (video - result.video).square().mean() / 4
    expected = 3 * l1 + 9 * l2 + 5 * (2 * real - 2 * fake).square().mean() + result.quantised.commitment_loss
    if adversarial:
        image, clip = made.networks["image_discriminator"], made.networks["video_discriminator"]
        for critic, weight, a, b in ((image, 0.5, real, fake), (clip, 2.0, video / 2, result.video / 2)):
            expected = expected - weight * critic(b).logits.mean()
            pairs = zip(critic(a).features[:-1], critic(b).features[:-1], strict=True)
            expected = expected + 7 * sum(F.l1_loss(y, x) for x, y in pairs)
    assert float(losses["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert ("adversarial" in losses) == adversarial
    assert torch.equal(distance.seen[0][1], 2 * real)


def test_discriminators_wait_for_their_start():
    made = system(discriminator_start=5)
    assert set(recorded(made, 4).losses) == {"generator"}
    assert set(recorded(made, 5).losses) == {"generator", "discriminator"}


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_discriminator_loss(kind):
    made = system(discriminator_start=0, gan_loss=kind, gan_weight=(0.5, 2.0))
    made.vqgan.eval()
    batch = clips()
    losses = recorded(made, 0, batch).losses["discriminator"]
    video, fake = batch["frames"], made.vqgan(batch["frames"]).video.detach()
    frame = Rng(["0/vqgan"]).integers("frame", [10, 11, 12], 8)[0]
    views = (
        (0.5, "image_discriminator", pick_frame(video, frame), pick_frame(fake, frame)),
        (2.0, "video_discriminator", video, fake),
    )
    total = 0.0
    for weight, name, real, made_up in views:
        r, f = (made.networks[name](x / 2).logits for x in (real, made_up))
        if kind == "hinge":
            total += weight * float(((1 - r).relu().mean() + (1 + f).relu().mean()).detach()) / 2
        else:
            total += weight * float((-r.sigmoid().log().mean() - (1 - f.sigmoid()).log().mean()).detach()) / 2
    assert float(losses["loss"].detach()) == pytest.approx(total, rel=1e-4)


def test_the_discriminators_learn_nothing_into_the_generator():
    made = system(discriminator_start=0)
    engine = recorded(made, 0)
    engine.losses["discriminator"]["loss"].backward()
    assert all(p.grad is None for p in made.vqgan.parameters())
    for name in ("image_discriminator", "video_discriminator"):
        assert all(p.grad is not None for p in made.networks[name].parameters())


def test_one_frame_a_clip_is_addressed_by_its_sample_number(monkeypatch):
    distance = Distance()
    monkeypatch.setattr(TATS, "perceptual", lambda self: distance)
    made = system()
    batch = clips(3)
    recorded(made, 0, batch)
    shuffled = Batch(**{k: v.flip(0) for k, v in batch.items()})
    recorded(made, 0, shuffled)
    first, second = (pair[1] for pair in distance.seen)
    assert torch.equal(first, second.flip(0))
    places = [int(Rng(["0/vqgan"]).integers("frame", i, 8)[0]) for i in range(200)]
    assert set(places) == set(range(8))


def test_pick_frame():
    video = torch.arange(2 * 3 * 4).view(2, 3, 4, 1, 1).float()
    assert pick_frame(video, torch.tensor([1, 3])).flatten(1).tolist() == [[1, 5, 9], [15, 19, 23]]


def test_both_updates_are_clipped():
    assert recorded(system(discriminator_start=0, clip=0.7), 0).clips == {"generator": 0.7, "discriminator": 0.7}


def test_every_parameter_has_its_optimiser():
    made = system()
    for stage in made.stages():
        own = {id(p) for name in stage.trains for p in made.networks[name].parameters()}
        groups = [g for o in stage.optimisers().values() for g in o.param_groups]
        held = [id(p) for g in groups for p in g["params"]]
        assert len(held) == len(set(held))
        assert set(held) == own


def test_only_matrices_decay():
    made = system()
    decayed, spared = PriorStage(made).optimisers()["prior"].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    linear = {n for n, m in made.prior.named_modules() if isinstance(m, torch.nn.Linear)}
    names = {id(p): n for n, p in made.prior.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {f"{n}.weight" for n in linear}
    assert {"tokens.weight", "positions"} <= {names[id(p)] for p in spared["params"]}


def test_the_rate_rises_and_falls():
    assert [warmup_cosine(s, 10, 0, False) for s in (0, 9)] == [1.0, 1.0]
    assert [warmup_cosine(s, 100, 3, False) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert warmup_cosine(10, 110, 10, True) == pytest.approx(1.0)
    assert warmup_cosine(60, 110, 10, True) == pytest.approx(0.55)
    assert warmup_cosine(110, 110, 10, True) == pytest.approx(0.1)


@pytest.mark.parametrize("condition", ["none", "label"])
def test_the_prior_loss_is_the_cross_entropy_of_every_video_token(condition):
    made = system(replace(TINY, prior=replace(TINY.prior, condition=condition)))
    for network in made.networks.values():
        network.eval()
    with torch.no_grad():
        made.prior.positions.normal_()
    batch = clips()
    stage = PriorStage(made)
    tokens = stage.derive(batch)["tokens"]
    losses = stage._loss(Batch(tokens=tokens, label=batch["label"], id=batch["id"]))
    offset = 2 if condition == "label" else 1
    total, right = 0.0, 0
    for row, label in zip(tokens.long().flatten(1), batch["label"], strict=True):
        sequence = [int(label) if condition == "label" else 0]
        for token in row.tolist():
            logits = made.prior(torch.tensor([sequence]))[0, -1]
            total -= float(logits.log_softmax(-1)[token + offset].detach())
            right += int(logits.argmax()) == token + offset
            sequence.append(token + offset)
    count = tokens.numel()
    assert float(losses["loss"].detach()) == pytest.approx(total / count, rel=1e-5)
    assert float(losses["accuracy"]) == pytest.approx(right / count, abs=1e-6)
    with torch.no_grad():
        figures = stage.validate({"clips": Batch(tokens=tokens, label=batch["label"], id=batch["id"])})
    assert figures["val/loss"] == pytest.approx(total / count, rel=1e-5)


def test_kept_tokens_are_the_tokens_of_the_clips(library):
    made = system()
    for network in made.networks.values():
        network.eval()
    stage, shelf = PriorStage(made), Library(library)
    assert stage.derive is not None
    for _ in range(2):  # made, then read from the cache
        loader = Loader(shelf, stage.clips, derive=(stage.derive, {"test": "tokens"}))
        plain = Loader(shelf, stage.clips)
        with torch.no_grad():
            for step in range(3):
                expected = made.vqgan.tokenize(plain.batches(step)["clips"]["frames"])
                kept = loader.batches(step)["clips"]["tokens"]
                assert kept.shape == (4, *made.config.grid)
                assert torch.equal(kept.long(), expected)


def test_stages_ask_for_what_they_need():
    made = system(replace(TINY, prior=replace(TINY.prior, condition="label")))
    first, second = made.stages()
    assert (first.trains, first.frozen) == (("vqgan", "image_discriminator", "video_discriminator"), ())
    assert (second.trains, second.frozen) == (("prior",), ("vqgan",))
    assert first.clips["clips"] == Draw(replace(first.clips["clips"].spec, conditions=()), 4)
    assert second.clips["clips"].spec.conditions == ("label",)
    real = replace(TINY, vqgan=replace(TINY.vqgan, padding=replace(TINY.vqgan.padding, time="none")))
    made = system(real)
    before, after = made.vqgan.extra_frames()
    assert before + after > 0
    assert [s.clips["clips"].spec.frames for s in made.stages()] == [8 + before + after] * 2


def test_validation_figures():
    made = system()
    made.vqgan.eval()
    made.vqgan.codebook.initialised.fill_(True)
    batch = clips()
    with torch.no_grad():
        figures = VQGANStage(made).validate({"clips": batch})
        error = (made.vqgan(batch["frames"]).video.clamp(-1, 1) - batch["frames"]).square().flatten(1).mean(1)
        shown = VQGANStage(made).preview({"clips": batch})
    assert figures["val/psnr"] == pytest.approx(float((10 * torch.log10(4 / error)).mean()), rel=1e-5)
    assert shown.shape == (3, 8, 2 * 16, 3 * 16)
    assert torch.equal(shown[:, :, :16, 16:32], batch["frames"][1])


@pytest.mark.parametrize(("fields", "message"), [({"frames": 7}, "7 frames"), ({"size": (16, 18)}, "16x18")])
def test_sizes_that_do_not_divide_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        system(replace(TINY, **fields))
