"""Recognises how people keep their videos, and lists what is there.

Nothing is decoded here. What a layout says beyond the pixels (class, split, group, captions) comes from
folder names and side files:

    videos          any nesting; class folders if every video lies in one of several folders
    UCF-101         v_<Class>_g##_c##.avi, with trainlist01.txt and testlist01.txt where they are present
    frames          one folder a video (Sky Time-lapse, Taichi-HD, BAIR), train and test folders kept
    StyleGAN-V      frame folders and dataset.json with labels, as a folder or a zip (FaceForensics)
    stills          pictures that are not numbered frames
    webdataset      tar shards: one key a sample, .mp4 with .txt, .json or .cls
    TATS HDF5       {train,test}_data and {train,test}_idx
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from longtake.data.sources import ArrayMedia, Entry, Item, PictureMedia, VideoMedia, entries, printable
from longtake.errors import UserError

LAYOUTS = ("auto", "videos", "classes", "frames", "stills", "mixed")
VIDEOS = re.compile(r"\.(mp4|avi|mkv|webm|mov|mpe?g|m4v|wmv|asf|flv|og[gv]|3gp|m?ts|m2ts|vob|mxf|divx|y4m|gif)")
PICTURES = re.compile(r"\.(jpe?g|png|webp|bmp)")
NEUTRAL = {"mp4", "avi", "video", "videos", "frames", "clips"}
"""Folders that say how files are stored, not what they show."""
SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "val", "valid", "validation"), "test"),
}


@dataclass
class Found:
    """What a source holds."""

    items: list[Item]
    ignored: int = 0
    """Files that are neither video nor picture."""
    notes: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """(tar shard, why it was left out)"""


def find(source: Path, layout: str = "auto", split_lists: Sequence[Path] = ()) -> Found:
    """List the videos of `source`, with the class, split, group and captions that its layout gives them.

    Args:
        source: a folder, a zip, a tar, an HDF5 file or a single video.
        layout: `auto`, or one of `LAYOUTS` to settle what folder names leave open.
        split_lists: official split files, one video a line, with "train" or "test" in their names.

    Raises:
        UserError: the source, a split list or a label file cannot be read.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is not known; choose one of {', '.join(LAYOUTS)}", code=2)
    if source.suffix.lower() in (".h5", ".hdf5"):
        return Found(_hdf5(source))
    files, rejected = _with_shards(source)
    by_kind: dict[str, list[Entry]] = defaultdict(list)
    for entry in files:
        suffix = entry.path.suffix.lower()
        by_kind[_kind(suffix)].append(entry)
    videos, pictures, others = by_kind["video"], by_kind["picture"], by_kind["other"]
    labels = next((e for e in others if e.path.name == "dataset.json"), None)
    if layout == "mixed":
        items, ignored = _videos(videos, "videos") + _stills(pictures), len(others)
    elif videos and layout not in ("frames", "stills"):
        items = _videos(videos, layout)
        ignored = len(pictures) + len(others)
    else:
        items = _frames(pictures, labels) if _are_frames(pictures, layout, labels) else _stills(pictures)
        ignored = len(videos) + len(others)
    sidecars = [e for e in others if e.path.suffix.lower() in (".txt", ".json", ".cls")]
    found = Found(items, ignored, rejected=rejected)
    _read_sidecars(found, sidecars)
    _apply_lists(found, [e for e in others if re.fullmatch(r"(train|test)list01\.txt", e.path.name)], split_lists)
    return found


def _kind(suffix: str) -> str:
    return "video" if VIDEOS.fullmatch(suffix) else "picture" if PICTURES.fullmatch(suffix) else "other"


def _with_shards(source: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The files of a source and of the tar shards in it; shards that cannot be taken, with the reason."""
    files: dict[PurePosixPath, Entry] = {}
    shards: list[tuple[Entry, Path]] = []
    for entry in entries(source):
        if entry.path.suffix.lower() == ".tar" and entry.file is not None:
            shards.append((entry, entry.file))
        else:
            files[entry.path] = entry
    rejected = []
    for shard, file in shards:
        try:
            inside = _inside(shard, file, files)
        except UserError as error:
            rejected.append((shard.path.as_posix(), printable(str(error))))
        else:
            files.update(inside)
    return list(files.values()), rejected


def _inside(shard: Entry, file: Path, taken: Iterable[PurePosixPath]) -> dict[PurePosixPath, Entry]:
    folder = shard.path.with_suffix("")
    members = [replace(member, path=folder / member.path) for member in entries(file)]
    inside = {member.path: member for member in members}
    # A shard that lies beside its own contents, unpacked: each video once, or it could be trained and tested on.
    twice = min(inside.keys() & taken, default=None)
    if twice is not None:
        raise UserError(f"holds {twice}, which is there a second time; remove one of the two, or rename the shard")
    return inside


# --- videos -------------------------------------------------------------------------------------------


def _videos(files: list[Entry], layout: str) -> list[Item]:
    sides, places = _sides([entry.path for entry in files])
    folders = [tuple(part for part in place[:-1] if part.lower() not in NEUTRAL) for place in places]
    classes = layout == "classes" or (
        layout == "auto" and all(len(f) == 1 for f in folders) and len(set(folders)) > 1
    )
    stems: dict[str, set[str]] = defaultdict(set)
    for entry, folder in zip(files, folders, strict=True):
        stems[entry.path.stem].add("/".join(folder))
    items = []
    for entry, side, folder in zip(files, sides, folders, strict=True):
        label = folder[0] if classes and folder else None
        ucf = re.fullmatch(r"v_(\w+)_g(\d+)_c\d+", entry.path.stem)
        if ucf:
            group = f"{ucf[1]}_g{ucf[2]}"
        else:  # one name in several class folders: one performer, or one source
            group = entry.path.stem if label and len(stems[entry.path.stem]) > 1 else None
        items.append(Item(entry.path.as_posix(), VideoMedia(entry), label=label, split=side, group=group))
    return items


def _sides(paths: Sequence[PurePosixPath]) -> tuple[list[str | None], list[tuple[str, ...]]]:
    """Official train and test folders: the side of each path, and what of the path is left below them.

    Without both sides, all are None and only the folders that all paths share are taken off.
    """
    depth = min((len(path.parts) for path in paths), default=0)
    shared = 0
    for level in range(depth - 1):
        names = {path.parts[level] for path in paths}
        sides = {name: _side(name) for name in names}
        if set(sides.values()) == {"train", "test"}:
            return [sides[p.parts[level]] for p in paths], [p.parts[level + 1 :] for p in paths]
        if len(names) == 1 and shared == level:
            shared += 1
    return [None] * len(paths), [path.parts[shared:] for path in paths]


def _side(name: str) -> str | None:
    """`train`, `sky_train`, `test-00001`: the side a folder or shard name states."""
    words = re.split(r"[_\-.]", name.lower())
    return next((SIDES[word] for word in (words[0], words[-1]) if word in SIDES), None)


# --- pictures -----------------------------------------------------------------------------------------


def _number(entry: Entry) -> tuple[str, int]:
    """A frame's name as (text before its last integer, that integer)."""
    match = re.match(r"(.*?)(\d+)\D*$", entry.path.stem)
    return (match[1], int(match[2])) if match else (entry.path.stem, -1)


def _by_folder(pictures: list[Entry]) -> dict[PurePosixPath, list[Entry]]:
    folders: dict[PurePosixPath, list[Entry]] = defaultdict(list)
    for entry in pictures:
        folders[entry.path.parent].append(entry)
    return {folder: sorted(folders[folder], key=lambda e: (_number(e)[1], e.path.name)) for folder in folders}


def _are_frames(pictures: list[Entry], layout: str, labels: Entry | None) -> bool:
    """Most folders hold pictures that are numbered in even steps under one name."""
    if layout in ("frames", "stills") or labels is not None:
        return layout != "stills"
    folders = _by_folder(pictures)
    return 2 * sum(_is_sequence(group) for group in folders.values()) > len(folders)


def _is_sequence(pictures: list[Entry]) -> bool:
    names, numbers = zip(*map(_number, pictures), strict=True)
    steps = {b - a for a, b in pairwise(numbers)}
    return len(set(names)) == 1 and len(steps) == 1 and 0 not in steps


def _frames(pictures: list[Entry], labels: Entry | None) -> list[Item]:
    folders = _by_folder(pictures)
    if labels is not None:
        return _labelled_frames(folders, labels)
    paths = list(folders)
    sides, places = _sides(paths)
    parents = [place[-2] if len(place) > 1 else None for place in places]
    # Sky Time-lapse: <video>/<video>_1 are shots of one video, not videos of one class.
    shots = all(p is None or place[-1].startswith(p) for p, place in zip(parents, places, strict=True))
    classes = not shots and all(len(place) == 2 for place in places) and len(set(parents)) > 1
    return [
        Item(
            "." if path == PurePosixPath(".") else path.as_posix(),
            PictureMedia(tuple(folders[path])),
            label=parent if classes else None,
            split=side,
            group=parent if shots else None,
        )
        for path, side, parent in zip(paths, sides, parents, strict=True)
    ]


def _labelled_frames(folders: dict[PurePosixPath, list[Entry]], labels: Entry) -> list[Item]:
    """StyleGAN-V: {"labels": [[path, class], ...]}, null or a dict; paths relative to dataset.json."""
    raw = _json(labels)
    pairs: Any = raw.get("labels") if isinstance(raw, dict) else None
    pairs = pairs.items() if isinstance(pairs, dict) else pairs or []
    numbers: dict[PurePosixPath, int] = {}
    for name, label in pairs:
        if not isinstance(label, int):
            raise UserError(f"{labels.path} labels {name} with {label!r}; only whole numbers can be classes")
        numbers[labels.path.parent / PurePosixPath(str(name)).parent] = label
    named = _padded(numbers)
    return [
        Item(folder.as_posix(), PictureMedia(tuple(files)), label=named.get(folder))
        for folder, files in folders.items()
    ]


def _padded(numbers: dict[Any, int]) -> dict[Any, str]:
    """Class numbers as text of one width, so that sorting names sorts numbers."""
    width = len(str(max(numbers.values(), default=0)))
    return {key: f"{number:0{width}d}" for key, number in numbers.items()}


def _stills(pictures: list[Entry]) -> list[Item]:
    sides, places = _sides([entry.path for entry in pictures])
    folders = [place[:-1] for place in places]
    classes = all(len(folder) == 1 for folder in folders) and len(set(folders)) > 1
    return [
        Item(
            entry.path.as_posix(),
            PictureMedia((entry,)),
            label=folder[0] if classes else None,
            split=side,
            still=True,
        )
        for entry, side, folder in zip(pictures, sides, folders, strict=True)
    ]


# --- side files ---------------------------------------------------------------------------------------


def _read_sidecars(found: Found, sidecars: list[Entry]) -> None:
    """Webdataset: files that share a key (the path up to the first dot of the name) are one sample."""
    beside: dict[PurePosixPath, list[Entry]] = defaultdict(list)
    for entry in sidecars:
        beside[_key(entry.path)].append(entry)
    numbers: dict[int, int] = {}
    for i, item in enumerate(found.items):
        for entry in beside.get(_key(PurePosixPath(item.name)), ()):
            found.ignored -= 1
            try:
                caption, label = _caption_and_label(entry)
            except UserError as error:
                found.notes.append(str(error))
                continue
            if caption:
                found.items[i] = replace(found.items[i], captions=((None, None, printable(str(caption))),))
            if re.fullmatch(r"\d{1,18}", str(label)):  # longer ones are text: as a number none would be a class
                numbers[i] = int(label)
            elif label:
                found.items[i] = replace(found.items[i], label=printable(str(label)))
    for i, name in _padded(numbers).items():
        found.items[i] = replace(found.items[i], label=name)


def _caption_and_label(entry: Entry) -> tuple[Any, Any]:
    suffix = entry.path.suffix.lower()
    if suffix == ".json":
        fields = _json(entry)
        return _first(fields, "caption", "text", "prompt"), _first(fields, "label", "class", "cls")
    return (_text(entry), None) if suffix == ".txt" else (None, _text(entry))


def _key(path: PurePosixPath) -> PurePosixPath:
    return path.parent / path.name.split(".")[0]


def _first(fields: Any, *names: str) -> Any:
    return next((fields[n] for n in names if isinstance(fields, dict) and n in fields), None)


def _text(entry: Entry) -> str:
    return entry.content().decode("utf-8", "replace").strip()


def _json(entry: Entry) -> Any:
    try:
        return json.loads(entry.content())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{entry.path} is not valid JSON: {error}") from error


def _apply_lists(found: Found, inside: Iterable[Entry], given: Sequence[Path]) -> None:
    """Give every video the side an official list names; videos in no list are left out, with a note."""
    texts = {str(path): _list_text(path) for path in given} or {str(e.path): _text(e) for e in inside}
    if not texts:
        return
    sides: dict[str, str] = {}
    for name, text in texts.items():
        side = next((s for s in ("train", "test") if s in Path(name).name.lower()), None)
        if side is None:
            raise UserError(f"split list {name} has neither 'train' nor 'test' in its name; rename it")
        for line in filter(None, map(str.strip, text.splitlines())):
            key = _list_key(re.sub(r"\s+\d+$", "", line))
            if sides.setdefault(key, side) != side:
                raise UserError(f"{line} is in a train and in a test split list; give the lists of one split")
    by_name = {key.rpartition("/")[2]: side for key, side in sides.items()}
    by_name = by_name if len(by_name) == len(sides) else {}
    listed = []
    for item in found.items:
        key = _list_key(item.name)
        side = sides.get(key) or by_name.get(key.rpartition("/")[2])
        if side:
            listed.append(item.with_split(side))
    left_out = len(found.items) - len(listed)
    if left_out:
        found.notes.append(f"{left_out} videos are in no split list and were left out")
    found.items = listed


def _list_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"split list {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"split list {path} is no UTF-8 text; give a text file, one video a line") from error


def _list_key(name: str) -> str:
    """Folder and name without suffix: lists and files differ in what lies above."""
    return "/".join(re.sub(r"\.\w+$", "", name).split("/")[-2:])


# --- arrays -------------------------------------------------------------------------------------------


def _hdf5(source: Path) -> list[Item]:
    """TATS: frames of all videos in one array, and where each video starts.

    The official loader drops the last start, taking it for an end marker; where it is a real start that
    merges the last two videos. Here it is dropped only if it is the end of the array.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{source} needs h5py to be read; install it with: pip install h5py") from error
    items = []
    try:
        with h5py.File(source) as file:
            for side in ("train", "test"):
                data: Any = file.get(f"{side}_data")
                if data is None:
                    continue
                if data.dtype != "uint8" or data.ndim != 4 or data.shape[-1] != 3:
                    raise UserError(f"{source} holds {data.dtype} {data.shape}, not uint8 (N, H, W, 3)")
                starts = [int(i) for i in sorted({*file[f"{side}_idx"][:], len(data)})]  # type: ignore[index]
                items += [
                    Item(f"{side}/{n:06d}", ArrayMedia(source, f"{side}_data", a, b), split=side)
                    for n, (a, b) in enumerate(pairwise(starts))
                ]
    except (OSError, KeyError) as error:
        raise UserError(f"{source} is not a readable TATS HDF5 file: {error}") from error
    if not items:
        raise UserError(f"{source} holds neither train_data nor test_data")
    return items
