"""Where a run writes what it sees: log.jsonl, TensorBoard, previews, and the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from longtake.data import video
from longtake.data.batch import to_uint8
from longtake.files import write_text


class Log:
    """Figures by (stage, step); a resumed run drops what came after its checkpoint, so no step stands twice.

    Args:
        folder: the run's.
        offset: total updates before this stage, so that TensorBoard shows one time line.
        stage: its name.
        step: the step the stage goes on from.
        fps: of previews.
        active: False on all processes but the first.
    """

    def __init__(self, folder: Path, stage: str, offset: int, step: int, fps: float, active: bool):
        self.folder, self.stage, self.offset, self.fps, self.active = folder, stage, offset, fps, active
        if not active:
            return
        self.file = folder / "log.jsonl"
        self._truncate(step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=offset + step)

    def _truncate(self, step: int) -> None:
        """Keep the lines of earlier stages and of this stage's steps up to `step`."""
        if not self.file.exists():
            return
        kept = []
        for text in self.file.read_text().splitlines():
            try:
                entry = json.loads(text)
            except ValueError:  # the last line of a killed run
                continue
            if entry["total"] <= self.offset + step:
                kept.append(text)
        write_text(self.file, "".join(f"{text}\n" for text in kept))

    def figures(self, step: int, values: dict[str, float]) -> None:
        """Append figures of one step."""
        if not self.active:
            return
        entry = {"stage": self.stage, "step": step, "total": self.offset + step, **values}
        with self.file.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for key, value in values.items():
            self.board.add_scalar(f"{self.stage}/{key}", value, self.offset + step)
        self.board.flush()

    def preview(self, step: int, clip: Tensor) -> None:
        """Write a preview (3, T, H, W) as mp4 and contact sheet."""
        if not self.active:
            return
        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        frames = to_uint8(clip)
        name = f"{self.stage}-{step:07d}"
        video.write_video(folder / f"{name}.mp4", [frames], self.fps)
        shown = frames[:: max(1, len(frames) // 8)][:8]
        video.write_png(folder / f"{name}.png", video.contact_sheet(shown, columns=len(shown)))

    def close(self) -> None:
        if self.active:
            self.board.close()
