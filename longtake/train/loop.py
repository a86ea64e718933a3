"""The training loop. It knows stages, nothing of what they train."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from lightning_fabric import Fabric
from rich.console import Console

from longtake.config import read_yaml
from longtake.data.batch import to_device
from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.errors import UserError
from longtake.nn.distributed import all_reduce_sum
from longtake.systems import folder as model_folder
from longtake.systems import system_class
from longtake.systems.base import ModelInfo, Stage, System
from longtake.train import checkpoint, health
from longtake.train.engine import FabricEngine, make_fabric
from longtake.train.log import Log, progress_bar
from longtake.train.recipe import Recipe


def build(recipe: Recipe, library: Library) -> System:
    """The system of a recipe, freshly initialised from its seed and then from `init`."""
    cls = system_class(recipe.system)
    torch.manual_seed(recipe.seed)
    system = cls(recipe.config, ModelInfo.of(library, recipe.config.size))
    for name, source in recipe.init.items():
        if name not in system.networks:
            known = ", ".join(system.networks)
            raise UserError(
                f"--init {name}={source}: {recipe.system} has no network {name!r}; it has {known}", code=2
            )
        path = model_folder.find(source)
        model_folder.load_network(system, name, model_folder.read_state(path), path)
    return system


def pending_stages(system: System, recipe: Recipe) -> list[Stage]:
    """Stages that have something to train: a stage of 0 steps is left out (its network comes from `init`)."""
    return [stage for stage in system.stages() if stage.steps > 0]


class Trainer:
    """One run of a recipe. Running it again goes on where the last whole checkpoint stands."""

    def __init__(self, recipe: Recipe, device: str = "auto", console: Console | None = None):
        self.recipe, self.settings = recipe, recipe.loop
        self.console = console or Console(stderr=True)
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.fabric: Fabric = make_fabric(self.settings.precision, device)
        self.fabric.launch()
        self.folder = Path(recipe.output)
        self.library = Library(recipe.data)
        self.first = self.fabric.global_rank == 0
        self.stopped = False

    def run(self) -> Path:
        """Train every stage; returns the model folder."""
        resume = self._resume_state()
        system = build(self.recipe, self.library) if resume is None else self._restored(resume)
        stages = pending_stages(system, self.recipe)
        for stage in stages:  # a spec that the library cannot meet fails before anything is trained
            self._loader(stage, system, "train", cheap=True)
        self._prepare_folder()
        begin = resume["stage"] if resume else 0
        previous = signal.signal(signal.SIGTERM, self._stop) if self._main_thread() else None
        try:
            offset = sum(stage.steps for stage in stages[:begin])
            for number in range(begin, len(stages)):
                state = resume if resume and number == begin else None
                self._run_stage(system, stages[number], number, offset, state)
                offset += stages[number].steps
                if self._agreed_stop() and number + 1 < len(stages):
                    name = stages[number].name
                    raise UserError(f"stopped at the end of {name}; the same command goes on from here")
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
        if self.first:
            self.console.print(f"done: the model is in {self.folder}", soft_wrap=True)
        return self.folder

    def _stop(self, *_) -> None:
        self.stopped = True

    def _agreed_stop(self) -> bool:
        """Whether any process was told to stop: all do so at the same step, or the others would wait for it."""
        if self.fabric.world_size > 1:
            told = torch.tensor(float(self.stopped), device=self.fabric.device)
            self.stopped = bool(all_reduce_sum(told) > 0)
        return self.stopped

    @staticmethod
    def _main_thread() -> bool:
        import threading

        return threading.current_thread() is threading.main_thread()

    def _prepare_folder(self) -> None:
        if not self.first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / "recipe.yaml"
        partial = record.with_name(".recipe.yaml.partial")
        partial.write_text(yaml.safe_dump(self.recipe.to_dict(), sort_keys=False))
        partial.replace(record)

    def _resume_state(self) -> dict | None:
        """The newest checkpoint's state, if it belongs to this recipe."""
        found = checkpoint.latest(self.folder / "checkpoints")
        if found is None:
            return None
        before = read_yaml((self.folder / "recipe.yaml").read_text(), str(self.folder / "recipe.yaml"))
        now = self.recipe.to_dict()
        for key in ("system", "config", "seed"):
            if before[key] != now[key]:
                what = _difference(before[key], now[key], key)
                raise UserError(
                    f"{self.folder} holds a run of another recipe ({what}); choose another --output or remove it"
                )
        state = checkpoint.read(found)
        if state["library"] != self.library.hash:
            raise UserError(
                f"{self.folder} was trained on another library than {self.library.path}; choose another --output"
            )
        if self.first:
            self.console.print(f"going on from {found.name} in {self.folder}", soft_wrap=True)
        return state

    def _restored(self, state: dict) -> System:
        system = system_class(self.recipe.system)(
            self.recipe.config, ModelInfo.of(self.library, self.recipe.config.size)
        )
        for name, network in system.networks.items():
            network.load_state_dict(state["networks"][name])
        return system

    def _loader(self, stage: Stage, system: System, split: str, cheap: bool = False) -> Loader:
        """The stage's batches; `cheap` only checks that the library can meet its draws."""
        derive = None
        if stage.derive and not cheap:
            used = {f"{n}.{k}": v for n in stage.frozen for k, v in system.networks[n].state_dict().items()}
            key = {"library": self.library.hash, "weights": model_folder.weights_hash(used), "stage": stage.name}
            derive = (self._on_device(stage.derive), key)
        return Loader(
            self.library,
            stage.clips,
            split,
            self.recipe.seed,
            cache_bytes=0 if cheap else int(self.settings.cache_gb * 2**30),
            workers=self.settings.workers,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            derive=derive,
        )

    def _on_device(self, derive: Callable) -> Callable:
        def derived(batch):
            with torch.no_grad():
                return derive(to_device(batch, self.fabric.device))

        return derived

    def _run_stage(self, system: System, stage: Stage, number: int, offset: int, resume: dict | None) -> None:
        for name, network in system.networks.items():
            network.to(self.fabric.device).requires_grad_(name in stage.trains).train(name in stage.trains)
        engine = FabricEngine(self.fabric, system.networks, stage, self.settings.accumulate, self.recipe.seed)
        start, best = 0, None
        if resume and resume["step"]:
            start, best = resume["step"], resume["best"]
            _load_training(engine, stage, resume)
        loader = self._loader(stage, system, "train")
        held_out = None
        if self.library.split("test"):
            held_out = self._held_out(stage, system)
        log = Log(self.folder, stage.name, offset, start, self.library.fps, self.first)
        saved = f"{number}-{start:08d}-{stage.name}" if start else "none yet"
        clock, seen = time.monotonic(), start
        with progress_bar(self.console, self.first) as bar:
            task = bar.add_task(stage.name, total=stage.steps, completed=start)
            for step, batches in enumerate(loader.stream(start, stage.steps), start):
                if step == start:
                    for name, batch in batches.items():
                        health.check_batch(name, batch)
                engine.begin(step)
                logs = stage.step(batches, engine)
                done, stopped = step + 1, self._agreed_stop()
                bar.update(task, completed=done)
                if done % self.settings.log_every == 0 or done == stage.steps or stopped:
                    logs = engine.mean(logs)
                    health.check_finite(logs, stage.name, done, saved)
                    rate, clock, seen = (done - seen) / (time.monotonic() - clock), time.monotonic(), done
                    log.figures(done, {**logs, "updates_per_second": rate})
                    if self.first and not bar.live.is_started or self.first and not self.console.is_terminal:
                        left = (stage.steps - done) / rate / 60
                        self.console.print(
                            f"{stage.name} {done}/{stage.steps} | {health.line(logs)} | {rate:.2f}/s, {left:.0f} min left",
                            soft_wrap=True,
                            highlight=False,
                        )
                    elif self.first:
                        bar.update(task, description=f"{stage.name} {health.line(logs)}")
                due = done % self.settings.validate_every == 0 or done == stage.steps
                if due and held_out:
                    figures = self._validate(engine, stage, held_out)
                    health.check_finite(figures, stage.name, done, saved)
                    log.figures(done, figures)
                    if self.first and not self.console.is_terminal:
                        text = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
                        self.console.print(f"{stage.name} {done} validation: {text}", highlight=False)
                    if stage.best_by and (best is None or figures[stage.best_by] < best):
                        best = figures[stage.best_by]
                        self._write_best(engine, system, stage)
                if held_out and (done % self.settings.preview_every == 0 or done == stage.steps):
                    self._preview(engine, stage, held_out, log, done)
                if done < stage.steps and (done % self.settings.checkpoint_every == 0 or stopped):
                    health.check_finite(engine.mean(logs), stage.name, done, saved)
                    saved = self._save(system, stage, engine, number, done, best)
                if stopped and done < stage.steps:
                    log.close()
                    raise UserError(f"stopped at step {done} of {stage.name}; the same command goes on from here")
        log.close()
        self._finish(system, stage, engine, number)

    def _held_out(self, stage: Stage, system: System) -> Loader | None:
        """The test split's batches, or None when it has no video long enough."""
        try:
            return self._loader(stage, system, "test")
        except UserError:
            return None

    def _validate(self, engine: FabricEngine, stage: Stage, loader: Loader) -> dict[str, float]:
        """Mean figures over the same held-out batches each time."""
        totals: dict[str, list[float]] = {}
        with self._evaluating(engine, stage):
            for batches in loader.stream(0, self.settings.validate_batches):
                moved = {n: to_device(b, self.fabric.device) for n, b in batches.items()}
                with self.fabric.autocast():
                    figures = stage.validate(moved)
                for key, value in figures.items():
                    totals.setdefault(key, []).append(float(value))
        return engine.mean({key: sum(v) / len(v) for key, v in totals.items()})

    def _preview(self, engine: FabricEngine, stage: Stage, loader: Loader, log: Log, step: int) -> None:
        with self._evaluating(engine, stage):
            batches = {n: to_device(b, self.fabric.device) for n, b in loader.batches(0).items()}
            clip = stage.preview(batches)
        if clip is not None:
            log.preview(step, clip)

    def _evaluating(self, engine: FabricEngine, stage: Stage):
        """Evaluation mode, averaged weights, no gradients; all undone afterwards."""
        from contextlib import ExitStack, contextmanager

        @contextmanager
        def block():
            with ExitStack() as stack:
                stack.enter_context(engine.averaged())
                stack.enter_context(torch.no_grad())
                for network in engine.networks.values():
                    network.eval()
                yield
            for network in engine.networks.values():
                network.train()

        return block()

    def _save(self, system: System, stage: Stage, engine: FabricEngine, number: int, step: int, best) -> str:
        """A checkpoint, and the model folder as it stands."""
        name = f"{number}-{step:08d}-{stage.name}"
        if self.first:
            state = {
                "stage": number,
                "step": step,
                "best": best,
                "library": self.library.hash,
                "networks": {n: net.state_dict() for n, net in system.networks.items()},
                "optimisers": {n: o.state_dict() for n, o in engine.optimisers.items()},
                "stage_state": stage.state_dict(),
                "ema": {n: net.state_dict() for n, net in engine.ema.averaged.items()} if engine.ema else None,
            }
            checkpoint.write(self.folder / "checkpoints", name, state, self.settings.keep)
            with engine.averaged():
                self._export(system)
        self.fabric.barrier()
        return name

    def _export(self, system: System) -> None:
        card = (
            f"# {self.recipe.system} {self.recipe.size}\n\nTrained by longtake; recipe.yaml beside this file is the "
            f"whole recipe, log.jsonl the whole log.\n\nLibrary: `{self.library.hash}`\n"
        )
        model_folder.save(system, self.folder, card)

    def _best_file(self, stage: Stage) -> Path:
        return self.folder / "checkpoints" / f"best-{stage.name}.safetensors"

    def _write_best(self, engine: FabricEngine, system: System, stage: Stage) -> None:
        if self.first:
            with engine.averaged():
                state = {f"{n}.{k}": v for n in stage.trains for k, v in system.networks[n].state_dict().items()}
                self._best_file(stage).parent.mkdir(parents=True, exist_ok=True)
                checkpoint.write_tensors(self._best_file(stage), state)

    def _finish(self, system: System, stage: Stage, engine: FabricEngine, number: int) -> None:
        """The stage's averaged or best weights become the system's; the next stage starts from them."""
        self.fabric.barrier()
        if stage.best_by and self._best_file(stage).exists():
            from safetensors.torch import load_file

            state = load_file(self._best_file(stage))
            for name in stage.trains:
                model_folder.load_network(system, name, state, self._best_file(stage))
        elif engine.ema:
            for name in stage.trains:
                system.networks[name].load_state_dict(engine.ema.averaged[name].state_dict())
        if self.first:
            state = {
                "stage": number + 1,
                "step": 0,
                "best": None,
                "library": self.library.hash,
                "networks": {n: net.state_dict() for n, net in system.networks.items()},
            }
            self._export(system)  # before the checkpoint that says there is nothing left to do
            checkpoint.write(self.folder / "checkpoints", f"{number + 1}-{0:08d}-start", state, self.settings.keep)
        self.fabric.barrier()


def _load_training(engine: FabricEngine, stage: Stage, state: dict) -> None:
    """Put back what belongs to the middle of a stage."""
    for name, optimiser in engine.optimisers.items():
        optimiser.load_state_dict(state["optimisers"][name])
    stage.load_state_dict(state["stage_state"])
    if engine.ema:
        for name, network in engine.ema.averaged.items():
            network.load_state_dict(state["ema"][name])


def _difference(before, now, path: str) -> str:
    """The first setting that differs, as `path: before, now after`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{path}.{key}")
    return f"{path} was {before!r} and is now {now!r}"
