"""Video, sound and picture files: the one door to codecs (PyAV).

Frames at this edge are uint8 RGB, (T, H, W, 3); sound is mono float32 in [-1, 1]. Every failure on a
file is a `UserError` that names the file and the reason, and no half-written file is ever left behind.
"""

from longtake.data.decode import VideoInfo, iterate, iterate_timed, probe, read_audio, read_frames, read_image
from longtake.data.encode import VideoWriter, write_audio, write_png, write_video
from longtake.data.pixels import contact_sheet, resize

__all__ = [
    "VideoInfo",
    "VideoWriter",
    "contact_sheet",
    "iterate",
    "iterate_timed",
    "probe",
    "read_audio",
    "read_frames",
    "read_image",
    "resize",
    "write_audio",
    "write_png",
    "write_video",
]
