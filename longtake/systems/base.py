"""The contracts: what a system is to the training loop, to the rollout and to the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from longtake.data.batch import Batch
from longtake.data.clips import Draw
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.rollout.stream import regroup
from longtake.story import Story

Losses = dict[str, Tensor]
"""Named scalars of one micro-batch; `loss` is the one that is minimised."""


class Engine(Protocol):
    """What a stage sees of the training loop."""

    step: int
    """Updates this stage has made so far."""
    device: torch.device
    rng: Rng
    """Addressed noise of this run: index it by `batch["id"]`."""

    def update(
        self, optimiser: str, loss_fn: Callable[[Batch], Losses], batch: Batch, clip: float | None = None
    ) -> dict[str, float]:
        """One update of one optimiser: micro-batches, autocast, backward, mean over processes, clipping to
        norm `clip`, step, EMA. Only that optimiser's parameters receive gradients. Returns the mean losses
        and `<optimiser>/grad_norm`."""
        ...


@dataclass(frozen=True)
class ModelInfo:
    """What a model knows about the footage it was trained on (kept in config.json)."""

    fps: float
    size: tuple[int, int]
    """(height, width)"""
    classes: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    """Places where a training clip of each class can begin: labels are drawn as often where none is asked for."""
    state_names: tuple[str, ...] = ()
    samples_per_frame: int | None = None
    library: str = ""
    """Hash of the library."""
    tokenizer: str = field(default="", repr=False)
    """Of texts, as JSON (kept in tokenizer.json); empty where the model takes none."""

    @staticmethod
    def of(library: Library, size: tuple[int, int]) -> ModelInfo:
        """What a library tells a model of frame size `size`."""
        head = library.header
        return ModelInfo(
            fps=head.fps,
            size=size,
            classes=head.classes,
            class_counts=class_counts(library, 1),
            state_names=head.state_names,
            samples_per_frame=head.samples_per_frame,
            library=head.hash,
        )


def class_counts(library: Library, frames: int) -> tuple[int, ...]:
    """Of each class, the places in training videos where a clip of so many frames can begin."""
    rows = [library.rows[i] for i in library.split("train")]
    return tuple(
        sum(max(0, row.frames - frames + 1) for row in rows if row.label == name) for name in library.header.classes
    )


class Stage(ABC):
    """One step of a system's training: which networks learn, from which clips, by which updates.

    `step` is the whole update in the paper's order; each optimiser's part goes through `engine.update`.
    """

    name: str
    steps: int
    """Updates until the stage is done."""
    trains: tuple[str, ...]
    """Networks that learn."""
    frozen: tuple[str, ...] = ()
    """Networks that are used as they are."""
    clips: dict[str, Draw]
    best_by: str | None = None
    """A key of `validate`, lower is better: its best weights become the system's; None means the last ones."""
    ema: float | None = None
    """Decay of the averaged weights an update; None means the paper has none."""
    shards: tuple[str, ...] = ()
    """Networks in `trains` whose weights may be cut over processes (FSDP): transformers with `blocks` that the
    stage uses through `forward`, `hidden` and `logits` alone."""
    derive: Callable[[Batch], dict[str, Tensor]] | None = None
    """Replaces `frames` by tensors that the frozen networks make of them, and of `audio` and `states` where the
    clips have them, kept between epochs."""

    derive_key: str = ""
    """What the derived tensors are, beside the frozen networks' weights and the clips; stages with the same share
    what is kept. Empty: the stage's name."""

    @abstractmethod
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimisers by name, over parameters of the networks in `trains`."""

    def schedule(self, step: int) -> float:
        """Factor on every learning rate at a step."""
        return 1.0

    @abstractmethod
    def step(self, batches: dict[str, Batch], engine: Engine) -> dict[str, float]:
        """One whole update; returns what to log."""

    @abstractmethod
    def validate(self, batches: dict[str, Batch]) -> dict[str, float]:
        """Figures on held-out batches, under `no_grad` and with the averaged weights."""

    def preview(self, batches: dict[str, Batch]) -> Tensor | None:
        """A video (3, T, H, W) that shows how far training is, or None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Carried state beyond networks and optimisers: tensors and plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (most stages carry nothing)
        """Take back what `state_dict` gave."""


S = TypeVar("S", bound="System")


class Trainable(ABC):
    """Named networks and the ordered stages that train them."""

    name: ClassVar[str]
    config_class: ClassVar[type]
    sizes: ClassVar[dict[str, Any]]
    """Named configurations: tiny, small, base, paper."""
    reads_text: ClassVar[frozenset[str]] = frozenset()
    """Networks that are tied to the tokenizer of texts: started from another model, they bring its tokenizer."""

    def __init__(self, config: Any, info: ModelInfo):
        self.config, self.info = config, info
        self.networks: dict[str, nn.Module] = {}

    @classmethod
    def learn_info(cls, config: Any, info: ModelInfo, library: Library) -> ModelInfo:
        """What else a model of this configuration must know about a library before it is built (a tokenizer)."""
        return info

    @abstractmethod
    def stages(self) -> list[Stage]:
        """Fresh stages, in order."""

    @property
    def inference(self) -> tuple[str, ...]:
        """Networks that a model folder must hold."""
        return tuple(self.networks)

    def to(self: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
        """Move every network; returns self."""
        for network in self.networks.values():
            network.to(device=device, dtype=dtype)
        return self

    def eval(self: Any) -> Any:
        """Put every network into evaluation mode; returns self."""
        for network in self.networks.values():
            network.eval()
        return self

    @property
    def device(self) -> torch.device:
        return next(next(iter(self.networks.values())).parameters()).device


class System(Trainable):
    """A Trainable that makes videos."""

    accepts: frozenset[str] = frozenset()
    """Conditions that can steer it: label, prompt, audio, states, first_frames, last_frame, and cut, which begins a
    new scene. An instance may accept fewer than its class (a model trained without classes)."""
    requires: frozenset[str] = frozenset()
    """Conditions it cannot do without (R2: source_video; R3: first_frames). An instance may differ."""
    max_frames: ClassVar[int | None] = None
    """Longest video it can make; None means any length."""
    seam_period: int | None = None
    """Frames between the places where a rollout joins its pieces, for the seam metric; None: nowhere."""
    seam_first: int | None = None
    """The frame at which the second piece begins, where that is not `seam_period` (Loong: 65, then every 60)."""
    any_fps: ClassVar[bool] = False
    """Whether it can be sampled at another rate than its own (continuous-time systems)."""
    settings_class: ClassVar[type]
    """Frozen dataclass of what can be chosen at generation time (temperature, top-k ...), all with defaults."""
    settings: Any

    @abstractmethod
    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """Chunks of frames (B, 3, t, H, W), one video a story; at least `story.frames` frames in all.

        The chunks are the system's own; memory stays bounded whatever the length.
        """

    @property
    def codebook_size(self) -> int:
        """Codes of the tokenizer, 0 where there is none."""
        return 0

    def reconstruct(self, clips: Iterable[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Encode and decode successive clips of one video.

        Args:
            clips: (1, 3, frames, H, W) in [-1, 1] each, with the number of frames that are real.

        Yields:
            original, reconstruction (1, 3, frames, H, W), tokens, number of real frames.

        Raises:
            UserError: this system has no tokenizer.
        """
        raise UserError(f"{self.name} has no tokenizer, so it cannot reconstruct a video", code=2)

    def given_frames(self, stories: list[Story]) -> int:
        """How many frames at the beginning of these resolved stories' videos are given, not made."""
        return 0

    def seen_frames(self, stories: list[Story]) -> int:
        """How many frames at the beginning are given, or made again of given ones: metrics leave them out."""
        return self.given_frames(stories)

    def compile(self) -> None:
        """Compile what generation runs through (torch.compile)."""
        for name in self.inference:
            self.networks[name].compile()

    def generate(self, stories: list[Story], chunk: int | None = None) -> Iterator[Tensor]:
        """Stream videos: checks the stories, rolls out, trims to exactly `frames` frames.

        Args:
            stories: one a video, all of the same length.
            chunk: frames a chunk; only regroups, never changes a frame. None keeps the system's own.

        Yields:
            (B, 3, t, H, W) in [-1, 1], on the CPU, float32.

        Raises:
            UserError: a foreign or missing condition, a length or rate this system cannot do.
        """
        stories = [self.check(story) for story in stories]
        frames = stories[0].frames
        assert frames is not None
        if any(story.frames != frames for story in stories):
            raise UserError("stories generated together must have the same length", code=2)
        return self._stream(stories, frames, chunk)

    def _stream(self, stories: list[Story], frames: int, chunk: int | None) -> Iterator[Tensor]:
        self.eval()
        with torch.inference_mode():
            made = self.rollout(stories, Rng([story.seed for story in stories]))
            chunks = (chunk.clamp(-1, 1) for chunk in made)
            yield from regroup(chunks, frames, chunk)

    def check(self, story: Story) -> Story:
        """A resolved story, or the reason why this system cannot tell it."""
        used = story.conditions()
        takes = sorted((self.accepts | self.requires) - {"cut"})  # no option: it stands in stories
        accepted = ", ".join(f"--{name.replace('_', '-')}" for name in takes) or "none"
        for name in sorted(used - self.accepts - self.requires):
            raise UserError(f"{self.name} cannot be steered by {name}; conditions it accepts: {accepted}", code=2)
        for name in sorted(self.requires - used):
            raise UserError(f"{self.name} needs --{name.replace('_', '-')} to start from", code=2)
        story = story.resolve(self.info.fps, self.info.classes)
        if self.max_frames is not None and (story.frames or 0) > self.max_frames:
            raise UserError(f"{self.name} makes at most {self.max_frames} frames; ask for fewer", code=2)
        if story.fps != self.info.fps and not self.any_fps:
            raise UserError(f"{self.name} generates at {self.info.fps:g} fps only; leave --fps out", code=2)
        return story
