"""The sliding window: what each window sees, which noise it takes, and which class it obeys."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import moving_square

from longtake import api
from longtake.data import video
from longtake.errors import UserError
from longtake.rollout.engine import Decoder, generate_tokens
from longtake.rollout.rng import Rng
from longtake.rollout.sampling import SamplingSettings
from longtake.story import Entry, Story
from longtake.systems.base import ModelInfo
from longtake.systems.tats import rollout
from longtake.systems.tats.config import SIZES, TATSConfig, TATSSettings
from longtake.systems.tats.system import TATS

CLASSES = ("a", "b", "c")
TINY = replace(SIZES["tiny"], frames=16)
"""Four latent slices of 16 tokens; a slice is four frames."""
LABELLED = replace(TINY, prior=replace(TINY.prior, condition="label"))


def system(config: TATSConfig = TINY, counts=(1, 1, 1), **settings) -> TATS:
    torch.manual_seed(0)
    made = TATS(config, ModelInfo(10.0, (16, 16), CLASSES, counts))
    with torch.no_grad():  # positions start at zero and small weights make every window alike
        for parameter in made.prior.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    made.settings = TATSSettings(**{"top_k": 0, "top_p": 1.0, **settings})
    for network in made.networks.values():
        network.eval()
    return made


def resolved(made: TATS, frames: int, **fields) -> Story:
    return made.check(Story(frames=frames, **fields))


def tokens(made: TATS, stories: list[Story]) -> tuple[torch.Tensor, list[int]]:
    """Tokens (B, slices, h, w) and how many slices each window gave."""
    slices = list(rollout.latent_slices(made, stories, Rng([s.seed for s in stories])))
    return torch.cat(slices, 1), [s.shape[1] for s in slices]


COMBINATIONS = [(keep, new) for keep in (1, 2, 3) for new in range(1, 4 - keep + 1)]


@pytest.mark.parametrize(("keep", "new"), COMBINATIONS)
def test_windows_hold_what_the_settings_say(keep, new, monkeypatch):
    made, seen = system(keep=keep, new=new), []

    def watching(decoder, prefix, count, noise, sampling, ids, known):
        seen.append((prefix, count, noise))
        return generate_tokens(decoder, prefix, count, noise, sampling, ids, known)

    monkeypatch.setattr(rollout, "generate_tokens", watching)
    out, counts = tokens(made, [resolved(made, 41)])
    assert counts[:-1] == [keep + new] + [new] * (len(counts) - 2)
    assert 0 < counts[-1] <= new
    assert out.shape[1] == 11  # slices of 41 frames, no more
    flat = out.flatten(1) + made.offset
    noise = Rng([0]).uniform("token", range(flat.shape[1]))
    done = 0
    for prefix, count, uniforms in seen:
        context = flat[:, max(0, done - 16 * keep) : done]
        assert torch.equal(prefix, torch.cat([torch.zeros(1, 1, dtype=torch.long), context], 1))
        assert torch.equal(uniforms, noise[:, done : done + count])
        done += count
    assert done == flat.shape[1]


def test_all_but_one_slice_is_kept_by_default():
    one, two = system(), system(keep=3, new=1)
    story = resolved(one, 40)
    assert torch.equal(tokens(one, [story])[0], tokens(two, [story])[0])
    assert not torch.equal(tokens(one, [story])[0], tokens(system(keep=1), [story])[0])


@pytest.mark.parametrize(("keep", "new"), [(0, 1), (4, 1), (3, 2), (2, 3), (1, 0), (-1, 1)])
def test_windows_that_do_not_fit_are_refused(keep, new):
    made = system(keep=keep, new=new)
    with pytest.raises(UserError, match=rf"keep={keep} and new={new} must be at least 1 and fit the 4 slices") as e:
        next(iter(made.generate([Story(frames=8)])))
    assert e.value.code == 2


def test_settings_are_chosen_by_name():
    made = system()
    api.configure(made, {"temperature": 1, "keep": 2})
    assert (made.settings.temperature, made.settings.keep, made.settings.top_k) == (1.0, 2, 0)
    with pytest.raises(
        UserError, match=r"settings of tats has no setting 'temprature'; did you mean 'temperature'\?"
    ):
        api.configure(made, {"temprature": 1})
    with pytest.raises(UserError, match="settings of tats: precision must be one of float32, bfloat16, int8"):
        api.configure(made, {"precision": "int4"})
    for wrong in ({"temperature": 0}, {"top_p": 0.0}, {"top_k": -1}):
        with pytest.raises(UserError, match=f"settings of tats: {next(iter(wrong))} is .* but must be"):
            api.configure(made, wrong)


def test_tokens_are_codes_and_differ_between_seeds_not_between_batches():
    made = system(LABELLED)
    stories = [resolved(made, 24, seed=s, timeline=(Entry(label="b"),)) for s in (0, 1)]
    both, _ = tokens(made, stories)
    assert 0 <= int(both.min()) < int(both.max()) < TINY.vqgan.codes
    assert not torch.equal(both[0], both[1])
    for i, story in enumerate(stories):
        assert torch.equal(tokens(made, [story])[0][0], both[i])


def test_a_longer_video_begins_like_a_shorter_one():
    made = system()
    short, _ = tokens(made, [resolved(made, 24)])
    long, _ = tokens(made, [resolved(made, 60)])
    assert torch.equal(long[:, : short.shape[1]], short)


@pytest.mark.parametrize("frames", [1, 4, 16, 17, 33])
def test_enough_slices_are_made_and_no_window_more(frames):
    made = system(keep=2, new=2)
    out, counts = tokens(made, [resolved(made, frames)])
    needed = -(-frames // 4)
    assert out.shape[1] >= needed
    assert out.shape[1] - counts[-1] < needed
    video = torch.cat(list(made.generate([Story(frames=frames)])), 2)
    assert video.shape == (1, 3, frames, 16, 16)


def test_the_frames_are_the_decoded_tokens():
    made = system()
    story = resolved(made, 24)
    out, _ = tokens(made, [story])
    video = torch.cat(list(made.generate([story])), 2)
    assert torch.allclose(video, made.vqgan.detokenize(out)[:, :, :24].clamp(-1, 1), atol=1e-5)


def prefixes(made: TATS, stories: list[Story], monkeypatch) -> list[list[int]]:
    """The class tokens of every window."""
    seen = []
    condition = TATS.condition_tokens

    def watching(self, label, texts=None):
        seen.append(label.tolist())
        return condition(self, label, texts)

    monkeypatch.setattr(TATS, "condition_tokens", watching)
    tokens(made, stories)
    return seen


def test_a_change_of_class_takes_effect_at_the_first_new_frame_of_a_window(monkeypatch):
    """10 fps, 4 frames a slice, one new slice a window: windows begin at frames 0, 16, 20, 24, 28, 32, 36."""
    made = system(LABELLED)
    timeline = (Entry(0.0, label="a"), Entry(2.0, label="c"), Entry(2.9, label="b"))
    story, other = (resolved(made, 40, timeline=timeline[:n]) for n in (3, 1))
    seen = prefixes(made, [story, other], monkeypatch)
    assert seen == [[0, 0], [0, 0], [2, 0], [2, 0], [2, 0], [1, 0], [1, 0]]
    out, _ = tokens(made, [story, other])
    assert torch.equal(tokens(made, [story])[0][0, :5], tokens(made, [other])[0][0, :5])
    assert not torch.equal(tokens(made, [story])[0][0, 5:], tokens(made, [other])[0][0, 5:])
    assert out.shape[1] == 10


@pytest.mark.parametrize("every", [1, 2])
def test_a_cut_begins_a_new_scene(every, monkeypatch):
    """Nothing after it depends on what was before it; it falls on the first slice that is not too early."""
    made = system(replace(LABELLED, every=every))
    first = [Entry(0.0, label="a"), Entry(0.0, label="c")]
    then = Entry(2.1, label="b", cut=True)  # frame 21, so slice 6 of 4 frames
    stories = [resolved(made, 64, timeline=(entry, then)) for entry in first]
    one, other = (tokens(made, [story])[0] for story in stories)
    cut = 6 // every
    assert not torch.equal(one[:, :cut], other[:, :cut])
    assert torch.equal(one[:, cut:], other[:, cut:])
    seen = prefixes(made, stories[:1], monkeypatch)
    assert seen == sorted(seen)
    assert [label for i, label in enumerate(seen) if label not in seen[:i]] == [[0], [1]]
    without = resolved(made, 64, timeline=(first[0], replace(then, cut=False)))
    assert not torch.equal(tokens(made, [without])[0][:, cut:], one[:, cut:])
    video = torch.cat(list(made.generate(stories)), 2)
    assert video.shape[2] == 64


@pytest.mark.parametrize("every", [1, 2])
def test_the_decoder_sees_nothing_across_a_cut(every):
    """Frames before it are those of a video that ends there."""
    made = system(replace(LABELLED, every=every))
    entry = Entry(0.0, label="a")
    cut = resolved(made, 64, timeline=(entry, Entry(2.4, label="b", cut=True)))  # frame 24, slice 6
    other = resolved(made, 64, timeline=(entry, Entry(2.4, label="c", cut=True)))
    one, two = (torch.cat(list(made.generate([story])), 2) for story in (cut, other))
    assert torch.equal(one[:, :, :24], two[:, :, :24])
    assert not torch.equal(one[:, :, 24], two[:, :, 24])
    tokens_after = torch.cat(list(latent_slices_of(made, cut)), 1)[:, 6 // every :]
    if every == 1:
        alone = made.vqgan.detokenize(tokens_after).clamp(-1, 1)
        assert torch.allclose(one[:, :, 24:], alone, atol=1e-5)


def test_no_slice_between_two_scenes_is_a_mixture_of_them():
    made = system(replace(LABELLED, every=2))
    told = [
        resolved(made, 64, timeline=(Entry(0.0, label="a"), Entry(2.1, label=label, cut=True))) for label in "bc"
    ]
    whole = [torch.cat(list(rollout.with_between(made, [s], Rng([0]), latent_slices_of(made, s))), 1) for s in told]
    cut = 6  # of all slices, the third sparse one
    assert torch.equal(whole[0][:, :cut], whole[1][:, :cut])
    assert not torch.equal(whole[0][:, cut:], whole[1][:, cut:])


def latent_slices_of(made: TATS, story: Story):
    return rollout.latent_slices(made, [story], Rng([0]))


def test_stories_made_together_cut_together():
    made = system(LABELLED)
    stories = [resolved(made, 40, timeline=(Entry(start, cut=True),)) for start in (1.0, 2.0)]
    with pytest.raises(UserError, match="must cut at the same times"):
        list(made.generate(stories))


def test_where_a_story_says_nothing_the_drawn_class_stays(monkeypatch):
    made = system(LABELLED)
    drawn = int(rollout._prior_labels(made, Rng([0]))[0])
    told = (drawn + 1) % 3
    story = resolved(made, 28, timeline=(Entry(2.0, label=CLASSES[told]),))
    seen = prefixes(made, [story], monkeypatch)
    assert seen == [[drawn], [drawn], [told], [told]]


def test_drawn_classes_follow_the_training_frequencies():
    made = system(LABELLED, counts=(6, 0, 2))
    counts = Counter(rollout._prior_labels(made, Rng(range(4000))).tolist())
    assert set(counts) == {0, 2}
    assert abs(counts[0] / 4000 - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert torch.equal(rollout._prior_labels(made, Rng([7, 8])), rollout._prior_labels(made, Rng(range(9)))[7:])


def test_a_drawn_class_is_that_of_its_video_not_of_the_batch():
    made = system(LABELLED)
    stories = [resolved(made, 20, seed=s) for s in range(4)]
    both, _ = tokens(made, stories)
    assert torch.equal(tokens(made, stories[2:3])[0][0], both[2])


def test_a_prior_without_classes_takes_no_label():
    made = system()
    assert made.offset == 1
    with pytest.raises(UserError, match="tats cannot be steered by label; conditions it accepts: --first-frames"):
        made.check(Story(frames=4, timeline=(Entry(label="a"),)))


def test_a_prior_on_classes_needs_classes():
    with pytest.raises(UserError, match="needs a library with classes"):
        TATS(LABELLED, ModelInfo(10.0, (16, 16)))


def test_every_window_uses_the_positions_from_zero():
    """A window in the middle is one continuation of [start, kept slices] by a fresh decoder."""
    made = system(keep=2, new=1)
    story = resolved(made, 48)
    out = tokens(made, [story])[0].flatten(1) + made.offset
    prefix = torch.cat([torch.zeros(1, 1, dtype=torch.long), out[:, 16 * 4 : 16 * 6]], 1)
    noise = Rng([0]).uniform("token", range(16 * 6, 16 * 7))
    ids = range(made.offset, made.offset + TINY.vqgan.codes)
    again = generate_tokens(Decoder(made.prior, 1), prefix, 16, noise, SamplingSettings(1.0, 0, 1.0), ids)
    assert torch.equal(again, out[:, 16 * 6 : 16 * 7])


def footage(path, frames: int = 22, fps: float = 10.0, size: int = 16) -> str:
    video.write_video(path, [moving_square(1, frames, size)], fps, crf=5, pixel_format="yuv444p")
    return str(path)


@pytest.mark.parametrize("every", [1, 3])
def test_a_video_goes_on_from_given_frames(tmp_path, every):
    made = system(replace(TINY, every=every))
    file = footage(tmp_path / "a.mp4")
    story = resolved(made, 64, first_frames=file)
    n = {1: 20, 3: 16}[every]  # 22 frames are 5 slices; a sparse prior goes on from the fourth
    assert made.given_frames([story]) == n
    out = torch.cat(list(made.generate([story])), 2)
    assert out.shape[2] == 64
    given = torch.from_numpy(video.read_frames(file, range(n))).permute(3, 0, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(out[0, :, :n], given)
    known = made.vqgan.tokenize(given[None])
    slices = rollout.latent_slices(made, [story], Rng([0]), known)
    sparse = torch.cat(list(slices), 1)
    assert torch.equal(sparse[:, : known[:, ::every].shape[1]], known[:, ::every])
    again = torch.cat(list(made.generate([resolved(made, 64, first_frames=file, seed=1)])), 2)
    assert torch.equal(again[:, :, :n], out[:, :, :n])
    assert not torch.equal(again[:, :, n:], out[:, :, n:])
    other = footage(tmp_path / "b.mp4", 40)
    longer = torch.cat(list(made.generate([resolved(made, 64, first_frames=other)])), 2)
    assert not torch.equal(longer[:, :, 40:], out[:, :, 40:])


def test_the_first_new_slice_follows_the_given_ones():
    made = system(keep=2, new=1)
    known = torch.randint(32, (1, 5, 4, 4), generator=torch.Generator().manual_seed(0))
    out = torch.cat(list(rollout.latent_slices(made, [resolved(made, 40)], Rng([0]), known)), 1).flatten(1)
    prefix = torch.cat([torch.zeros(1, 1, dtype=torch.long), out[:, 48:80] + made.offset], 1)
    noise = Rng([0]).uniform("token", range(80, 96))
    ids = range(made.offset, made.offset + TINY.vqgan.codes)
    again = generate_tokens(Decoder(made.prior, 1), prefix, 16, noise, SamplingSettings(1.0, 0, 1.0), ids)
    assert torch.equal(again, out[:, 80:96] + made.offset)


def test_pictures_other_rates_and_sizes_are_brought_to_the_models(tmp_path):
    made = system()
    picture = tmp_path / "a.png"
    video.write_png(picture, moving_square(1, 1, 24)[0])
    story = resolved(made, 20, first_frames=str(picture))
    out = torch.cat(list(made.generate([story])), 2)
    assert made.given_frames([story]) == 4
    assert (out[:, :, :4] == out[:, :, :1]).all()
    fast = footage(tmp_path / "fast.mp4", 44, fps=20.0, size=32)
    assert made.given_frames([resolved(made, 64, first_frames=fast)]) == 20
    assert api.generate(made, frames=64, first_frames=fast).given == 20


def test_given_frames_that_cannot_be_used_are_refused(tmp_path):
    made = system()
    file = footage(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4 gives 22 frames and the video is to have 22"):
        list(made.generate([Story(frames=22, first_frames=file)]))
    short = footage(tmp_path / "b.mp4", 12)
    with pytest.raises(UserError, match="equally many frames, got 22, 12"):
        list(made.generate([Story(frames=40, first_frames=f) for f in (file, short)]))
    with pytest.raises(UserError, match="give all or none"):
        list(made.generate([Story(frames=40, first_frames=file), Story(frames=40)]))
    with pytest.raises(UserError, match="missing"):
        list(made.generate([Story(frames=40, first_frames=str(tmp_path / "missing.mp4"))]))
