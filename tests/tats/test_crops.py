"""A prior that sees shifted crops of a slice (the authors' vtokens_pos)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import GOLDEN, lightning
from goldens import Golden, transformer

from longtake.data.batch import Batch
from longtake.errors import UserError
from longtake.nn.transformer import Transformer
from longtake.rollout.engine import Decoder, generate_tokens
from longtake.rollout.rng import Rng
from longtake.rollout.sampling import SamplingSettings
from longtake.story import Entry, Story
from longtake.systems.base import ModelInfo
from longtake.systems.tats.config import SIZES, PriorConfig
from longtake.systems.tats.convert import convert
from longtake.systems.tats.rollout import latent_slices
from longtake.systems.tats.stages import PriorStage
from longtake.systems.tats.system import TATS

TINY = replace(SIZES["tiny"], frames=8, size=(20, 24))  # slices of 5x6 tokens, two a window


def system(crop: tuple[int, int] | None, **changes) -> TATS:
    torch.manual_seed(0)
    prior = PriorConfig(layers=2, heads=2, width=32, crop=crop)
    made = TATS(replace(TINY, prior=prior, **changes), ModelInfo(15.0, (20, 24), ("a", "b"), (1, 1)))
    for network in (made.vqgan, made.prior):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    if crop:
        torch.nn.init.normal_(made.prior.table, std=2)
    return made.eval()


def test_a_crop_of_the_official_table_gives_the_official_logits():
    file = Golden("tats_transformer_vtokens_pos")
    plain, tokens = transformer(file), file.inputs["tokens"]
    (t0, t1), (h0, h1, w0, w1) = file.config["tbox"], file.config["cbox"]
    model = Transformer(replace(plain.config, table=(t1 - t0, 5, 5)))
    table = file.state["vtokens_pos_emb"][0, t0:t1]
    model.load_state_dict(plain.state_dict() | {"table": table})
    places = model.eval().crop_positions((h0, w0), (h1 - h0, w1 - w0))
    file.check("logits", model(tokens, positions=places))
    decoder = Decoder(model, len(tokens))
    for _ in range(2):  # moving twice adds once
        decoder.move(places)
    steps = [decoder.prefill(tokens[:, :1])] + [decoder.extend(tokens[:, i : i + 1]) for i in range(1, 27)]
    file.check("logits", torch.stack(steps, 1))


def test_each_token_is_the_most_likely_one_of_the_crop_that_made_it():
    made = system((3, 4))
    made.settings = replace(made.settings, top_k=1)
    story = made.check(Story(frames=20))
    slices = torch.cat(list(latent_slices(made, [story], Rng([0]))), 1)[0] + made.offset  # (t, 5, 6)
    assert slices.shape[0] >= 5
    assert len(slices.unique()) > 5
    checked = set()
    for row in (0, 1, 2):
        for column in (0, 2):
            for end in range(2, 6):
                window = slices[None, end - 2 : end, row : row + 3, column : column + 4]
                with torch.no_grad():
                    logits, targets = made.predict(
                        torch.zeros(1, 1, dtype=torch.long),
                        slices[None, end - 2 : end],
                        torch.tensor([[row, column]]),
                    )
                assert torch.equal(targets, window.flatten(1))
                best = logits[0, :, made.offset :].argmax(-1).add(made.offset).view(2, 3, 4)
                for t in range(0 if end == 2 else 1, 2):
                    for i in range(3):
                        for j in range(4):
                            place = (end - 2 + t, row + i, column + j)
                            if place not in checked:
                                checked.add(place)
                                assert best[t, i, j] == slices[place], place
    assert len(checked) == 5 * 30


def test_a_crop_of_the_whole_slice_is_no_crop():
    cropped, whole = system((5, 6)), system(None)
    whole.vqgan.load_state_dict(cropped.vqgan.state_dict())
    state = cropped.prior.state_dict()
    table = state.pop("table")
    whole.prior.load_state_dict(state)
    assert table.abs().max() > 0
    stories = [made.check(Story(frames=20)) for made in (cropped, whole)]
    with torch.no_grad():
        whole.prior.positions[:60] += table.flatten(0, 2)
    videos = [
        torch.cat(list(made.generate([story])), 2) for made, story in zip((cropped, whole), stories, strict=True)
    ]
    assert torch.equal(*videos)


class Watching:
    """An engine that keeps the batch it is given."""

    def __init__(self):
        self.rng, self.step, self.device = Rng(["0/prior"]), 0, torch.device("cpu")

    def update(self, optimiser, loss_fn, batch, clip=None):
        self.batch = batch
        return {"loss": float(loss_fn(batch)["loss"].detach())}


def batch(n: int = 8) -> Batch:
    tokens = torch.arange(n)[:, None, None, None].expand(n, 2, 5, 6) % 32
    return Batch(tokens=tokens.int(), id=torch.arange(n), label=torch.arange(n) % 2)


def test_training_sees_every_place():
    stage, engine = PriorStage(system((3, 4))), Watching()
    seen = set()
    for step in range(8):
        clips = Batch(**{**batch(), "id": torch.arange(8) + 8 * step})
        stage.step({"clips": clips}, engine)
        seen |= {tuple(corner) for corner in engine.batch["corner"].tolist()}
    assert seen == {(r, c) for r in range(3) for c in range(3)}
    with torch.no_grad():
        assert stage.validate({"clips": batch()}) == stage.validate({"clips": batch()})


@pytest.mark.parametrize(
    ("crop", "changes", "message"),
    [
        ((6, 4), {}, r"a crop of \(6, 4\) tokens does not fit the 5x6 of a slice"),
        ((0, 4), {}, r"does not fit"),
        ((3, 4), {"every": 2}, r"crops of slices need every: 1"),
    ],
)
def test_what_does_not_go_with_crops_is_refused(crop, changes, message):
    with pytest.raises(UserError, match=message):
        system(crop, **changes)


def test_the_authors_model_of_crops_is_converted(tmp_path):
    case = Golden("tats_transformer_class")
    state = dict(case.state)
    generator = torch.Generator().manual_seed(0)
    assert state["transformer.pos_emb"].shape == (1, 48, 32)  # three slices of 4x4
    state["transformer.vtokens_pos_emb"] = torch.randn(1, 3, 5, 6, 32, generator=generator)
    path = lightning(tmp_path / "x.ckpt", state, n_head=2, cond_stage_key="label")
    made: Any = convert([GOLDEN / "tats_vqgan_for_transformer_tiny.ckpt", path], fps=10.0)
    assert (made.crop, made.config.grid) == ((4, 4), (3, 5, 6))
    assert torch.equal(made.prior.table, state["transformer.vtokens_pos_emb"][0])
    video = torch.cat(list(made.generate([Story(frames=12, timeline=(Entry(label="1"),))])), 2)
    assert video.shape == (1, 3, 12, 20, 24)


def test_tokens_that_are_known_are_kept_and_seen():
    made = system(None)
    decoder, prefix = Decoder(made.prior, 1), torch.zeros(1, 1, dtype=torch.long)
    free = generate_tokens(decoder, prefix, 6, torch.full((1, 6), 0.5), SamplingSettings())
    known = torch.full((1, 6), -1)
    known[0, 2] = (free[0, 2] + 1) % 33
    bound = generate_tokens(decoder, prefix, 6, torch.full((1, 6), 0.5), SamplingSettings(), None, known)
    assert bound[0, 2] == known[0, 2]
    assert torch.equal(bound[:, :2], free[:, :2])
    again = generate_tokens(
        decoder, torch.cat([prefix, bound[:, :3]], 1), 3, torch.full((1, 3), 0.5), SamplingSettings()
    )
    assert torch.equal(again, bound[:, 3:])
