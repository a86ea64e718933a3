"""One run of a recipe: build or take up a system, train its stages in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from lightning_fabric import Fabric
from rich.console import Console

from longtake.data.batch import to_device
from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.errors import UserError
from longtake.files import write_text
from longtake.nn.distributed import all_reduce_sum
from longtake.rollout.memory import kept_allocations
from longtake.systems import folder as model_folder
from longtake.systems import system_class
from longtake.systems.base import ModelInfo, Stage, Trainable
from longtake.train import checkpoint, sharding
from longtake.train.engine import make_fabric
from longtake.train.evaluation import TrainingEvaluation
from longtake.train.recipe import Recipe, read_recipe
from longtake.train.stage import StageRun


def build(recipe: Recipe, library: Library) -> Trainable:
    """The system of a recipe, freshly initialised from its seed and then from `init`."""
    torch.manual_seed(recipe.seed)
    reading = system_class(recipe.system).reads_text
    tokenizers = [model_folder.read_tokenizer(source) for name, source in recipe.init.items() if name in reading]
    system = _fresh(recipe, library, next(filter(None, tokenizers), ""))
    for name, source in recipe.init.items():
        if name not in system.networks:
            known = ", ".join(system.networks)
            raise UserError(
                f"--init {name}={source}: {recipe.system} has no network {name!r}; it has {known}", code=2
            )
        path = model_folder.find(source)
        model_folder.load_network(system, name, model_folder.read_state(path), path)
    return system


def _fresh(recipe: Recipe, library: Library, tokenizer: str) -> Trainable:
    """The system of a recipe; texts are read by `tokenizer`, where there is one already."""
    cls, config = system_class(recipe.system), recipe.config
    info = replace(ModelInfo.of(library, config.size), tokenizer=tokenizer)
    return cls(config, cls.learn_info(config, info, library))


def pending_stages(system: Trainable) -> list[Stage]:
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
        self.fabric: Fabric = make_fabric(self.settings.precision, device, self.settings.shard)
        self.fabric.launch()
        self.folder = Path(recipe.output)
        self.library = Library(recipe.data)
        self.first = self.fabric.global_rank == 0
        if self.settings.precision == "bf16" and self.fabric.strategy.precision.precision == "32-true":
            self.tell("this processor has no bfloat16 arithmetic, so training runs in 32 bits")
        self.stopped, self.stop_code = False, 1

    def run(self) -> Path:
        """Train every stage; returns the model folder."""
        kept_allocations()
        resume = self._resume_state()
        system = build(self.recipe, self.library) if resume is None else self._restored(resume)
        stages = pending_stages(system)
        for stage in stages:  # a spec that the library cannot meet fails before anything is trained
            self.check(stage)
        evaluation = self._evaluation(system)
        self._prepare_folder()
        if not stages:  # every network comes from `init`
            self.export(system)
        begin = resume["stage"] if resume else 0
        previous = self._catch_signals()
        try:
            offset = sum(stage.steps for stage in stages[:begin])
            for number in range(begin, len(stages)):
                state = resume if resume and number == begin else None
                last = number + 1 == len(stages)
                StageRun(self, system, stages[number], number, offset, state, evaluation if last else None).train()
                offset += stages[number].steps
                if self.agreed_stop() and number + 1 < len(stages):
                    name = stages[number].name
                    text = f"stopped at the end of {name}; the same command goes on from here"
                    raise UserError(text, code=self.stop_code)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        self.tell(f"done: the model is in {self.folder}")
        return self.folder

    def _evaluation(self, system: Trainable) -> TrainingEvaluation | None:
        settings = self.settings.evaluation
        if settings.every is None:
            return None
        evaluation = TrainingEvaluation(settings, system, self.library, self.folder, self.fabric)
        if not evaluation.fits:
            self.tell(f"{evaluation.extractor.name} was trained on other classes: its distances say little here")
        return evaluation

    def _catch_signals(self) -> dict:
        """SIGTERM and the first Ctrl-C end the run at the next step, with a checkpoint; returns old handlers."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def _stop(self, number: int, _frame) -> None:
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped, self.stop_code = True, 128 + number

    def agreed_stop(self) -> bool:
        """Whether any process was told to stop: all do so at the same step, or the others would wait for it."""
        if self.fabric.world_size > 1:
            told = torch.tensor(float(self.stopped), device=self.fabric.device)
            self.stopped = bool(all_reduce_sum(told) > 0)
        return self.stopped

    def _prepare_folder(self) -> None:
        if not self.first:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "recipe.yaml", yaml.safe_dump(self.recipe.to_dict(), sort_keys=False))
        except OSError as error:
            why = f"cannot write the run to {self.folder}: {error.strerror}"
            raise UserError(f"{why}; choose another --output") from None

    def _resume_state(self) -> dict | None:
        """The newest checkpoint's state, if it belongs to this recipe."""
        found = checkpoint.latest(self.folder / "checkpoints")
        if found is None:
            return None
        before = read_recipe(self.folder / "recipe.yaml").to_dict()  # fills in options younger than the run
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
        self.tell(f"going on from {found.name} in {self.folder}")
        return state

    def _restored(self, state: dict) -> Trainable:
        system = _fresh(self.recipe, self.library, model_folder.read_tokenizer(self.folder))
        for name, network in system.networks.items():
            network.load_state_dict(state["networks"][name])
        return system

    def check(self, stage: Stage) -> None:
        """The library must meet what a stage asks for.

        Raises:
            UserError: it does not; the message names what is missing.
        """
        parts = self.settings.accumulate
        for draw in stage.clips.values():
            if draw.batch % parts:
                text = f"loop.accumulate={parts} does not divide the batch of {draw.batch} in stage {stage.name}"
                raise UserError(f"{text}; choose a divisor of it", code=2)
        Loader(self.library, stage.clips, "train", self.recipe.seed, cache_bytes=0)

    def cut(self, system: Trainable, stage: Stage) -> bool:
        """Cut the networks of a stage over the processes, where that is asked for; whether any now is."""
        if not self.settings.shard or self.fabric.world_size == 1:
            return False
        for name in stage.shards:
            network = system.networks[name]
            if not any(map(sharding.is_cut, network.parameters())):  # by an earlier stage
                self.fabric.strategy.setup_module(network)
        return any(sharding.is_cut(p) for net in system.networks.values() for p in net.parameters())

    def loader(self, stage: Stage, system: Trainable, split: str) -> Loader:
        """The stage's batches; the first process fills the frame cache while the others wait."""
        derive = None
        if stage.derive:
            used = {f"{n}.{k}": v for n in stage.frozen for k, v in system.networks[n].state_dict().items()}
            key = {"library": self.library.hash, "weights": model_folder.weights_hash(used)}
            key["what"] = stage.derive_key or stage.name
            derive = (self._on_device(stage.derive), key)
        if not self.first:
            self.fabric.barrier()
        try:
            return Loader(
                self.library,
                stage.clips,
                split,
                self.recipe.seed,
                scope=stage.name if split == "train" else "",
                cache_bytes=int(self.settings.cache_gb * 2**30),
                workers=self.settings.workers,
                rank=self.fabric.global_rank,
                world=self.fabric.world_size,
                derive=derive,
                progress=self._decoding,
            )
        finally:
            if self.first:
                self.fabric.barrier()

    def tell(self, text: str) -> None:
        """One line to the terminal, from the first process."""
        if self.first:
            self.console.print(text, soft_wrap=True, highlight=False)

    def _decoding(self, done: int, total: int) -> None:
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            self.tell(f"decoding the library: {done}/{total} videos")

    def export(self, system: Trainable) -> None:
        """Write the model folder; if weights are cut over processes, every one must take part."""
        state = model_folder.inference_state(system)
        if not self.first:
            return
        card = (
            f"# {self.recipe.system} {self.recipe.size}\n\nTrained by longtake; recipe.yaml beside this file is "
            f"the whole recipe, log.jsonl the whole log.\n\nLibrary: `{self.library.hash}`\n"
        )
        model_folder.save(system, self.folder, card, state=state)

    def _on_device(self, derive: Callable) -> Callable:
        def derived(batch):
            with torch.no_grad():
                return derive(to_device(batch, self.fabric.device))

        return derived


def _difference(before, now, path: str) -> str:
    """The first setting that differs, as `path: before, now after`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{path}.{key}")
    return f"{path} was {before!r} and is now {now!r}"
