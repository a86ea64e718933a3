"""What the stages of Loong see and minimise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import moving_square
from loong_models import INFO, TEXTS, TINY, loong

from longtake.data import video
from longtake.data.batch import Batch
from longtake.data.clips import Still
from longtake.data.library import Library, LibraryWriter, Row
from longtake.data.loader import Loader
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.systems.base import ModelInfo
from longtake.systems.folder import save
from longtake.systems.loong.config import SIZES, LoongConfig
from longtake.systems.loong.losses import by_range, early_weights, token_losses, weighted_mean
from longtake.systems.loong.sequence import Vocabulary
from longtake.systems.loong.stages import LMStage, TokenizerStage
from longtake.systems.loong.system import Loong
from longtake.train.loop import build
from longtake.train.recipe import Recipe


class Recorder:
    """An engine that computes losses and changes nothing."""

    def __init__(self, step: int = 0):
        self.step, self.device, self.rng = step, torch.device("cpu"), Rng(["0/lm"])
        self.losses: dict[str, Any] = {}
        self.batch: Batch = Batch()

    def update(self, optimiser, loss_fn, batch, clip=None):
        self.losses[optimiser], self.batch = loss_fn(batch), batch
        return {k: float(v.detach()) for k, v in self.losses[optimiser].items()}


def clips(frames: int, n: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(5)
    video = torch.rand(n, 3, frames, 16, 16, generator=generator) * 2 - 1
    spans = [[(0.0, 0.2, "other"), (0.2, 0.6, text)] for text in TEXTS]
    return Batch(frames=video, id=torch.arange(10, 10 + n), label=torch.arange(n) % 2, caption=spans)


def test_the_published_vocabulary():
    made = Vocabulary(32_000, 8192)
    assert made.size == 40_202
    assert (made.video.start, made.video.stop, made.special("pad")) == (32_000, 40_192, 40_192)
    with torch.device("meta"):
        paper = Loong(SIZES["paper"], replace(INFO, size=(128, 128)))
    assert paper.lm.config.vocabulary == 40_202
    assert SIZES["paper"].tokenizer_stage.steps == (100_000, 150_000, 150_000)
    assert SIZES["paper"].lm_stage.batch == (512, 512, 256)


def test_rows_of_text_and_video():
    words = Vocabulary(10, 4)
    prefixes = [words.prefix([1, 2, 3]), words.prefix([5, 6, 7], dropped=True), words.prefix([8])]
    sot, eot, soi, null, pad = (words.special(n) for n in ("sot", "eot", "soi", "null", "pad"))
    assert prefixes[:2] == [[sot, 1, 2, 3, eot, soi], [sot, null, null, null, eot, soi]]
    ids, places = words.inputs(prefixes, torch.tensor([[0, 1, 2], [3, 3, 3], [1, 2, 0]]))
    assert ids.tolist() == [[*prefixes[0], 10, 11], [*prefixes[1], 13, 13], [sot, 8, eot, soi, 11, 12, pad, pad]]
    assert places.tolist() == [[5, 6, 7], [5, 6, 7], [3, 4, 5]]
    rows, starts = words.aligned(prefixes)
    assert rows.tolist() == [prefixes[0], prefixes[1], [pad, pad, *prefixes[2]]]
    assert starts.tolist() == [0, 0, 2]


def test_the_loss_is_that_of_every_video_token_given_what_comes_before():
    made = loong()
    stage, batch = LMStage(made, 2), clips(9)
    with torch.no_grad():
        tokens = stage.derive(batch)["tokens"]
        batch["tokens"] = tokens
        losses, right = made.predict(made.prefixes_of(batch), tokens.long())
        for i, text in enumerate(TEXTS):  # of rows of different lengths
            sequence = made.prefixes([text])[0]
            for j, code in enumerate(tokens[i].flatten().tolist()):
                logits = made.lm(torch.tensor([sequence]))[0, -1]
                target = code + made.vocabulary.video.start
                assert float(losses[i, j]) == pytest.approx(
                    -float(logits.log_softmax(-1)[target]), rel=1e-3, abs=1e-4
                )
                sequence.append(target)
        assert 0 <= float(right) <= 1
        own = stage._loss(batch)
    weights = torch.tensor([2.0] * 32 + [1.0] * 16)  # two slices of 16 tokens are early
    assert float(own["loss"]) == pytest.approx(float((losses * weights).sum() / weights.sum() / 3), rel=1e-5)
    assert float(own["nll/late"]) == pytest.approx(float(losses[:, 32:].mean()), rel=1e-5)


def test_only_long_clips_are_weighted():
    for number, frames in ((0, 1), (1, 5)):
        made = loong()
        stage, batch = LMStage(made, number), clips(frames)
        with torch.no_grad():
            losses = stage._loss(Batch(**batch, **stage.derive(batch)))
        assert float(losses["loss"]) == pytest.approx(float(losses["nll/all"]), rel=1e-6)


def test_early_tokens_weigh_more():
    """Equation 2 at paper size: K = 1,280 of 4,352 tokens have 45 % of the weight at lambda 1, 29 % at 0."""
    weights = early_weights(4352, 1280, 1.0)
    assert float(weights[:1280].sum() / weights.sum()) == pytest.approx(0.4545, abs=1e-3)
    assert set(weights[:1280].tolist()) == {2.0}
    assert set(weights[1280:].tolist()) == {1.0}
    losses = torch.rand(3, 12, requires_grad=True)
    assert torch.allclose(weighted_mean(losses, early_weights(12, 4, 0.0)), losses.mean())
    (gradient,) = torch.autograd.grad(weighted_mean(losses, early_weights(12, 4, 1.0)), losses)
    assert torch.allclose(gradient[:, :4], 2 * gradient[:, 4:8])
    assert float(early_weights(4, 1280, 1.0).sum()) == 8


def test_the_ranges_of_figure_3():
    """65 frames are 17 slices: slice 0 is frame 1, 0-4 frames 1-17, 5-16 frames 18-65, 13-16 frames 50-65."""
    slices = torch.arange(17.0).repeat_interleave(4).repeat(2, 1)
    found = {k: float(v) for k, v in by_range(slices, 17, 5).items()}
    assert found == {"first": 0.0, "early": 2.0, "late": 10.5, "last": 14.5}
    assert by_range(slices[:, :20], 5, 5).keys() == {"first", "early"}
    assert by_range(slices[:, :4], 1, 5).keys() == {"first"}
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [4, 4, 4]])
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 3)
    assert torch.equal(token_losses(logits, targets), expected)


def test_stages_grow_and_mix_pictures_in():
    made = loong()
    stages = made.stages()
    assert [s.name for s in stages] == ["tokenizer_1", "tokenizer_5", "tokenizer_9", "lm_1", "lm_5", "lm_9"]
    assert stages[0].clips.keys() == {"stills"}
    assert stages[0].clips["stills"].share is None
    last = stages[5].clips
    assert (last["stills"].share, last["clips"].share) == (0.25, 0.75)
    assert (last["stills"].batch, last["clips"].batch) == (8, 4)
    assert (last["stills"].spec.mode, last["clips"].spec.frames) == (Still(), 9)
    assert {d.spec.conditions for s in stages[3:] for d in s.clips.values()} == {("caption",)}
    alone = loong(replace(TINY, lm_stage=replace(TINY.lm_stage, stills=0.0)))
    assert alone.stages()[5].clips.keys() == {"clips"}
    for stage in stages:
        own = {id(p) for name in stage.trains for p in made.networks[name].parameters()}
        held = [id(p) for o in stage.optimisers().values() for g in o.param_groups for p in g["params"]]
        assert len(held) == len(set(held))
        assert set(held) == own


def test_stills_with_captions_train_the_first_stage(tmp_path):
    """A library of one-frame rows and videos: pictures are drawn from both, tokens are kept."""
    with LibraryWriter(tmp_path / "mixed", (16, 16), 15.0) as writer:
        for i in range(6):
            file, frames = writer.media("video", f"v{i}"), 1 if i < 3 else 12
            video.write_video(file, [moving_square(i, frames)], 15.0, crf=10, pixel_format="yuv444p")
            spans = ((0.0, frames / 15, TEXTS[i % 3]),)
            writer.add(Row(f"v{i}", writer.relative(file), frames, frames / 15, captions=spans))
    library, made = Library(tmp_path / "mixed"), loong()
    stage = LMStage(made, 1)
    for _ in range(2):  # made, then read from the cache
        loader = Loader(library, stage.clips, derive=(stage.derive, {"test": "tokens"}))
        plain = Loader(library, stage.clips)
        seen, rows = set(), set()
        with torch.no_grad():
            for step in range(12):
                ((name, batch),) = loader.batches(step).items()
                ((_, raw),) = plain.batches(step).items()
                assert torch.equal(batch["tokens"].long(), made.tokenizer.tokenize(raw["frames"]))
                assert batch["tokens"].shape[1] == (1 if name == "stills" else 2)
                seen.add(name)
                rows |= set(batch["video"].tolist()) if name == "stills" else set()
        assert seen == {"stills", "clips"}
        assert min(rows) < 3 <= max(rows)


def test_some_texts_are_dropped_for_guidance():
    made = loong()
    stage, batch = LMStage(made, 0), clips(1)
    with torch.no_grad():
        many = Batch(
            **{
                k: v[:1] * 200 if isinstance(v, list) else v[:1].repeat(200, *[1] * (v.dim() - 1))
                for k, v in batch.items()
            }
        )
        many["id"] = torch.arange(200)
        many |= stage.derive(many)
        engine = Recorder()
        stage.step({"stills": Batch(**many)}, engine)
        dropped = engine.batch["dropped"]
        assert 8 <= int(dropped.sum()) <= 32, "a tenth"
        prefixes = made.prefixes_of(engine.batch)
        assert len({len(p) for p in prefixes}) == 1
        null = made.vocabulary.special("null")
        assert [null in p for p in prefixes] == dropped.tolist()
        again = Recorder()
        stage.step({"stills": Batch(**{k: v[50:60] for k, v in many.items()})}, again)
        assert torch.equal(again.batch["dropped"], dropped[50:60]), "by sample number"


def test_figures_of_pictures_and_clips_are_kept_apart():
    made = loong()
    stage = LMStage(made, 2)
    with torch.no_grad():
        for name, frames in (("stills", 1), ("clips", 9)):
            batch = clips(frames)
            batch |= stage.derive(batch)
            logs, figures = stage.step({name: batch}, Recorder()), stage.validate({name: batch})
            mark = "still_" if name == "stills" else ""
            assert f"nll/{mark}first" in logs
            assert f"val/{mark}nll_all" in figures
            assert ("val/nll_late" in figures) == (name == "clips")


def test_the_tokenizer_loss_and_its_critics():
    made = loong(
        replace(TINY, tokenizer_stage=replace(TINY.tokenizer_stage, steps=(4, 6, 5), discriminator_start=7))
    )
    for number, step, frames, critics in ((1, 2, 5, False), (1, 3, 5, True), (2, 0, 9, True)):
        engine, batch = Recorder(step), clips(frames)
        logs = TokenizerStage(made, number).step({"clips": batch}, engine)
        assert set(engine.losses) == {"generator", *(["discriminator"] if critics else [])}
        result = made.tokenizer(batch["frames"])
        l1 = float((result.video - batch["frames"]).abs().mean().detach())
        expected = l1 + float(result.quantised.commitment_loss.detach())
        losses = engine.losses["generator"]
        if critics:
            expected += float(losses["adversarial"].detach())
            frame = Rng(["0/lm"]).integers("frame", batch["id"].tolist(), frames)[0]
            shown = result.video[torch.arange(3), :, frame]
            judged = (
                made.networks["image_discriminator"](shown),
                made.networks["video_discriminator"](result.video),
            )
            fooled = -0.1 * sum(float(j.logits.mean().detach()) for j in judged)
            assert float(losses["adversarial"].detach()) == pytest.approx(fooled, rel=1e-4)
        assert float(losses["loss"].detach()) == pytest.approx(expected, rel=1e-4)
        assert logs["l1"] == pytest.approx(l1, rel=1e-5)


def test_the_critic_of_clips_sees_no_pictures():
    made = loong(replace(TINY, tokenizer_stage=replace(TINY.tokenizer_stage, discriminator_start=0)))
    engine = Recorder()
    TokenizerStage(made, 1).step({"stills": clips(1)}, engine)
    engine.losses["discriminator"]["loss"].backward()
    assert all(p.grad is None for p in made.networks["video_discriminator"].parameters())
    assert all(p.grad is not None for p in made.networks["image_discriminator"].parameters())
    assert all(p.grad is None for p in made.tokenizer.parameters())


def test_pictures_go_without_a_critic_where_only_clips_have_one():
    stage = replace(TINY.tokenizer_stage, discriminator_start=0, gan_weight=(0.0, 0.1))
    made = loong(replace(TINY, tokenizer_stage=stage))
    for name, frames, judged in (("stills", 1, False), ("clips", 5, True)):
        engine = Recorder()
        TokenizerStage(made, 1).step({name: clips(frames)}, engine)
        assert ("discriminator" in engine.losses) == judged


@pytest.mark.parametrize("name", ["cvq", "vq", "ema"])
def test_each_quantiser_trains(name):
    made = loong(replace(TINY, tokenizer=replace(TINY.tokenizer, quantiser=name)))
    made.tokenizer.train()
    before = made.tokenizer.codebook.embeddings.detach().clone()
    engine, stage = Recorder(), TokenizerStage(made, 1)
    stage.step({"clips": clips(5)}, engine)
    engine.losses["generator"]["loss"].backward()
    assert all(p.grad is not None for p in made.tokenizer.encoder.parameters())
    changed = not torch.equal(made.tokenizer.codebook.embeddings.detach(), before)
    assert changed == (name != "vq")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (1, 6, 9)}, "6 frames do not fit"),
        ({"early": 4}, "4 frames do not fit"),
        ({"size": (16, 18)}, "width is 18"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        loong(replace(TINY, **changes))


def test_the_tokenizer_of_texts_comes_with_the_language_model_only(library, tmp_path):
    """A model whose tokenizer of videos is taken over was trained on other texts."""
    first, data = loong(TINY), Library(library)
    save(first, tmp_path / "first")
    config = replace(TINY, lm=replace(TINY.lm, condition="label"))
    made = Recipe("loong", "tiny", config, str(library), "", init={"tokenizer": str(tmp_path / "first")})
    own, taken = build(made, data), build(replace(made, init={"lm": str(tmp_path / "first")}), data)
    assert own.info.tokenizer != first.info.tokenizer
    assert taken.info.tokenizer == first.info.tokenizer


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="lengths must rise"):
        LoongConfig(lengths=(17, 1, 65))
    with pytest.raises(ValueError, match=r"lm_stage\.steps has 2 numbers for the 3 of lengths"):
        replace(TINY, lm_stage=replace(TINY.lm_stage, steps=(1, 2)))
    with pytest.raises(ValueError, match="heads of even width"):
        replace(TINY.lm, width=30, heads=4)
    with pytest.raises(UserError, match="pieces, the model 280 ids"):
        Loong(replace(TINY, lm=replace(TINY.lm, text=replace(TINY.lm.text, vocabulary=280))), INFO)
    with pytest.raises(UserError, match="needs a tokenizer of them, and this model folder has none"):
        Loong(TINY, ModelInfo(15.0, (16, 16)))
    with pytest.raises(UserError, match="needs a library with classes"):
        Loong(replace(TINY, lm=replace(TINY.lm, condition="label")), ModelInfo(15.0, (16, 16)))
