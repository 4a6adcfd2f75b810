"""A page's HTML to its main text with the images where they stand in it.

Images are marked in the markup before boilerplate is removed, so that what remains is text and images in the order of
the page, and an image in a menu goes with the menu.
"""

import dataclasses
import re
import urllib.parse
from collections import Counter

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from resiliparse.parse.html import HTMLTree
from selectolax.lexbor import LexborHTMLParser, LexborNode

MAX_DEPTH = 256             # the time to extract text grows with the square of the depth; browsers stop at 512
MAX_IMAGES = 2_000
_TOO_DEEP = " > ".join(["*"] * MAX_DEPTH)
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"      # noncharacters: no sound page has them
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_STRAY = re.compile("[\ufdd0\ufdd1\x00]")
_BLANK = re.compile(r"[ \t\u00a0]*\n\s*")
_LAZY = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-url", "data-image")
_LAZY_SETS = ("srcset", "data-srcset", "data-lazy-srcset")
_CANDIDATE = re.compile(r"(\S*[^\s,])(?:\s+([\d.]+)([wx]))?\s*(?:,|$)")


class PageError(ValueError):
    """A page cannot be used; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Page:
    """Text and images of a page in order.

    Attributes:
        segments: str for text, int for an image: its index in `images`.
        images: absolute http(s) addresses, each once.
    """

    segments: tuple[str | int, ...]
    images: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(s for s in self.segments if isinstance(s, str))


def decode(body: bytes, charset: str | None = None) -> str:
    """Bytes of a page to text; what the page says of its encoding is believed only if it is not plainly UTF-8."""
    if not body.isascii():
        try:
            return body.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
    for encoding in (charset, detect_encoding(body, from_html_meta=True), "windows-1252"):
        try:
            text = bytes_to_str(body, encoding, errors="replace") if encoding else ""
        except (LookupError, ValueError):
            continue
        if text:
            return text.encode("utf-8", "replace").decode()     # without lone surrogates
    return ""


def read_page(html: str, url: str, counts: Counter[str]) -> Page:
    """Main text and images of a page, in order.

    Args:
        html: decoded.
        url: of the page; image addresses are relative to it, or to its <base>.
        counts: counts images without a usable address by reason.

    Raises:
        PageError: if the markup nests too deep.
    """
    html = _STRAY.sub("", html)
    # Linear in the size, unlike what follows.
    if HTMLTree.parse(html).document.query_selector(_TOO_DEEP) is not None:
        raise PageError("markup nests too deep")
    tree = LexborHTMLParser(html)
    base = tree.css_first("base[href]")
    base = _absolute(base.attributes.get("href") or "", url) if base is not None else None
    addresses: list[str | None] = []
    for node in tree.css("img")[:MAX_IMAGES]:
        node.attrs["alt"] = f"{_OPEN}{len(addresses)}{_CLOSE}"
        addresses.append(address(node, base or url))
    text = extract_plain_text(tree.html or "", main_content=True, alt_texts=True, list_bullets=False)
    return _assemble(text, addresses, counts)


def address(node: LexborNode, base: str) -> str | None:
    """Where an <img> really comes from: lazy attributes first, then the widest of srcset and <picture>, then src.

    Returns:
        An absolute http or https address, or None.
    """
    given = node.attributes
    found = [given.get(name) for name in _LAZY]
    found += [widest(given.get(name) or "") for name in _LAZY_SETS]
    if node.parent is not None and node.parent.tag == "picture":
        found += [widest(s.attributes.get(name) or "") for s in node.parent.css("source") for name in _LAZY_SETS]
    found += [given.get("src"), _noscript(node)]
    return next((a for f in found if f and (a := _absolute(f, base))), None)


def widest(srcset: str) -> str:
    """The address with the largest width or density of a srcset, the first if several have it; "" if there is none."""
    candidates = [(float(size or 1) if (size or "1").count(".") < 2 else 0.0, a)
                  for a, size, _ in _CANDIDATE.findall(srcset)]
    return max(candidates, key=lambda c: c[0], default=(0.0, ""))[1]


def _noscript(node: LexborNode) -> str | None:
    """The address in a <noscript> right behind a lazy image, as many scripts leave it."""
    follower = node.next
    while follower is not None and follower.tag == "-text" and not (follower.text() or "").strip():
        follower = follower.next
    if follower is None or follower.tag != "noscript":
        return None
    inner = LexborHTMLParser(follower.inner_html or follower.text() or "").css_first("img[src]")
    return inner.attributes.get("src") if inner is not None else None


def _absolute(address: str, base: str) -> str | None:
    try:
        url = urllib.parse.urlsplit(urllib.parse.urljoin(base, address.strip()))
        url.port  # noqa: B018 - raises if it is no number
        whole = url._replace(fragment="").geturl()
        whole.encode()
    except ValueError:
        return None
    return whole if url.scheme in ("http", "https") and url.hostname and len(whole) <= 2048 else None


def _assemble(text: str, addresses: list[str | None], counts: Counter[str]) -> Page:
    segments, images, seen = [], {}, set()
    for i, piece in enumerate(_MARK.split(text)):
        if i % 2 == 0:
            if piece := _BLANK.sub("\n", _STRAY.sub("", piece)).strip():
                segments.append(piece)
        elif (k := int(piece[:9])) < len(addresses) and k not in seen:     # page text can spell marks; each counts once
            seen.add(k)
            counts["on the page, outside boilerplate"] += 1
            if addresses[k] is None:
                counts["no usable address"] += 1
            else:
                segments.append(images.setdefault(addresses[k], len(images)))
    counts["in boilerplate"] += len(addresses) - len(seen)
    return Page(tuple(segments), tuple(images))
