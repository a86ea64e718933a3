"""Does the condition steer TATS? (paper sections 2.3, 3.2 to 3.4)

Three priors on one VQGAN and one Atari library, each for three seeds: one is told the game, one a caption, and one
hears the sound. What is asked of them:

* prediction: does its own condition make a held-out clip likelier than that of another clip, of the same or of
  another game? (nats a token gained; the sampler has no part in this)
* class, text: is the game that was asked for the one that r3d-atari sees, in frames 48 to 63 of 128?
* story: from frame 64 on another game is asked for, with and without a cut; which is seen in frames 112 to 127?
* text: the time of day in Enduro, read off by the nearest of the mean pictures of real clips with that word
  (its accuracy on held-out real clips stands beside), before and after it changes at frame 64
* text: where the plane, the submarine and the chicken are, read off by a linear map of the picture (its accuracy
  on held-out real frames stands beside), before and after another place is asked for at frame 64: what a caption
  can change within a scene
* sound: is the picture of the game that is heard? And if another clip's sound is played, is it still of the first?

    python experiments/tats_conditions.py --data data/atari32 --output runs/tats-conditions --vqgan runs/vqgan32
    python experiments/tats_conditions.py --output runs/tats-conditions --table

Runs resume; what is done is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from records import once, publish, read
from torch import Tensor

from longtake.config import from_dict
from longtake.data.batch import Batch, to_uint8
from longtake.data.clips import ClipSpec, Draw
from longtake.data.encode import write_audio
from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.real import clip_of
from longtake.story import Entry, Story
from longtake.systems.folder import find, load, read_config
from longtake.systems.tats.config import PriorConfig, PriorStageConfig, SoundConfig, TATSConfig, TextConfig
from longtake.systems.tats.stages import PriorStage
from longtake.systems.tats.system import TATS
from longtake.systems.tats.vqgan import VQGANConfig
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

KINDS = ("label", "text", "audio")
FRAMES, CHANGE, CLIP = 128, 64, 16
SKIES = ("in the sun", "in the snow", "in the evening", "at night", "in the fog")
PLACES = (
    ("riverraid", 0, "the plane flies on over the {} of the river", ("left", "right")),
    ("seaquest", 0, "the submarine cruises in mid-water on the {}", ("left", "right")),
    ("freeway", 1, "the chicken crosses the road {}", ("at the lower kerb", "in the upper lanes")),
)
"""Game, state that tells the place, caption, and the two places."""
SAYS = {
    "boxing": "the white boxer circles in the middle of the ring",
    "enduro": "the racing car drives slowly in the evening",
    "freeway": "the chicken crosses the road",
    "riverraid": "the plane flies on",
    "seaquest": "the submarine cruises",
    "skiing": "the skier glides down",
}
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def config(kind: str, args: argparse.Namespace) -> TATSConfig:
    """A small prior on the given model's VQGAN."""
    raw = read_config(find(args.vqgan))
    start = from_dict(TATSConfig, raw["config"], args.vqgan)
    hearing = VQGANConfig(
        hidden=8, embedding=32, codes=256, compression=(4, 8, 8), channels=1, norm="group", groups=4, restart=0.1
    )
    return replace(
        start,
        prior=PriorConfig(4, 4, 160, dropout=0.1, condition=kind, text=TextConfig(24, 500)),  # type: ignore[arg-type]
        prior_stage=PriorStageConfig(
            args.steps,
            batch=8,
            lr=1e-3,
            warmup=100,
            decay=True,
            clip=1.0,
            ema=0.995,
        ),
        vqgan_stage=replace(start.vqgan_stage, steps=0),
        sound=SoundConfig(hearing, steps=args.sound_steps, batch=8, lr=1e-3),
    )


def train(kind: str, seed: int, args: argparse.Namespace) -> Path:
    """One prior; the tokenizer of sound is trained once."""
    folder = Path(args.output)
    init, made = {"vqgan": args.vqgan}, config(kind, args)
    if kind == "audio" and seed:
        init["sound_vqgan"] = str(folder / "audio-0")
        made = replace(made, sound=replace(made.sound, steps=0))
    settings = LoopSettings("bf16", log_every=100, validate_every=400, preview_every=10**9)
    return Trainer(
        Recipe("tats", "small", made, args.data, str(folder / f"{kind}-{seed}"), seed, init, settings)
    ).run()


def make(system: TATS, stories: list[Story], batch: int = 16) -> np.ndarray:
    """Videos (N, T, H, W, 3) uint8."""
    parts = []
    for i in range(0, len(stories), batch):
        video = torch.cat(list(system.generate(stories[i : i + batch])), 2)
        parts += [to_uint8(v) for v in video]
    return np.stack(parts)


def told(kind: str, game: str) -> dict:
    return {"label": game} if kind == "label" else {"prompt": SAYS[game]}


def changing(system: TATS, entries: list[tuple[dict, dict]], seed: int, cut: bool = False) -> np.ndarray:
    """Videos that are asked for one thing, and from CHANGE on for another."""
    second = CHANGE / system.info.fps
    stories = [
        Story(frames=FRAMES, seed=1000 * seed + i, timeline=(Entry(**first), Entry(second, cut=cut, **then)))
        for i, (first, then) in enumerate(entries)
    ]
    return make(system, stories)


def windows(videos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last clip before the change, and the last one of all."""
    return videos[:, CHANGE - CLIP : CHANGE], videos[:, -CLIP:]


def share(seen: list[str], asked: list[str]) -> float:
    return float(np.mean([s == a for s, a in zip(seen, asked, strict=True)]))


def games_followed(system: TATS, kind: str, see: Callable, seed: int, count: int) -> dict[str, float]:
    """Every ordered pair of games in turn, `count` videos in all."""
    games = system.info.classes
    pairs = [(a, b) for a in games for b in games if a != b]
    pairs = [pairs[i % len(pairs)] for i in range(count)]
    entries = [(told(kind, a), told(kind, b)) for a, b in pairs]
    before, after = (see(w) for w in windows(changing(system, entries, seed)))
    afresh = see(windows(changing(system, entries, seed, cut=True))[1])
    first, then = [a for a, _ in pairs], [b for _, b in pairs]
    return {
        "asked game seen": share(before, first),
        "new game seen after the change": share(after, then),
        "old game seen after the change": share(after, first),
        "new game seen after a cut": share(afresh, then),
    }


def sky_reader(library: Library) -> tuple[Callable[[np.ndarray], list[str]], float]:
    """Names the time of day of clips by the nearest mean picture; and its accuracy on held-out real ones."""

    def clips(split: str) -> tuple[np.ndarray, list[str]]:
        spec = ClipSpec(CLIP, library.header.size, conditions=("caption",))
        pictures, words = [], []
        for batches in Loader(library, {"clips": Draw(spec, 8)}, split, seed=3).stream(0, 150):
            for frames, spans in zip(batches["clips"]["frames"], batches["clips"]["caption"], strict=True):
                named = [w for _, _, text in spans for w in SKIES if w in text]
                if named and len(set(named)) == 1:
                    pictures.append(to_uint8(frames).mean(0))
                    words.append(named[0])
        return np.stack(pictures), words

    pictures, words = clips("train")
    means = np.stack([pictures[[w == sky for w in words]].mean(0) for sky in SKIES])

    def nearest(pictures: np.ndarray) -> list[str]:
        distance = np.abs(pictures[:, None] - means[None]).mean((2, 3, 4))
        return [SKIES[i] for i in distance.argmin(1)]

    held, truth = clips("test")
    return lambda videos: nearest(videos.mean(1)), share(nearest(held), truth)


def skies_followed(system: TATS, library: Library, seed: int, count: int) -> dict[str, float]:
    read, ceiling = sky_reader(library)
    pairs = [(a, b) for a in SKIES for b in SKIES if a != b]
    pairs = [pairs[i * 7 % len(pairs)] for i in range(count)]
    say = "the racing car drives slowly {}"
    entries = [({"prompt": say.format(a)}, {"prompt": say.format(b)}) for a, b in pairs]
    before, after = (read(w) for w in windows(changing(system, entries, seed)))
    first, then = [a for a, _ in pairs], [b for _, b in pairs]
    return {
        "asked time of day seen": share(before, first),
        "new time of day seen after the change": share(after, then),
        "old time of day seen after the change": share(after, first),
        "time of day read rightly on real clips": ceiling,
    }


class PlaceReader:
    """Names one of two places of a game's player: ridge regression from pixels to the game's own state."""

    def __init__(self, library: Library, game: str, state: int, words: tuple[str, str]) -> None:
        self.library, self.game, self.state, self.words = library, game, state, words
        pictures, places, said = self._frames("train", 2000)
        self.mean, self.middle = pictures.mean(0), float(places.mean())
        centred = pictures - self.mean
        kernel = centred @ centred.T + 10 * np.eye(len(centred))
        self.weight = centred.T @ np.linalg.solve(kernel, places - self.middle)
        self.means = [float(places[said == i].mean()) for i in (0, 1)]
        pictures, _, said = self._frames("test", 1200)
        self.accuracy = float(np.mean(self._nearest(pictures[said >= 0]) == said[said >= 0]))

    def _frames(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures (N, H W 3) in [0, 1], places (N,), and which of the words was said (-1: neither)."""
        library, pictures, places, said = self.library, [], [], []
        rows = [row for row in library.split(split) if library.rows[row].label == self.game]
        for row in rows:
            starts = np.linspace(0, library.rows[row].frames - 8, count // len(rows) // 8).astype(int)
            for start in starts:
                pictures.append(clip_of(library, row, range(start, start + 8), library.header.size))
                places.append(library.states(row)[start : start + 8, self.state])
                text = self._caption(row, (start + 4) / library.fps)
                said += 8 * [next((i for i, word in enumerate(self.words) if word in text), -1)]
        flat = np.concatenate(pictures).reshape(len(said), -1) / 255
        return flat, np.concatenate(places), np.array(said)

    def _caption(self, row: int, second: float) -> str:
        return next((text for begin, end, text in self.library.rows[row].captions if begin <= second < end), "")

    def _nearest(self, pictures: np.ndarray) -> np.ndarray:
        place = (pictures - self.mean) @ self.weight + self.middle
        return np.abs(place[..., None] - np.array(self.means)).argmin(-1)

    def __call__(self, videos: np.ndarray) -> list[int]:
        """The place in the middle frames of clips (N, T, H, W, 3): what most of them show."""
        flat = videos[:, 4:12].reshape(len(videos), 8, -1) / 255
        return [int(m > 0.5) for m in self._nearest(flat).mean(1)]


def places_followed(system: TATS, library: Library, seed: int, count: int) -> dict[str, float]:
    """Both orders of the two places in turn, `count` videos a game."""
    found = {}
    for game, state, say, words in PLACES:
        read = PlaceReader(library, game, state, words)
        first = [i % 2 for i in range(count)]
        entries = [({"prompt": say.format(words[i])}, {"prompt": say.format(words[1 - i])}) for i in first]
        before, after = (np.array(read(w)) for w in windows(changing(system, entries, seed)))
        found |= {
            f"{game}: asked place seen": float(np.mean(before == first)),
            f"{game}: new place seen after the change": float(np.mean(after != first)),
            f"{game}: place read rightly on real frames": read.accuracy,
        }
    return found


def sounds_followed(system: TATS, library: Library, see: Callable, seed: int, folder: Path, count: int) -> dict:
    """Sound of held-out footage, of another game for the shuffled arm; each video starts from noise alone."""
    folder.mkdir(exist_ok=True)
    rows, games, stories = library.split("test"), [], []
    per_frame = system.info.samples_per_frame or 0
    for i in range(count):
        row = rows[i % len(rows)]
        start = (i // len(rows) * 131 + 16 * seed) % max(1, library.rows[row].frames - FRAMES)
        path = folder / f"{row}-{start}.flac"
        wave = library.audio(row)[start : start + FRAMES].reshape(-1)
        write_audio(path, wave, round(per_frame * library.fps))
        games.append(library.rows[row].label)
        stories.append(Story(frames=FRAMES, seed=1000 * seed + i, timeline=(Entry(audio=str(path)),)))
    seen = see(make(system, stories)[:, -CLIP:])
    shuffled = []
    for i, story in enumerate(stories):  # the sound of the next video of another game
        after = (i + np.arange(1, count)) % count
        other = next(int(j) for j in after if games[j] != games[i])
        shuffled.append(replace(story, timeline=stories[other].timeline))
    unlike = see(make(system, shuffled)[:, -CLIP:])
    return {"game of the sound seen": share(seen, games), "same, sound of another game": share(unlike, games)}


def predictions(system: TATS, library: Library, count: int) -> dict[str, float]:
    """Nats a token that a held-out clip gains from its own condition against another clip's."""
    stage = PriorStage(system.eval())
    loader = Loader(library, {"clips": replace(stage.clips["clips"], batch=8)}, "test", seed=5)
    loss: dict[str, list[float]] = {"own": [], "same game": [], "other game": []}
    spare: dict[int, Batch] = {}
    with torch.no_grad():
        for batches in loader.stream(0, count // 8):
            batch = batches["clips"]
            batch = Batch(**{**batch, **stage.derive(batch)})
            for i in range(8):
                clip, game = _one(batch, i), int(batch["label"][i])
                if len(spare) == len(system.info.classes):
                    for name, giver in (
                        ("own", clip),
                        ("same game", spare[game]),
                        ("other game", spare[(game + 1) % len(spare)]),
                    ):
                        mixed = Batch(**{**giver, "tokens": clip["tokens"]})
                        loss[name].append(float(stage._loss(mixed)["loss"]))
                spare[game] = clip
    mean = {name: float(np.mean(values)) for name, values in loss.items()}
    return {
        "nats gained against a clip of the same game": mean["same game"] - mean["own"],
        "nats gained against a clip of another game": mean["other game"] - mean["own"],
        "nats a token": mean["own"],
    }


def _one(batch: Batch, i: int) -> Batch:
    return Batch(**{k: v[i : i + 1] for k, v in batch.items() if isinstance(v, Tensor | list) and k != "frames"})


def measure(kind: str, seed: int, run: Path, args: argparse.Namespace) -> dict:
    library, system = Library(args.data), load(run)
    assert isinstance(system, TATS)
    extractor = make_extractor("r3d-atari")

    def see(clips: np.ndarray) -> list[str]:
        probabilities = extractor(clips).probabilities
        assert probabilities is not None
        return [extractor.classes[i] for i in probabilities.argmax(1)]

    figures = predictions(system, library, args.clips)
    if kind == "audio":
        figures |= sounds_followed(system, library, see, seed, Path(args.output) / "sounds", args.videos)
    else:
        figures |= games_followed(system, kind, see, seed, args.videos)
    if kind == "text":
        figures |= skies_followed(system, library, seed, args.videos)
        figures |= places_followed(system, library, seed, args.videos)
    return {
        "kind": kind,
        "seed": seed,
        "videos": args.videos,
        "clips": args.clips,
        "updates": args.steps,
        "library": library.hash,
        "figures": figures,
    }


def table(records: list[dict]) -> str:
    """Markdown: a row a figure, mean and range over seeds."""
    lines = ["| prior | figure | mean | least to most | seeds |", "|---|---|---|---|---|"]
    for kind in KINDS:
        own = [r for r in records if r["kind"] == kind]
        for name in own[0]["figures"] if own else ():
            values = [r["figures"][name] for r in own]
            spread = f"{min(values):.3g} to {max(values):.3g}"
            lines.append(f"| {kind} | {name} | {np.mean(values):.3g} | {spread} | {len(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an Atari library of the VQGAN's size")
    parser.add_argument("--output", required=True)
    parser.add_argument("--vqgan", help="the model whose VQGAN is used")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800, help="updates of each prior")
    parser.add_argument("--sound-steps", type=int, default=400)
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--table", action="store_true", help="only rewrite docs/results")
    args = parser.parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in [] if args.table else args.seeds:
        for kind in args.kinds:
            options = {n: getattr(args, n) for n in ("vqgan", "steps", "sound_steps", "videos", "clips")}
            options["library"] = Library(args.data).hash
            made = partial(lambda kind, seed: measure(kind, seed, train(kind, seed, args), args), kind, seed)
            once(folder / f"{kind}-{seed}.json", options, made)
    records = read(folder, "*-?.json")
    if args.table:
        publish(RESULTS / "tats_conditions.json", records)
    print(table(records))


if __name__ == "__main__":
    main()
