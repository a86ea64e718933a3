"""From windows to long videos: the arithmetic, guidance, re-encoding and its arms, stories."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loong_models import INFO, TEXTS, TINY, loong

from longtake.data import video
from longtake.data.encode import write_png
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.story import Entry, Story
from longtake.systems.loong.config import SIZES
from longtake.systems.loong.rollout import Scene, Writer, windows
from longtake.systems.loong.system import Loong

AREA = 16
"""Tokens of a latent slice; a window has 3 slices (9 frames), a context 2 (5 frames)."""


def story(frames: int, *timeline: Entry, **fields) -> Story:
    return Story(frames=frames, timeline=timeline or (Entry(prompt=TEXTS[0]),), **fields)


def made_of(system: Loong, *stories: Story) -> torch.Tensor:
    return torch.cat(list(system.generate(list(stories))), 2)


class Spy:
    """Records what every window was made from."""

    def __init__(self, monkeypatch):
        self.calls: list[tuple[list[str], torch.Tensor, torch.Tensor, int]] = []
        spy, call = self, Writer.__call__

        def recording(writer, texts, context, uniforms, place=0):
            tokens = call(writer, texts, context, uniforms, place)
            spy.calls.append((texts, context, tokens, place))
            return tokens

        monkeypatch.setattr(Writer, "__call__", recording)


def test_a_minute_at_paper_size():
    """65 frames, then 60 a window; 385 frames (a minute at 6.4 fps) take 4,352 + 6 * 3,840 sampled tokens."""
    with torch.device("meta"):
        paper = Loong(SIZES["paper"], replace(INFO, size=(128, 128)))
        paper.tokenizer.tokenize = lambda v: torch.zeros(1, paper.tokenizer.latents(v.shape[2]), 16, 16)  # type: ignore
        paper.tokenizer.detokenize = lambda t: torch.zeros(1, 3, paper.tokenizer.frames(t.shape[1]), 1, 1)  # type: ignore
        scene, done, sampled, shown = Scene(paper, 1), 0, [], []
        while done < 385:
            context = scene.context()
            count = scene.latents_for(385 - done)
            frames = scene.add(context, torch.zeros(1, count, 16, 16))[:, :, : 385 - done]
            sampled.append(count * 256)
            shown.append((context.shape[1] * 256, frames.shape[2]))
            done += frames.shape[2]
            assert scene.history.shape[1] <= 17
            assert scene.place(context) == 0
    assert sum(sampled[:6]) + 3840 == 27_392
    assert sampled == [4352, *[3840] * 5, 5 * 256]
    assert shown == [(0, 65), *[(512, 60)] * 5, (512, 20)]


@torch.inference_mode()
def test_guidance_in_one_cached_pass_equals_two_uncached_ones():
    made, texts = loong(guidance_scale=3.0, top_k=5), [TEXTS[0], TEXTS[2], TEXTS[1]]
    context = torch.randint(64, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(3, 20, generator=torch.Generator().manual_seed(1))
    tokens = Writer(made, 3)(texts, context, uniforms)
    start, codes = made.vocabulary.video.start, made.vocabulary.video
    for row, text in enumerate(texts):
        told, untold = made.prefixes([text])[0], made.prefixes([text], [True])[0]
        past = (context[row].flatten() + start).tolist()
        for i in range(20):
            a, b = (made.lm(torch.tensor([p + past]))[0, -1, codes.start : codes.stop] for p in (told, untold))
            logits = b + 3.0 * (a - b)
            best = logits.topk(5)
            cumulative = best.values.softmax(-1).cumsum(-1)
            expected = int(best.indices[int((cumulative <= uniforms[row, i]).sum())])
            assert int(tokens[row, i]) == expected
            past.append(expected + start)


@torch.inference_mode()
def test_the_scale_of_guidance():
    uniforms, context = (
        torch.rand(1, 24, generator=torch.Generator().manual_seed(1)),
        torch.zeros(1, 0, 4, 4).long(),
    )
    tokens = {s: Writer(loong(guidance_scale=s), 1)(TEXTS[:1], context, uniforms) for s in (0.0, 1.0, 4.0)}
    assert len({tuple(t[0].tolist()) for t in tokens.values()}) == 3
    plain = loong(guidance_scale=1.0)
    assert Writer(plain, 1).decoder.cache.batch == 1
    assert Writer(loong(guidance_scale=4.0), 1).decoder.cache.batch == 2
    plain.prefixes = lambda texts, dropped=None: Loong.prefixes(plain, texts, [True] * len(texts))  # type: ignore
    assert torch.equal(Writer(plain, 1)(TEXTS[:1], context, uniforms), tokens[0.0])


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_other_precisions(precision):
    if precision == "int8" and not torch.backends.mkldnn.is_available():
        pytest.skip("int8 needs oneDNN")
    video = made_of(loong(precision=precision), story(13))
    assert video.shape == (1, 3, 13, 16, 16)
    assert torch.isfinite(video).all()


def test_weights_of_half_the_width(tmp_path):
    path = tmp_path / "first.png"
    write_png(path, np.full((16, 16, 3), 90, np.uint8))
    made = loong().to("cpu", torch.bfloat16)
    video = made_of(made, story(13, first_frames=str(path)))
    assert video.dtype == torch.float32
    assert torch.isfinite(video).all()


@torch.inference_mode()
def test_reconstruction():
    made, clip = loong(), torch.rand(1, 3, 9, 16, 16) * 2 - 1
    ((original, shown, tokens, real),) = made.reconstruct([(clip, 7)])
    assert torch.equal(original, clip)
    assert torch.equal(tokens, made.tokenizer.tokenize(clip))
    assert torch.equal(shown, made.tokenizer.detokenize(tokens))
    assert (real, made.codebook_size) == (7, 64)


def test_a_video_does_not_depend_on_those_beside_it():
    """Also where texts have different lengths and rows are filled up."""
    made = loong()
    stories = [story(13, Entry(prompt=text), seed=i) for i, text in enumerate(TEXTS)]
    together = made_of(made, *stories)
    for own, alone in zip(together, stories, strict=True):
        torch.testing.assert_close(own, made_of(made, alone)[0], rtol=0, atol=1e-4)


def test_a_longer_video_begins_as_the_shorter():
    made = loong()
    long = made_of(made, story(21))
    for frames in (1, 4, 9, 12):
        torch.testing.assert_close(made_of(made, story(frames)), long[:, :, :frames], rtol=0, atol=1e-5)


def test_the_last_frames_are_encoded_again(monkeypatch):
    made, spy = loong(), Spy(monkeypatch)
    frames = made_of(made, story(21))
    assert [c.shape[1] for _, c, _, _ in spy.calls] == [0, 2, 2, 2]
    assert [t.shape[1] for _, _, t, _ in spy.calls] == [3 * AREA, AREA, AREA, AREA]
    for i, (_, context, tokens, _) in enumerate(spy.calls[1:]):
        done = 9 + 4 * i
        again = made.tokenizer.tokenize(frames[:, :, done - 5 : done].clamp(-1, 1))
        assert torch.equal(again, context)
        window = made.tokenizer.detokenize(torch.cat([context, tokens.view(1, 1, 4, 4)], 1))
        torch.testing.assert_close(window[:, :, 5:].clamp(-1, 1), frames[:, :, done : done + 4], rtol=0, atol=1e-5)


def test_without_encoding_again_the_last_tokens_go_on(monkeypatch):
    made, spy = loong(extend="raw"), Spy(monkeypatch)
    frames = made_of(made, story(17))
    slices = torch.cat([t.view(1, -1, 4, 4) for _, _, t, _ in spy.calls], 1)
    for i, (_, context, _, place) in enumerate(spy.calls[1:]):
        assert torch.equal(context, slices[:, 1 + i : 3 + i])
        assert place == 0
    whole = made.tokenizer.detokenize(slices[:, :4])
    torch.testing.assert_close(
        whole.clamp(-1, 1), frames[:, :, :13], rtol=0, atol=1e-5
    )  # the old tokens are the context


@torch.inference_mode()
def test_growing_positions_are_plain_continuation(monkeypatch):
    """The second window equals sampling on with all that came before, which plain decoding would do."""
    made, spy = loong(extend="grow", guidance_scale=1.0), Spy(monkeypatch)
    made_of(made, story(17, seed=4))
    assert [(c.shape[1], place) for _, c, _, place in spy.calls] == [(0, 0), (3, 0), (3, 1)]
    past = made.prefixes(TEXTS[:1])[0]
    uniforms = Rng([4]).uniform("token", range(4 * AREA))[0]
    drawn = torch.cat([t[0] for _, _, t, _ in spy.calls[:2]])
    start = made.vocabulary.video.start
    for i in range(4 * AREA):
        logits = made.lm(torch.tensor([past]))[0, -1, start : made.vocabulary.video.stop]
        ordered = logits.sort(descending=True)
        place = int((ordered.values.softmax(-1).cumsum(-1) <= uniforms[i]).sum())
        assert int(drawn[i]) == int(ordered.indices[place])
        past.append(int(drawn[i]) + start)


@pytest.mark.parametrize("extend", ["reencode", "raw", "grow"])
def test_memory_is_bounded(extend):
    made = loong(extend=extend, guidance_scale=1.0)
    scene, writer = Scene(made, 1), Writer(made, 1)
    with torch.inference_mode():
        for _ in range(12):
            context = scene.context()
            count = scene.latents_for(100)
            tokens = writer(TEXTS[:1], context, torch.full((1, count * AREA), 0.5), scene.place(context))
            scene.add(context, tokens.view(1, count, 4, 4))
            assert scene.history.shape[1] <= 3
            assert scene.tail is not None
            assert scene.tail.shape[2] == 5


def test_prompts_take_over_at_window_borders(monkeypatch):
    made, spy = loong(), Spy(monkeypatch)
    switch = (Entry(prompt=TEXTS[0]), Entry(10 / 15, prompt=TEXTS[1]))  # at frame 10; windows begin at 0, 9, 13, 17
    both = made_of(made, story(21, *switch))
    assert [texts[0] for texts, *_ in spy.calls] == [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]]
    one = made_of(made, story(21))
    assert torch.equal(both[:, :, :13], one[:, :, :13])
    assert not torch.equal(both[:, :, 13:], one[:, :, 13:])


@torch.inference_mode()
def test_a_cut_begins_a_new_scene(monkeypatch):
    made, spy = loong(), Spy(monkeypatch)
    cut = (Entry(prompt=TEXTS[0]), Entry(11 / 15, prompt=TEXTS[1], cut=True))
    frames = made_of(made, story(24, *cut))
    assert [c.shape[1] for _, c, _, _ in spy.calls] == [0, 2, 0, 2]
    assert torch.equal(frames[:, :, :11], made_of(made, story(11)))
    fresh = made.tokenizer.detokenize(spy.calls[2][2].view(1, 3, 4, 4))
    torch.testing.assert_close(frames[:, :, 11:20], fresh.clamp(-1, 1), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="must cut at the same times"):
        made_of(made, story(24, *cut), story(24))


@pytest.mark.parametrize(("count", "used", "slices"), [(1, 1, 1), (4, 1, 1), (7, 5, 2), (9, 9, 2), (16, 13, 2)])
def test_given_frames(count, used, slices, tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    path = tmp_path / "first.mp4"
    video.write_video(path, [generator.integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)], 15.0, crf=1)
    made, spy = loong(), Spy(monkeypatch)
    told = made.check(story(20, first_frames=str(path)))
    frames = made_of(made, told)
    assert made.given_frames([told]) == used
    given = torch.from_numpy(video.read_frames(path, range(used)).astype(np.float32) / 127.5 - 1).permute(
        3, 0, 1, 2
    )
    assert torch.equal(frames[0, :, :used], given)
    context = made.tokenizer.tokenize(given[None, :, -(1 + 4 * (slices - 1)) :])
    assert torch.equal(spy.calls[0][1], context)
    assert frames.shape[2] == 20


def test_a_cut_where_the_given_frames_end(tmp_path, monkeypatch):
    path = tmp_path / "first.mp4"
    video.write_video(path, [np.full((5, 16, 16, 3), 90, np.uint8)], 15.0)
    made, spy = loong(), Spy(monkeypatch)
    cut = (Entry(prompt=TEXTS[0]), Entry(5 / 15, prompt=TEXTS[1], cut=True))
    made_of(made, story(14, *cut, first_frames=str(path)))
    assert [(texts[0], c.shape[1]) for texts, c, _, _ in spy.calls] == [(TEXTS[1], 0)]


def test_classes_are_texts():
    made = loong(replace(TINY, lm=replace(TINY.lm, condition="label")))
    assert made.accepts == {"label", "first_frames", "cut"}
    left, right = (made_of(made, Story(frames=9, timeline=(Entry(label=name),))) for name in ("left", "right"))
    assert not torch.equal(left, right)
    drawn = [made_of(made, Story(frames=9, seed=seed)) for seed in range(12)]
    told = [
        [made_of(made, Story(frames=9, seed=s, timeline=(Entry(label=n),))) for n in INFO.classes]
        for s in range(12)
    ]
    found = [[torch.equal(d, x) for x in own] for d, own in zip(drawn, told, strict=True)]
    assert all(any(own) for own in found), "without one a class is drawn"
    assert {own.index(True) for own in found} == {0, 1}


@pytest.mark.parametrize(
    ("settings", "message"), [({"context": 4}, "4 frames do not fit"), ({"context": 9}, "leaves nothing new")]
)
def test_contexts_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        made_of(loong(**settings), story(20))


def test_a_prompt_is_wanted_from_the_start():
    for timeline in ((), (Entry(1.0, prompt="late"),)):
        with pytest.raises(UserError, match="give a --prompt, in force from the start"):
            loong().check(Story(frames=8, timeline=timeline))


@torch.inference_mode()
def test_windows_stop_where_the_story_does():
    made = loong()
    chunks = [c.shape[2] for c in windows(made, [made.check(story(19))], Rng([0]))]
    assert chunks == [9, 4, 4, 2]
    assert sum(chunks) == 9 + 4 * math.ceil((19 - 9) / 4) - 2
