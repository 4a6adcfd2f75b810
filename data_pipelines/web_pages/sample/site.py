"""The pages of a made-up web, and the truth about each: what the pipeline must do with it.

Numbers decide everything: page i is the same whichever other pages are made.
"""

import dataclasses
import io

import numpy as np
import PIL.Image

from data_pipelines.web_pages.sample import forms
from data_pipelines.web_pages.sample.languages import LANGUAGES
from mmjax.data.first_light import scenes, sources

# What page i is, by i modulo the length. The truth of each kind is the outcome in KINDS.
CYCLE = ("article", "article", "single", "de", "article", "fr", "seven", "single", "es", "article", "it", "copy",
         "article", "menu", "single", "de", "article", "missing", "bad images", "fr", "article", "short", "not found",
         "article", "es", "it", "article", "refetched", "repeats", "single", "file", "blocked", "article", "deep",
         "seven", "article", "de", "copy", "article", "fr")
KINDS = {
    "article": "kept", "seven": "kept", "single": "one image", "copy": "near duplicate", "refetched": "kept",
    "de": "language", "fr": "language", "es": "language", "it": "language",
    "menu": "no main text", "missing": "no usable image", "bad images": "no usable image", "short": "too few words",
    "not found": "status is not 200", "repeats": "repeats itself", "file": "not HTML", "blocked": "address blocked",
    "deep": "unsound markup",
}
# What the server says, what it is, what the page says; the fourth is a lie.
ENCODINGS = (("text/html; charset=UTF-8", "utf-8", ""), ("text/html; charset=ISO-8859-1", "latin-1", ""),
             ("text/html", "windows-1252", "windows-1252"), ("text/html; charset=ISO-8859-1", "utf-8", ""),
             ("text/html", "utf-8", ""), ("text/html; charset=utf-16", "utf-16", ""))
SEAL = "http://pages.example/img/seal.png"              # on every third article, so on too many
BLOCKED_HOST = "blocked.example"
NEW, OLD = "2020-06-02T00:00:00Z", "2020-06-01T00:00:00Z"


@dataclasses.dataclass(frozen=True)
class Fetch:
    """One answer of a server."""

    url: str
    content_type: str
    body: bytes
    date: str = NEW
    status: int = 200


@dataclasses.dataclass(frozen=True)
class Page:
    """A page, the images fetched for it, and the truth.

    Attributes:
        kind: one of KINDS.
        fetches: the page itself first, then what belongs to it.
        parts: what a document of it must hold, in order; images by address.
        copy_of: the address of the page of which it is a near duplicate.
    """

    kind: str
    fetches: tuple[Fetch, ...]
    parts: tuple[forms.Part, ...]
    copy_of: str = ""


def make_page(i: int) -> Page:
    """Page i, uint64 numbers from 0."""
    kind = CYCLE[i % len(CYCLE)]
    if kind == "copy":          # of the article eleven pages before, with one word changed
        return _copy(i)
    rng = np.random.default_rng([1791, i])
    host = f"sub.{BLOCKED_HOST}" if kind == "blocked" else "pages.example"
    url = f"http://{host}/{kind.replace(' ', '-')}/{i}.html"
    language = kind if kind in LANGUAGES else "en"
    parts, images = _parts(kind, i, rng)
    body, kept = _body(kind, parts, language, url, i, rng)
    fetches = [Fetch(url, *body, status=404 if kind == "not found" else 200), *images]
    if kind == "refetched":
        text = " ".join(LANGUAGES["en"].sentence(rng) for _ in range(20))
        fetches.append(Fetch(url, "text/html", f"<p>{text}</p>".encode(), date=OLD))
    return Page(kind, tuple(fetches), kept)


def make_seal() -> Fetch:
    """The image that is on too many pages."""
    return Fetch(SEAL, "image/png", _png(scenes.draw(scenes.random_scene(np.random.default_rng(7)), 96)))


def make_picture(rng: np.random.Generator) -> tuple[str, bytes]:
    """(suffix, bytes) of a drawing or a piece of a photograph."""
    if rng.random() < 0.4:
        return "png", _png(scenes.draw(scenes.random_scene(rng), int(rng.integers(96, 200))))
    pixels = sources.load_photographs()[rng.integers(2)]
    w, h = rng.integers(160, 320, 2)
    left, top = rng.integers(0, 640 - w), rng.integers(0, 427 - h)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[top:top + h, left:left + w]).save(file, "JPEG", quality=85)
    return "jpg", file.getvalue()


def _parts(kind: str, i: int, rng: np.random.Generator) -> tuple[list[forms.Part], list[Fetch]]:
    """Text and images in order, and the fetches of the images."""
    counts = {"single": 1, "seven": 7, "missing": 2, "bad images": 6}
    number = counts.get(kind, int(rng.integers(2, 5)))
    language = LANGUAGES[kind if kind in LANGUAGES else "en"]
    texts = [" ".join(language.sentence(rng) for _ in range(rng.integers(3, 7))) for _ in range(number + 2)]
    texts[0] += f" The naïve café has number {i}."
    if kind == "short":
        texts = ["Very few words."] * (number + 1)
    if kind == "repeats":
        texts = [f"{texts[0].partition('.')[0]}." * 4] * (number + 1)
    urls, fetches = [], []
    for k in range(number):
        url = f"http://{'cdn' if k % 2 else 'pages'}.example/img/{i}-{k}"
        suffix, data = _bad_image(k, rng) if kind == "bad images" else make_picture(rng)
        urls.append(f"{url}.{suffix}?v={i}")
        if kind != "missing":
            fetches.append(Fetch(urls[-1], f"image/{'jpeg' if suffix == 'jpg' else suffix}", data))
    if kind == "article" and i % 3 == 0:
        urls.insert(1, SEAL)
    parts = [("text", texts[0])]
    for k, url in enumerate(urls):
        parts += [("image", url), ("text", texts[(k + 1) % len(texts)])]
    return parts, fetches


def _body(kind: str, parts: list[forms.Part], language: str, url: str, i: int, rng: np.random.Generator
          ) -> tuple[tuple[str, bytes], tuple[forms.Part, ...]]:
    """((content type, bytes), parts of the document)."""
    if kind == "file":
        return ("application/pdf", b"%PDF-1.4 " + rng.bytes(500)), ()
    kept = [p for p in parts if p[1] != SEAL]
    images = [p for p in kept if p[0] == "image"]
    kept = tuple(p for p in kept if p[0] == "text" or p in images[:5])
    if kind == "menu":
        parts = []
    header, charset, meta = ENCODINGS[i % len(ENCODINGS)]
    menu = LANGUAGES[language].menu
    text = forms.page(f"{menu[0]} {i}", parts, menu, language, url, i // len(CYCLE) + i, meta)
    if kind == "deep":
        text = text.replace("<body>", "<body>" + "<div>" * 3000)
    return (header, text.encode(charset, "xmlcharrefreplace")), kept


def _copy(i: int) -> Page:
    original = make_page(i - 11)
    assert original.kind == "article", original.kind
    fetch = original.fetches[0]
    url = fetch.url.replace("/article/", "/copy/")
    header = fetch.content_type
    charset = "utf-16" if "utf-16" in header else "latin-1"      # one byte a character is enough to put a word in
    body = fetch.body.decode(charset).replace("The na", "That na", 1).encode(charset)
    first, *rest = original.parts
    return Page("copy", (Fetch(url, header, body),), (("text", first[1].replace("The na", "That na", 1)), *rest),
                fetch.url)


def _bad_image(k: int, rng: np.random.Generator) -> tuple[str, bytes]:
    """Images of no use: tiny, a banner, of one colour, cut, not an image, empty."""
    if k == 0:
        return "png", _png(PIL.Image.effect_noise((40, 40), 80))
    if k == 1:
        return "png", _png(PIL.Image.effect_noise((640, 80), 80))
    if k == 2:
        return "png", _png(PIL.Image.new("RGB", (200, 200), tuple(rng.integers(0, 255, 3).tolist())))
    if k == 3:
        return "png", _png(scenes.draw(scenes.random_scene(rng), 128))[:-400]
    return "jpg", b"<html>gone</html>" if k == 4 else b""


def _png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
