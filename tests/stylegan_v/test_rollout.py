"""Frames at any time, alone or together."""

from dataclasses import replace

import pytest
import torch

from longtake import api
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.story import Entry, Story
from longtake.systems.base import ModelInfo
from longtake.systems.stylegan_v.config import MOCOGAN_SIZES, SIZES
from longtake.systems.stylegan_v.rollout import BLOCK, Film, chunk_frames, class_centre, drawn_labels
from longtake.systems.stylegan_v.system import MoCoGANSG2, StyleGANV

CLASSES = ("left", "right")
INFO = ModelInfo(15.0, (16, 16), CLASSES, (3, 1))
TINY = SIZES["tiny"]
SPACING = TINY.motion.spacing
RECURRENT = replace(TINY, motion=replace(TINY.motion, codes="lstm"))
CONFIGS = {"acyclic": TINY, "lstm": RECURRENT}


def make(config=TINY, cls=StyleGANV, seed=0):
    torch.manual_seed(seed)
    return cls(config, INFO).eval()


@torch.inference_mode()
def video(system, frames=40, seed=1, **story):
    return torch.cat(list(system.generate([Story(frames=frames, seed=seed, **story)])), 2)[0]


@torch.inference_mode()
def at(system, *times, seed=1, label=0):
    film = Film(system, seed)
    return film.frames(torch.tensor(times, dtype=torch.float64), [label] * len(times))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_frame_alone_is_that_of_the_video(name):
    system = make(CONFIGS[name])
    whole = video(system, frames=300)
    assert (whole[:, 1:] - whole[:, :-1]).abs().amax((0, 2, 3)).min() > 1e-3  # every frame differs from the next
    for number in (0, 7, 8, 127, 128, 129, 299):  # tokens and blocks of tokens begin at 8 and at 128
        close(at(system, float(number))[:, 0], whole[:, number])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rate", [5.0, 60.0])
def test_other_rates_show_the_same_moments(name, rate):
    system = make(CONFIGS[name])
    own, other = video(system, frames=120), video(system, frames=120, fps=rate)
    shared = own[:, ::3][:, :40] if rate == 5 else own[:, :30]
    close(other[:, :40] if rate == 5 else other[:, ::4], shared)


def test_any_time_can_come_first():
    system = make()
    system.settings = replace(system.settings, start=90_000.25)
    late = video(system, frames=20)
    close(late[:, 13], at(system, 90_013.25)[:, 0])


@pytest.mark.parametrize("name", CONFIGS)
def test_times_can_come_in_any_order(name):
    system = make(CONFIGS[name])
    ascending = [3.0, 40.5, 130.0, 131.0, 290.0, 301.0]  # of blocks 0, 0, 1, 1, 2, 2
    order = [4, 0, 2, 1, 5, 3]
    close(at(system, *(ascending[i] for i in order)), at(system, *ascending)[:, order])
    close(at(system, 130.0, 3.0, 130.0)[:, 0], at(system, 130.0)[:, 0])


def test_motion_is_continuous_at_tokens_and_blocks():
    system = make()
    for boundary in (SPACING, BLOCK * SPACING):
        made = at(system, boundary - 1e-4, boundary, boundary + 1e-4)
        assert (made[:, 1:] - made[:, :-1]).abs().max() < 1e-3


def test_noise_is_made_for_the_neighbourhood_only(monkeypatch):
    system = make()
    asked = []
    original = Rng.normal
    monkeypatch.setattr(
        Rng, "normal", lambda self, s, i, shape=(): asked.append((s, i)) or original(self, s, i, shape)
    )
    at(system, 9_000_000.0)
    tokens = [i for stream, i in asked if stream == "motion"]
    assert len(tokens) == 1
    assert len(tokens[0]) == BLOCK + 1 + system.generator.motion.reach
    assert tokens[0][0] <= 9_000_000 / SPACING < tokens[0][BLOCK]


def test_only_the_last_blocks_are_kept():
    system = make()
    film = Film(system, 0)
    with torch.inference_mode():
        for start in range(0, 2000, 16):
            film.frames(torch.arange(start, start + 16, dtype=torch.float64), [0] * 16)
            assert len(film.blocks) <= 2


def held(film: Film) -> int:
    """Bytes of all tensors that a film refers to."""
    sizes, todo = {}, [{k: v for k, v in vars(film).items() if k not in ("system", "generator", "settings")}]
    while todo:
        item = todo.pop()
        if isinstance(item, torch.Tensor):
            sizes[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict | list | tuple):
            todo += item.values() if isinstance(item, dict) else item
    return sum(sizes.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_an_hour_holds_no_more_than_a_second(name):
    film = Film(make(CONFIGS[name]), 0)
    sizes = []
    with torch.inference_mode():
        for second in range(0, 3601, 60 if name == "acyclic" else 600):
            for begin in (second * 25.0, second * 25.0 + BLOCK * SPACING):  # and into the next block
                film.frames(begin + torch.arange(2.0, dtype=torch.float64), [0, 0])
            sizes.append(held(film))
    assert sizes[0] > 40_000
    assert max(sizes) == sizes[0]


def test_videos_made_together_are_those_made_alone():
    system = make()
    stories = [Story(frames=20, seed=s) for s in (1, 2)]
    together = torch.cat(list(system.generate(stories)), 2)
    assert torch.equal(together[0], video(system, 20, 1))
    assert torch.equal(together[1], video(system, 20, 2))


def test_motion_and_content_can_be_swapped():
    system = make()
    own = [video(system, seed=s) for s in (1, 2)]
    system.settings = replace(system.settings, motion_seed=2)
    mixed, other = video(system, seed=1), video(system, seed=2)
    close(other, own[1])
    assert all((mixed - whole).abs().max() > 1e-2 for whole in own)


def test_truncation():
    system = make(replace(TINY, condition="label"))
    with torch.no_grad():
        system.generator.mapping.average.normal_()
    free = at(system, 3.0)
    for centre in ("average", "class"):
        system.settings = replace(system.settings, truncation=0.0, truncation_centre=centre)
        system.settings = replace(system.settings, motion_seed=1)
        close(at(system, 3.0, seed=1), at(system, 3.0, seed=2))
    system.settings = replace(system.settings, motion_seed=None, truncation=0.5, truncation_layers=0)
    close(at(system, 3.0), free)
    with torch.inference_mode():
        left, right = (class_centre(system, system.one_hot(torch.tensor([i]))) for i in (0, 1))
    assert (left - right).abs().max() > 1e-2


def test_videos_made_together_are_truncated_to_their_own_class():
    system = make(replace(TINY, condition="label"))
    system.settings = replace(system.settings, truncation=0.3, truncation_centre="class")
    stories = [Story(frames=4, seed=i, timeline=(Entry(label=name),)) for i, name in enumerate(("left", "right"))]
    with torch.inference_mode():
        together = torch.cat(list(system.generate(stories)), 2)
        alone = [torch.cat(list(system.generate([story])), 2)[0] for story in stories]
    close(together, torch.stack(alone))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": float("nan")}, "start is nan but must be between 0"),
        ({"start": 1e19}, "start is 1e"),
        ({"truncation": float("nan")}, "truncation is nan"),
        ({"truncation_layers": -1}, "truncation_layers is -1"),
        ({"truncation": 0.5, "latent": "file"}, "leave truncation at 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        api.configure(make(), settings)


def test_no_frames_between_frames_of_a_recurrent_model():
    system = make(MOCOGAN_SIZES["tiny"], MoCoGANSG2)
    system.settings = replace(system.settings, start=0.5)
    with pytest.raises(UserError, match="no frames between frames"):
        video(system, 4)


@pytest.mark.parametrize("spacing", [10.1, 16.0])
def test_codes_are_continuous_at_tokens_far_from_the_beginning(spacing):
    system = make(replace(TINY, motion=replace(TINY.motion, spacing=spacing)))
    token = 9000 * spacing
    with torch.inference_mode():
        film = Film(system, 0)
        film.enter(0)
        before, after = film.codes(torch.tensor([token - 1e-6, token + 1e-6], dtype=torch.float64))
    assert (after - before).abs().max() < 1e-4


def test_classes_change_with_the_story():
    system = make(replace(TINY, condition="label"))
    told = video(system, 40, timeline=(Entry(0, label="left"), Entry(20 / 15, label="right")))
    close(told[:, :20], video(system, 40, timeline=(Entry(0, label="left"),))[:, :20])
    close(told[:, 20:], video(system, 40, timeline=(Entry(0, label="right"),))[:, 20:])
    assert (told[:, 19] - told[:, 20]).abs().max() > 0.01


def test_classes_are_drawn_as_in_training():
    system = make(replace(TINY, condition="label"))
    close(video(system, 16, seed=4), video(system, 16, seed=4))
    labels = drawn_labels(system, Rng(range(400)))
    assert 0.68 < float((labels == 0).float().mean()) < 0.82


def test_mocogan_goes_on_in_constant_memory_where_it_was():
    system = make(MOCOGAN_SIZES["tiny"], MoCoGANSG2)
    whole = video(system, frames=100)
    close(at(system, 77.0)[:, 0], whole[:, 77])
    film = Film(system, 1)
    with torch.inference_mode():
        later, earlier = film.frames(torch.tensor([77.0]), [0]), film.frames(torch.tensor([5.0]), [0])
    close(later[:, 0], whole[:, 77])
    close(earlier[:, 0], whole[:, 5])
    with pytest.raises(UserError, match="fps only"):
        video(system, fps=30.0)


def test_lower_precision_is_close():
    system = make()
    exact = video(system, 16)
    system.settings = replace(system.settings, precision="bfloat16")
    assert 0 < (video(system, 16) - exact).abs().mean() < 0.02 * exact.abs().mean()
    system.settings = replace(system.settings, precision="float32")
    half = video(system.to("cpu", torch.bfloat16), 16)
    assert 0 < (half - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_pixels_of_a_chunk_are_bounded():
    for device, wanted in (("cpu", [16, 8, 2, 1]), ("cuda", [16, 16, 16, 1])):
        assert [chunk_frames((n, n), torch.device(device)) for n in (16, 64, 128, 1024)] == wanted


def test_settings_that_cannot_be():
    system = make()
    with pytest.raises(UserError, match="start is -1"):
        api.configure(system, {"start": -1})
    api.configure(system, {"latent": "nowhere.safetensors"})
    with pytest.raises(UserError, match="holds no styles"):
        video(system)


def test_labels_need_classes():
    with pytest.raises(UserError, match="needs a library with classes"):
        StyleGANV(replace(TINY, condition="label"), replace(INFO, classes=()))
