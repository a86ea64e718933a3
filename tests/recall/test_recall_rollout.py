"""Rollouts: which clips are encoded, with which noise, and what of them is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import moving_square
from recall_parts import INFO, made

from longtake import api
from longtake.data import video
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.rollout.source import SourceVideo
from longtake.story import Entry, Story
from longtake.systems import folder
from longtake.systems.recall.latents import Codes
from longtake.systems.recall.planner import MixedPlan


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "source.mp4"
    video.write_video(path, [moving_square(3, 45)], 15.0)
    return path


def told(system, frames: int, source, **more) -> Story:
    kind = "source_video" if "source_video" in system.requires else "first_frames"
    return Story(frames=frames, **{kind: str(source)}, **more)


def rolled(system, story: Story, **settings) -> torch.Tensor:
    return torch.cat(list(api.configure(system, settings).generate([story])), 2)


def frames_of(source, system) -> torch.Tensor:
    story = Story(frames=1, fps=15.0, source_video=str(source))
    return SourceVideo(story, system.config.size).read(0, 45)[None]


def noise(system, number: int, candidates: int = 1, seed: int = 0) -> Codes:
    codes = system.config.generator
    content = Rng([seed]).normal("content", number, (candidates, codes.content))[0]
    motion = Rng([seed]).normal("motion", number, (candidates, 1, codes.motion))[0]
    return Codes(content, motion.transpose(1, 2))


@torch.no_grad()
def test_r2_shows_half_of_each_clip_and_all_of_the_last(source):
    """Algorithm 7: 45 frames hold 4 clips, which make 40 frames."""
    system = made("r2")
    frames = frames_of(source, system)
    clips = [system.decode(system.encode(frames[:, :, 8 * j : 8 * j + 16]).at(noise(system, j))) for j in range(4)]
    expected = torch.cat([*(c[:, :, :8] for c in clips), clips[-1][:, :, 8:]], 2)
    out = rolled(system, told(system, 40, source))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(rolled(system, told(system, 13, source)), expected[:, :, :13])
    with pytest.raises(UserError, match="has 45 frames, of which r2 can re-create 40"):
        system.generate([told(system, 41, source)])


@torch.no_grad()
def test_the_mean_needs_no_noise(source):
    system = made("r2")
    clip = frames_of(source, system)[:, :, :16]
    expected = system.decode(system.encode(clip).mean())[:, :, :8]
    torch.testing.assert_close(rolled(system, told(system, 8, source, seed=5), latent="mean"), expected)


@torch.no_grad()
def test_rejection_asks_the_discriminator_at_every_join(source):
    """Algorithm 8."""
    system = made("r2-improved")
    assert system.settings.candidates == 20
    critic, frames, shown, before = system.networks["video_discriminator"], frames_of(source, system), [], None
    for j in range(4):
        space = system.encode(frames[:, :, 8 * j : 8 * j + 16])
        clips = system.decode(space.at(noise(system, j, 5)))
        seen = clips if before is None else torch.cat([before.expand(5, -1, -1, -1, -1), clips[:, :, :8]], 2)
        best = clips[critic(seen).argmax()][None]
        before = best[:, :, :8]
        shown.append(before if j < 3 else best)
    out = rolled(system, told(system, 40, source), candidates=5)
    torch.testing.assert_close(out, torch.cat(shown, 2))
    assert not torch.equal(out, rolled(system, told(system, 40, source), candidates=1))


def test_a_source_is_read_a_clip_at_a_time(source, monkeypatch):
    system, asked = made("r2"), []
    read = SourceVideo.read

    def watching(self, start, stop):
        asked.append((start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(SourceVideo, "read", watching)
    chunks = system.generate([told(system, 40, source)])
    next(chunks)
    assert asked == [(0, 16)]
    assert sum(c.shape[2] for c in chunks) == 32
    assert asked == [(0, 16), (8, 24), (16, 32), (24, 40)]


def test_a_source_shorter_than_a_clip_is_refused(tmp_path):
    video.write_video(tmp_path / "short.mp4", [moving_square(3, 12)], 15.0)
    for name in ("r2", "lencgan", "encgan3"):
        system = made(name)
        with pytest.raises(UserError, match=f"has 12 frames and {name} encodes 16 at a time"):
            system.generate([Story(frames=8, source_video=str(tmp_path / "short.mp4"))])
    system = made("r3")
    with pytest.raises(UserError, match="gives 12 frames and r3 goes on from a clip of 16"):
        system.generate([Story(frames=40, first_frames=str(tmp_path / "short.mp4"))])


@torch.no_grad()
def test_encgan3_makes_longer_clips_of_longer_codes():
    """Fig. 3.13."""
    system = made("encgan3")
    out = rolled(system, Story(frames=21))
    content = Rng([0]).normal("content", 0, (1, 8))[0]
    motion = Rng([0]).normal("motion", 0, (1, 3, 4))[0].transpose(1, 2)
    torch.testing.assert_close(out, system.decode(Codes(content, motion))[:, :, :21])
    assert rolled(system, Story(frames=92)).shape[2] == 92
    with pytest.raises(UserError, match="at most 92 frames"):
        system.generate([Story(frames=93)])


@torch.no_grad()
def test_encgan3_from_a_clip(source):
    system = made("encgan3")
    clip = frames_of(source, system)[:, :, :16]
    story = Story(frames=16, source_video=str(source))
    torch.testing.assert_close(rolled(system, story), system.decode(system.encode(clip).at(noise(system, 0))))
    torch.testing.assert_close(rolled(system, story, latent="mean"), system.decode(system.encode(clip).mean()))


@torch.no_grad()
def test_lencgan_passes_states_on_and_shares_a_frame(source):
    """Algorithm 5: clips are frames 0..15 and 15..30."""
    system = made("lencgan")
    assert (system.seam_period, system.seam_first) == (15, 16)
    assert not system.stages()[0].noise, "sections 3.2 and 3.3 leave the noise terms out"
    frames, encoder = frames_of(source, system), system.networks["encoder"]
    first, state = encoder(frames[:, :, :16])
    second, _ = encoder(frames[:, :, 15:31], state)
    clips = [system.decode(space.at(noise(system, j))) for j, space in enumerate((first, second))]
    expected = torch.cat([clips[0], clips[1][:, :, 1:]], 2)
    torch.testing.assert_close(rolled(system, told(system, 31, source)), expected)


@torch.no_grad()
def test_ar2_predicts_from_its_own_clips():
    """Algorithm 10."""
    system = made("ar2")
    clip = system.decode(noise(system, 0))
    shown = [clip[:, :, :8]]
    for j in (1, 2):
        clip = system.decode(system.encode(clip).at(noise(system, j)))
        shown.append(clip[:, :, :8])
    torch.testing.assert_close(rolled(system, Story(frames=24), candidates=1), torch.cat(shown, 2))


@torch.no_grad()
@pytest.mark.parametrize("name", ["ar2", "r3"])
def test_given_frames_come_back_and_their_end_is_made_again(name, source):
    system = made(name)
    story = told(system, 60, source)
    given = frames_of(source, system)
    assert system.given_frames([system.check(story)]) == 37
    assert system.seen_frames([system.check(story)]) == 45, "the end is made again of given frames"
    out = rolled(system, story, candidates=2)
    torch.testing.assert_close(out[:, :, :37], given[:, :, :37])
    assert not torch.allclose(out[:, :, 37:45], given[:, :, 37:])


@torch.no_grad()
def test_r3_goes_on_from_the_clip_that_was_chosen(source):
    """Algorithm 11, with every token predicted by the whole network at once."""
    system = made("r3")
    frames = frames_of(source, system)
    tokens = [system.encode(frames[:, :, i : i + 16]).token() for i in (5, 13, 21, 29)]
    critic, before, shown = system.networks["video_discriminator"], frames[:, :, 29:37], [frames[:, :, :37]]
    for j in (1, 2, 3):
        window = torch.stack(tokens, 1)[:, -system.planner.places :]
        predicted = system.planner.head(system.planner(window))[:, -1]
        clips = system.decode(system.space_of(predicted).at(noise(system, j, 3)))
        best = clips[critic(torch.cat([before.expand(3, -1, -1, -1, -1), clips[:, :, :8]], 2)).argmax()][None]
        before = best[:, :, :8]
        shown.append(before)
        tokens.append(system.encode(best).token())
    out = rolled(system, told(system, 61, source), candidates=3)
    torch.testing.assert_close(out, torch.cat(shown, 2), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_r3_plans_first(source):
    system = made("r3")
    frames = frames_of(source, system)
    tokens = [system.encode(frames[:, :, i : i + 16]).token() for i in (5, 13, 21, 29)]
    shown = [frames[:, :, :37]]
    for _ in range(3):
        window = torch.stack(tokens, 1)[:, -system.planner.places :]
        tokens.append(system.planner.head(system.planner(window))[:, -1])
        shown.append(system.decode(system.space_of(tokens[-1]).mean())[:, :, :8])
    out = rolled(system, told(system, 61, source), rollout="faster", latent="mean")
    torch.testing.assert_close(out, torch.cat(shown, 2), rtol=1e-4, atol=1e-4)


def test_how_many_clips_are_decoded_together_changes_nothing(source, monkeypatch):
    from longtake.systems.recall import rollout

    system = made("r3")
    story = told(system, 120, source)
    one = rolled(system, story, rollout="faster", candidates=2)
    monkeypatch.setattr(rollout, "DECODED", 6)
    torch.testing.assert_close(rolled(system, story, rollout="faster", candidates=2), one)


@pytest.mark.parametrize("name", ["ar2", "r3"])
def test_several_videos_at_once(name, source):
    system = api.configure(made(name), {"candidates": 2})
    stories = [told(system, 56, source, seed=s) for s in (1, 2)]
    together = torch.cat(list(system.generate(stories)), 2)
    for one, story in zip(together, stories, strict=True):
        torch.testing.assert_close(rolled(system, story)[0], one, rtol=1e-4, atol=1e-4)


def test_mixed_sequences_obey_a_label(source):
    base = made("r3").config
    system = made("r3", planner=replace(base.planner, format="mixed"))
    with torch.no_grad():
        system.planner.class_embedding.weight.mul_(100)
    assert system.accepts == {"label"}
    story = told(system, 80, source)
    plain = rolled(system, story, candidates=1)
    named = [rolled(system, story.throughout(label=label), candidates=1) for label in ("a", "b")]
    assert not torch.equal(*named)
    assert any(torch.equal(plain, one) for one in named)  # where none is told, one is drawn
    assert torch.isfinite(plain).all()


def test_mixed_sequences_draw_a_class_where_none_is_told(source):
    """From the training library's frequencies."""
    mixed = replace(made("r3").config.planner, format="mixed")
    for counts, label in (((5, 0), "a"), ((0, 5), "b")):
        system = made("r3", replace(INFO, class_counts=counts), planner=mixed)
        with torch.no_grad():
            system.planner.class_embedding.weight.mul_(100)
        story = told(system, 61, source)
        drawn, named = (rolled(system, s, candidates=1) for s in (story, story.throughout(label=label)))
        assert torch.equal(drawn, named)
    system = made("r3", replace(INFO, classes=(), class_counts=()), planner=mixed)
    assert torch.isfinite(rolled(system, told(system, 61, source), candidates=1)).all()


@pytest.mark.parametrize("rollout", ["robust", "faster"])
def test_mixed_sequences_follow_a_timeline(rollout, source, monkeypatch):
    """Each clip is planned under the class in force at its first frame: 37, 45, 53 ... after 45 given frames."""
    system, labels = made("r3", planner=replace(made("r3").config.planner, format="mixed")), []
    planned = MixedPlan.next

    def watching(self):
        labels.append(self.label)
        return planned(self)

    monkeypatch.setattr(MixedPlan, "next", watching)
    timeline = (Entry(0.0, label="a"), Entry(53 / 15, label="b"), Entry(55 / 15, label="a"))
    rolled(system, told(system, 69, source, timeline=timeline), rollout=rollout, candidates=1)
    assert labels[:4] == [0, 0, 1, 0]


FAMILY = ("encgan3", "lencgan", "r2", "r2-improved", "ar2", "r3")
HALF = [torch.bfloat16, torch.float16]


def some_video(system, source, candidates: int) -> torch.Tensor:
    """A clip, or a few, and those of AR2 and R3 behind 37 given frames. Who cannot choose has no candidates."""
    if system.name == "encgan3":
        return rolled(system, Story(frames=16, source_video=str(source)))
    story = told(system, 61 if system.name in ("ar2", "r3") else 24, source)
    return rolled(system, story, **({"candidates": candidates} if system.rejects else {}))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", FAMILY)
def test_a_model_in_half_precision_makes_nearly_the_same_video(name, dtype, source):
    """Sources, given frames and noise come in 32 bits."""
    system = made(name)
    whole, half = some_video(system, source, 1), some_video(system.to("cpu", dtype), source, 1)
    assert half.dtype == torch.float32
    assert 0 < float((half - whole)[:, :, -16:].abs().mean()) < 0.02


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["r2-improved", "ar2", "r3"])
def test_rejection_in_half_precision(name, dtype, source):
    """Given frames come in 32 bits."""
    system = made(name).to("cpu", dtype)
    frames = 24 if name == "r2-improved" else 53
    assert torch.isfinite(rolled(system, told(system, frames, source), candidates=2)).all()


@pytest.mark.parametrize("dtype", HALF)
def test_mixed_sequences_in_half_precision(dtype, source):
    system = made("r3", planner=replace(made("r3").config.planner, format="mixed")).to("cpu", dtype)
    for kind in ("robust", "faster"):
        out = rolled(system, told(system, 61, source), rollout=kind, candidates=1)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", FAMILY)
def test_a_model_folder_holds_what_its_rollout_asks(name, source, tmp_path):
    """The video discriminator where candidates are judged, nowhere else."""
    system = made(name)
    asked = {"encoder", "generator"} | ({"video_discriminator"} if system.rejects else set())
    assert set(system.inference) == asked | ({"planner"} if name == "r3" else set())
    loaded = api.load(folder.save(system, tmp_path / "model"))
    torch.testing.assert_close(some_video(loaded, source, 2), some_video(system, source, 2))


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_compiled_is_what_a_rollout_calls(name, source, monkeypatch):
    """Networks are compiled as modules and called as such; R3's planner, whose sequences grow, is left as it is."""
    system = made(name)
    names, compiled, called = {id(net): key for key, net in system.networks.items()}, set(), set()

    def watch(network):
        compiled.add(names[id(network)])
        network.register_forward_pre_hook(lambda net, _: called.add(names[id(net)]))

    monkeypatch.setattr(torch.nn.Module, "compile", watch)
    system.compile()
    some_video(system, source, 2)
    assert compiled == called == set(system.inference) - {"planner"}


def test_settings_that_make_no_sense():
    with pytest.raises(UserError, match="candidates is 0"):
        api.configure(made("r2"), {"candidates": 0})


def test_a_shorter_source_beside_a_longer_one(source, tmp_path):
    """Neither video depends on the other's source."""
    short = tmp_path / "short.mp4"
    video.write_video(short, [moving_square(4, 26)], 15.0)
    for system in (made("r2"), made("lencgan")):
        frames = 24 if system.name == "r2" else 16
        stories = [told(system, frames, path, seed=s) for s, path in ((1, source), (2, short))]
        together = torch.cat(list(system.generate(stories)), 2)
        for one, story in zip(together, stories, strict=True):
            torch.testing.assert_close(rolled(system, story)[0], one, rtol=1e-4, atol=1e-4)


def test_the_python_interface_takes_a_source_video(source):
    system = made("r2")
    out = api.generate(system, frames=8, source_video=source, seed=2).tensor()
    assert torch.equal(out, rolled(system, told(system, 8, source, seed=2)))
