"""TATS steered by text: from captions to a story of prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import moving_square

from longtake.data import video
from longtake.data.batch import Batch
from longtake.data.library import LibraryWriter, Row
from longtake.errors import UserError
from longtake.metrics.sources import _prompts
from longtake.rollout.rng import Rng
from longtake.story import Entry, Story
from longtake.systems import folder
from longtake.systems.base import ModelInfo
from longtake.systems.tats import rollout
from longtake.systems.tats.config import SIZES, TATSConfig, TextConfig
from longtake.systems.tats.stages import PriorStage
from longtake.systems.tats.system import TATS
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

pytest.importorskip("tokenizers")
TEXT = replace(SIZES["tiny"].prior, condition="text", text=TextConfig(length=8, vocabulary=300))
TINY = replace(
    SIZES["tiny"],
    prior=TEXT,
    vqgan_stage=replace(SIZES["tiny"].vqgan_stage, steps=2, batch=2),
    prior_stage=replace(SIZES["tiny"].prior_stage, steps=3, batch=2),
)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """Six videos of 40 frames with two captions each: 1 second, then the rest."""
    path = tmp_path_factory.mktemp("captioned") / "library"
    with LibraryWriter(path, (16, 16), 15.0) as writer:
        for i in range(6):
            file = writer.media("video", f"v{i}")
            video.write_video(file, [moving_square(i)], 15.0, crf=10, pixel_format="yuv444p")
            spans = ((0.0, 1.0, f"square {i} comes"), (1.0, 40 / 15, f"square {i} goes"))
            split = "test" if i > 3 else "train"
            writer.add(Row(f"v{i}", writer.relative(file), 40, 40 / 15, split, captions=spans))
    return path


@pytest.fixture(scope="module")
def trained(captioned, tmp_path_factory) -> Path:
    loop = LoopSettings(validate_batches=1, checkpoint_every=2, preview_every=3)
    output = str(tmp_path_factory.mktemp("text") / "run")
    return Trainer(Recipe("tats", "tiny", TINY, str(captioned), output, loop=loop)).run()


def system(config: TATSConfig, info: ModelInfo) -> TATS:
    torch.manual_seed(0)
    made = TATS(config, info)
    with torch.no_grad():
        for parameter in made.prior.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return made.eval()


def test_training_keeps_the_tokenizer_with_the_model(trained):
    made = folder.load(trained)
    assert (trained / "tokenizer.json").read_text() == made.info.tokenizer
    assert folder.read_config(trained)["info"]["tokenizer"] == ""
    assert made.accepts == {"prompt", "cut", "first_frames"}
    assert made.offset == made.texts.size
    assert made.prior.config.block == 8 - 1 + 2 * 16
    out = torch.cat(list(made.generate([Story(frames=20, timeline=(Entry(prompt="square 1 comes"),))])), 2)
    assert out.shape == (1, 3, 20, 16, 16)
    assert (trained / "previews" / "prior-0000003.png").is_file()


def test_a_prompt_is_wanted_from_the_start(trained):
    made = folder.load(trained)
    for timeline in ((), (Entry(1.0, prompt="late"),)):
        with pytest.raises(UserError, match="give a --prompt, in force from the start"):
            made.check(Story(frames=8, timeline=timeline))
    with pytest.raises(
        UserError, match="cannot be steered by label; conditions it accepts: --first-frames, --prompt"
    ):
        made.check(Story(frames=8, timeline=(Entry(label="a"),)))


def test_prompts_take_over_at_their_window(trained):
    made = system(TINY, folder.load(trained).info)
    made.settings = replace(made.settings, keep=1)

    def tokens(*timeline: Entry) -> torch.Tensor:
        story = made.check(Story(frames=40, timeline=timeline))
        return torch.cat(list(rollout.latent_slices(made, [story], Rng([0]))), 1)

    one, other = Entry(prompt="square 1 comes"), Entry(prompt="square 2 goes")
    both = tokens(one, replace(other, start=16 / 15))  # frame 16: slice 4
    assert torch.equal(both[:, :4], tokens(one)[:, :4])
    assert not torch.equal(both[:, 4:], tokens(one)[:, 4:])
    assert not torch.equal(tokens(one), tokens(other))


def test_captions_of_frames_that_are_padding_do_not_count(trained):
    padding = replace(TINY.vqgan.padding, time="none")
    made = system(replace(TINY, vqgan=replace(TINY.vqgan, padding=padding)), folder.load(trained).info)
    before, after = made.vqgan.extra_frames()
    assert before > 8
    times = torch.arange(before + 8 + after)[None]
    spans = [(0.0, before / 15, "square 1 comes"), (before / 15, (before + 4) / 15, "square 1 goes")]
    batch = Batch(label=torch.tensor([-1]), caption=[spans], times=times, id=torch.arange(1))
    expected = made.condition_tokens(torch.tensor([-1]), ["square 1 goes"])
    assert torch.equal(made.condition_of(batch), expected)


def test_the_caption_that_holds_longest_conditions_a_clip(trained):
    made = folder.load(trained)
    spans = [(0.0, 0.2, "square 1 comes"), (0.2, 0.6, "square 1 goes")]
    batch = Batch(label=torch.tensor([-1, -1]), caption=[spans, []], id=torch.arange(2))
    ids = made.condition_of(batch)
    assert made.texts.decode(ids[0]) == "square 1 goes"
    assert made.texts.decode(ids[1]) == ""


def test_the_loss_is_of_video_tokens_only(trained):
    made = system(replace(TINY, every=2), folder.load(trained).info)
    stage = PriorStage(made)
    tokens = torch.randint(32, (2, 2, 4, 4))
    batch = Batch(
        tokens=tokens, label=torch.tensor([-1, -1]), caption=[[(0.0, 1.0, "square")], []], id=torch.arange(2)
    )
    logits, targets = made.predict(made.condition_of(batch), tokens + made.offset)
    assert torch.equal(targets, tokens.flatten(1) + made.offset)
    assert logits.shape == (2, 32, made.offset + 32)
    for other in ("circle", "square square"):
        changed = Batch(**{**batch, "caption": [[(0.0, 1.0, other)], []]})
        assert float(stage._loss(changed)["loss"].detach()) != float(stage._loss(batch)["loss"].detach())
    story = made.check(Story(frames=30, timeline=(Entry(prompt="square"),)))
    assert torch.cat(list(made.generate([story])), 2).shape[2] == 30


def test_fine_tuning_keeps_the_tokenizer_of_the_model(trained, captioned, tmp_path):
    start = folder.load(trained)
    other = replace(TINY, prior=replace(TEXT, text=TextConfig(length=8, vocabulary=280)))
    recipe = Recipe("tats", "tiny", other, str(captioned), str(tmp_path / "tuned"), init={"prior": str(trained)})
    tuned = folder.load(Trainer(replace(recipe, loop=LoopSettings(validate_batches=1))).run())
    assert tuned.info.tokenizer == start.info.tokenizer


def test_prompts_of_test_videos_leave_gaps_silent():
    item = Row("v", "v.mp4", 60, 6.0, "test", captions=((1.0, 2.0, "a"), (3.0, 4.0, "b")))
    told = [(e.start, e.prompt) for e in _prompts(item, 6.0)]
    assert told == [(0.0, ""), (1.0, "a"), (2.0, ""), (3.0, "b"), (4.0, "")]
    assert [e.prompt for e in _prompts(item, 2.5)] == ["", "a", ""]
    whole = Row("v", "v.mp4", 60, 6.0, "test", captions=((0.0, 6.0, "a"),))
    assert [(e.start, e.prompt) for e in _prompts(whole, 6.0)] == [(0.0, "a")]


def test_a_library_without_captions_or_a_model_without_tokenizer_is_refused(library, tmp_path):
    with pytest.raises(UserError, match="no captions to train a tokenizer on"):
        Trainer(Recipe("tats", "tiny", TINY, str(library), str(tmp_path / "run"))).run()
    with pytest.raises(UserError, match="needs a tokenizer, and this model folder has none"):
        TATS(TINY, ModelInfo(15.0, (16, 16)))
    with pytest.raises(ValueError, match="a text of 2 tokens holds no word"):
        TextConfig(length=2)
