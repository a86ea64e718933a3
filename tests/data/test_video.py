"""Every codec promise: exact frames, equal durations, no half files, one sentence on bad files."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.data import video
from longtake.errors import UserError


def clip(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Smooth moving pictures whose frames all differ."""
    y, x = np.mgrid[:height, :width]
    shown = [
        np.stack([(x * 3 + 4 * t) % 200, (y * 3 + 2 * t) % 200, 0 * x + 5 * t % 256], -1) for t in range(frames)
    ]
    return np.stack(shown).astype(np.uint8)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    video.write_video(path, clip(50), 15, crf=12, pixel_format="yuv444p")
    return path


def test_round_trip(long_clip):
    info = video.probe(long_clip)
    assert (info.frames, info.fps, info.height, info.width) == (50, 15, 32, 48)
    assert info.seconds == pytest.approx(50 / 15)
    assert (info.rotation, info.audio_rate, info.variable_rate) == (0, None, False)
    decoded = np.stack(list(video.iterate(long_clip)))
    assert np.abs(decoded.astype(int) - clip(50)).mean() < 2


def test_b_frames_are_ordered(tmp_path):
    path = tmp_path / "clip.mp4"
    encode(path, clip(40), "libx264", [Fraction(n, 25) for n in range(40)])
    with av.open(str(path)) as container:
        assert any(frame.pict_type == PictureType.B for frame in container.decode(video=0))
    decoded = np.stack(list(video.iterate(path)))
    assert (video.read_frames(path, [7, 3, 22, 39, 38]) == decoded[[7, 3, 22, 39, 38]]).all()


def test_the_same_frames_make_the_same_file(tmp_path):
    files = [tmp_path / f"{i}.mp4" for i in range(2)]
    for path in files:
        video.write_video(path, clip(50), 15, crf=12, pixel_format="yuv444p")
    assert files[0].read_bytes() == files[1].read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 49), min_size=1, max_size=6))
def test_any_frames_in_any_order(long_clip, indices):
    decoded = np.stack(list(video.iterate(long_clip)))
    assert (video.read_frames(long_clip, indices) == decoded[indices]).all()


@pytest.mark.parametrize(
    ("suffix", "codec"), [("avi", "mpeg4"), ("mkv", "libx264"), ("mpg", "mpeg2video"), ("gif", "gif")]
)
def test_random_access_in_other_containers(tmp_path, suffix, codec):
    path = tmp_path / f"clip.{suffix}"
    encode(path, clip(40), codec, [Fraction(n, 25) for n in range(40)])
    decoded = np.stack(list(video.iterate(path)))
    assert video.probe(path).frames == len(decoded) == 40
    assert (video.read_frames(path, [39, 0, 17, 18]) == decoded[[39, 0, 17, 18]]).all()


def encode(path, frames, codec, seconds, rotation=0):
    """Write frames at given times, as other people's tools do."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000) if codec == "libx264" else Fraction(1, 25)
        if rotation:
            stream.set_display_rotation(rotation)
        for pixels, time in zip(frames, seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(time / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_frames_past_the_end_are_refused(long_clip):
    with pytest.raises(UserError, match="frames 0 to 49; frame 50"):
        video.read_frames(long_clip, [3, 50])
    with pytest.raises(UserError, match="frame -1"):
        video.read_frames(long_clip, [-1])


def test_variable_rate_is_seen_and_times_are_kept(tmp_path):
    seconds = [Fraction(n, 25) + (Fraction(1, 2) if n >= 10 else 0) for n in range(20)]
    encode(tmp_path / "v.mp4", clip(20), "libx264", seconds)
    info = video.probe(tmp_path / "v.mp4")
    assert info.variable_rate
    assert info.frames == 20
    times = [time for time, _ in video.iterate_timed(tmp_path / "v.mp4")]
    np.testing.assert_allclose(times, [float(s) for s in seconds], atol=2e-3)


def test_rotation_is_applied(tmp_path):
    frames = np.zeros((12, 32, 48, 3), np.uint8)
    frames[:, :8, :8] = 255  # a mark in the top left corner
    encode(tmp_path / "r.mp4", frames, "libx264", [Fraction(n, 25) for n in range(12)], rotation=90)
    info = video.probe(tmp_path / "r.mp4")
    assert (info.rotation, info.height, info.width) == (90, 48, 32)
    upright = next(video.iterate(tmp_path / "r.mp4"))
    assert upright.shape == (48, 32, 3)
    assert upright[-6:, :6].mean() > 200  # a quarter turn counter-clockwise: bottom left
    assert (video.read_frames(tmp_path / "r.mp4", [0])[0] == upright).all()


@pytest.mark.parametrize(("fps", "rate"), [(15, 16000), (30, 44100), (25, 15750)])
@pytest.mark.parametrize("seconds", [0.2, 1.5, 9.0])
def test_sound_lasts_as_long_as_the_picture(tmp_path, fps, rate, seconds):
    wave = np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 440 / rate).astype(np.float32) / 2
    path = tmp_path / "sound.mp4"
    video.write_video(path, clip(60), fps, audio=wave, audio_rate=rate)
    heard = video.read_audio(path, rate)
    assert abs(len(heard) / rate - 60 / fps) <= 1 / fps
    common = min(len(wave), 60 * rate // fps) - 2048
    if common > 4096:
        middle = slice(2048, common)
        assert np.corrcoef(heard[middle], wave[middle])[0, 1] > 0.98
    assert np.abs(heard[len(wave) + 2048 :]).max(initial=0) < 0.05


def test_flac_is_exact_to_sixteen_bits(tmp_path):
    wave = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    video.write_audio(tmp_path / "a.flac", wave, 15750)
    read = video.read_audio(tmp_path / "a.flac", 15750)
    assert len(read) == len(wave)
    assert np.abs(read - wave).max() < 2 / 32768


def test_odd_sizes(tmp_path):
    video.write_video(tmp_path / "420.mp4", clip(3, 33, 47), 10)
    video.write_video(tmp_path / "444.mp4", clip(3, 33, 47), 10, pixel_format="yuv444p")
    assert next(video.iterate(tmp_path / "420.mp4")).shape == (34, 48, 3)
    assert next(video.iterate(tmp_path / "444.mp4")).shape == (33, 47, 3)


def test_an_error_leaves_nothing(tmp_path):
    kept = tmp_path / "kept.mp4"
    kept.write_bytes(b"an older file")

    def stop_half_way():
        yield clip(5)
        raise KeyError

    with pytest.raises(KeyError):
        video.write_video(kept, stop_half_way(), 10)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.mp4"]
    assert kept.read_bytes() == b"an older file"
    with pytest.raises(UserError, match="no frames"), video.VideoWriter(tmp_path / "none.mp4", 10):
        pass
    assert not (tmp_path / "none.mp4").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        video.write_video(tmp_path / "file" / "x.mp4", clip(2), 10)


@pytest.mark.parametrize(
    "content",
    [
        *(b"just text\n" * 100, bytes(5000), b"#EXTM3U\n#EXTINF:1,\nother.mp4\n"),
        b"ffconcat version 1.0\nfile other.mp4\n",
    ],
)
@pytest.mark.parametrize("name", ["x.mp4", "x.txt", "x.avi", "x.png"])
def test_files_that_are_no_video(tmp_path, monkeypatch, content, name):
    monkeypatch.chdir(tmp_path)
    video.write_video("other.mp4", clip(2), 10)  # nor may they lead to one
    path = tmp_path / name
    path.write_bytes(content)
    for read in (video.probe, lambda p: list(video.iterate(p)), lambda p: video.read_frames(p, [0])):
        with pytest.raises(UserError, match=name):
            read(path)
    with pytest.raises(UserError, match=name):
        video.read_audio(path, 16000)
    with pytest.raises(UserError, match=name):
        video.read_image(path)


def test_reasons_are_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("nowhere.mp4")
    video.write_audio(tmp_path / "sound.flac", np.zeros(100, np.float32), 8000)
    video.write_video(tmp_path / "mute.mp4", clip(3), 10)
    for name, reason in [("empty.mp4", "is empty"), ("link.mp4", "link"), ("gone.mp4", "does not exist")]:
        with pytest.raises(UserError, match=f"{name}.*{reason}"):
            video.probe(tmp_path / name)
    with pytest.raises(UserError, match="no video stream"):
        video.probe(tmp_path / "sound.flac")
    with pytest.raises(UserError, match="no sound"):
        video.read_audio(tmp_path / "mute.mp4", 8000)


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path, long_clip):
    path = tmp_path / "secret.mp4"
    path.write_bytes(long_clip.read_bytes())
    path.chmod(0)
    with pytest.raises(UserError, match="permission"):
        video.probe(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("left", [0.1, 0.6, 0.95, 0.999])
def test_truncated_files(tmp_path, suffix, left):
    path = tmp_path / f"t.{suffix}"
    if suffix == "mp4":  # ours has its index in front, so the first frames would decode
        video.write_video(path, clip(40), 25)
    else:
        encode(path, clip(40), "mpeg4", [Fraction(n, 25) for n in range(40)])
    assert video.probe(path).frames == 40
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    with pytest.raises(UserError, match=path.name):
        video.probe(path)


def test_pictures(tmp_path):
    picture = clip(1, 33, 31)[0]
    video.write_png(tmp_path / "p.png", picture)
    assert (video.read_image(tmp_path / "p.png") == picture).all()
    assert (video.read_image((tmp_path / "p.png").read_bytes()) == picture).all()


def test_contact_sheet_places_frames_in_rows():
    frames = np.stack([np.full((4, 5, 3), 10 * n, np.uint8) for n in range(5)])
    sheet = video.contact_sheet(frames, columns=3, gap=1)
    assert sheet.shape == (2 * 5 + 1, 3 * 6 + 1, 3)
    assert (sheet[1:5, 7:12] == 10).all()
    assert (sheet[6:10, 7:12] == 40).all()
    assert (sheet[6:10, 13:18] == 255).all()  # the empty last place


def test_resize_modes():
    frames = np.zeros((2, 20, 40, 3), np.uint8)
    frames[:, :, 10:30] = 200
    assert (video.resize(frames, (10, 10), "crop") == 200).all()
    box = video.resize(frames, (10, 10), "letterbox")
    assert (box[:, :2] == 0).all()
    assert (box[:, 4, 4:6] == 200).all()
    assert video.resize(frames, (7, 9), "stretch").shape == (2, 7, 9, 3)
    assert (video.resize(frames, (20, 40)) == frames).all()


def test_resize_is_antialiased():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = video.resize(stripes, (16, 16)).astype(int)
    assert np.abs(small[:, 2:-2, 2:-2] - 127.5).max() < 8
