"""The training loop of one stage. It knows stages, nothing of what they train."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import torch
from rich.progress import Progress, TaskID
from safetensors.torch import load_file

from longtake.data.batch import to_device
from longtake.data.loader import Loader
from longtake.errors import UserError
from longtake.progress import progress_bar
from longtake.systems import folder as model_folder
from longtake.systems.base import Stage, System, Trainable
from longtake.train import checkpoint, health, sharding
from longtake.train.engine import FabricEngine
from longtake.train.log import Log

if TYPE_CHECKING:
    from longtake.train.evaluation import TrainingEvaluation
    from longtake.train.loop import Trainer


class StageRun:
    """One stage of a run, from a step to its end.

    Args:
        run: the run it belongs to.
        system: whose networks it trains.
        stage: what it trains.
        number: its place among the run's stages.
        offset: updates of the stages before it.
        resume: a checkpoint's state to go on from, or None.
        evaluation: measures generated videos now and then, or None.
    """

    def __init__(
        self,
        run: Trainer,
        system: Trainable,
        stage: Stage,
        number: int,
        offset: int,
        resume: dict | None,
        evaluation: TrainingEvaluation | None = None,
    ):
        self.run, self.system, self.stage, self.number = run, system, stage, number
        self.settings, self.fabric, self.evaluation = run.settings, run.fabric, evaluation
        self.best_by = evaluation.best_by if evaluation and evaluation.best_by else stage.best_by
        for name, network in system.networks.items():
            network.to(run.fabric.device).requires_grad_(name in stage.trains).train(name in stage.trains)
        self.cut = run.cut(system, stage)
        self.engine = FabricEngine(run.fabric, system.networks, stage, self.settings.accumulate, run.recipe.seed)
        self.best_of = f"{self.best_by} of {evaluation}" if evaluation and evaluation.best_by else self.best_by
        self.start, self.best = 0, None
        if resume and resume["step"]:
            self.start = resume["step"]
            if resume.get("best_of", stage.best_by) == self.best_of:  # figures of another kind do not compare
                self.best = resume["best"]
            self._load(resume)
        self.saved = f"{number}-{self.start:08d}-{stage.name}" if self.start else "none yet"
        self.loader = run.loader(stage, system, "train")
        self.held_out = self._held_out()
        self.log = Log(run.folder, stage.name, offset, self.start, run.library.fps, run.first)

    def train(self) -> None:
        """The loop: a step, and what is due after it.

        Raises:
            UserError: the run was told to stop (after a checkpoint), or a figure is not finite.
        """
        stage, engine = self.stage, self.engine
        clock, seen = time.perf_counter(), self.start
        with progress_bar(self.run.console, self.run.first) as bar:
            task = bar.add_task(stage.name, total=stage.steps, completed=self.start)
            for step, batches in enumerate(self.loader.stream(self.start, stage.steps), self.start):
                if step == self.start:
                    for name, batch in batches.items():
                        health.check_batch(name, batch)
                engine.begin(step)
                logs = stage.step(batches, engine)
                done, stopped = step + 1, self.run.agreed_stop()
                last = done == stage.steps
                bar.update(task, completed=done)
                if last or stopped or done % self.settings.log_every == 0:
                    rate = (done - seen) / (time.perf_counter() - clock)
                    clock, seen = time.perf_counter(), done
                    self._report(done, engine.mean(logs), rate, bar, task)
                if last or done % self.settings.validate_every == 0:
                    self._validate(done)
                if self.evaluation and (last or self.evaluation.due(done)):
                    self._evaluate(done)
                if last or done % self.settings.preview_every == 0:
                    self._preview(done)
                if not last and (stopped or done % self.settings.checkpoint_every == 0):
                    health.check_finite(engine.mean(logs), stage.name, done, self.saved)
                    self._save(done)
                if stopped and not last:
                    self.log.close()
                    text = f"stopped at step {done} of {stage.name}; the same command goes on from here"
                    raise UserError(text, code=self.run.stop_code)
        self.log.close()
        self._finish()

    def _report(self, done: int, logs: dict[str, float], rate: float, bar: Progress, task: TaskID) -> None:
        """Figures to the log, one line of them to the terminal."""
        name, console = self.stage.name, self.run.console
        health.check_finite(logs, name, done, self.saved)
        self.log.figures(done, {**logs, "updates_per_second": rate})
        if not self.run.first:
            return
        if console.is_terminal:
            bar.update(task, description=f"{name} {health.line(logs)}")
            return
        left = (self.stage.steps - done) / rate / 60
        told = f"{name} {done}/{self.stage.steps} | {health.line(logs)} | {rate:.2f}/s, {left:.0f} min left"
        console.print(told, soft_wrap=True, highlight=False)

    def _held_out(self) -> Loader | None:
        """The test split's batches, or None when it has no video long enough."""
        if not self.run.library.split("test"):
            return None
        try:
            return self.run.loader(self.stage, self.system, "test")
        except UserError as error:
            self.run.tell(f"no validation: {error}")
            return None

    def _validate(self, done: int) -> None:
        """Mean figures over the same held-out batches each time; the best weights are kept."""
        if self.held_out is None:
            return
        totals: dict[str, list[float]] = {}
        with self._evaluating():
            for batches in self.held_out.stream(0, self.settings.validate_batches):
                moved = {n: to_device(b, self.fabric.device) for n, b in batches.items()}
                with self.fabric.autocast():
                    figures = self.stage.validate(moved)
                for key, value in figures.items():
                    totals.setdefault(key, []).append(float(value))
        self._measured(done, "validation", self.engine.mean({key: sum(v) / len(v) for key, v in totals.items()}))

    def _evaluate(self, done: int) -> None:
        """Figures of videos that the model makes now."""
        assert self.evaluation is not None
        with self._evaluating():
            figures = self.evaluation(cast(System, self.system), f"{self.stage.name}-{done:07d}")
        self._measured(done, "evaluation", self.fabric.broadcast(figures))

    def _measured(self, done: int, what: str, figures: dict[str, float]) -> None:
        """Figures to the log and the terminal; the best weights are kept."""
        health.check_finite(figures, self.stage.name, done, self.saved)
        self.log.figures(done, figures)
        if self.run.first and not self.run.console.is_terminal:
            text = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
            self.run.console.print(f"{self.stage.name} {done} {what}: {text}", soft_wrap=True, highlight=False)
        by = self.best_by
        if by in figures and (self.best is None or figures[by] < self.best):
            self.best = figures[by]
            self._write_best()

    def _preview(self, done: int) -> None:
        if self.held_out is None or self.cut:  # making videos reads whole weights
            return
        with self._evaluating():
            batches = {n: to_device(b, self.fabric.device) for n, b in self.held_out.batches(0).items()}
            clip = self.stage.preview(batches)
        if clip is not None:
            self.log.preview(done, clip)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode, averaged weights, no gradients; all undone afterwards."""
        self.engine.share_buffers()
        with ExitStack() as stack:
            stack.enter_context(self.engine.averaged())
            stack.enter_context(torch.no_grad())
            for network in self.engine.networks.values():
                network.eval()
            yield
        for network in self.engine.networks.values():
            network.train()

    def _save(self, done: int) -> None:
        """A checkpoint, and the model folder as it stands."""
        self.saved = f"{self.number}-{done:08d}-{self.stage.name}"
        self.engine.share_buffers()
        if self.run.first or self.cut:  # to put cut weights together takes every process
            ema = self.engine.ema
            state = sharding.gathered(
                {
                    **self._common(self.number, done),
                    "optimisers": {n: o.state_dict() for n, o in self.engine.optimisers.items()},
                    "scaler": self.fabric.strategy.precision.state_dict(),
                    "stage_state": self.stage.state_dict(),
                    "ema": ema.state_dict() if ema else None,
                }
            )
            if self.run.first:
                checkpoint.write(self.run.folder / "checkpoints", self.saved, state, self.settings.keep)
            with self.engine.averaged():
                self.run.export(self.system)
        self.fabric.barrier()

    def _load(self, state: dict) -> None:
        """Put back what belongs to the middle of a stage."""
        for name, optimiser in self.engine.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
            sharding.cut_moments(optimiser)
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.stage.load_state_dict(state["stage_state"])
        if self.engine.ema:
            self.engine.ema.load_state_dict(state["ema"])

    def _common(self, number: int, step: int) -> dict:
        """What every checkpoint holds."""
        networks = {n: net.state_dict() for n, net in self.system.networks.items()}
        best = self.best if step else None
        state = {"stage": number, "step": step, "best": best, "best_of": self.best_of}
        return {**state, "library": self.run.library.hash, "networks": networks}

    @property
    def _best_file(self):
        return self.run.folder / "checkpoints" / f"best-{self.stage.name}.safetensors"

    def _write_best(self) -> None:
        if self.run.first or self.cut:
            nets = self.system.networks
            with self.engine.averaged():
                state = {f"{n}.{k}": v for n in self.stage.trains for k, v in nets[n].state_dict().items()}
                state = sharding.gathered(state)
            if self.run.first:
                self._best_file.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.write_tensors(self._best_file, state)

    def _finish(self) -> None:
        """The stage's best or averaged weights become the system's; the next stage starts from them."""
        self.engine.share_buffers()
        self.fabric.barrier()
        if self.best_by and self._best_file.exists():
            state = load_file(self._best_file)
            for name in self.stage.trains:
                model_folder.load_network(self.system, name, state, self._best_file)
        elif self.engine.ema:
            for name, state in self.engine.ema.state_dict().items():
                self.system.networks[name].load_state_dict(state)
        if self.run.first or self.cut:
            self.run.export(self.system)  # before the checkpoint that says there is nothing left to do
            state = sharding.gathered(self._common(self.number + 1, 0))
        if self.run.first:
            name = f"{self.number + 1}-{0:08d}-start"
            checkpoint.write(self.run.folder / "checkpoints", name, state, self.settings.keep)
        self.fabric.barrier()
