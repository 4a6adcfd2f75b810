import io
import tarfile

import numpy as np
import pytest

from mmjax.data import video
from mmjax.data.documents import Document, Image, Text, Video
from mmjax.data.image_spec import ImageError, ImageSpec, VideoSpec
from mmjax.data.images import check_visuals, decode_visuals
from mmjax.data.sources import open_source

av = pytest.importorskip("av")
FPS, SPEC = 10, ImageSpec(size=16, resize="box")


def make_video(seconds=6.0, kind="mp4", codec="mpeg4", size=(64, 48), gop=12, left=None):
    """A video whose frame k is grey of level 4 k (of 240), so that every frame says its number."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as file:
        stream = file.add_stream(codec, rate=FPS, options=dict(qscale="1", g=str(gop)))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for k in range(round(seconds * FPS)):
            pixels = np.full((size[1], size[0], 3), 4 * k % 240, np.uint8)
            pixels[:, :size[0] // 2] = pixels[0, 0] if left is None else left
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


def numbers(pixels):
    return np.round(pixels.astype(float).mean((-1, -2, -3)) / 4).astype(int).tolist()


@pytest.mark.parametrize("kind, codec", [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4")])
def test_frames_at_equal_distances(kind, codec):
    data = make_video(kind=kind, codec=codec)
    assert video.container(data) == kind
    for frames, want in ((8, np.linspace(0, 59, 8)), (1, [30]), (2, [0, 59])):
        got = decode_visuals([Video((data,))], SPEC, frames)
        assert got.shape == (1, frames, 16, 16, 3)
        assert np.abs(np.array(numbers(got[0])) - np.floor(want)).max() <= 1


def test_frames_at_a_rate():
    spec = ImageSpec(size=16, resize="box", video=VideoSpec(rate=1.0))
    got = numbers(decode_visuals([Video((make_video(),))], spec, 8)[0])
    assert np.abs(np.array(got) - [0, 10, 20, 30, 40, 50, 59, 59]).max() <= 1


def test_sample_times():
    np.testing.assert_allclose(video.sample_times(2.0, 0.5, 4), [0, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(video.sample_times(2.0, 0.5, 1), [1.0])
    np.testing.assert_allclose(video.sample_times(2.0, 0.5, 4, rate=1.0), [0, 1.0, 1.5, 1.5])


def test_seeking_gives_the_frames_that_reading_on_gives(monkeypatch):
    data = make_video(20.0, gop=10)
    sought = decode_visuals([Video((data,))], SPEC, 5)
    monkeypatch.setattr(video, "_SEEK_AHEAD", 1e9)
    np.testing.assert_array_equal(sought, decode_visuals([Video((data,))], SPEC, 5))


def test_a_rotation_of_the_file_is_applied():
    data = make_video(0.2, size=(64, 32), left=200)         # the other half is nearly black
    unit, quarter = (0x10000, 0, 0, 0, 0x10000, 0), (0, 0x10000, 0, -0x10000, 0, 0)
    unit, quarter = (b"".join(v.to_bytes(4, "big", signed=True) for v in m) for m in (unit, quarter))
    track = data.index(unit, data.index(b"tkhd"))
    turned = data[:track] + quarter + data[track + len(unit):]
    assert video.read_frames(data, 1, SPEC)[0].size == (64, 32)
    upright = np.asarray(video.read_frames(turned, 1, SPEC)[0])     # a quarter turn clockwise: left becomes top
    assert upright.shape == (64, 32, 3) and upright[:28].min() > 180 and upright[36:].max() < 20


def test_images_stand_beside_videos():
    frame = video.read_frames(make_video(1.0), 1, SPEC)[0]
    out = io.BytesIO()
    frame.save(out, "PNG")
    got = decode_visuals([Image(out.getvalue()), Video((make_video(1.0),))], SPEC, 2)
    assert numbers(got[0]) == [5, 5] and numbers(got[1])[0] == 0


def test_captioned_videos_come_from_tar_shards(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, body in (("a.mp4", make_video()), ("a.txt", b"a clip")):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    (document,) = open_source("webdataset", tmp_path)
    assert document == Document((Video((make_video(),)), Text("a clip")), document.key)
    assert numbers(decode_visuals(document.segments[:1], SPEC, 2)[0])[0] == 0


@pytest.mark.parametrize("name, data, spec, reason", [
    ("half", lambda: make_video()[:1500], SPEC, "video truncated or damaged"),
    ("no video", lambda: b"\0\0\0\x18ftypmp42" + bytes(100), SPEC, "video truncated or damaged"),
    ("too long", make_video, ImageSpec(size=16, video=VideoSpec(max_seconds=5)), "video too large or too long"),
    ("too many bytes", make_video, ImageSpec(size=16, video=VideoSpec(max_bytes=99)), "video too large or too long"),
    ("large frames", make_video, ImageSpec(size=16, max_pixels=999), "image has too many pixels"),
    ("playlist", lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", SPEC, "not a JPEG, PNG, WebP or GIF image"),
])
def test_bad_files_say_why(name, data, spec, reason):
    with pytest.raises(ImageError) as e:
        decode_visuals([Video((data(),))], spec, 2)
    assert e.value.reason == reason


def test_headers_are_checked_without_decoding(monkeypatch):
    monkeypatch.setattr(video, "read_frames", None)
    check_visuals([Video((make_video(),)), Video((make_video(),))], SPEC, 4)
    with pytest.raises(ImageError, match="too large"):
        check_visuals([Video((make_video(),))], ImageSpec(size=16, video=VideoSpec(max_bytes=99)))
    with pytest.raises(ImageError, match="not a JPEG"):
        check_visuals([Video((b"no", b"no"))], SPEC)
