"""The training stage and its variants."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from longtake.data.batch import Batch
from longtake.rollout.rng import Rng
from longtake.systems.base import ModelInfo
from longtake.systems.stylegan_v import augment as augment_module
from longtake.systems.stylegan_v import stages
from longtake.systems.stylegan_v.augment import Adaptation, AugmentConfig
from longtake.systems.stylegan_v.config import SIZES, StyleGANVConfig, as_mocogan
from longtake.systems.stylegan_v.losses import default_gamma, path_lengths
from longtake.systems.stylegan_v.system import StyleGANV
from longtake.train.engine import FabricEngine, make_fabric

TINY = SIZES["tiny"]
LSTM = replace(TINY.motion, codes="lstm", spacing=1.0)
MOCOGAN = as_mocogan(TINY)
VARIANTS = {
    "default": TINY,
    "labels": replace(TINY, condition="label"),
    "official sampling": replace(TINY, sampling="octaves"),
    "without time conditioning": replace(TINY, discriminator=replace(TINY.discriminator, time=False)),
    "paper's join": replace(TINY, discriminator=replace(TINY.discriminator, divisor=1)),
    "lstm 1": replace(TINY, motion=LSTM, horizon=40),
    "lstm 16": replace(TINY, motion=replace(LSTM, spacing=16.0), horizon=40),
    "without our generator": replace(TINY, motion=MOCOGAN.motion, horizon=40),
    "without our discriminator": replace(
        TINY, frames=16, sampling="consecutive", discriminator=replace(TINY.discriminator, kind="image+video")
    ),
    "mocogan": MOCOGAN,
    "mocogan, labels": replace(MOCOGAN, condition="label"),
    **{f"k={k}": replace(TINY, frames=k, distance=32) for k in (1, 2, 4, 8, 16)},
}


def run(config: StyleGANVConfig, steps: int = 2, precision: str = "32", **stage):
    """Trains from the seed 0 for a few updates; returns the system, the stage and the logs of each update."""
    config = replace(config, stage=replace(config.stage, steps=steps, batch=2, **stage))
    torch.manual_seed(0)
    system = StyleGANV(config, ModelInfo(15.0, config.size, ("a", "b"), (1, 1)))
    made = system.stages()[0]
    engine = FabricEngine(make_fabric(precision, "cpu"), system.networks, made, 1, 0)
    batch = Batch(
        frames=torch.rand(2, 3, config.frames, *config.size, generator=torch.Generator().manual_seed(1)) * 2 - 1,
        times=torch.arange(config.frames).expand(2, -1) + 5,
        label=torch.tensor([0, 1]),
        id=torch.arange(2),
    )
    logs = []
    for step in range(steps):
        engine.begin(step)
        logs.append(made.step({"clips": batch}, engine))
    return system, made, logs, batch


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns(name):
    before = {k: v.clone() for k, v in run(VARIANTS[name], steps=0)[0].networks["generator"].state_dict().items()}
    system, stage, logs, batch = run(VARIANTS[name])
    assert all(torch.isfinite(torch.tensor(list(entry.values()))).all() for entry in logs)
    assert logs[0].keys() - logs[1].keys() == {"r1"}
    for network in system.networks.values():
        assert all(torch.isfinite(p).all() for p in network.parameters())
    changed = {k for k, v in system.generator.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == set(before)
    with torch.no_grad():
        figures = stage.validate({"clips": batch})
    assert figures.keys() == {"val/real_logit", "val/fake_logit"}


def test_mixed_precision_is_close():
    _, _, exact, _ = run(TINY)
    _, _, mixed, _ = run(TINY, precision="bf16")
    for key in ("generator/loss", "discriminator/loss", "r1"):
        assert mixed[0][key] == pytest.approx(exact[0][key], rel=0.1)


def test_each_part_moves_only_its_own_networks():
    system, stage, _, batch = run(TINY, steps=0)
    seen = []

    class Engine:
        step, device, rng = 0, torch.device("cpu"), Rng(["x"])

        def update(self, optimiser, loss_fn, batch, clip=None):
            losses = loss_fn(batch)
            seen.append((optimiser, losses["loss"]))
            return {k: float(v.detach()) for k, v in losses.items()}

    stage.step({"clips": batch}, Engine())
    assert [name for name, _ in seen] == ["generator", "discriminator", "discriminator"]
    generator = list(system.generator.parameters())
    for _, loss in seen[1:]:
        assert all(g is None for g in torch.autograd.grad(loss, generator, allow_unused=True, retain_graph=True))


def test_regularisers_come_when_they_are_due():
    _, stage, logs, _ = run(TINY, steps=5, gamma_every=2, path_weight=2.0, path_every=4, mixing=1.0)
    assert [("r1" in entry) for entry in logs] == [True, False, True, False, True]
    assert [("path_length" in entry) for entry in logs] == [True, False, False, False, True]
    assert stage.path_mean > 0
    assert stage.state_dict()["path_mean"] == stage.path_mean


def test_rates_are_corrected_for_lazy_regularisation():
    paper = StyleGANV(TINY, ModelInfo(15.0, TINY.size)).stages()[0].optimisers()
    rates = {name: (o.param_groups[0]["lr"], *o.param_groups[0]["betas"]) for name, o in paper.items()}
    assert rates["generator"] == pytest.approx((0.002, 0.0, 0.99**0.8))
    assert rates["discriminator"] == pytest.approx((0.0025 * 16 / 17, 0.0, 0.99 ** (16 / 17)))
    groups = StyleGANV(MOCOGAN, ModelInfo(15.0, TINY.size)).stages()[0].optimisers()["discriminator"].param_groups
    assert groups[1]["lr"] == pytest.approx(groups[0]["lr"] / 10)


def test_the_released_weights_of_r1():
    assert default_gamma((256, 256), 64) == pytest.approx(0.2048)
    assert default_gamma((1024, 1024), 16) == pytest.approx(13.1, abs=0.01)


def test_augmentation_follows_the_discriminator():
    _, stage, logs, _ = run(TINY, steps=4, augment=replace(TINY.stage.augment, target=-1.0, every=1, videos=20))
    assert [entry["augment"] for entry in logs] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert stage.state_dict()["augment"]["p"] == pytest.approx(0.4)


def test_mirroring_is_of_whole_videos_and_by_their_number():
    class Engine:
        rng = Rng(["seed"])

    frames = torch.rand(40, 3, 2, 4, 4)
    clips = Batch(frames=frames, id=torch.arange(40))
    made = stages.mirrored(clips, Engine())["frames"]
    turned = [bool((made[i] == frames[i].flip(-1)).all()) for i in range(40)]
    assert all(t or bool((made[i] == frames[i]).all()) for i, t in enumerate(turned))
    assert 10 < sum(turned) < 30
    half = Batch(frames=frames[20:], id=torch.arange(20, 40))
    assert torch.equal(stages.mirrored(half, Engine())["frames"], made[20:])


def test_path_lengths_of_a_linear_generator():
    weight = torch.randn(5, 3 * 2 * 4 * 4)
    ws = torch.randn(2, 3, 5, requires_grad=True)
    frames = (ws.sum(1) @ weight).view(2, 3, 2, 4, 4)
    noise = torch.randn_like(frames)
    expected = (noise.flatten(1) @ weight.T / 32**0.5).norm(dim=1)
    torch.testing.assert_close(path_lengths(frames, ws, noise), expected)


def test_preview_shows_four_videos():
    _, stage, _, batch = run(TINY, steps=0)
    assert stage.preview({"clips": batch}).shape == (3, stages.PREVIEW, 16, 64)


def _together(rank: int, world: int, store: str, found) -> None:
    """What one of several processes holds after three updates' worth of logits and two path lengths."""
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    config = replace(TINY, stage=replace(TINY.stage, path_weight=2.0, batch=2, augment=AUGMENT))
    torch.manual_seed(0)
    stage = StyleGANV(config, ModelInfo(15.0, config.size)).stages()[0]
    torch.manual_seed(rank)
    own = []
    for step in range(3):
        stage.adaptation.see(LOGITS[step, rank])
        stage.adaptation.correct(step, 2)
        lengths = stage._path_length(
            Batch(label=torch.zeros(2, dtype=torch.long), times=torch.tensor([[0, 1, 5]] * 2))
        )["path_length"]
        own.append(float(lengths.detach()))
    held = stage.state_dict()
    again = Adaptation(AUGMENT)
    again.load_state_dict(held["augment"])
    for adaptation in (stage.adaptation, again):
        adaptation.see(LOGITS[3, rank])
        adaptation.correct(3, 2)
    found[rank] = (stage.gamma, held, own, stage.adaptation.p, again.p)
    dist.destroy_process_group()


AUGMENT = AugmentConfig(target=0.0, every=4, videos=100)
LOGITS = torch.tensor(
    [[[1.0, -1], [1, 1]], [[-1, -1], [1, 1]], [[1, -1], [-1, -1]], [[-1, -1], [-1, -1]]]
)  # (update, process, video); a process alone would see other means


def test_processes_hold_the_same_figures_at_every_update(tmp_path):
    with mp.get_context("spawn").Manager() as manager:
        found = manager.dict()
        mp.start_processes(_together, (2, str(tmp_path / "store"), found), nprocs=2, start_method="spawn")
        (gamma, held, own, p, again), other = found[0], found[1]
    assert (gamma, held, p, again) == (other[0], other[1], other[3], other[4])
    assert gamma == default_gamma(TINY.size, 4)  # of the videos of both
    assert held["augment"] == {"p": 0.0, "signs": float(LOGITS[:3].sum()), "count": 12.0}
    assert own != other[2]
    expected = 0.0
    for mine, theirs in zip(own, other[2], strict=True):
        expected += stages.PATH_DECAY * ((mine + theirs) / 2 - expected)
    assert held["path_mean"] == pytest.approx(expected, rel=1e-5)
    assert p == again


def test_probability_moves_by_the_videos_of_all_processes(monkeypatch):
    monkeypatch.setattr(augment_module, "processes", lambda: 3)
    adaptation = Adaptation(AUGMENT)
    for step in range(4):
        adaptation.see(torch.ones(2))
        adaptation.correct(step, 2)
    assert adaptation.p == pytest.approx(3 * 2 * 4 / 100)


def test_mixed_styles_are_of_two_noises_one_after_the_other():
    """The first layer's is always the video's own; the average follows the own ones alone."""
    torch.manual_seed(0)
    system = StyleGANV(
        replace(TINY, stage=replace(TINY.stage, mixing=0.5)), ModelInfo(15.0, TINY.size, ("a", "b"), (1, 1))
    )
    (stage,) = system.stages()
    mapping, batch = system.generator.mapping, 64
    label = system.one_hot(torch.zeros(batch, dtype=torch.long))
    w = mapping(torch.randn(batch, TINY.mapping.noise), label)
    ws = w.unsqueeze(1).expand(-1, system.generator.synthesis.styles, -1)
    average = mapping.average.clone()
    mixed = stage._mixed(ws, label)  # type: ignore[attr-defined]
    assert torch.equal(mapping.average, average)
    own = (mixed == ws).all(-1)
    assert own[:, 0].all()
    assert (own[:, 1:] <= own[:, :-1]).all()  # once the other has begun, it stays
    for video, kept in zip(mixed, own, strict=True):
        assert len(video[~kept].unique(dim=0)) <= 1
    assert 0.3 < float((~own).any(1).float().mean()) < 0.7
