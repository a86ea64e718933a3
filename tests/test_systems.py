"""The contract test: every system goes through the same life."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FAKES, TinyConfig

from longtake import api
from longtake.errors import UserError
from longtake.story import Entry, Story
from longtake.systems import folder, system_class
from longtake.systems.base import System
from longtake.systems.ccvs.config import SIZES as CCVS_SIZES
from longtake.systems.loong.config import SIZES as LOONG_SIZES
from longtake.systems.recall import config as recall
from longtake.systems.stylegan_v.config import MOCOGAN_SIZES
from longtake.systems.stylegan_v.config import SIZES as STYLEGAN_V
from longtake.systems.tats.config import SIZES
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

TINY_TATS = replace(
    SIZES["tiny"],
    vqgan_stage=replace(SIZES["tiny"].vqgan_stage, steps=6, discriminator_start=3, batch=2, ema=0.9),
    prior_stage=replace(SIZES["tiny"].prior_stage, steps=6, batch=2, ema=0.9, keep_best=True),
)
CLASS_TATS = replace(TINY_TATS, prior=replace(TINY_TATS.prior, condition="label", dropout=0.1))
CROP_TATS = replace(TINY_TATS, prior=replace(TINY_TATS.prior, condition="label", crop=(3, 2)))

# Every lazy part comes up within six updates, in the middle of which runs are killed.
LAZY = replace(
    STYLEGAN_V["tiny"].stage,
    steps=6,
    batch=2,
    gamma_every=2,
    path_weight=2.0,
    path_every=3,
    mixing=0.5,
    augment=replace(STYLEGAN_V["tiny"].stage.augment, start=0.5, every=2, videos=20),
)
TINY_STYLEGAN_V = replace(STYLEGAN_V["tiny"], stage=LAZY)
CLASS_STYLEGAN_V = replace(TINY_STYLEGAN_V, condition="label")
TINY_MOCOGAN = replace(MOCOGAN_SIZES["tiny"], stage=LAZY)
CONFIGS = {name: ("tiny", TinyConfig()) for name in FAKES} | {
    "tats": ("tiny", TINY_TATS),
    "stylegan_v": ("tiny", TINY_STYLEGAN_V),
    "mocogan_sg2": ("tiny", TINY_MOCOGAN),
}
SPARSE_TATS = replace(
    CLASS_TATS,
    every=2,
    interpolator=replace(CLASS_TATS.interpolator, dropout=0.1, stage=CLASS_TATS.prior_stage),
)
SMALL_STAGE = {"steps": 6, "batch": 2, "ema": 0.9, "kl_warmup": 3}
RECALL = {
    "encgan3": recall.ENCGAN3_SIZES["tiny"],
    "lencgan": recall.LENCGAN_SIZES["tiny"],
    "r2": recall.R2_SIZES["tiny"],
    "r2-improved": recall.IMPROVED_R2_SIZES["tiny"],
    "ar2": recall.AR2_SIZES["tiny"],
    "r3": recall.R3_SIZES["tiny"],
}
RECALL = {name: replace(config, stage=replace(config.stage, **SMALL_STAGE)) for name, config in RECALL.items()}
RECALL["r3"] = replace(RECALL["r3"], planner_stage=replace(RECALL["r3"].planner_stage, steps=6, keep_best=True))
CONFIGS |= {name: ("tiny", config) for name, config in RECALL.items()}
TINY_CCVS = replace(
    CCVS_SIZES["tiny"],
    autoencoder_stage=replace(
        CCVS_SIZES["tiny"].autoencoder_stage, steps=6, image_batch=2, video_batch=1, gan_start=2
    ),
    prior_stage=replace(CCVS_SIZES["tiny"].prior_stage, steps=6, batch=2, ema=0.9, keep_best=True),
)
LABEL_CCVS = replace(
    TINY_CCVS,
    autoencoder=replace(TINY_CCVS.autoencoder, quantiser="average"),
    autoencoder_stage=replace(TINY_CCVS.autoencoder_stage, video_every=2, end_share=0.5),
    prior=replace(TINY_CCVS.prior, label=True, start=False, end_share=0.5, dropout=0.1),
)
CONFIGS["ccvs"] = ("tiny", TINY_CCVS)
TINY_LOONG = replace(
    LOONG_SIZES["tiny"],
    tokenizer_stage=replace(
        LOONG_SIZES["tiny"].tokenizer_stage, steps=(1, 2, 1), batch=(2, 2, 2), discriminator_start=2, ema=0.9
    ),
    lm_stage=replace(LOONG_SIZES["tiny"].lm_stage, steps=(1, 2, 1), batch=(2, 2, 2), ema=0.9),
)
LABEL_LOONG = replace(
    TINY_LOONG,
    lm=replace(TINY_LOONG.lm, condition="label", dropout=0.1, recompute=True),
    lm_stage=replace(TINY_LOONG.lm_stage, text_dropout=0.5),
)
MORE = {
    "tats-label": ("tats", CLASS_TATS),
    "tats-hierarchical": ("tats", SPARSE_TATS),
    "tats-crops": ("tats", CROP_TATS),
    "stylegan_v-label": ("stylegan_v", CLASS_STYLEGAN_V),
    "ccvs-label": ("ccvs", LABEL_CCVS),
    "loong": ("loong", TINY_LOONG),
    "loong-label": ("loong", LABEL_LOONG),
}
CASES = [(name, config) for name, (_, config) in CONFIGS.items()] + list(MORE.values())
IDS = [*CONFIGS, *MORE]
GIVEN = 16
"""First frames of a system that needs some: they come on top of the frames that a test wants made."""
LOOP = LoopSettings(log_every=1, validate_every=3, validate_batches=1, preview_every=6, checkpoint_every=2)


def recipe(name: str, config, library: Path, output: Path, **loop) -> Recipe:
    return Recipe(name, "tiny", config, str(library), str(output), seed=3, loop=replace(LOOP, **loop))


def story(system: System, frames: int, source: Path, **fields) -> Story:
    needs = {"source_video": str(source)} if "source_video" in system.requires else {}
    if "first_frames" in system.requires:
        needs["first_frames"] = str(source.with_name("given.mp4"))
        frames += GIVEN
    return Story(frames=frames, **needs, **fields)


@pytest.fixture(scope="module")
def trained(library, tmp_path_factory):
    """Each case trained once, uninterrupted: (name, config) -> run folder."""
    made: dict[str, Path] = {}

    def run(case: str) -> Path:
        if case not in made:
            name, config = CASES[IDS.index(case)]
            output = tmp_path_factory.mktemp("runs") / case
            made[case] = Trainer(recipe(name, config, library, output)).run()
        return made[case]

    return run


@pytest.fixture(scope="module")
def long_source(tmp_path_factory) -> Path:
    from conftest import moving_square

    from longtake.data import video

    path = tmp_path_factory.mktemp("source") / "long.mp4"
    video.write_video(path, [moving_square(9, 64)], 15.0)
    video.write_video(path.with_name("given.mp4"), [moving_square(9, GIVEN)], 15.0)
    return path


def reload(run: Path) -> System:
    system = folder.load(run)
    fewer = {"candidates": 3} if hasattr(system.settings, "candidates") else {}
    return api.configure(system, fewer)


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


class KilledError(Exception):
    """Stands for a kill -9: nothing of the loop's own clean-up may matter."""


@pytest.mark.parametrize("case", IDS)
@pytest.mark.parametrize("stop_after", [1, 4, 6, 7])
def test_killed_and_resumed_equals_uninterrupted(case, stop_after, library, tmp_path, trained, monkeypatch):
    name, config = CASES[IDS.index(case)]
    output = tmp_path / "run"
    made = recipe(name, config, library, output)
    count = 0
    from longtake.train.engine import FabricEngine

    begin = FabricEngine.begin

    def dying(self, step):
        nonlocal count
        if count == stop_after:
            raise KilledError
        count += 1
        begin(self, step)

    monkeypatch.setattr(FabricEngine, "begin", dying)
    try:
        Trainer(made).run()
    except KilledError:
        monkeypatch.setattr(FabricEngine, "begin", begin)
        Trainer(made).run()
    whole = trained(case)
    one, two = folder.read_state(output), folder.read_state(whole)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    steps = [(e["stage"], e["step"], e.get("val/error")) for e in log_of(output)]
    plain = [(e["stage"], e["step"], e.get("val/error")) for e in log_of(whole)]
    assert steps == plain


@pytest.mark.parametrize("case", IDS)
def test_learns_something(case, library, trained):
    stages = {e["stage"] for e in log_of(trained(case))}
    name, config = CASES[IDS.index(case)]
    from longtake.data.library import Library
    from longtake.train.loop import build

    fresh = build(recipe(name, config, library, Path("unused")), Library(library))
    assert stages == {stage.name for stage in fresh.stages()}
    state = folder.inference_state(fresh)
    after = folder.read_state(trained(case))
    assert any(not torch.equal(state[k], after[k].to(state[k].dtype)) for k in state)


@pytest.mark.parametrize("case", IDS)
@pytest.mark.parametrize("frames", [1, 8, 11])
def test_exact_frame_count_whatever_the_chunk(case, frames, trained, long_source):
    system = reload(trained(case))
    told = story(system, frames, long_source, seed=5)
    whole = torch.cat(list(system.generate([told])), 2)
    assert whole.shape == (1, 3, told.frames, *system.info.size)
    for size in (1, 3, 100):
        chunks = list(system.generate([told], size))
        assert all(c.shape[2] == size for c in chunks[:-1])
        assert torch.equal(torch.cat(chunks, 2), whole)


@pytest.mark.parametrize("case", IDS)
def test_past_the_training_length(case, trained, long_source):
    system = reload(trained(case))
    frames = system.max_frames or 50
    told = story(system, frames, long_source)
    video = torch.cat(list(system.generate([told])), 2)
    assert video.shape[2] == told.frames
    assert torch.isfinite(video).all()


@pytest.mark.parametrize("case", IDS)
def test_seeds(case, trained, long_source):
    system = reload(trained(case))

    def made(*seeds):
        stories = [story(system, 10, long_source, seed=s) for s in seeds]
        return torch.cat(list(system.generate(stories)), 2)

    first, again, other = made(1), made(1), made(2)
    assert torch.equal(first, again)
    if "source_video" not in system.requires:
        assert not torch.equal(first, other)
    together = made(1, 2)
    assert torch.allclose(together[0], first[0], atol=1e-4)
    assert torch.allclose(together[1], other[0], atol=1e-4)


@pytest.mark.parametrize("case", IDS)
def test_length_beyond_the_maximum_is_refused(case, trained, long_source):
    system = reload(trained(case))
    if system.max_frames is None:
        pytest.skip("any length")
    with pytest.raises(UserError, match=f"at most {system.max_frames} frames"):
        system.generate([story(system, system.max_frames + 1, long_source)])


@pytest.mark.parametrize("case", IDS)
def test_foreign_conditions_are_refused(case, trained, long_source):
    system = reload(trained(case))
    told = story(system, 8, long_source)
    foreign = {
        "label": replace(told, timeline=(Entry(label="left"),)),
        "prompt": replace(told, timeline=(Entry(prompt="a square"),)),
        "audio": replace(told, timeline=(Entry(audio="x.wav"),)),
        "states": replace(told, timeline=(Entry(states="x.npy"),)),
        "first_frames": replace(told, first_frames="x.mp4"),
        "last_frame": replace(told, last_frame="x.png"),
        "source_video": replace(told, source_video="x.mp4"),
    }
    for name, bad in foreign.items():
        if name in system.accepts | system.requires:
            continue
        with pytest.raises(UserError, match=name):
            system.generate([bad])


@pytest.mark.parametrize("case", IDS)
def test_missing_conditions_are_refused(case, trained):
    system = reload(trained(case))
    if not system.requires:
        pytest.skip("needs nothing")
    (name,) = system.requires
    with pytest.raises(UserError, match=f"needs --{name.replace('_', '-')}"):
        system.generate([Story(frames=8)])


@pytest.mark.parametrize("case", IDS)
def test_foreign_rates_are_refused(case, trained, long_source):
    system = reload(trained(case))
    told = story(system, 8, long_source, fps=7.5)
    if system.any_fps:
        fast = torch.cat(list(system.generate([story(system, 8, long_source)])), 2)
        slow = torch.cat(list(system.generate([told])), 2)
        assert torch.allclose(slow[:, :, :4], fast[:, :, ::2], atol=1e-6)
    else:
        with pytest.raises(UserError, match="fps only"):
            system.generate([told])


@pytest.mark.parametrize("case", IDS)
def test_save_and_load(case, trained, tmp_path, long_source):
    system = reload(trained(case))
    folder.save(system, tmp_path / "copy", card="# a card\n")
    again = reload(tmp_path / "copy")
    told = story(system, 9, long_source)
    assert torch.equal(torch.cat(list(system.generate([told])), 2), torch.cat(list(again.generate([told])), 2))
    state = folder.read_state(tmp_path / "copy")
    key = next(k for k in state if state[k].ndim)
    from safetensors.torch import save_file

    save_file({k: v for k, v in state.items() if k != key}, tmp_path / "copy" / "model.safetensors")
    with pytest.raises(UserError, match=f"lacks {key.split('.', 1)[1]}"):
        folder.load(tmp_path / "copy")


@pytest.mark.parametrize("case", IDS)
def test_generated_video_reaches_the_disk(case, trained, tmp_path, long_source):
    from longtake.data import video

    system = reload(trained(case))
    made = api.Video(system, [story(system, 10, long_source, seed=s) for s in (0, 1)])
    paths = made.save(tmp_path / "out.mp4", sheet=tmp_path / "out.png")
    assert [p.name for p in paths] == ["out-000.mp4", "out-001.mp4"]
    assert all(video.probe(p).frames == made.frames_total for p in paths)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out-000.mp4", "out-001.mp4", "out.png"]


@pytest.mark.parametrize("case", IDS)
def test_evaluate(case, trained, library, tmp_path):
    from longtake.data.library import Library
    from longtake.metrics.evaluate import evaluate
    from longtake.metrics.protocol import PROTOCOLS
    from longtake.metrics.sources import ModelSource

    system, footage = reload(trained(case)), Library(library)
    given = GIVEN if "first_frames" in system.requires else 0
    source = ModelSource(system, footage, 2, 16, 0, "round", given=given)
    result = evaluate(source, footage, tmp_path / "eval", PROTOCOLS["longtake-1"], [])
    assert result is not None
    stored = json.loads((tmp_path / "eval" / "result.json").read_text())
    assert stored["protocol"]["fake_videos"] == 2
    assert stored["protocol"]["frames"] == min(16, system.max_frames or 16)
    assert stored["protocol"]["sees_test_video"] == ("source_video" in system.requires)
    assert result.figures.keys() == stored["figures"].keys()


def test_another_recipe_does_not_go_on_in_the_same_folder(library, tmp_path):
    first = recipe("tiny-continuous", TinyConfig(), library, tmp_path / "run")
    Trainer(first).run()
    with pytest.raises(UserError, match=r"config\.width was 8 and is now 16"):
        Trainer(replace(first, config=TinyConfig(width=16))).run()


def test_init_takes_a_network_from_another_model(library, tmp_path, trained):
    source = trained("tiny-image-video")
    made = replace(
        recipe("tiny-image-video", TinyConfig(steps=0), library, tmp_path / "run"), init={"coder": str(source)}
    )
    from longtake.data.library import Library
    from longtake.train.loop import build

    system = build(made, Library(library))
    expected = folder.read_state(source)
    own = folder.inference_state(system)
    assert all(torch.equal(own[k], expected[k]) for k in own if k.startswith("coder."))
    assert any(not torch.equal(own[k], expected[k]) for k in own if k.startswith("predictor."))
    with pytest.raises(UserError, match="no network 'codec'"):
        build(replace(made, init={"codec": str(source)}), Library(library))


def test_a_spec_the_library_cannot_meet_fails_before_training(tmp_path):
    from conftest import write_library

    short = write_library(tmp_path / "short", frames=20)
    with pytest.raises(UserError, match="no train video of 24 frames or more"):
        Trainer(recipe("tiny-recall", TinyConfig(), short, tmp_path / "run")).run()
    assert not (tmp_path / "run").exists()


def test_derived_tensors_are_made_once_and_change_nothing(library, tmp_path, trained):
    copy = tmp_path / "library"
    shutil.copytree(library, copy, ignore=shutil.ignore_patterns("cache"))
    name, config = CASES[IDS.index("tiny-image-video")]
    over_budget = Trainer(recipe(name, config, copy, tmp_path / "run", cache_gb=0.0)).run()
    assert not list(copy.glob("cache/derived-*"))
    one, two = folder.read_state(over_budget), folder.read_state(trained("tiny-image-video"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert list(Path(library).glob("cache/derived-*/known"))


def test_unknown_system():
    with pytest.raises(UserError, match="no system 'tat'"):
        system_class("tat")
