import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from goldens import Golden
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.nn.quantize import EMACodebook


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_official_code_over_three_updates(dtype):
    golden = Golden("tats_codebook_ema")
    book = EMACodebook(16, 6)
    book.load_state_dict(
        {
            "embeddings": golden.state["embeddings"],
            "counts": golden.state["N"],
            "sums": golden.state["z_avg"],
            "initialised": torch.tensor(True),
        }
    )
    book.to(dtype).train()
    for step in range(3):
        z = golden.inputs[f"z{step}"].to(dtype).requires_grad_()
        values, indices, loss, perplexity, _ = book(z)
        (values.square().sum() + loss).backward()
        assert torch.equal(indices, golden.out[f"indices{step}"])
        named = {"quantised": values, "commitment": loss, "perplexity": perplexity, "grad_z": z.grad}
        named |= {"embeddings": book.embeddings, "N": book.counts, "z_avg": book.sums}
        for name, ours in named.items():
            golden.check(f"{name}{step}", ours.detach())


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_takes_the_nearest_code(vectors, codes, seed):
    torch.manual_seed(seed)
    book = EMACodebook(codes, 5).eval()
    z = torch.randn(1, 5, vectors)
    q = book(z)
    distance = torch.cdist(z[0].t().double(), book.embeddings.double())
    torch.testing.assert_close(distance.gather(1, q.indices[0, :, None])[:, 0], distance.min(1).values)
    torch.testing.assert_close(q.values, book.lookup(q.indices))
    assert torch.equal(book.nearest(z), q.indices)
    assert 1 - 1e-4 <= float(q.perplexity) <= min(codes, vectors) + 1e-3
    assert float(q.used) == pytest.approx(len(q.indices.unique()) / codes)


def test_eval_mode_changes_nothing():
    book = EMACodebook(8, 4).eval()
    before = copy.deepcopy(book.state_dict())
    book(torch.randn(2, 4, 3, 3))
    assert all(torch.equal(before[k], v) for k, v in book.state_dict().items())


@pytest.mark.parametrize("positions", [4, 40])
def test_the_first_training_batch_becomes_the_codebook(positions):
    """Also with fewer vectors than codes."""
    book = EMACodebook(32, 4)
    z = torch.randn(1, 4, positions) + 10
    generator = torch.Generator().manual_seed(3)
    q = book(z, generator)
    assert bool(book.initialised)
    # Every embedding has moved only 1 % of its way from one of the vectors.
    assert torch.cdist(book.embeddings, z[0].t()).min(1).values.max() < 0.1
    assert float(q.used) > 0.05
    again = EMACodebook(32, 4)
    again(z, torch.Generator().manual_seed(3))
    assert torch.equal(again.embeddings, book.embeddings)


def test_resuming_does_not_draw_a_new_codebook():
    book = EMACodebook(8, 4)
    z = torch.randn(2, 4, 5)
    book(z)
    resumed = EMACodebook(8, 4)
    resumed.load_state_dict(book.state_dict())
    book(z), resumed(z)
    assert torch.equal(book.embeddings, resumed.embeddings)


def test_lookup_ignores_autocast():
    book = EMACodebook(512, 8).eval()
    z = torch.randn(1, 8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        cast = book(z)
    assert cast.values.dtype == torch.float32
    assert torch.equal(cast.indices, book(z).indices)


def test_dead_codes_restart_and_stay_alive():
    torch.manual_seed(0)
    book = EMACodebook(32, 4, restart=0.5)
    book(torch.randn(4, 4, 64))
    away = torch.randn(4, 4, 64) + 100  # the data move; most codes die
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        q = book(away, generator)
    assert float(q.used) > 0.9
    assert torch.cdist(book.embeddings, away.movedim(1, -1).flatten(0, 1)).min(1).values.max() < 2
    frozen = EMACodebook(32, 4)
    torch.manual_seed(0)
    frozen(torch.randn(4, 4, 64))
    for _ in range(200):
        q = frozen(away)
    assert float(q.used) < 0.2


def _train(rank: int, processes: int, file: str, z: torch.Tensor, results: dict) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=processes)
    torch.manual_seed(rank)  # what is drawn must not depend on the global generator
    book = EMACodebook(16, 4, restart=0.9)
    losses = []
    for step, batch in enumerate(z):
        share = batch.chunk(processes)[rank]
        q = book(share, torch.Generator().manual_seed(step + 10 * rank))
        losses.append(q.perplexity)
    results[rank] = (book.state_dict(), torch.stack(losses))
    if processes > 1:
        dist.destroy_process_group()


def test_two_processes_learn_the_codebook_of_one(tmp_path):
    z = torch.randn(6, 4, 4, 9)
    alone: dict = {}
    _train(0, 1, "", z, alone)
    with mp.get_context("spawn").Manager() as manager:
        together = manager.dict()
        mp.start_processes(_train, (2, str(tmp_path / "store"), z, together), nprocs=2, start_method="spawn")
        for rank in range(2):
            state, perplexity = together[rank]
            torch.testing.assert_close(state, alone[0][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(perplexity, alone[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("by", "found"), [("random", False), ("error", True)])
def test_restarts_by_error_find_what_is_rare(by, found):
    """One vector in five hundred is unlike the rest; a codebook of dead codes is to find it."""
    torch.manual_seed(0)
    common = torch.randn(500, 4) * 0.01
    rare = torch.full((1, 4), 5.0)
    vectors = torch.cat([common, rare]).t()[None]
    book = EMACodebook(8, 4, restart=0.01, restart_by=by)
    book.initialised.fill_(True)
    book.embeddings.copy_(torch.randn(8, 4) * 0.01)
    book.embeddings[4:] = -50  # nothing is near these four
    book.counts.fill_(0.001)
    book.sums.copy_(book.embeddings * 0.001)
    book(vectors, torch.Generator().manual_seed(1))
    error = (book.embeddings - rare).norm(dim=1).min()
    assert (float(error) < 0.5) == found
