"""What the stages minimise, and in which order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from recall_parts import batch, made, recorded

from longtake.data.batch import Batch
from longtake.data.clips import UniformBins
from longtake.errors import UserError
from longtake.systems.recall.config import LOSSES, EncoderConfig, R2Config, R3Config, StageConfig
from longtake.systems.recall.latents import difference_maps
from longtake.systems.recall.losses import kl_losses
from longtake.systems.recall.stages import join

WEIGHTS = StageConfig(reconstruction_weight=3.0, kl_weight=0.5)


def bce(logits: torch.Tensor, real: bool) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def again(stage, clips, engine, update):
    """The pass that an update made: it is a function of the batch's ids and the update's name."""
    with torch.no_grad():
        return stage.make(clips, engine, update)


def picked(system, clips, engine, update, kind, examples):
    numbers = engine.rng.integers(f"{update}/frame/{kind}", clips["id"].tolist(), 16, (len(examples),))[0]
    frames = [x[torch.arange(len(x)), :, numbers[:, i]] for i, x in enumerate(examples)]
    return [system.networks["image_discriminator"](f) for f in frames]


def near(ours: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(ours.detach(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_encgan3_updates_discriminators_encoder_generator_and_sums():
    system = made("encgan3", stage=WEIGHTS)
    (stage,) = system.stages()
    clips = batch(16)
    engine = recorded(stage, clips)
    assert list(engine.losses) == ["discriminators", "encoder", "generator"]
    critic = system.networks["video_discriminator"]

    done = again(stage, clips, engine, "discriminators")
    video = (
        bce(critic(clips["frames"]), True) + bce(critic(done.rebuilt[0]), False) + bce(critic(done.noise), False)
    )
    (real,) = picked(system, clips, engine, "discriminators", "real", [clips["frames"]])
    fakes = picked(system, clips, engine, "discriminators", "made", [done.rebuilt[0], done.noise])
    image = bce(real, True) + sum(bce(x, False) for x in fakes)
    near(engine.losses["discriminators"]["loss"], video + image)  # Eq. 3.5 and 3.6

    done = again(stage, clips, engine, "encoder")
    divergence = sum(kl_losses(done.space))
    l1 = (done.rebuilt[0] - clips["frames"]).abs().mean()
    near(engine.losses["encoder"]["loss"], 3 * l1 + 0.5 * divergence)  # Eq. 3.1

    done = again(stage, clips, engine, "generator")
    fakes = [critic(done.rebuilt[0]), critic(done.noise)]
    fakes += picked(system, clips, engine, "generator", "made", [done.rebuilt[0], done.noise])
    l1 = (done.rebuilt[0] - clips["frames"]).abs().mean()
    near(engine.losses["generator"]["loss"], 3 * l1 + sum(bce(x, True) for x in fakes))  # Eq. 3.4


def test_each_part_learns_by_itself():
    """The generator's loss gives the encoder nothing, and the passes draw other codes."""
    system = made("encgan3")
    (stage,) = system.stages()
    engine = recorded(stage, batch(16))
    made_again = stage.make(batch(16), engine, "generator")  # while everything could learn
    assert all(p.requires_grad for net in system.networks.values() for p in net.parameters())
    assert made_again.rebuilt[0].requires_grad
    assert not made_again.space.content_mean.requires_grad
    assert not made_again.space.motion_logvar.requires_grad
    loss = engine.losses["encoder"]["loss"]
    grads = torch.autograd.grad(loss, list(system.networks["encoder"].parameters()), allow_unused=True)
    assert all(g is not None for g in grads)
    one, two = (again(stage, batch(16), engine, name).rebuilt[0] for name in ("encoder", "generator"))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("part", ["encoder", "generator"])
def test_motion_targets(part):
    """L_Enc,v and L_G,v (Eq. 3.9 and 3.10)."""
    targets: dict[str, Any] = {f"{part}_target": "motion"}
    system = made("encgan3", stage=WEIGHTS, **targets)
    (stage,) = system.stages()
    clips = batch(16)
    engine = recorded(stage, clips)
    for name in ("encoder", "generator"):
        x, y = again(stage, clips, engine, name).rebuilt[0], clips["frames"]
        expected = (x - y).abs().mean()
        if name == part:
            expected = (x - y)[:, :, 0].abs().mean() + (difference_maps(x) - difference_maps(y)).abs().mean()
        near(engine.losses[name]["reconstruction"], 3 * expected)


def test_without_an_encoder_it_is_g3an():
    system = made("encgan3", encode=False)
    (stage,) = system.stages()
    engine = recorded(stage, batch(16))
    assert list(engine.losses) == ["discriminators", "generator"]
    assert "encoder" not in system.networks
    assert set(engine.losses["generator"]) == {"loss", "adversarial"}
    with torch.no_grad():
        assert set(stage.validate({"clips": batch(16)})) == {"val/l1_noise"}
    assert system.accepts == frozenset()


def test_uniform_bins():
    (stage,) = made("encgan3", sampling="bins").stages()
    assert isinstance(stage.clips["clips"].spec.mode, UniformBins)


def test_the_divergence_is_warmed_up():
    system = made("encgan3", stage=replace(WEIGHTS, kl_warmup=4))
    (stage,) = system.stages()
    early, late = (recorded(stage, batch(16), step).losses["encoder"]["kl_motion"] for step in (0, 3))
    near(4 * early, late)


def test_r2_learns_two_clips_and_their_join():
    system = made("r2", stage=WEIGHTS)
    (stage,) = system.stages()
    clips = batch(24)
    one, two = clips["frames"][:, :, :16], clips["frames"][:, :, 8:]
    engine = recorded(stage, clips)
    assert list(engine.losses) == ["discriminators", "encoder_generator"]
    critic = system.networks["video_discriminator"]

    done = again(stage, clips, engine, "joint")
    x, y = done.rebuilt
    stitched = torch.cat([x[:, :, :8], y[:, :, :8]], 2)
    assert torch.equal(done.stitched, stitched)
    pairs = ((x, one), (y, two))
    frames = picked(system, clips, engine, "joint", "made", [x, y])
    adversarial = sum(bce(critic(c), True) for c in (x, y, stitched)) / 3 + sum(bce(f, True) for f in frames) / 2
    l1 = sum((a - b).abs().mean() for a, b in pairs) / 2
    reference = sum((a - b)[:, :, 8].abs().mean() for a, b in pairs) / 2
    divergence = sum(kl_losses(done.space))
    expected = 3 * (l1 + reference) + 0.5 * divergence + adversarial  # Eq. 4.4, Algorithm 6
    near(engine.losses["encoder_generator"]["loss"], expected)

    done = again(stage, clips, engine, "discriminators")
    fakes = [*done.rebuilt, done.stitched]
    video = sum(bce(critic(c), True) for c in (one, two)) / 2 + sum(bce(critic(c), False) for c in fakes) / 3
    near(engine.losses["discriminators"]["video_discriminator"], video)


def test_r2_encodes_each_clip_with_its_own_reference_frame():
    """Frame 8 of either clip: 8 and 16 of the window."""
    system = made("r2")
    (stage,) = system.stages()
    first, second = stage.encoded(batch(24))
    assert system.reference == system.stride == 8
    frames = batch(24)["frames"]
    assert torch.equal(first[:, :, 8], frames[:, :, 8])
    assert torch.equal(second[:, :, 8], frames[:, :, 16])


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_variants(loss):
    """Tab. 4.3."""
    system = made("r2", loss=loss)
    (stage,) = system.stages()
    engine = recorded(stage, batch(24))
    terms = LOSSES[loss]
    last = "encoder_generator" if terms.joint else "generator"
    assert list(engine.losses) == ["discriminators", *(["encoder_generator"] if terms.joint else ["encoder", last])]
    shown = {name for name in ("reference", "reconstruction", "stitched") if name in engine.losses[last]}
    wanted = {"reference": terms.reference, "reconstruction": terms.clips, "stitched": terms.stitched}
    assert shown == {name for name, there in wanted.items() if there}
    assert (again(stage, batch(24), engine, last).noise is not None) == terms.noise


def test_noise_beside_the_adopted_loss():
    """Tab. 5.7."""
    (stage,) = made("r2-improved", noise=True).stages()
    engine = recorded(stage, batch(24))
    assert list(engine.losses) == ["discriminators", "encoder_generator"]
    assert again(stage, batch(24), engine, "joint").noise is not None


def test_the_parts_of_recall_can_be_left_out():
    """Tab. 4.2."""
    system = made("r2", r_enc=False)
    (stage,) = system.stages()
    assert (system.stride, system.reference, stage.clips["clips"].spec.frames) == (16, 0, 32)
    engine = recorded(stage, batch(32))
    done = again(stage, batch(32), engine, "joint")
    assert torch.equal(done.stitched, torch.cat([done.rebuilt[0][:, :, 8:], done.rebuilt[1][:, :, :8]], 2))
    (stage,) = made("r2", r_3vd=False).stages()
    assert again(stage, batch(24), recorded(stage, batch(24)), "joint").stitched is None


@pytest.mark.parametrize("stride", [4, 8, 12, 16])
def test_a_join_is_a_clip_of_the_video(stride):
    """Whatever the overlap, what is stitched of real clips is one."""
    video = torch.arange(stride + 16.0).view(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2)
    joined = join(video[:, :, :16], video[:, :, stride:], stride)
    start = int(joined[0, 0, 0, 0, 0])
    assert torch.equal(joined, video[:, :, start : start + 16])
    assert start < stride < start + 16


def test_ar2_predicts_the_next_clip():
    system = made("ar2", beta=0.3, stage=WEIGHTS)
    (stage,) = system.stages()
    clips = batch(24)
    first, target = clips["frames"][:, :, :16], clips["frames"][:, :, 8:]
    engine = recorded(stage, clips)
    assert list(engine.losses) == ["discriminators", "encoder_generator"]
    done = again(stage, clips, engine, "joint")
    assert torch.equal(done.stitched, torch.cat([first[:, :, :8], done.rebuilt[0][:, :, :8]], 2))
    loss = engine.losses["encoder_generator"]
    near(loss["reconstruction"], 3 * F.smooth_l1_loss(done.rebuilt[0], target, beta=0.3))
    near(loss["reference"], 3 * F.smooth_l1_loss(done.rebuilt[0][:, :, 8], target[:, :, 8], beta=0.3))
    critic = system.networks["video_discriminator"]
    frames = picked(system, clips, engine, "joint", "made", [done.rebuilt[0], done.noise])
    seen = (done.rebuilt[0], done.stitched, done.noise)
    expected = sum(bce(critic(c), True) for c in seen) / 3 + sum(bce(f, True) for f in frames) / 2
    near(loss["adversarial"], expected)


def chained(first: bool, **config):
    system = made("lencgan", **config)
    (stage,) = system.stages()
    stage.carried = torch.full((2, 4, 16), 0.5)
    recorded(stage, batch(16, first=torch.tensor([first, False])))
    return system, stage


def test_lencgan_goes_on_with_the_states_of_its_own_chain():
    system, stage = chained(first=True)
    encoder, frames = system.networks["encoder"], batch(16)["frames"]
    state = torch.full((2, 4, 16), 0.5)
    state[0] = 0  # a chain begins
    _, expected = encoder(frames, state)
    near(stage.carried, expected)
    assert not stage.carried.requires_grad
    restored = made("lencgan").stages()[0]
    restored.load_state_dict(stage.state_dict())
    assert torch.equal(restored.carried, stage.carried)


def _chains(rank: int, processes: int, file: str, results: dict) -> None:
    """Two updates of four chains; between them a stage that takes up what the first process would write."""
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=processes)
    system = made("lencgan", stage=StageConfig(batch=4 // processes))
    begins = torch.tensor([[True, True, True, True], [False, False, True, False]])
    kept: list[Any] = [None]
    for first in begins:
        (stage,) = system.stages()
        if kept[0] is not None:
            stage.load_state_dict(kept[0])
        clips = batch(16, 4, first=first)
        recorded(stage, Batch(**{k: v.chunk(processes)[rank] for k, v in clips.items()}))
        kept = [stage.state_dict()]
        if processes > 1:
            dist.broadcast_object_list(kept)
    results[rank] = kept[0]["carried"]
    if processes > 1:
        dist.destroy_process_group()


def test_chains_of_several_processes_go_on_from_one_checkpoint(tmp_path):
    alone: dict = {}
    _chains(0, 1, "", alone)
    with mp.get_context("spawn").Manager() as manager:
        together = manager.dict()
        mp.start_processes(_chains, (2, str(tmp_path / "store"), together), nprocs=2, start_method="spawn")
        for rank in range(2):
            near(together[rank], alone[0])


def test_states_of_other_chains_are_not_taken_up():
    _, stage = chained(first=False)
    fewer = made("lencgan", stage=StageConfig(batch=1)).stages()[0]
    fewer.load_state_dict(stage.state_dict())
    assert fewer.carried is None


@pytest.mark.parametrize("at", ["middle", "end"])
@pytest.mark.parametrize("inherit", ["none", "cell", "output"])
def test_what_a_clip_inherits(inherit, at):
    system = made("lencgan", inherit=inherit, inherit_at=at)
    encoder, clip = system.networks["encoder"], batch(16)["frames"]
    _, state = encoder(clip)
    features = encoder.content(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 16))
    _, (hidden, cell) = encoder.content_lstm(features[:, :8] if at == "middle" else features)
    near(state[:, 0], hidden[0] if inherit != "none" else 0 * hidden[0])
    near(state[:, 1], cell[0] if inherit == "cell" else 0 * cell[0])


def test_a_chain_longer_than_a_clip_is_one_sequence():
    """The LSTMs of clips that inherit at their end see a chain as a single sequence would: the difference maps of
    the whole video, and its frames, the shared one twice."""
    system = made("lencgan")
    encoder = system.networks["encoder"]
    video = batch(31)["frames"]
    _, state = encoder(video[:, :, :16])
    space, _ = encoder(video[:, :, 15:], state)
    frames = torch.cat([video[:, :, :16], video[:, :, 15:]], 2)
    cells = []
    for inputs, features, lstm in (
        (frames, encoder.content, encoder.content_lstm),
        (difference_maps(video), encoder.motion, encoder.motion_lstm),
    ):
        embedded = features(inputs.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, -1))
        cells.append(lstm(embedded)[1][1][0])
    whole = encoder.heads(*cells)
    for name, value in vars(space).items():
        near(value, getattr(whole, name))


@pytest.mark.parametrize(("reference", "frame"), [("first", 0), ("middle", 7), ("none", None)])
def test_the_frame_that_lencgan_reconstructs_once_more(reference, frame):
    """Fig. 4.4."""
    system = made("lencgan", reference=reference, stage=WEIGHTS)
    (stage,) = system.stages()
    clips = batch(16, first=torch.ones(2, dtype=torch.bool))
    engine = recorded(stage, clips)
    assert ("reference" in engine.losses["encoder"]) == (frame is not None)
    if frame is not None:
        done = again(stage, clips, engine, "encoder")
        error = (done.rebuilt[0] - clips["frames"])[:, :, frame].abs().mean()
        near(engine.losses["encoder"]["reference"], 3 * error)


def test_bad_configurations_say_what_is_wrong():
    with pytest.raises(UserError, match="multiples of 4, not 18x16"):
        made("r2", size=(18, 16))
    with pytest.raises(ValueError, match="overlap is 16"):
        R2Config(overlap=16)
    with pytest.raises(ValueError, match="every 8 frames"):
        R3Config(overlap=4)
    batch_norm = EncoderConfig(4, 16, 8, 8, "batch")
    with pytest.raises(UserError, match="batch norm cannot learn from one clip"):
        made("encgan3", encoder=batch_norm, stage=StageConfig(batch=1)).stages()


@pytest.mark.parametrize(("name", "frames"), [("encgan3", 16), ("ar2", 24)])
def test_batch_norm_and_parts_of_one_clip(name, frames):
    """Accumulation can leave one clip a pass; R2 and LEncGAN have several rows for their norms even then."""
    norm = EncoderConfig(4, 16, 8, 8, "batch")
    system = made(name, encoder=norm)
    for network in system.networks.values():
        network.train()
    (stage,) = system.stages()
    recorded(stage, batch(frames, 2))
    with pytest.raises(UserError, match=r"cannot learn from one clip; raise stage.batch, lower loop.accumulate"):
        recorded(stage, batch(frames, 1))
    for other, n in (("r2", 24), ("lencgan", 16)):
        system = made(other, encoder=norm)
        for network in system.networks.values():
            network.train()
        recorded(system.stages()[0], batch(n, 1, first=torch.ones(1, dtype=torch.bool)))
