"""Writing video, sound and pictures with PyAV; use it through `longtake.data.video`.

Every file is written under a temporary name beside its own and moved there when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from longtake.data.decode import SCALER, THREADS_FROM, explained
from longtake.errors import UserError

AAC_RATES = (96000, 88200, 64000, 48000, 44100)
"""Rates kept as they are; others become 48 kHz, so that the codec's last block stays short."""


class VideoWriter:
    """Streams frames, and sound if wanted, into an H.264 mp4; memory does not grow with the length.

    The file appears under its name only when the block ends without an error; otherwise nothing is left.
    Sound is trimmed or padded with silence so that it lasts exactly as long as the video. Where 4:2:0 needs
    even sizes, odd ones are padded by repeating the last row or column.

    Args:
        path: an .mp4 file; its folder is made.
        fps: frames a second.
        audio: float32 (samples,) in [-1, 1], or None.
        audio_rate: samples a second; None means no sound.
        crf: 0 (lossless) to 51; 18 looks the same as the source.
        gop: frames from one key frame to the next, at most.
        pixel_format: `yuv420p` plays everywhere; `yuv444p` keeps colour at full resolution.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        audio: np.ndarray | None = None,
        audio_rate: int | None = None,
        crf: int = 18,
        gop: int = 12,
        pixel_format: str = "yuv420p",
    ):
        if audio is not None and audio_rate is None:
            raise ValueError("audio needs audio_rate")
        self.path, self.fps, self.audio_rate = Path(path), fps, audio_rate
        self.frames = 0
        self._partial = _partial(self.path)
        # No B-frames: x264 does not make the same bytes twice with them, and random access is simpler without.
        self._options = {"crf": str(crf), "g": str(gop), "keyint_min": "1", "bf": "0"}
        self._pixel_format = pixel_format
        self._waiting = np.zeros(0, np.float32) if audio is None else audio.astype(np.float32)
        self._heard = 0
        self._container: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 (T, H, W, 3) frames."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
        with explained(self.path, "write"):
            if self.frames == 0 and len(frames):
                self._open(*frames.shape[1:3])
            for frame in frames:
                if self._pixel_format == "yuv420p":
                    frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), "edge")
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(
                    format=self._pixel_format, dst_colorspace="ITU709", interpolation=SCALER, threads=1
                )
                picture.pts, picture.time_base = self.frames, 1 / _fraction(self.fps)
                self._container.mux(self._video.encode(picture))
                self.frames += 1
            self._sound(ending=False)

    def _open(self, height: int, width: int) -> None:
        even = 2 if self._pixel_format == "yuv420p" else 1
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        self._video: Any = self._container.add_stream("libx264", rate=_fraction(self.fps), options=self._options)
        self._video.height, self._video.width = -(-height // even) * even, -(-width // even) * even
        self._video.pix_fmt = self._pixel_format
        context = self._video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, as `write` converts
        context.color_range = 1
        context.thread_count = 1 if height * width < THREADS_FROM else 0
        if self.audio_rate is not None:
            rate = self.audio_rate if self.audio_rate in AAC_RATES else 48000
            self._sounds: Any = self._container.add_stream("aac", rate=rate, layout="mono")
            self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)

    def _sound(self, ending: bool) -> None:
        """Encode the sound of the frames written so far; at the end, all of it and silence for the rest."""
        if self.audio_rate is None:
            return
        due = round(self.frames / self.fps * self.audio_rate) - self._heard
        wave, self._waiting = self._waiting[:due], self._waiting[due:]
        if ending:
            wave = np.pad(wave, (0, due - len(wave)))
        if len(wave):
            chunk = av.AudioFrame.from_ndarray(np.clip(wave, -1, 1)[None], format="fltp", layout="mono")
            chunk.sample_rate, chunk.time_base = self.audio_rate, Fraction(1, self.audio_rate)
            chunk.pts = self._heard
            self._heard += len(wave)
            for part in self._resampler.resample(chunk):
                self._container.mux(self._sounds.encode(part))
        if ending:
            for part in self._resampler.resample(None):
                self._container.mux(self._sounds.encode(part))
            self._container.mux(self._sounds.encode(None))

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                with explained(self.path, "write"):
                    if self._container is None:
                        raise UserError(f"no frames came for {self.path}, so it was not written")
                    self._sound(ending=True)
                    self._container.mux(self._video.encode(None))
                    self._container.close()
                    os.replace(self._partial, self.path)
        finally:
            if self._container is not None:
                with suppress(av.FFmpegError):
                    self._container.close()
            self._partial.unlink(missing_ok=True)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, **options: Any) -> int:
    """Write uint8 (H, W, 3) frames, or (T, H, W, 3) chunks, as they come; see `VideoWriter`.

    Returns:
        The number of frames written.
    """
    with VideoWriter(path, fps, **options) as writer:
        for part in frames:
            writer.write(part if part.ndim == 4 else part[None])
    return writer.frames


def write_audio(path: str | Path, wave: np.ndarray, rate: int) -> None:
    """Write float32 (samples,) in [-1, 1] as 16-bit mono FLAC, atomically."""
    path = Path(path)
    with _atomic(path) as partial, av.open(str(partial), "w", format="flac") as container:
        stream: Any = container.add_stream("flac", rate=rate, layout="mono")
        stream.codec_context.format = "s16"
        samples = np.rint(np.clip(wave, -1, 1) * 32767).astype(np.int16)
        for start in range(0, len(samples), rate):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + rate], format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG, atomically."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    codec: Any = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = frame.width, frame.height, "rgb24", Fraction(1)
    data = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    with _atomic(Path(path)) as partial:
        partial.write_bytes(data)


def _fraction(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _partial(path: Path) -> Path:
    with explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    partial = _partial(path)
    try:
        with explained(path, "write"):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
