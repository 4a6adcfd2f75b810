import io
import pickle
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil

from mmjax.data.documents import Image, Video
from mmjax.data.image_spec import ImageError, ImageSpec
from mmjax.data.images import check_header, decode_image, decode_visuals, sample_frames

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 8, 3), np.uint8)


def encode(pixels, fmt="PNG", mode=None, **options):
    out = io.BytesIO()
    image = pixels if isinstance(pixels, pil.Image) else pil.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, fmt, **options)
    return out.getvalue()


def smooth(h, w):
    y, x = np.mgrid[:h, :w]
    return np.stack([x * 255 / w, y * 255 / h, (x + y) * 255 / (h + w)], -1).astype(np.uint8)


@pytest.mark.quick
def test_lossless_pixels_come_back():
    for data in (encode(PIXELS), encode(PIXELS, "WEBP", lossless=True)):
        got = decode_image(data, ImageSpec(size=8))
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, PIXELS)


def test_jpeg_through_draft_mode_is_close_to_a_full_decode():
    pixels = smooth(512, 512)
    data = encode(pixels, "JPEG", quality=95)
    got = decode_image(data, ImageSpec(size=32, resize="box"))
    want = pixels.reshape(32, 16, 32, 16, 3).mean((1, 3))
    assert np.abs(got - want).max() < 2 and np.abs(got - want).mean() < 0.7


def test_draft_mode_on_a_photograph():
    """The figures that ImageSpec.draft gives, for a photograph of 640 x 427 that becomes 190 x 190."""
    folder = pytest.importorskip("sklearn.datasets").__path__[0]
    data = Path(folder, "images", "china.jpg").read_bytes()
    full, fast, same = (decode_image(data, ImageSpec(size=190, draft=d)).astype(int) for d in (0, 1.0, 1.5))
    assert 0.4 < np.abs(full - fast).mean() < 2.1 and not np.abs(full - same).any()


@pytest.mark.parametrize("size", [(301, 220), (220, 301), (640, 480)])
@pytest.mark.parametrize("policy", ["squash", "center_crop", "pad"])
def test_draft_mode_is_an_option_that_keeps_the_geometry(size, policy):
    y, x = np.mgrid[:size[1], :size[0]]
    rings = (127 + 120 * np.cos(np.hypot(x - 60, y - 80) / 12)).astype(np.uint8)
    data = encode(np.repeat(rings[..., None], 3, -1), "JPEG", quality=95)
    full, same, fast = (decode_image(data, ImageSpec(size=64, policy=policy, draft=d)).astype(int) for d in (0, 9, 1))
    np.testing.assert_array_equal(full, same)
    off = {d: np.abs(full[2:-2, 2:-2] - np.roll(fast, d, (0, 1))[2:-2, 2:-2]).mean() for d in (-1, 0, 1)}
    assert 0 < off[0] < 2 and min(off[-1], off[1]) > 10 * off[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_applied_once(orientation, fmt):
    def stored(a):          # how a camera that writes this orientation stores the upright picture
        return {1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2), 6: np.rot90(a),
                7: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90(a, -1)}[orientation]
    upright = np.kron(RNG.integers(0, 256, (2, 4, 3)), np.ones((8, 4, 1))).astype(np.uint8)
    exif = pil.Exif()
    exif[0x0112] = orientation
    data = encode(np.ascontiguousarray(stored(upright)), fmt, exif=exif,
                  **dict(PNG={}, JPEG=dict(quality=100, subsampling=0), WEBP=dict(lossless=True))[fmt])
    got = decode_image(data, ImageSpec(size=16))
    assert np.abs(got.astype(int) - upright).max() <= (6 if fmt == "JPEG" else 0)
    halved = decode_image(data, ImageSpec(size=8, policy="center_crop", resize="box"))       # resized, then turned
    want = upright.reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert np.abs(halved - want).max() <= (6 if fmt == "JPEG" else 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_orientation_data_is_ignored():
    data = encode(PIXELS, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode_image(data, ImageSpec(size=8)), PIXELS)


def test_modes_become_rgb():
    spec, grey = ImageSpec(size=8), PIXELS[..., 0]
    grey3 = np.repeat(grey[..., None], 3, -1)
    alpha = RNG.integers(0, 256, (8, 8), np.uint8)

    def on_white(rgb):
        a = alpha[..., None] / 255
        return rgb * a + 255 * (1 - a)

    palette = pil.fromarray((grey % 3).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = np.eye(3)[grey % 3] * 255
    shade = np.array([0, 1, 0.2])[grey % 3][..., None]
    clear = np.where((grey % 3 == 1)[..., None], 255, colours)
    cases = {
        "L": (encode(grey), grey3), "1": (encode(pil.fromarray(grey > 127)), np.where(grey3 > 127, 255, 0)),
        "I;16": (encode(grey.astype(np.uint16) * 256 + 77), grey3),
        "16-bit RGB": (png16(2, PIXELS), PIXELS), "16-bit LA": (png16(4, np.dstack([grey, alpha])), on_white(grey3)),
        "16-bit RGBA": (png16(6, np.dstack([PIXELS, alpha])), on_white(PIXELS)),
        "P+alphas": (encode(palette, transparency=bytes([0, 255, 51])), colours * shade + 255 * (1 - shade)),
        "RGBA": (encode(np.dstack([PIXELS, alpha])), on_white(PIXELS)),
        "LA": (encode(pil.merge("LA", (pil.fromarray(grey), pil.fromarray(alpha)))), on_white(grey3)),
        "P": (encode(palette), colours), "P+transparency": (encode(palette, transparency=1), clear),
        "P gif": (encode(palette, "GIF"), colours), "P gif+t": (encode(palette, "GIF", transparency=1), clear),
        "WebP+alpha": (encode(np.dstack([PIXELS, alpha]), "WEBP", lossless=True, exact=True), on_white(PIXELS)),
    }
    for name, (data, want) in cases.items():
        got = decode_image(data, spec).astype(float)
        assert np.abs(got - want).max() <= 1, name


@pytest.mark.parametrize("adobe", [False, True])
def test_cmyk_jpeg(adobe):
    """CMYK is stored inverted, as Photoshop does; that holds for files without Adobe's mark, too."""
    flat = np.full((16, 16, 4), (255, 0, 128, 51), np.uint8)
    data = encode(pil.fromarray(flat, "CMYK"), "JPEG", quality=100)
    if not adobe:
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2:start + 4], "big"):]
    c, m, y, k = flat[0, 0] / 255
    want = np.array([(1 - c) * (1 - k), (1 - m) * (1 - k), (1 - y) * (1 - k)]) * 255
    assert np.abs(decode_image(data, ImageSpec(size=16)) - want).max() <= 3


def test_an_animation_gives_its_first_frame():
    frames = [pil.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 200)]
    for fmt, options in (("GIF", {}), ("PNG", {}), ("WEBP", dict(lossless=True))):
        out = io.BytesIO()
        frames[0].save(out, fmt, save_all=True, append_images=frames[1:], **options)
        assert (decode_image(out.getvalue(), ImageSpec(size=8)) == 10).all(), fmt
        assert check_header(out.getvalue(), ImageSpec()) == (fmt, 8, 8, True)


def test_policies():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 100
    data = encode(wide)
    squash = decode_image(data, ImageSpec(size=4, resize="box"))
    np.testing.assert_array_equal(squash[0, :, 0], [0, 100, 100, 0])
    assert (decode_image(data, ImageSpec(size=4, policy="center_crop")) == 100).all()
    pad = decode_image(data, ImageSpec(size=8, policy="pad", fill=(1, 2, 3)))
    np.testing.assert_array_equal(pad[2:6], wide)
    assert (pad[:2] == (1, 2, 3)).all() and (pad[6:] == (1, 2, 3)).all()
    tall = decode_image(encode(np.ascontiguousarray(wide.transpose(1, 0, 2))), ImageSpec(size=8, policy="pad"))
    assert (tall[:, :2] == 255).all() and (tall[:, 6:] == 255).all() and (tall[2:6, 2:6] == 100).all()


def damaged():
    big = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    jpeg, png = encode(big, "JPEG"), encode(big)
    gif, webp = encode(big, "GIF", mode="P"), encode(big, "WEBP", lossless=True)
    cut, other = "image truncated or damaged", "not a JPEG, PNG, WebP or GIF image"
    return {
        "cut jpeg": (jpeg[:len(jpeg) // 2], cut), "cut png": (png[:len(png) // 2], cut),
        "cut gif": (gif[:len(gif) // 2], cut), "cut webp": (webp[:len(webp) // 2], None),
        "jpeg header": (jpeg[:20], None), "flipped png": (png[:2000] + b"\x00" * 99 + png[2099:], cut),
        "html": (b"<html><body>404</body></html>", other), "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", other),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", other), "empty": (b"", other),
        "random": (RNG.bytes(500), other), "bmp": (encode(big, "BMP"), other), "tiff": (encode(big, "TIFF"), other),
        "0 x 0": (png_header(0, 0), None),
    }


def png_header(width, height, text=b"", copies=1):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    extra = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(text)) * copies if text else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(b"\x00" * 100)) + chunk(b"IEND", b"")


def png16(kind, high):
    """A PNG of 16 bits per channel with these high bytes and 77 below them."""
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    rows = np.dstack([high[..., None], np.full_like(high[..., None], 77)]) if high.ndim == 2 else \
        np.stack([high, np.full_like(high, 77)], -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", high.shape[1], high.shape[0], 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", damaged())
def test_damaged_images_say_why(name):
    data, reason = damaged()[name]
    with pytest.raises(ImageError) as e:
        decode_image(data, ImageSpec(size=8))
    assert e.value.reason == (reason or e.value.reason) and str(e.value).startswith(e.value.reason)
    copy = pickle.loads(pickle.dumps(e.value))
    assert (str(copy), copy.reason) == (str(e.value), e.value.reason)


def test_random_damage_raises_nothing_else():
    rng = np.random.default_rng(1)
    for fmt in ("JPEG", "PNG", "GIF", "WEBP"):
        good = encode(PIXELS, fmt)
        for _ in range(300):
            bad = bytearray(good)
            for _ in range(rng.integers(1, 5)):
                bad[rng.integers(len(bad))] = rng.integers(256)
            try:
                assert decode_image(bytes(bad[: rng.integers(1, len(bad) + 1)]), ImageSpec(size=8)).shape == (8, 8, 3)
            except ImageError:
                continue


def jpeg_header(width, height):
    data = bytearray(encode(PIXELS, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5:at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width, height):
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"," + struct.pack(
        "<HHHHB", 0, 0, width, height, 0) + b"\x08\x01\x00\x00;"


def webp_header(side):
    """An animation with a canvas of side x side whose frame has 8 x 8 pixels."""
    def chunk(kind, body):
        return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    frame = encode(PIXELS, "WEBP", lossless=True)[12:]
    size = (side - 1).to_bytes(3, "little") * 2
    small = (7).to_bytes(3, "little") * 2
    body = b"WEBP" + chunk(b"VP8X", b"\2\0\0\0" + size) + chunk(b"ANIM", bytes(6)) + chunk(
        b"ANMF", bytes(6) + small + bytes(4) + frame)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("data, reason", [
    (jpeg_header(65_000, 65_000), "image has too many pixels"),
    (gif_header(20_000, 20_000), "image has too many pixels"),
    (webp_header(12_000), "image has too many pixels"),
    (webp_header(16_383), "image has too many pixels"),
    (png_header(13_000, 13_000), "image has too many pixels"),
    (png_header(20_000, 20_000), "image has too many pixels"),
    (png_header(100, 100, text=b"x" * 80_000_000), "image truncated or damaged"),
    (png_header(100, 100, text=b"x" * 999_999, copies=80), "image truncated or damaged"),
    (png_header(1, 1), "image too small"),
    (png_header(8, 20_000), "image too long and thin"),
    (b"\xff\xd8" + b"\x00" * (33 << 20), "image has too many bytes"),
], ids=["JPEG", "GIF", "WebP", "WebP 268 Mpx", "169 Mpx", "400 Mpx",
        "80 MB of text", "80 times 1 MB", "1 x 1", "1 x 2500", "33 MB"])
def test_bombs_are_refused_from_the_header(data, reason):
    with pytest.raises(ImageError):
        check_header(data, ImageSpec())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ImageError) as e:
        decode_image(data, ImageSpec(size=8))
    assert e.value.reason == reason
    assert time.process_time() - start < (0.5 if len(data) > 70_000 else 0.1)       # Pillow reads 64 MB of text at most
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10       # KiB


@pytest.mark.quick
def test_a_header_is_read_without_decoding(monkeypatch):
    data = encode(smooth(480, 640), "JPEG")
    monkeypatch.setattr(pil.Image, "load", None)
    for good in (data, data[:2000]):                                        # a cut file shows itself only later
        assert check_header(good, ImageSpec()) == ("JPEG", 640, 480, False)
    start = time.perf_counter()
    for _ in range(100):
        check_header(data, ImageSpec())
    assert time.perf_counter() - start < 0.1                                # 1 ms each; it takes 0.05 ms
    with pytest.raises(ImageError, match="too many pixels: 640 x 480"):
        check_header(data, ImageSpec(max_pixels=640 * 480 - 1))


@pytest.mark.parametrize("options", [
    {}, dict(progressive=True), dict(exif=b"Exif\0\0" + bytes(60_000)), dict(comment=b"x"),
    dict(quality=100, subsampling=0, optimize=True), dict(icc_profile=bytes(200_000))])
def test_the_header_of_a_jpeg_is_what_pillow_says(options):
    for shape in ((4, 7), (300, 200)):
        data = encode(smooth(*shape), "JPEG", **options)
        assert check_header(data, ImageSpec())[:3] == ("JPEG", *pil.open(io.BytesIO(data)).size)
    grey = encode(smooth(40, 30), "JPEG", mode="L")
    assert check_header(grey, ImageSpec())[1:3] == (30, 40)
    filled = data[:2] + b"\xff" * 3 + data[2:]                              # fill bytes are legal before a marker
    assert check_header(filled, ImageSpec())[1:3] == (200, 300)


def test_the_middle_of_a_larger_square():
    pixels = RNG.integers(0, 256, (12, 24, 3), np.uint8)
    squashed = decode_image(encode(pixels), ImageSpec(size=12, resize="box"))
    got = decode_image(encode(pixels), ImageSpec(size=8, resize_to=12, resize="box"))
    np.testing.assert_array_equal(got, squashed[2:10, 2:10])
    crop = decode_image(encode(pixels), ImageSpec(size=8, resize_to=12, policy="center_crop"))
    np.testing.assert_array_equal(crop, pixels[2:10, 8:16])
    for wrong in (dict(resize_to=7), dict(resize_to=9, policy="pad"), dict(draft=0.5)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ImageSpec(size=8, **wrong)


def test_frames_of_videos_and_images():
    shades = [encode(np.full((8, 8, 3), v, np.uint8)) for v in range(0, 100, 10)]
    got = decode_visuals([Video(tuple(shades)), Image(shades[5])], ImageSpec(size=8), frames=4)
    assert got.shape == (2, 4, 8, 8, 3) and got.dtype == np.uint8
    assert got[:, :, 0, 0, 0].tolist() == [[0, 30, 60, 90], [50] * 4]
    assert sample_frames(2, 4).tolist() == [0, 0, 1, 1] and sample_frames(9, 1).tolist() == [4]
    assert decode_visuals([], ImageSpec(size=8), frames=2).shape == (0, 2, 8, 8, 3)
    with pytest.raises(ImageError, match="not a JPEG"):
        decode_visuals([Video((shades[0], b"no"))], ImageSpec(size=8), frames=2)


@pytest.mark.parametrize("field, value, known", [("resize", "area", "lanczos"), ("policy", "stretch", "squash")])
def test_unknown_options_list_the_known(field, value, known):
    with pytest.raises(ValueError, match=f"{field}='{value}' is unknown; known: .*{known}"):
        ImageSpec(**{field: value})
    with pytest.raises(ValueError, match="size=0"):
        ImageSpec(size=0)
