"""Batches for a stage, read ahead by threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.data.batch import Batch, address, to_float
from longtake.data.cache import DerivedCache, FrameCache, SoundCache
from longtake.data.clips import Clip, ClipPicker, Draw, present
from longtake.data.library import Library

Derive = Callable[[Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class _Pending:
    """A batch on its way: clips whose derived tensors are kept need no frames."""

    clips: list[Clip]
    missing: list[int]
    batch: Batch


class Loader:
    """What a stage sees at each step: `{draw name: Batch}`.

    Args:
        library: where from.
        draws: what the stage asks for; a batch size is per process.
        split: "train" or "test".
        seed: of the draws.
        scope: draws of different scopes are independent: what a later stage sees does not repeat an earlier one.
        cache_bytes: budget of the caches of decoded frames, of sound and of what is derived, each.
        workers: reading threads.
        rank, world: this process and how many there are.
        derive: the stage's derivation and the key of what it depends on, or None.
        progress: called with (videos done, videos) while the frame cache is built.

    Raises:
        UserError: the library cannot meet a spec.
    """

    def __init__(
        self,
        library: Library,
        draws: dict[str, Draw],
        split: str = "train",
        seed: int = 0,
        scope: str = "",
        cache_bytes: int = 4 << 30,
        workers: int = 2,
        rank: int = 0,
        world: int = 1,
        derive: tuple[Derive, dict] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        self.library, self.draws, self.rank, self.world = library, draws, rank, world
        self.key, self.in_turn = f"{seed}/{scope}" if scope else seed, split == "test"
        self.pickers = {n: ClipPicker(library, d.spec, split, self.key, f"{split}/{n}") for n, d in draws.items()}
        sizes = {d.spec.size for d in draws.values()}
        self.frames = {size: FrameCache(library, size, cache_bytes, progress) for size in sizes}
        heard = any("audio" in d.spec.conditions for d in draws.values())
        self.sound = SoundCache(library, cache_bytes).sound if heard else None
        self.workers = workers
        self.derive = derive[0] if derive else None
        self.derived: dict[str, DerivedCache] = {}
        if derive:
            for name, draw in draws.items():
                key = {"spec": repr(draw.spec), "split": split, **derive[1]}
                total = self.pickers[name].total if self.pickers[name].countable else 0
                self.derived[name] = DerivedCache(library.path / "cache", key, total, cache_bytes)

    def stream(self, start: int, stop: int) -> Iterator[dict[str, Batch]]:
        """Batches of steps start..stop-1, at most a few read ahead."""
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: list[Future] = []
            step = start
            try:
                while step < stop or ahead:
                    while step < stop and len(ahead) < 2 * self.workers:
                        ahead.append(pool.submit(self._read, step))
                        step += 1
                    yield self._finish(ahead.pop(0).result())
            finally:
                for future in ahead:
                    future.cancel()

    def batches(self, step: int) -> dict[str, Batch]:
        """The batches of one step, now."""
        return self._finish(self._read(step))

    def _read(self, step: int) -> dict[str, _Pending]:
        pending = {}
        for name in present(self.draws, step, self.key, self.in_turn):
            draw, picker = self.draws[name], self.pickers[name]
            ids = picker.ids(step // draw.every, draw.batch, self.rank, self.world)
            clips = [picker.pick(i) for i in ids]
            missing = list(range(len(clips)))
            if self.derive:
                missing = self.derived[name].missing([c.number for c in clips])
            batch = address(self.library, draw.spec, clips, self.sound)
            if missing:
                cache = self.frames[draw.spec.size]
                some = [clips[i] for i in missing]
                batch["frames"] = torch.stack([to_float(cache.frames(c.row, c.indices)) for c in some])
            pending[name] = _Pending(clips, missing, batch)
        return pending

    def _finish(self, pending: dict[str, _Pending]) -> dict[str, Batch]:
        return {name: self._derived(name, p) if self.derive else p.batch for name, p in pending.items()}

    def _derived(self, name: str, pending: _Pending) -> Batch:
        assert self.derive is not None
        batch, clips, missing = pending.batch, pending.clips, pending.missing
        kept = self.derived[name]
        fresh: dict[str, Tensor] = {}
        if missing:
            told = {key: batch[key][missing] for key in ("audio", "states") if key in batch}
            fresh = {k: v.cpu() for k, v in self.derive(Batch(frames=batch["frames"], **told)).items()}
            kept.put([clips[i].number for i in missing], fresh)
            batch.pop("frames")
        have = [i for i in range(len(clips)) if i not in missing]
        old = kept.get([n for i in have if (n := clips[i].number) is not None]) if have else {}
        order = torch.tensor([*missing, *have]).argsort()
        for key in fresh or old:
            rows = torch.cat([part[key] for part in (fresh, old) if part])
            batch[key] = rows[order]
        return batch
