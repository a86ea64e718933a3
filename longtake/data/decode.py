"""Reading video, sound and pictures with PyAV; use it through `longtake.data.video`.

Frames are numbered by presentation order, so B-frames, edit lists and variable frame rates need no care
from the caller.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from longtake.errors import UserError

THREADS_FROM = 512 * 512
"""Pixels a frame from which several codec threads pay; below, starting them costs more than they save."""
SCALER = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
"""How chroma is brought to full resolution and back; the same both ways, on one thread, so it repeats exactly."""

NOT_VIDEO = {"tty", "bin", "xbin", "idf", "adf", "concat", "hls", "dash", "image2"}
"""Formats that the library "recognises" by file name alone, or that point at other files."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. `width` and `height` are those of the upright picture, after `rotation`."""

    frames: int
    fps: float
    width: int
    height: int
    seconds: float
    rotation: int
    """Degrees counter-clockwise by which decoded frames are turned: 0, 90, 180 or 270."""
    audio_rate: int | None
    variable_rate: bool


@dataclass(frozen=True)
class _Index:
    """Presentation times of every frame, in ticks, and the key frames to start decoding from."""

    pts: np.ndarray
    keys_pts: np.ndarray
    keys_dts: np.ndarray
    exact: bool
    """False where the container has no usable time stamps; frames are then counted by decoding."""
    ends: float
    """Seconds at which the last packet of any stream ends."""
    time_base: Fraction


def probe(path: str | Path) -> VideoInfo:
    """Read every packet header of a video (no decoding, except in files without time stamps).

    Raises:
        UserError: not a video, damaged, or cut short.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        index = _index(container, stream, path)
        _refuse_truncated(container, stream, index, path)
        audio = container.streams.audio[0] if container.streams.audio else None
        # Size and rotation are known for certain only from a decoded frame.
        container.seek(int(index.keys_dts[0]), stream=stream)
        first = next(container.decode(stream), None)
        if first is None:
            raise UserError(f"{path} has no frame that can be decoded")
        turn = _turn(first)
        height, width = (first.width, first.height) if turn % 2 else (first.height, first.width)
        fps, variable = _rate(index, stream)
        return VideoInfo(
            frames=len(index.pts),
            fps=fps,
            width=width,
            height=height,
            seconds=float((index.pts[-1] - index.pts[0]) * index.time_base) + 1 / fps,
            rotation=90 * turn,
            audio_rate=audio.codec_context.sample_rate if audio is not None else None,
            variable_rate=variable,
        )


def iterate(path: str | Path) -> Iterator[np.ndarray]:
    """Decode a video from start to end: uint8 (H, W, 3) frames, upright."""
    return (pixels for _, pixels in iterate_timed(path))


def iterate_timed(path: str | Path) -> Iterator[tuple[float, np.ndarray]]:
    """Decode a video from start to end: (seconds since the first frame, uint8 (H, W, 3) upright)."""
    with _opened(path) as container:
        stream = _video_stream(container, path)
        step = float(1 / (stream.average_rate or 25))
        first, now = None, -step
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise UserError(f"{path} is damaged at frame {number}")
            first = frame.time if first is None else first
            # A missing or repeated time stamp means "one frame later".
            shown = None if frame.time is None or first is None else frame.time - first
            now = shown if shown is not None and shown > now else now + step
            yield now, _pixels(frame)


def read_frames(path: str | Path, indices: Sequence[int]) -> np.ndarray:
    """Decode frames by number; any order, repeats allowed.

    Only the groups of pictures that hold a wanted frame are decoded.

    Returns:
        uint8 (len(indices), H, W, 3), in the order asked for.

    Raises:
        UserError: a number is negative or past the end, or the file is damaged.
    """
    index = _cached_index(path)
    count = len(index.pts)
    wanted = sorted(set(indices))
    if not wanted:
        raise UserError(f"no frame numbers were asked of {path}")
    if wanted[0] < 0 or wanted[-1] >= count:
        bad = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise UserError(f"{path} has frames 0 to {count - 1}; frame {bad} was asked for")
    found: dict[int, np.ndarray] = {}
    with _opened(path) as container:
        stream = _video_stream(container, path)
        if index.exact:
            found = _seek_and_decode(container, stream, index, wanted)
    if len(found) < len(wanted):
        # Without time stamps, or where the container cannot seek to what it lists: count from the start.
        sought = set(wanted)
        for number, frame in enumerate(iterate(path)):
            if number in sought:
                found[number] = frame
            if number == wanted[-1]:
                break
    if len(found) < len(wanted):
        raise UserError(f"{path} lists {count} frames, but frame {max(wanted)} cannot be decoded")
    return np.stack([found[i] for i in indices])


def read_audio(path: str | Path, rate: int) -> np.ndarray:
    """Decode the first audio stream as mono at `rate` Hz: float32 (samples,) in [-1, 1].

    Sample 0 is heard with the first video frame, if the file has video.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            raise UserError(f"{path} has no sound")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        parts: list[np.ndarray] = []
        starts: float | None = None
        for frame in container.decode(stream):
            starts = frame.time if starts is None else starts
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        if not parts:
            raise UserError(f"{path} has an empty audio track")
        parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
        wave = np.clip(np.concatenate(parts), -1, 1).astype(np.float32)
        shown = container.streams.video[0] if container.streams.video else None
        if shown is not None and shown.start_time is not None and shown.time_base and starts is not None:
            late = round((starts - float(shown.start_time * shown.time_base)) * rate)
            wave = np.pad(wave, (late, 0)) if late > 0 else wave[-late:]
        return wave


def read_image(source: str | Path | bytes, name: str = "image") -> np.ndarray:
    """Decode a picture, from a file or from its bytes: uint8 (H, W, 3), upright, without alpha."""
    if not isinstance(source, bytes):
        name = str(source)
        _refuse_unreadable(source)
        source = Path(source).read_bytes()
    with _container(io.BytesIO(source), name, "picture") as container:
        frame: Any = next(container.decode(_video_stream(container, name)), None)
        if frame is None:
            raise UserError(f"{name} is not a picture")
        return _pixels(frame)


# --- opening and explaining ---------------------------------------------------------------------------


@contextmanager
def explained(path: str | Path, verb: str) -> Iterator[None]:
    """Turn what PyAV and the system raise into one sentence about the file."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, IndexError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot {verb} {path}: {reason}") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    _refuse_unreadable(path)
    with _container(f"file:{path}", path, "video") as container:
        yield container


@contextmanager
def _container(source: Any, name: str | Path, what: str) -> Iterator[Any]:
    # "file:" and the white list: a name or a playlist inside the file must not reach anything else.
    options = {"protocol_whitelist": "file"}
    with explained(name, "read"):
        with av.open(source, "r", metadata_errors="ignore", container_options=options) as container:
            if container.format.name in NOT_VIDEO:
                raise UserError(f"{name} is not a {what}")
            yield container


def _refuse_unreadable(path: str | Path) -> None:
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to a file that does not exist")
    if not path.is_file():
        raise UserError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read (permission denied)")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")


def _video_stream(container: Any, path: str | Path) -> Any:
    streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition)]
    if not streams:
        raise UserError(f"{path} has no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise UserError(f"{path} uses a video codec that is not known here")
    large = stream.width * stream.height >= THREADS_FROM
    stream.thread_type, stream.codec_context.thread_count = ("AUTO", 0) if large else ("NONE", 1)
    return stream


# --- time ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _index_of(path: str, size: int, changed: int) -> _Index:
    with _opened(path) as container:
        stream = _video_stream(container, path)
        return _index(container, stream, path)


def _cached_index(path: str | Path) -> _Index:
    _refuse_unreadable(path)
    state = os.stat(path)
    return _index_of(str(path), state.st_size, state.st_mtime_ns)


def _index(container: Any, stream: Any, path: str | Path) -> _Index:
    """Read all packets; leaves the container at its end."""
    shown: list[tuple[int | None, int | None, bool]] = []
    ends = 0.0
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise UserError(f"{path} is damaged or cut short")
        last = packet.pts if packet.pts is not None else packet.dts
        if last is not None and packet.time_base:
            ends = max(ends, float((last + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index and not packet.is_discard:
            shown.append((packet.pts, packet.dts, packet.is_keyframe))
    keys = [(pts, dts if dts is not None else pts) for pts, dts, key in shown if key and pts is not None]
    # Frames before the first key frame cannot be decoded.
    pts = sorted(p for p, _, _ in shown if p is not None and keys and p >= keys[0][0])
    exact = bool(keys) and len(set(pts)) == len(pts) and all(p is not None for p, _, _ in shown)
    if not exact:
        pts = _decoded_times(container, stream)
        keys = [(pts[0], pts[0])] if pts else []
    if not pts:
        raise UserError(f"{path} has no frame that can be decoded")
    keys.sort()
    return _Index(
        pts=np.array(pts, np.int64),
        keys_pts=np.array([p for p, _ in keys], np.int64),
        keys_dts=np.array([d for _, d in keys], np.int64),
        exact=exact,
        ends=ends,
        time_base=stream.time_base,
    )


def _decoded_times(container: Any, stream: Any) -> list[int]:
    """Time stamps by decoding; evenly spaced where the decoder has none either."""
    container.seek(0)
    pts = [frame.pts for frame in container.decode(stream)]
    if None in pts or len(set(pts)) < len(pts):
        step = round(1 / (stream.average_rate or Fraction(25)) / stream.time_base)
        pts = [i * max(1, step) for i in range(len(pts))]
    return sorted(pts)


def _rate(index: _Index, stream: Any) -> tuple[float, bool]:
    """Frames a second, and whether frames are unevenly spaced (a tick of rounding is not uneven)."""
    listed = float(stream.average_rate or 25)
    if len(index.pts) < 2:
        return listed, False
    gaps = np.diff(index.pts)
    usual = float(np.median(gaps))
    variable = bool(np.abs(gaps - usual).max() > max(1.5, 0.2 * usual))
    measured = (len(index.pts) - 1) / float((index.pts[-1] - index.pts[0]) * index.time_base)
    # Rounded ticks make the measured rate inexact; the header's fraction is exact when it is right.
    return (listed if not variable and abs(listed / measured - 1) < 0.01 else measured), variable


def _refuse_truncated(container: Any, stream: Any, index: _Index, path: str | Path) -> None:
    """Compare what is there with what the header promises."""
    size = os.path.getsize(path)
    beyond = _promised_bytes(path) > size + 1 or any(e.pos + e.size > size for e in stream.index_entries)
    promised = ((container.duration or 0) + (container.start_time or 0)) / av.time_base
    short = promised - index.ends > max(0.25, 0.02 * promised)
    fewer = stream.frames and len(index.pts) < 0.95 * stream.frames - 2
    if beyond or short or fewer:
        raise UserError(f"{path} is cut short: it holds less than its header says")


def _promised_bytes(path: str | Path) -> int:
    """The file size that a RIFF (AVI) or Matroska header states, 0 where it states none."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF":
        stated = int.from_bytes(head[4:8], "little")
        return 0 if stated == 0xFFFFFFFF else stated + 8
    segment = head.find(b"\x18\x53\x80\x67")
    if head[:4] != b"\x1a\x45\xdf\xa3" or segment < 0 or head[segment + 4] == 0:
        return 0
    width = 9 - head[segment + 4].bit_length()
    start = segment + 4 + width
    stated = int.from_bytes(head[segment + 4 : start], "big") & ((1 << 7 * width) - 1)
    unknown = (1 << 7 * width) - 1  # written by a muxer that could not come back
    return 0 if stated == unknown else start + stated


# --- pixels -------------------------------------------------------------------------------------------


def _seek_and_decode(container: Any, stream: Any, index: _Index, wanted: list[int]) -> dict[int, np.ndarray]:
    """Frames by number, through the time stamps; what cannot be had this way is missing.

    Old H.264 encoders left a note in the first packet without which later frames decode wrongly; the
    decoder flags those as corrupt.
    """
    found: dict[int, np.ndarray] = {}
    groups: dict[int, list[int]] = {}
    for number in wanted:
        key = int(np.searchsorted(index.keys_pts, index.pts[number], side="right")) - 1
        groups.setdefault(key, []).append(number)
    position = None
    frames: Iterator[Any] = iter(())
    for key, numbers in groups.items():
        if position is None or key > position + 1:  # the next group follows without a seek
            container.seek(int(index.keys_dts[key]), stream=stream)
            frames = container.decode(stream)
        position = key
        targets = {int(index.pts[number]): number for number in numbers}
        last = max(targets)
        for frame in frames:
            if frame.pts in targets and not frame.is_corrupt:
                found[targets[frame.pts]] = _pixels(frame)
            if frame.pts is None or frame.pts >= last:
                break
    return found


def _turn(frame: Any) -> int:
    """Quarter turns counter-clockwise that make the picture upright."""
    return round(frame.rotation / 90) % 4


def _pixels(frame: Any) -> np.ndarray:
    return np.ascontiguousarray(
        np.rot90(frame.to_ndarray(format="rgb24", interpolation=SCALER, threads=1), _turn(frame))
    )
