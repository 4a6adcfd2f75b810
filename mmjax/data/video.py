"""Frames of video files by PyAV (extra [video]), from memory, with limits.

Only the containers below are opened, by their first bytes and never by probing: a playlist could make the
demuxer open other files.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image as pil

from mmjax.data.image_spec import ImageError, ImageSpec, VideoSpec

_SEEK_AHEAD = 2.0                               # seconds; what is nearer is reached by decoding on
_TURN = {90: pil.Transpose.ROTATE_90, 180: pil.Transpose.ROTATE_180, 270: pil.Transpose.ROTATE_270}


def container(data: bytes) -> str | None:
    """The kind of video file: mp4 (and MOV), matroska (and WebM) or avi; None if it is none of them."""
    if data[4:8] == b"ftyp":
        return "mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "avi" if data[:4] == b"RIFF" and data[8:12] == b"AVI " else None


def is_file(data: bytes) -> bool:
    """Whether the data are a video file rather than an encoded image."""
    return container(data) is not None


def check_file(data: bytes, spec: VideoSpec) -> None:
    """Raises ImageError if the file has more bytes than it may."""
    if len(data) > spec.max_bytes:
        raise ImageError("video too large or too long", f"{len(data)} bytes, the limit is {spec.max_bytes}")


def read_frames(data: bytes, frames: int, spec: ImageSpec) -> list[pil.Image]:
    """Frames of a video file, upright.

    Args:
        data: an MP4, MOV, Matroska, WebM or AVI file.
        frames: how many are wanted.
        spec: its limits and, in `spec.video`, at which times they are taken.

    Returns:
        `frames` RGB images. A time between two frames gives the earlier one.

    Raises:
        ImageError: if the file is damaged, has no video, or breaks a limit.
        ImportError: if PyAV is not installed.
    """
    try:
        import av
    except ImportError as e:
        raise ImportError("video files need PyAV: pip install 'mmjax[video]'") from e
    check_file(data, spec.video)
    try:
        with av.open(io.BytesIO(data), format=container(data)) as file:
            if not file.streams.video:
                raise ImageError("video truncated or damaged", "the file has no video stream")
            stream = file.streams.video[0]
            spec.check_shape(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = 1           # worker processes share the cores already
            start, seconds = _extent(file, stream)
            if seconds > spec.video.max_seconds:
                raise ImageError("video too large or too long",
                                 f"{seconds:.0f} s, max_seconds={spec.video.max_seconds:g}")
            times = start + sample_times(seconds, 1 / float(stream.average_rate or 25), frames, spec.video.rate)
            return list(_at_times(file, stream, start, times, spec))
    except ImageError:
        raise
    except Exception as e:                                  # FFmpeg's errors, and frames without a time
        raise ImageError("video truncated or damaged", str(e) or type(e).__name__) from e


def sample_times(seconds: float, frame: float, wanted: int, rate: float = 0.0) -> np.ndarray:
    """float64[wanted] times in a video, from its start.

    Args:
        seconds: its duration.
        frame: the duration of one frame.
        wanted: how many times.
        rate: per second, from the start on; 0 for equal distances, first and last frame included (the middle if one
            is wanted).
    """
    last = max(seconds - frame, 0.0)
    if rate:
        return np.minimum(np.arange(wanted) / rate, last)
    return np.array([seconds / 2]) if wanted == 1 else np.linspace(0, last, wanted)


def _extent(file, stream) -> tuple[float, float]:
    """(start, duration) in seconds."""
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        return start, float(stream.duration * stream.time_base)
    if file.duration:
        return start, file.duration / 1e6
    raise ImageError("video truncated or damaged", "the file does not say how long it is")


def _at_times(file, stream, start: float, times: np.ndarray, spec: ImageSpec) -> Iterator[pil.Image]:
    """The last frame at or before each of the ascending times; the first or the last one beyond the ends."""
    decoded, shown, ahead = file.decode(stream), None, None
    for t in times:
        if t - (ahead.time if ahead else start) > _SEEK_AHEAD:
            file.seek(int(t / stream.time_base), stream=stream)
            decoded, shown, ahead = file.decode(stream), None, None
        while (ahead := ahead or next(decoded, None)) and (shown is None or ahead.time <= t + 1e-4):
            shown, ahead = ahead, None
        if shown is None:
            raise ImageError("video truncated or damaged", f"it has no frame at {t:.2f} s")
        yield _image(shown, spec)


def _image(frame, spec: ImageSpec) -> pil.Image:
    spec.check_shape(frame.width, frame.height)             # a stream may change it midway
    image = frame.to_image()
    return image.transpose(_TURN[frame.rotation % 360]) if frame.rotation % 360 in _TURN else image
