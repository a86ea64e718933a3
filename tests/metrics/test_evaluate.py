"""An evaluation: killed, divided, of models and of files; and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_square, write_library
from fakes import TinyConfig, TinyContinuous

from longtake.data import video
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.metrics import evaluate as evaluation
from longtake.metrics import summary
from longtake.metrics.evaluate import OwnWeights, evaluate
from longtake.metrics.extractors.base import Features
from longtake.metrics.frechet import frechet_distance
from longtake.metrics.images import psnr
from longtake.metrics.protocol import PROTOCOLS, ClipKind
from longtake.metrics.records import StoredRecord, write_record
from longtake.metrics.result import Result
from longtake.metrics.sources import FolderSource, ModelSource, as_bytes
from longtake.nn.perceptual import PerceptualDistance
from longtake.report.compare import compare
from longtake.rollout.given import first_frames
from longtake.systems.base import ModelInfo

PROTOCOL = replace(
    PROTOCOLS["longtake-1"],
    clips=(ClipKind("16", 16), ClipKind("24", 24), ClipKind("24-subsample", 8, 3)),
    least_videos=4,
    real_split="all",
    clips_a_video=3,
    bootstrap=10,
)


class Pixels:
    """Mean colour and change of a clip; two classes by brightness."""

    name, hash, preprocessing, dim = "pixels", "0", "none", 4
    classes = ()

    def __init__(self, least: int = 1, most: int | None = None, name: str = "pixels"):
        self.least, self.most, self.name = least, most, name
        self.clips = 0

    def __call__(self, clips: np.ndarray) -> Features:
        self.clips += len(clips)
        x = clips.astype(np.float32) / 255
        change = np.abs(np.diff(x, axis=1)).mean((1, 2, 3, 4)) if x.shape[1] > 1 else np.zeros(len(x), np.float32)
        features = np.concatenate([x.mean((1, 2, 3)), change[:, None]], 1)
        bright = features[:, :1]
        return Features(features, np.concatenate([bright, 1 - bright], 1))


class Pixelwise(torch.nn.Module):
    """The image itself as its only feature map, after a factor."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image * self.factor]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return Library(write_library(tmp_path_factory.mktemp("evaluated") / "squares", videos=9))


@pytest.fixture(scope="module")
def system(library) -> TinyContinuous:
    torch.manual_seed(0)
    return TinyContinuous(TinyConfig(), ModelInfo.of(library, (16, 16))).eval()


def source(system, library, count: int = 6, frames: int = 32) -> ModelSource:
    return ModelSource(system, library, count, frames, 0, "round")


def figures(result: Result) -> dict:
    return {name: f.value for name, f in result.figures.items()}


@pytest.fixture(scope="module")
def whole(system, library, tmp_path_factory) -> Result:
    folder = tmp_path_factory.mktemp("whole")
    return evaluate(source(system, library), library, folder, PROTOCOL, [Pixels(), Pixels(1, 1, "frames")], batch=6)


def test_every_figure_is_there_with_its_protocol(whole):
    names = set(whole.figures)
    assert {"FVD16[pixels]", "KVD16[pixels]", "FVD24[pixels]", "FVD24-subsample[pixels]"} <= names
    assert {"FID[frames]", "KID[frames]", "IS[pixels]", "H(y)[pixels]", "CCS-area[pixels]"} <= names
    assert {"motion", "motion_real", "motion_ratio", "seam_any_period", "histogram_correlation"} <= names
    assert {"longest_still", "longest_repeat_real"} <= names
    assert not any("FVD" in name and "frames" in name for name in names)
    assert {"CCS[pixels]", "ICS[pixels]", "motion"} <= set(whole.curves)
    stated = whole.protocol
    assert stated["name"] == "longtake-1"
    assert (stated["frames"], stated["fake_videos"], stated["covariance"]) == (32, 6, "unbiased")
    assert stated["extractors"][0] == {"name": "pixels", "hash": "0", "preprocessing": "none"}
    assert len(stated["labels"]) == 6
    assert stated["sees_test_video"] is False
    low, high = whole.figures["FVD16[pixels]"].interval
    assert low < whole.figures["FVD16[pixels]"].value < high
    assert "biased upwards: 6 generated videos" in whole.figures["FVD16[pixels]"].note


def test_the_result_reads_back_and_its_folder_is_whole(whole, system, library, tmp_path):
    whole.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == whole
    evaluate(source(system, library), library, tmp_path / "e", PROTOCOL, [Pixels()], keep=2, batch=6)
    made = sorted(p.name for p in (tmp_path / "e").iterdir())
    assert made == ["records", "result.json", "sheet-000.png", "video-000.mp4", "video-001.mp4"]
    assert video.probe(tmp_path / "e" / "video-001.mp4").frames == 32


def test_a_killed_evaluation_goes_on_and_makes_nothing_twice(whole, system, library, tmp_path, monkeypatch):
    extractors = [Pixels(), Pixels(1, 1, "frames")]
    write = evaluation.write_record

    def dying(path: Path, record):
        write(path, record)
        if path.name == "00003.npz":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_record", dying)
        with pytest.raises(KeyboardInterrupt):
            evaluate(source(system, library), library, tmp_path, PROTOCOL, extractors, batch=2)
    assert not (tmp_path / "result.json").exists()
    taken_up = source(system, library)
    streamed, stream = [], taken_up.stream
    monkeypatch.setattr(taken_up, "stream", lambda numbers: (streamed.extend(numbers), stream(numbers))[1])
    result = evaluate(taken_up, library, tmp_path, PROTOCOL, extractors, batch=2)
    assert streamed == [4, 5]
    assert figures(result) == pytest.approx(figures(whole), rel=1e-6, abs=1e-9)


def test_divided_over_processes_it_gives_the_same(whole, system, library, tmp_path, monkeypatch):
    extractors = [Pixels(), Pixels(1, 1, "frames")]
    monkeypatch.setattr(evaluation, "_barrier", lambda world: None)
    for rank in (2, 1, 0):  # the first process sums up when the others are done
        monkeypatch.setattr(evaluation, "_processes", lambda rank=rank: (rank, 3))
        (tmp_path / "records").mkdir(exist_ok=True)
        result = evaluate(source(system, library), library, tmp_path, PROTOCOL, extractors, batch=1)
        assert (result is None) == (rank > 0)
    assert figures(result) == pytest.approx(figures(whole), rel=1e-6, abs=1e-9)


def test_real_features_are_computed_once(system, library, tmp_path):
    extractor = Pixels(name="once")
    evaluate(source(system, library), library, tmp_path / "a", PROTOCOL, [extractor])
    first, extractor.clips = extractor.clips, 0
    evaluate(source(system, library), library, tmp_path / "b", PROTOCOL, [extractor])
    assert 0 < extractor.clips < first


def test_files_are_measured_as_models_are(system, library, tmp_path):
    folder = folder_of(tmp_path / "videos", [moving_square(i) for i in range(5)])
    files = FolderSource(folder, None, None, 32, seam_period=8)
    assert (files.count, files.frames) == (5, 32)
    result = evaluate(files, library, tmp_path / "eval", PROTOCOL, [Pixels()])
    same = result.figures["FVD16[pixels]"].value
    assert "seam" in result.figures
    frozen = folder_of(tmp_path / "frozen", [moving_square(i)[:1].repeat(40, 0) for i in range(5)])
    still = evaluate(FolderSource(frozen, None, None, 32, None), library, tmp_path / "still", PROTOCOL, [Pixels()])
    assert still.figures["FVD16[pixels]"].value > same
    assert still.figures["motion_ratio"].value < 0.1
    assert still.figures["longest_still"].value == 32


def folder_of(path: Path, clips: list[np.ndarray]) -> Path:
    path.mkdir()
    for i, clip in enumerate(clips):
        video.write_video(path / f"{i}.mp4", [clip], 15.0, crf=10, pixel_format="yuv444p")
    return path


def test_a_reference_gives_psnr_and_ssim_at_every_frame(library, tmp_path):
    real = folder_of(tmp_path / "real", [moving_square(i, 40) for i in range(3)])
    noise = np.random.default_rng(0).integers(0, 60, (3, 40, 16, 16, 3))
    noisy = [np.where(np.arange(40)[:, None, None, None] < 20, moving_square(i, 40), noise[i]) for i in range(3)]
    made = folder_of(tmp_path / "made", [n.astype(np.uint8) for n in noisy])
    same = evaluate(FolderSource(real, None, 40, 40, None, real), library, tmp_path / "a", PROTOCOL, [])
    assert same.figures["SSIM"].value == pytest.approx(1)
    assert same.figures["PSNR@30"].value == 100
    assert "PSNR@45" not in same.figures
    result = evaluate(FolderSource(made, None, 40, 40, None, real), library, tmp_path / "b", PROTOCOL, [])
    assert len(result.curves["PSNR"].y) == 40
    assert result.figures["PSNR@16"].value > result.figures["PSNR@30"].value + 5
    assert result.figures["SSIM@16"].value > result.figures["SSIM@30"].value
    with pytest.raises(UserError, match="has 3 videos to compare 5 with"):
        FolderSource(folder_of(tmp_path / "five", [moving_square(0)] * 5), None, 40, 40, None, real)
    short = folder_of(tmp_path / "short", [moving_square(0, 30)] * 3)
    with pytest.raises(UserError, match=r"0\.mp4 has 30 frames of 16x16, it must have 40 of 16x16"):
        FolderSource(made, None, 40, 40, None, short)


class Redness:
    """Scores a frame against a colour's name."""

    name, hash = "clip-fake", "0"

    def similarities(self, frames: np.ndarray, texts: list[str | None]) -> np.ndarray:
        channel = ["red", "green", "blue"].index
        return np.array(
            [f[..., channel(t)].mean() / 255 if t else np.nan for f, t in zip(frames, texts, strict=True)]
        )


def test_texts_are_compared_with_the_frames_they_hold_for(library, tmp_path):
    clip = np.zeros((40, 16, 16, 3), np.uint8)
    clip[:20, ..., 0], clip[20:, ..., 2] = 255, 255
    folder = folder_of(tmp_path / "videos", [clip, clip])
    (folder / "captions.csv").write_text(
        f"file,text,t0,t1\n0.mp4,red,0,{20 / 15}\n0.mp4,blue,{20 / 15},\n1.mp4,red,,\n"
    )
    made = FolderSource(folder, None, None, 40)
    result = evaluate(made, library, tmp_path / "a", PROTOCOL, [], own=OwnWeights(clip=Redness()))
    assert result.figures["CLIPSIM[clip-fake]"].value == pytest.approx(0.75, abs=0.03)
    assert result.figures["VTM[clip-fake]"].value == pytest.approx(75, abs=3)
    assert result.protocol["text"] == {"name": "clip-fake", "hash": "0", "frames": 16}
    bare = FolderSource(folder_of(tmp_path / "bare", [clip]), None, None, 40)
    with pytest.raises(UserError, match="video 0 has no text to be compared with"):
        evaluate(bare, library, tmp_path / "b", PROTOCOL, [], own=OwnWeights(clip=Redness()))


def test_diversity_among_the_samples_of_a_condition(library, system, tmp_path):
    same, other = moving_square(0), moving_square(1)
    alike = folder_of(tmp_path / "alike", [same, same, other, other])
    mixed = folder_of(tmp_path / "mixed", [same, other, same, other])
    found = []
    for folder in (alike, mixed):
        made = FolderSource(folder, None, 32, 32, per_condition=2)
        found.append(evaluate(made, library, tmp_path / f"{folder.name}-e", PROTOCOL, []).figures)
    assert found[0]["DIV"].value < 0.1 * found[1]["DIV"].value
    assert found[1]["DIV-moving"].value > found[1]["DIV"].value
    samples = ModelSource(system, library, 6, 32, 5, "round", per_condition=3)
    labels = [s.timeline[0].label for s in samples.stories]
    assert labels[:3] == labels[:1] * 3
    assert labels[3:] == labels[3:4] * 3
    assert [s.seed for s in samples.stories] == [5, 6, 7, 8, 9, 10]
    with pytest.raises(UserError, match="4 videos do not divide into 3 a condition"):
        FolderSource(mixed, None, 32, 32, per_condition=3)


class Still(TinyContinuous):
    """Goes on from given frames by showing the last one."""

    accepts = frozenset({"label", "first_frames"})

    def given_frames(self, stories):
        return first_frames(stories, (16, 16)).shape[2] // 2 * 2  # takes frames in pairs

    def rollout(self, stories, rng):
        n = self.given_frames(stories)
        frames = first_frames(stories, (16, 16))[:, :, :n]
        yield torch.cat([frames, frames[:, :, -1:].expand(-1, -1, (stories[0].frames or 0) - n, -1, -1)], 2)


def test_given_frames_are_left_out_and_what_follows_is_compared(library, tmp_path):
    model = Still(TinyConfig(), ModelInfo.of(library, (16, 16))).eval()
    made = ModelSource(model, library, 3, 20, 0, "round", given=5)
    assert (made.given, made.frames, made.compared) == (4, 20, True)
    result = evaluate(made, library, tmp_path / "a", PROTOCOL, [])
    assert result.protocol["given_frames"] == 4
    assert result.curves["PSNR"].x[-1] == 19
    rows = library.split("test")
    still = [library.frames(row, [3]).repeat(20, 0) for row in rows]
    real = [library.frames(row, range(4, 24)) for row in rows]
    expected = [psnr(a, b).clip(max=100) for a, b in zip(still, real, strict=True)]
    assert result.figures["PSNR"].value == pytest.approx(np.mean(expected), rel=0.02)
    curve = result.curves["PSNR"].y  # its twelfth frame is the 16th of the video, whose first four are given
    assert result.figures["PSNR@16"].value == pytest.approx(curve[11], abs=1e-9) != curve[15]
    assert result.figures["longest_still"].value == 20
    longer = ModelSource(model, library, 3, 60, 0, "round", given=1)  # longer than the real videos
    assert (longer.given, longer.compared) == (0, False)
    with pytest.raises(UserError, match="has no test video of 50 frames"):
        ModelSource(model, library, 3, 20, 0, "round", given=50)
    with pytest.raises(UserError, match="tiny-continuous takes no first frames"):
        ModelSource(TinyContinuous(TinyConfig(), model.info), library, 3, 20, 0, "round", given=2)


def test_what_was_given_divides_no_table(library, tmp_path):
    model = Still(TinyConfig(), ModelInfo.of(library, (16, 16))).eval()
    files = folder_of(tmp_path / "made", [library.frames(i, range(20)) for i in library.split("train")[:3]])
    free = ModelSource(TinyContinuous(TinyConfig(), model.info).eval(), library, 3, 20, 0, "round")
    sources = {"free": free, "led": ModelSource(model, library, 3, 20, 0, "round", given=4)}
    sources["files"] = FolderSource(files, None, 20, 20)
    for name, source in sources.items():
        evaluate(source, library, tmp_path / name, PROTOCOL, [])
    groups = compare([tmp_path / name for name in sources], tmp_path / "page.html")
    assert groups == [list(sources)]
    cells = "<td>class</td><td>class, first frames: 4</td><td>not known</td>"
    assert f"<tr><th>given</th>{cells}</tr>" in (tmp_path / "page.html").read_text()


def test_copies_of_training_videos_are_noticed(library, tmp_path):
    protocol = replace(PROTOCOL, real_split="test")
    train = [library.frames(i, range(40)) for i in library.split("train")[:4]]
    copied = folder_of(tmp_path / "copied", train)
    fresh = folder_of(tmp_path / "fresh", [moving_square(100 + i) for i in range(4)])
    found = []
    for name, folder in (("c", copied), ("f", fresh)):
        made = FolderSource(folder, None, 32, 32)
        result = evaluate(made, library, tmp_path / name, protocol, [Pixels()])
        found.append(result.figures["nearest-train[pixels]"].value)
    assert found[0] < 0.3 * found[1]


def test_first_against_last_frame(system, library, tmp_path):
    found = []
    for name, network in (("a", Pixelwise()), ("b", Pixelwise(2.0)), ("c", Pixelwise(2.0))):
        own = OwnWeights(PerceptualDistance(network))
        result = evaluate(source(system, library), library, tmp_path / name, PROTOCOL, [], own=own)
        stated = result.protocol["lpips"]
        assert stated["name"].startswith(f"pixelwise-{stated['hash'][:8]}")
        assert result.figures[f"LPIPS-first-last[{stated['name']}]"].value > 0
        found.append(stated["name"])
    assert found[0] != found[1] == found[2]  # a network of other weights has a figure of its own


def test_what_is_refused_and_what_is_said(system, library, tmp_path):
    def refused(match: str, made=None, protocol=PROTOCOL, extractors=None):
        with pytest.raises(UserError, match=match):
            evaluate(made or source(system, library), library, tmp_path / "no", protocol, extractors or [Pixels()])
        assert not (tmp_path / "no").exists()

    refused("3 videos are too few", source(system, library, 3))
    refused("videos of 12 frames are too short", source(system, library, 6, 12))
    refused(
        r"gives 18 real clips .* 40 is the least", source(system, library, 40), replace(PROTOCOL, least_videos=40)
    )
    refused("takes none of the clips", extractors=[Pixels(99)])
    refused("two extractors are called pixels", extractors=[Pixels(), Pixels()])
    large = replace(system.info, size=(32, 32))
    other = TinyContinuous(TinyConfig(size=(32, 32)), large)
    refused("holds 16x16 frames and the videos have 32x32", source(other, library))
    evaluate(source(system, library), library, tmp_path / "one", PROTOCOL, [])
    with pytest.raises(UserError, match="holds another evaluation"):
        evaluate(source(system, library, 5), library, tmp_path / "one", PROTOCOL, [])


def test_the_measured_videos_are_not_overwritten(library, tmp_path):
    for i in range(2):
        video.write_video(tmp_path / f"video-00{i}.mp4", [moving_square(i, 20)], 15.0)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    files = FolderSource(tmp_path, None, 20, 1024, None)
    with pytest.raises(UserError, match="is the folder of the videos"):
        evaluate(files, library, tmp_path / ".." / tmp_path.name, PROTOCOL, [])
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_folders_that_cannot_be_measured(tmp_path):
    def refused(match: str, frames=None):
        with pytest.raises(UserError, match=match):
            FolderSource(tmp_path, None, frames, 1024, None)

    refused("neither a model nor a folder of videos")
    video.write_video(tmp_path / "a.mp4", [moving_square(0, 20)], 15.0)
    refused(r"a\.mp4 has 20 frames, 32 are asked for; pass --frames 20", 32)
    video.write_video(tmp_path / "b.mp4", [moving_square(0, 20, 24)], 15.0)
    refused(r"different sizes \(16x16, 24x24\), for example b\.mp4")
    (tmp_path / "b.mp4").write_text("no video")
    refused(r"b\.mp4")


def test_a_result_that_is_none(tmp_path):
    with pytest.raises(UserError, match="cannot read the result"):
        Result.read(tmp_path / "none.json")
    (tmp_path / "x.json").write_text(json.dumps({"figures": 3}))
    with pytest.raises(UserError, match="not a result"):
        Result.read(tmp_path / "x.json")


def test_bytes_are_rounded_or_cut():
    values = torch.tensor([-1.5, -1, -0.001, 0.0, 0.004, 1, 2]).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    assert as_bytes(values, "round")[0, 0, :, 0].tolist() == [0, 0, 127, 128, 128, 255, 255]
    assert as_bytes(values, "truncate")[0, 0, :, 0].tolist() == [0, 0, 127, 128, 128, 255, 255]
    assert as_bytes(torch.full((3, 1, 1, 1), 0.01), "truncate").max() == 129
    assert as_bytes(torch.full((3, 1, 1, 1), 0.003), "round").max() == 128


def test_class_scores_need_the_librarys_classes(system, library, tmp_path):
    foreign, known = Pixels(name="foreign"), Pixels(name="known")
    foreign.classes, known.classes = ("cat", "dog"), ("left", "right", "up")
    result = evaluate(source(system, library), library, tmp_path, PROTOCOL, [foreign, known], batch=6)
    assert {"FVD16[foreign]", "FVD16[known]", "IS[known]", "CCS-area[known]"} <= set(result.figures)
    assert not {"IS[foreign]", "CCS-area[foreign]"} & set(result.figures)
    assert "CCS[foreign]" not in result.curves


def test_curves_over_windows_do_not_depend_on_how_they_are_accumulated(monkeypatch):
    rng = np.random.default_rng(0)
    records = [{"pixels/windows": rng.normal(size=(5, 4))} for _ in range(12)]
    real = {"clip/16": rng.normal(size=(30, 4))}
    at_once = summary.window_curves(PROTOCOL, Pixels(), records, real)
    monkeypatch.setattr(summary, "ACCUMULATORS", 1)
    monkeypatch.setattr(summary, "BLOCK", 5)
    piecewise = summary.window_curves(PROTOCOL, Pixels(), records, real)
    third = np.stack([r["pixels/windows"][3] for r in records])
    expected = frechet_distance(third, real["clip/16"])
    for curves in (at_once, piecewise):
        assert curves["FVD-change[pixels]"].y[0] == pytest.approx(0, abs=1e-9)
        assert curves["FVD-window[pixels]"].y[3] == pytest.approx(expected)
        assert curves["FVD-window[pixels]"].x == [0, 16, 32, 48, 64]


def test_a_record_is_read_array_by_array(tmp_path):
    write_record(tmp_path / "r.npz", {"a": np.arange(3), "b": np.eye(2)})
    record = StoredRecord(tmp_path / "r.npz")
    assert list(record) == ["a", "b"]
    assert "c" not in record
    np.testing.assert_array_equal(record["a"], [0, 1, 2])
    with pytest.raises(KeyError):
        record["c"]
